"""One question and its answer, as text or as one JSON object."""

import json
import os
import sys
from dataclasses import asdict

from llava.chat.chat import Chat
from llava.chat.log import record_of
from llava.chat.media import Medium
from llava.errors import LlavaError


def answer_once(chat: Chat, question: str, shown: list[Medium], as_json: bool, load_seconds: float) -> int:
    """Prints the answer to a question about what is shown; returns 0, or 130 when Ctrl-C stops it.

    Raises LlavaError where the device fails or the answer cannot be written.
    """
    chat.session.waiting = shown
    try:
        if as_json:
            chat.answer_silently(question)
            print(json.dumps(_as_json(chat, load_seconds), ensure_ascii=not _writes_utf8()), flush=True)
        else:
            chat.ask(question)
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:  # the device is out of memory, say
        raise LlavaError(" ".join(str(error).split())) from error
    except OSError as error:  # a full disk, a reader that has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try again when it ends
        raise LlavaError(f"the answer cannot be written: {error.strerror}") from None
    return 0


def _writes_utf8() -> bool:
    return sys.stdout is not None and (sys.stdout.encoding or "").lower().startswith("utf")


def _as_json(chat: Chat, load_seconds: float) -> dict:
    """The last answer, and all that is known about it."""
    engine, exchange = chat.session.engine, chat.session.exchanges[-1]
    images = [medium for each in chat.session.exchanges for medium in each.of_kind("image")]
    layout, video_layout = engine.processor.image_processor.layout, engine.processor.image_processor.video_layout
    result = {
        "answer": exchange.answer,
        "question": exchange.question,
        "images": [
            {
                **record_of(medium),
                "width": medium.content.width,
                "height": medium.content.height,
                "tokens": layout(medium.content.size, len(images) > 1).num_tokens,
                "notes": list(medium.notes),
            }
            for medium in exchange.of_kind("image")
        ],
        "videos": [
            {
                **record_of(medium),
                "frames": len(medium.content),
                "tokens": video_layout(len(medium.content)).num_tokens,
            }
            for medium in exchange.of_kind("video")
        ],
        "tokens": asdict(exchange.usage),
        "timings": {"load": load_seconds, **asdict(exchange.timing)},
        "tokens_per_second": exchange.tokens_per_second,
        "settings": asdict(chat.session.settings),
        "model": chat.model,
        "device": engine.describe(),
    }
    return result | ({"managers": list(map(asdict, chat.manager_weights()))} if chat.shows_managers else {})
