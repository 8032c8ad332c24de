"""Conversations written and read again: as they go, at once, edited, cut off, with images that changed."""

import json
import os

import pytest

from llava.chat.commands import obey
from llava.chat.log import LogWriter, load
from llava.errors import LlavaError


def turns(chat) -> list[tuple]:
    return [
        (exchange.question, exchange.answer, [medium.sha256 for medium in exchange.media])
        for exchange in chat.session.exchanges
    ]


@pytest.fixture
def talked(make_chat, page, tmp_path):
    """A chat with an image at its second turn, logged to talk.jsonl as it went, with everything that can happen."""
    chat = make_chat()
    chat.session.record = LogWriter(tmp_path / "talk.jsonl", chat.model, chat.session, goes_on=False)
    for line in (
        "Forgotten",
        "/reset",
        "Hello",
        f"'{page}' What is it?",
        "/system Be brief.",
        "/set temperature=0.5 max_new_tokens=5",
        "/retry",
        "Taken back",
        "/undo",
    ):
        obey(chat, line)
    return chat


@pytest.mark.parametrize("name", ["talk.jsonl", "saved.jsonl", "saved.json"])
def test_a_conversation_read_again_goes_on_alike(talked, make_chat, tmp_path, capsys, name):
    if name.startswith("saved"):
        obey(talked, f"/save {tmp_path / name}")
        assert capsys.readouterr().err.endswith(f"{name}: 2 turns saved\n")
    capsys.readouterr()
    other = make_chat()
    obey(other, f"/load {tmp_path / name}")
    assert turns(other) == turns(talked) != []
    assert (other.session.system, other.session.settings) == ("Be brief.", talked.session.settings)
    shown = capsys.readouterr()
    assert "> Hello\n" in shown.err
    assert talked.session.exchanges[0].answer in shown.out
    for chat in (other, talked):
        obey(chat, "/set temperature=0")
        obey(chat, "And?")
    assert turns(other) == turns(talked)


@pytest.mark.parametrize("name", ["talk.jsonl", "saved.json"])
def test_a_log_that_an_editor_saved_with_a_byte_order_mark(talked, make_chat, tmp_path, name):
    obey(talked, f"/save {tmp_path}/saved.json")
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    other = make_chat()
    obey(other, f"/load {tmp_path / name}")
    assert turns(other) == turns(talked) != []


