"""A visitor's conversations with models side by side, without a browser or gradio."""

import struct
import zlib
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from threading import Event

import pytest

from llava.anyres import TilingConfig
from llava.chat.page.fragments import notice_html, pictures_html, weights_html
from llava.chat.page.visit import Model, Visit, open_picture
from llava.chat.session import Session
from llava.chat.settings import Settings
from llava.chat.weights_chart import ManagerWeights
from llava.constants import FILE_LIMITS
from llava.engine.engine import Engine
from llava.errors import LlavaError

BRIEF = Settings(max_new_tokens=6)


@pytest.fixture(scope="module")
def models(engine, make_model, make_processor):
    """The tiny model, and one without managers whose pictures are one crop."""
    square = TilingConfig()
    other = Engine(make_model(square, None, initializer_range=0.2), make_processor(square))
    return [Model("left", engine), Model("right", other)]


@pytest.fixture
def page(tmp_path, make_image):
    path = tmp_path / "<b>page.png"
    make_image(120, 90).save(path)
    return path


def ask(visit: Visit, question: str, files=(), settings=BRIEF) -> list[str]:
    list(visit.ask(question, files, settings))
    return [reply.error or reply.text for reply in visit.turns[-1].replies]


def by_session(model: Model, *talk: tuple[str, list[Path]]) -> list[str]:
    """What a conversation of the model's own gives."""
    session, answers = Session(model.engine, BRIEF), []
    for question, files in talk:
        session.waiting = [open_picture(file) for file in files]
        answers.append(session.ask(question, lambda piece: None).answer)
    return answers


def test_both_models_answer_as_each_would_alone(models, page):
    visit = Visit(models)
    first = ask(visit, "What is in the picture?", [page])
    again = ask(visit, "A red car.", [page])
    talk = [("What is in the picture?", [page]), ("A red car.", [page])]
    left, right = (by_session(model, *talk) for model in models)
    assert [first, again] == [list(both) for both in zip(left, right)]
    assert len(visit.pictures) == 2
    assert [len(seat.weights) for seat in visit.seats] == [3, 0]
    visit.reset()
    assert (visit.turns, visit.pictures, [seat.weights for seat in visit.seats]) == ([], [], [None, None])
    assert ask(visit, "What is in the picture?", [page]) == first


def test_a_copy_is_another_visitors_and_knows_nothing(models, page):
    visit = Visit(models)
    ask(visit, "What is in the picture?", [page])
    other = deepcopy(visit)
    assert other.turns == []
    assert [seat.session.exchanges for seat in other.seats] == [[], []]
    assert [seat.model for seat in other.seats] == models
    assert ask(other, "A red car.") == [by_session(model, ("A red car.", []))[0] for model in models]


@pytest.mark.parametrize("bad", ["blank", "text", "huge", "many", "long"])
def test_what_cannot_be_asked_is_a_sentence_and_the_conversation_goes_on(bad, models, page, tmp_path):
    visit = Visit(models)
    other = tmp_path / "other.png"
    other.write_bytes(b"no picture")
    wide = tmp_path / "wide.png"
    head = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunks = [head, b"IDAT" + zlib.compress(b""), b"IEND"]
    parts = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    wide.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    question, files, sentence = {
        "blank": (" \n", [page], "no question"),
        "text": ("What?", [page, other], "other.png is not an image"),
        "huge": ("What?", [wide], "wide.png is refused: .*400000000 pixels"),
        "many": ("What?", [page] * 50, "50 pictures came with the question; at most 16"),
        "long": ("What? " * 2000, [page], "tokens, but the model reads at most 2048"),
    }[bad]
    if bad == "long":
        assert all(sentence in answer for answer in ask(visit, question, files))
    else:
        with pytest.raises(LlavaError, match=sentence):
            ask(visit, question, files)
        assert visit.turns == []
    assert visit.pictures == []
    answers = ask(visit, "A red car.")
    assert answers == [by_session(model, ("A red car.", []))[0] for model in models]


def test_a_file_of_too_many_bytes_is_not_read(models, page, monkeypatch):
    monkeypatch.setitem(FILE_LIMITS, "image", 1000)
    with pytest.raises(LlavaError, match=r"MiB; at most 0\.000953674 are read"):
        ask(Visit(models), "What?", [page])


def test_stopping_keeps_what_has_come(models, page):
    visit = Visit(models[:1])
    news = visit.ask("What is in the picture?", [page], Settings(max_new_tokens=1500))
    for _ in news:
        if visit.turns[0].replies[0].text:
            break
    visit.stop()
    list(news)
    (exchange,) = visit.seats[0].session.exchanges
    assert exchange.stopped
    assert exchange.answer
    assert visit.turns[0].replies[0].text == f"{exchange.answer} (stopped)"
    assert 0 < exchange.usage.answer < 1000


def test_the_end_of_the_page_ends_answers(models, page):
    visit = Visit(models)
    next(visit.ask("What is in the picture?", [page], Settings(max_new_tokens=1500)))
    for model in models:
        model.end_answers()
    assert all(
        reply.error == "stopped before an answer came" or "(stopped)" in reply.text for reply in visit.turns[0].replies
    )


def test_stopping_before_an_answer_has_come_leaves_no_turn(engine):
    session, stopped = Session(engine, BRIEF), Event()
    stopped.set()
    with pytest.raises(LlavaError, match="stopped before an answer came"):
        session.ask("A red car.", lambda piece: None, stopped)
    assert session.exchanges == []


def test_a_model_that_fails_says_so_and_the_other_answers(models, page, monkeypatch):
    visit = Visit(models)

    def fail(*args, **options):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(visit.seats[0].session, "ask", fail)
    left, right = ask(visit, "What?", [page])
    assert left == "the model failed: out of\\nmemory"
    assert right == by_session(models[1], ("What?", [page]))[0]
    assert len(visit.pictures) == 1


class Tags(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def test_pictures_are_shown_once_for_each_way_of_cutting_them(models, page):
    visit = Visit(models)
    ask(visit, "What?", [page])
    shown = Tags(pictures_html(visit))
    assert shown.texts == [
        "1. <b>page.png: 120x90: 6 tiles and the whole (left)",
        "1. <b>page.png: 120x90: one crop (right)",
    ]
    assert [attrs["src"][:23] for tag, attrs in shown.tags if tag == "img"] == ["data:image/jpeg;base64,"] * 2
    ask(visit, "What?", [page])  # several pictures are not tiled
    assert [text.rpartition(": ")[2] for text in Tags(pictures_html(visit)).texts] == ["one crop"] * 2


def test_bars_have_one_scale():
    weights = [
        ManagerWeights(0, "static", (3, 4), [0.5, 0.25], [0.1, 0.1]),
        ManagerWeights(2, "adaptive", (3,), [0.125], [0.1]),
        ManagerWeights(4, "adaptive", (3,), None, None),
    ]
    shown = Tags(weights_html(weights))
    assert [attrs["style"] for tag, attrs in shown.tags if tag == "i"] == [
        "width:100.0%",
        "width:50.0%",
        "width:25.0%",
    ]
    assert "decides when it sees a picture" in shown.texts
    assert {"layer 0, static", "V3", "0.500", "layer 4, adaptive"} <= set(shown.texts)
    assert Tags(weights_html([])).texts == ["This model has no managers."]


def test_a_sentence_is_escaped():
    assert Tags(notice_html("<script>alert(1)</script>")).texts == ["<script>alert(1)</script>"]
    assert notice_html("") == ""
