"""The page in a real headless browser, two models side by side: what a visitor does, and that nothing leaves here."""

import os
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from llava.chat.exchange import EMPTY
from llava.chat.page.serve import serve
from llava.chat.page.visit import Model, open_picture
from llava.chat.session import Session
from llava.chat.settings import Settings
from llava.engine.engine import Engine
from tests.browser import needs_browser, open_browser

pytestmark = [
    needs_browser,
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),  # of gradio's queue
]
expect.set_options(timeout=60_000)
HOSTILE = "![x](https://example.com/a.png) <img src=https://example.com/b.png onerror=alert(1)>"


class Tab:
    """A visitor's tab, and what a visitor does there."""

    def __init__(self, page):
        self.page = page
        self.chats = [page.locator(f"#chat-{number}") for number in (1, 2)]

    def ask(self, question: str, *files) -> None:
        self.page.locator("#question textarea").fill(question)
        if files:
            self.page.locator("#question input[type=file]").set_input_files(files)
            expect(self.page.locator("#question .thumbnail-item, #question .thumbnail-small")).to_have_count(len(files))
        self.page.locator("#question .submit-button").click()

    def expect_answers(self, *answers: str) -> None:
        """Waits until both models have given these answers, whole, and no others."""
        for chat in self.chats:
            expect(chat.locator(".bot.message")).to_have_text(list(answers))

    def click(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()


def alone(engine, *talk: tuple) -> list[str]:
    """What a conversation of its own answers to questions, each with its pictures."""
    session, answers = Session(engine, Settings(max_new_tokens=24)), []
    for question, *files in talk:
        session.waiting = [open_picture(file) for file in files]
        answers.append(session.ask(question, lambda piece: None).answer or EMPTY)
    return answers


def test_a_visit(engine, tiny_model_dir, tmp_path, make_image):
    models = [Model("left", engine), Model("right", Engine.from_pretrained(tiny_model_dir, device="cpu"))]
    for number in range(2):
        make_image(120, 90, seed=number).save(tmp_path / f"{number}.png")
    pictures = [tmp_path / "0.png", tmp_path / "1.png"]
    (tmp_path / "fake.png").write_bytes(b"no picture")
    answers = alone(engine, ("What is in the picture?", pictures[0]), ("A red car.", pictures[1]))
    hostile_answer = alone(engine, (HOSTILE,))
    said, asked_for = [], []
    with serve(models, "127.0.0.1", None, max_new_tokens=24) as url, open_browser() as browser:
        context = browser.new_context(viewport={"width": 1300, "height": 900})
        context.set_default_timeout(60_000)
        context.on("request", lambda request: asked_for.append(request.url))
        context.on("dialog", lambda dialog: said.append(dialog.message))
        context.on("weberror", lambda error: said.append(str(error.error)))
        first, second = (Tab(context.new_page()) for _ in range(2))
        for tab in (first, second):
            assert tab.page.goto(url).headers["content-security-policy"].startswith("default-src 'self'")
        assert first.page.evaluate("window.gradio_config.analytics_enabled") is False
        assert urlsplit(url).hostname == "127.0.0.1"
        uploads = Path(os.environ["GRADIO_TEMP_DIR"])

        first.ask("What is in the picture?", pictures[0])
        second.ask(HOSTILE)  # while the first waits for its answer, or is answered
        first.expect_answers(answers[0])
        expect(first.page.locator("#managers-2 .managers table")).to_have_count(3)
        expect(first.page.locator("#managers-1 .bar i").first).to_be_visible()
        expect(first.page.locator("#pictures figcaption")).to_contain_text("120x90: 6 tiles and the whole")
        assert first.page.locator("#pictures img").evaluate("image => image.complete && image.naturalWidth") == 360
        assert list(uploads.glob("**/*.png")) == []

        second.expect_answers(*hostile_answer)
        expect(second.chats[0].locator(".user.message")).to_have_text(HOSTILE)
        assert second.page.locator("#pictures img, #chat-1 .message img").count() == 0

        first.ask("A red car.", pictures[1])  # a follow-up, and there are several pictures now
        first.expect_answers(*answers)
        expect(first.page.locator("#pictures figcaption").last).to_contain_text("one crop")
        first.ask("0123456789 " * 400)
        expect(first.chats[1].locator(".bot.message").last).to_contain_text("but the model reads at most 2048")
        for question, file, sentence in (
            ("", None, "no question"),
            ("What?", tmp_path / "fake.png", "fake.png is not an image"),
        ):
            first.ask(question, *([file] if file else []))
            expect(first.page.locator("#notice")).to_contain_text(sentence)
        first.click("Reset")
        expect(first.page.locator(".bot.message, #pictures img, #notice .notice")).to_have_count(0)
        first.ask("What is in the picture?", pictures[0])
        first.expect_answers(answers[0])
        second.expect_answers(*hostile_answer)
    assert said == []
    assert {urlsplit(address).netloc for address in asked_for if address.startswith("http")} == {urlsplit(url).netloc}


def test_an_answer_is_seen_while_it_is_written(engine, monkeypatch):
    """Letter by letter, and the engine waits behind the eighth until that many were seen."""
    (whole,) = alone(engine, ("A red car.",))
    stream, seen = engine.stream, Event()

    def waiting(*arguments, **options):
        for number, letter in enumerate("".join(stream(*arguments, **options))):
            if number == 8:
                seen.wait(60)
            yield letter

    monkeypatch.setattr(engine, "stream", waiting)
    with serve([Model("left", engine)], "127.0.0.1", None, max_new_tokens=24) as url, open_browser() as browser:
        tab = Tab(browser.new_page())
        tab.page.goto(url)
        tab.ask("A red car.")
        answer = tab.chats[0].locator(".bot.message")
        assert 0 < len(whole[:8].strip()) < len(whole)
        expect(answer).to_have_text(whole[:8].strip())
        seen.set()
        expect(answer).to_have_text(whole)