def test_a_log_is_json_lines_with_paths_and_hashes(talked, tmp_path, page):
    lines = (tmp_path / "talk.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    kinds = ["start", "answer", "reset", "answer", "answer", "system", "set", "retry", "answer", "undo"]
    assert [event["event"] for event in events] == kinds
    assert events[0]["model"] == "tiny"
    (image,) = events[4]["images"]
    assert image == {"path": str(page), "sha256": talked.session.exchanges[1].media[0].sha256, "source": str(page)}
    assert events[4]["tokens"]["visual"] > 0


def test_a_log_goes_on_behind_a_half_written_line(talked, make_chat, tmp_path, capsys):
    path = tmp_path / "talk.jsonl"
    with open(path, "a") as file:
        file.write('{"event": "answer", "quest')
    other = make_chat()
    obey(other, f"/load {path}")
    assert "the last line is half-written and is left out" in capsys.readouterr().err
    other.session.record = LogWriter(path, "tiny", other.session, goes_on=True)
    obey(other, "And?")
    third = make_chat()
    obey(third, f"/load {path}")
    assert turns(third) == turns(other)
    third.session.record = LogWriter(tmp_path / "third.jsonl", "tiny", third.session, goes_on=False)
    obey(third, f"/load {path}")
    assert turns(third) == turns(other)
    fourth = make_chat()
    obey(fourth, f"/load {tmp_path}/third.jsonl")
    assert (turns(fourth), fourth.session.system) == (turns(other), "Be brief.")


def test_images_from_the_web_are_copied_beside_the_log(make_chat, web, page, tmp_path):
    web.answers["/page.png"] = (200, {}, page.read_bytes())
    chat = make_chat()
    obey(chat, f"What is {web.url}/page.png?")
    (tmp_path / "here").mkdir()
    obey(chat, f"/save {tmp_path}/here/talk.json")
    os.rename(tmp_path / "here", tmp_path / "there")
    other, requests = make_chat(), len(web.requests)
    obey(other, f"/load {tmp_path}/there/talk.json")
    assert turns(other) == turns(chat)
    assert other.session.exchanges[0].media[0].source == f"{web.url}/page.png"
    assert len(web.requests) == requests


def test_a_video_is_seen_as_it_was(make_chat, make_clip, tmp_path):
    pytest.importorskip("decord")
    chat = make_chat()
    obey(chat, f"/video {make_clip(40, fps=8)}")
    obey(chat, "What?")
    obey(chat, f"/save {tmp_path}/talk.jsonl")
    other = make_chat()
    other.media.sampling = None  # what this chat would choose does not matter
    obey(other, f"/load {tmp_path}/talk.jsonl")
    assert len(other.session.exchanges[0].media[0].content) == 4
    assert turns(other) == turns(chat)


def test_what_cannot_be_read_is_named_and_the_conversation_stays(talked, make_chat, tmp_path, page, make_image):
    path, bad = tmp_path / "talk.jsonl", tmp_path / "bad.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    chat = make_chat()
    obey(chat, "Stay")
    before = turns(chat)

    def refused(name=bad) -> str:
        with pytest.raises(LlavaError) as caught:
            obey(chat, f"/load {name}")
        assert turns(chat) == before
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for text, message in {
        "": "is no log of llava chat",
        "[1, 2]": "is no log of llava chat",
        "{}": "is no log of llava chat",
        "no JSON\n": "bad.jsonl, line 1: not JSON",
        lines[0].replace('"version": 1', '"version": 2'): "has version 2 of this format; version 1 is read",
        lines[0] + '{"event": "undo"}\n': "event 2: undo without a turn",
        lines[0] + '{"event": "dance"}\n': "event 2: unknown event 'dance'",
        lines[0] + '{"event": "set", "settings": {"warmth": 1}}\n': "event 2: no setting: 'warmth': 1",
        lines[0] + '{"event": "answer", "question": 3}\n': "event 2: 'images' must be of type list, found None",
        lines[0] + lines[3].replace('"Hello"', '"Hello <image>"'): "event 2: found 1 <image> in the question but 0 new",
    }.items():
        bad.write_text(text)
        assert message in refused()
    bad.write_bytes(b"\xff\xfe")
    assert "cannot be read: it is no text" in refused()
    assert refused(tmp_path / "nowhere.jsonl").endswith("nowhere.jsonl does not exist")
    for name in ("/dev/zero", tmp_path):
        assert refused(name) == f"{name} is no regular file"
    make_image(121, 90).save(page)
    assert f"event 8: image {page} has changed: its sha256 is " in refused(path)
    page.unlink()
    assert f"event 8: image {page} does not exist" in refused(path)


def test_what_cannot_be_written_is_named_and_nothing_is_overwritten(talked, make_chat, tmp_path, monkeypatch):
    path = tmp_path / "mine.txt"
    path.write_text("precious")
    with pytest.raises(LlavaError, match=r"mine.txt exists; name another file"):
        obey(talked, f"/save {path}")
    with pytest.raises(LlavaError, match=r"the log .*mine.txt exists; go on with it by --load"):
        LogWriter(path, "tiny", talked.session, goes_on=False)
    assert path.read_text() == "precious"
    with pytest.raises(LlavaError, match="cannot be written: No such file or directory"):
        obey(talked, f"/save {tmp_path}/no/folder.json")
    obey(talked, f"/save {tmp_path}/twice.json")
    obey(talked, f"/save {tmp_path}/twice.json")
    with pytest.raises(LlavaError, match=r"twice.json is one JSON document, nothing can be added"):
        LogWriter(tmp_path / "twice.json", "tiny", talked.session, goes_on=True)
    assert load(tmp_path / "twice.json", talked.media).exchanges
    talked.session.record.path = tmp_path / "no" / "folder.jsonl"
    count = len(talked.session.exchanges)
    with pytest.raises(LlavaError, match=r"the log .* cannot be written"):
        obey(talked, "Hello")
    assert len(talked.session.exchanges) == count + 1, "the answer is not lost"


def test_an_interrupted_answer_is_logged(make_chat, tmp_path, monkeypatch):
    chat = make_chat()
    chat.session.record = LogWriter(tmp_path / "talk.jsonl", "tiny", chat.session, goes_on=False)

    def stream(*args, **options):
        yield "half"
        raise KeyboardInterrupt

    monkeypatch.setattr(chat.session.engine, "stream", stream)
    with pytest.raises(KeyboardInterrupt):
        obey(chat, "Hello")
    (exchange,) = load(tmp_path / "talk.jsonl", chat.media).exchanges
    assert (exchange.answer, exchange.stopped) == ("half", True)


def test_what_is_saved_to_be_read(talked, tmp_path, page):
    answers = [exchange.answer for exchange in talked.session.exchanges]
    for name in ("talk.txt", "talk.md"):
        obey(talked, f"/save {tmp_path / name}")
        assert (tmp_path / name).read_text() == (
            "A conversation with tiny\n\nSystem message: Be brief.\n\n"
            f"> Hello\n\n{answers[0] or '(the model gave an empty answer)'}\n\n"
            f"> {page}: 120x90\n> What is it?\n\n{answers[1] or '(the model gave an empty answer)'}\n"
        )
        with pytest.raises(LlavaError, match=r"is no log of llava chat; of what /save writes, .jsonl and .json are"):
            obey(talked, f"/load {tmp_path / name}")
    for name in ("talk", "talk.doc", "talk.pdf"):
        with pytest.raises(LlavaError, match=rf"{name} must end in .jsonl or .json, to be loaded again, or in .txt or"):
            obey(talked, f"/save {tmp_path / name}")
        assert not (tmp_path / name).exists()
