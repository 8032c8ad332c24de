"""The page itself, of gradio's parts, and its server on this machine. Each visitor has a visit of their own.

Nothing leaves the machine: no analytics, no share, fonts of the machine, and a policy that lets a browser load nothing
from elsewhere, whatever a model writes. Uploads lie in a folder that goes with the server, and go as soon as they are
read.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio asks for it when it is imported, and later

import gradio
from starlette.middleware import Middleware

from llava.chat.page.fragments import notice_html, pictures_html, weights_html
from llava.chat.page.visit import Model, Turn, Visit
from llava.chat.settings import Settings
from llava.constants import FILE_LIMITS
from llava.errors import LlavaError

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; form-action 'self'"
)
TITLE = "LLaVA-OV-Manager"
EVERY, OLDEST = 300, 1800  # seconds: how often uploads that nobody asked about are looked for, and when they go
MOST_WAITING = 64  # questions of all visitors; one more is refused with gradio's sentence
IDLE = 3600  # seconds after which a conversation without a new question is forgotten


class LocalOnly:
    """ASGI middleware: every answer says that the browser must load nothing from elsewhere."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message = {**message, "headers": [*message["headers"], policy, (b"referrer-policy", b"no-referrer")]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


@contextmanager
def serve(models: Sequence[Model], host: str, port: int | None, max_new_tokens: int) -> Iterator[str]:
    """A context in which the page is served; its URL. port: None for the first free one of gradio's.

    Raises LlavaError for a host or port that cannot be had.
    """
    with TemporaryDirectory(prefix="llava-page-") as uploads:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = build(models, Path(uploads), max_new_tokens)
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                enable_monitoring=False,
                footer_links=[],
                max_file_size=FILE_LIMITS["image"],
                theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
                css_paths=[Path(__file__).with_name("style.css")],
                app_kwargs={"middleware": [Middleware(LocalOnly)]},
            )
            yield url
        except OSError as error:
            raise LlavaError(f"the page cannot be served at {host}, port {port or 'any'}: {error}") from None
        finally:
            page.close(verbose=False)
            for model in models:
                model.end_answers()
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


def build(models: Sequence[Model], uploads: Path, max_new_tokens: int) -> gradio.Blocks:
    """The page. uploads: the folder that gradio puts them in. max_new_tokens: of an answer, unless a visitor says."""
    with gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(EVERY, OLDEST), fill_width=True) as page:
        empty = Visit(models)
        visit = gradio.State(empty, time_to_live=IDLE, delete_callback=Visit.stop)  # copied for each visitor
        gradio.Markdown(f"## {TITLE}")
        with gradio.Row():
            with gradio.Column(scale=2, min_width=280):
                pictures = gradio.HTML(pictures_html(empty), elem_id="pictures")
            with gradio.Column(scale=5, min_width=320):
                with gradio.Row():
                    chats = [_chat(number, model.name) for number, model in enumerate(models, start=1)]
                notice = gradio.HTML(elem_id="notice")
                question = gradio.MultimodalTextbox(
                    file_types=["image"],
                    file_count="multiple",
                    placeholder="Ask something. Pictures: the clip, drop or paste.",
                    show_label=False,
                    max_plain_text_length=100_000,
                    autofocus=True,
                    elem_id="question",
                )
                with gradio.Row():
                    stop = gradio.Button("Stop", elem_id="stop")
                    reset = gradio.Button("Reset", elem_id="reset")
                with gradio.Accordion("Settings", open=False), gradio.Row():
                    length = gradio.Slider(
                        1, max(2048, max_new_tokens), max_new_tokens, step=1, label="Longest answer, in tokens"
                    )
                    warmth = gradio.Slider(0, 2, 0, step=0.05, label="Temperature (0: greedy)")
                with gradio.Row():
                    charts = [
                        gradio.HTML(weights_html(None), elem_id=f"managers-{number}", min_width=300)
                        for number, _ in enumerate(models, start=1)
                    ]
        shown = [question, notice, pictures, *chats, *charts]

        def ask(visit: Visit, given: dict, length: int, warmth: float) -> Iterator[list]:
            files = [Path(file) for file in given["files"]]
            try:
                for number, _ in enumerate(visit.ask(given["text"], files, Settings(int(length), float(warmth)))):
                    if number == 0:
                        _delete(files, uploads)
                        yield [None, "", pictures_html(visit), *_messages(visit), *_unchanged(charts)]
                    else:
                        yield [*_unchanged(shown[:3]), *_messages(visit), *_unchanged(charts)]
            except LlavaError as error:
                yield [gradio.skip(), notice_html(str(error)), *_unchanged(shown[2:])]
            else:
                yield [gradio.skip(), "", *_all(visit)]

        def forget(visit: Visit) -> list:
            visit.reset()
            return [None, "", *_all(visit)]

        hidden = {"api_visibility": "private", "show_progress": "hidden"}
        question.submit(ask, [visit, question, length, warmth], shown, concurrency_limit=1, **hidden)
        stop.click(Visit.stop, visit, None, queue=False, **hidden)
        for forgets in (reset.click, *[chat.clear for chat in chats]):
            forgets(forget, visit, shown, concurrency_limit=None, **hidden)
    return page.queue(max_size=MOST_WAITING, api_open=False)


def _chat(number: int, name: str) -> gradio.Chatbot:
    """The place of a conversation with a model."""
    return gradio.Chatbot(
        label=name,
        elem_id=f"chat-{number}",
        height="55vh",
        min_width=300,
        render_markdown=False,  # a model's text is shown as it is
        feedback_options=None,
        buttons=[],
        placeholder="No question yet",
    )


def _all(visit: Visit) -> list:
    return [pictures_html(visit), *_messages(visit), *[weights_html(seat.weights) for seat in visit.seats]]


def _messages(visit: Visit) -> list[list[dict]]:
    """Of each model the conversation, as gradio takes it."""
    return [
        [message for turn in visit.turns for message in _exchange(turn, number)] for number in range(len(visit.seats))
    ]


def _exchange(turn: Turn, number: int) -> list[dict]:
    reply, count = turn.replies[number], len(turn.media)
    pictures = f" [{count} picture{'' if count == 1 else 's'}]" if count else ""
    text = reply.text if reply.error is None else f"⚠ {reply.error}"
    said = {"user": turn.question + pictures, "assistant": text or "…"}
    return [{"role": role, "content": escape(text, quote=False)} for role, text in said.items()]  # gradio shows HTML


def _unchanged(parts: Sequence) -> list:
    return [gradio.skip() for _ in parts]


def _delete(files: Sequence[Path], uploads: Path) -> None:
    for file in files:
        if file.resolve().is_relative_to(uploads.resolve()):
            file.unlink(missing_ok=True)
