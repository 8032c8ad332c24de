"""`llava chat`: one question and its answer, or a conversation, about images and videos.

Answers go to stdout; everything else (what was loaded, notes, errors) goes to stderr.
"""

import argparse
import io
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from transformers.utils import logging as transformers_logging

from llava.arguments import ArgumentParser
from llava.chat.chat import Chat
from llava.chat.commands import help_text
from llava.chat.display import Display
from llava.chat.engine import Engine, check_model_folder
from llava.chat.log import LogWriter, Talk, load, record_of
from llava.chat.media import MediaReader, Medium
from llava.chat.session import Session, checked_system
from llava.chat.settings import Settings, changed
from llava.data.video import EVERY_SECOND, VideoSampling
from llava.errors import LlavaError


def main(argv: list[str]) -> int:
    """Returns 0, or 130 when Ctrl-C stops a single answer. Raises LlavaError for arguments that cannot be used."""
    args = _parser().parse_args(argv)
    given = {name: getattr(args, name) for name in asdict(Settings()) if getattr(args, name) is not None}
    settings, system = changed(Settings(), given, "--"), checked_system(args.system)
    check_model_folder(args.model)
    media = MediaReader(VideoSampling(args.video_fps, args.frames_upbound))
    shown = [media.open(path, "image") for path in args.image] + [media.open(path, "video") for path in args.video]
    talk = load(args.load, media) if args.load else None
    question = _single_question(args.question)
    if args.json and question is None:
        raise LlavaError("--json is for a single question: give one as an argument or on standard input")
    if not os.environ.get("TERM"):
        os.environ["TERM"] = "dumb"  # of a terminal without a name nothing can be expected
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a letter that the locale lacks must not end an answer
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()

    begin = time.perf_counter()
    engine = Engine.from_pretrained(args.model, device=args.device, dtype=args.dtype, load_4bit=args.load_4bit)
    load_seconds = time.perf_counter() - begin
    session = Session(engine, settings, system)
    chat = Chat(session, media, Display(args.preview), str(args.model), args.show_managers)
    if talk is not None:
        session.exchanges, session.settings = talk.exchanges, changed(talk.settings, given)
        session.system = talk.system if system is None else system
        chat.files.add(args.load.absolute())
    if args.log:
        _open_log(args, chat)
    if question is None:
        return _conversation(chat, talk, shown)
    return _answer_once(chat, question, shown, args.json, load_seconds)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="llava chat",
        description="Ask a model about images and videos. Without a question, on a terminal, a conversation starts.",
        epilog=help_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, defaults = parser.add_argument, Settings()
    add("question", nargs="?", metavar="QUESTION", help="answered once; a pipe will do as well")
    add("--model", required=True, type=Path, metavar="DIR", help="checkpoint folder")
    add("--image", action="append", default=[], metavar="FILE|URL", help="image; repeat for several")
    add("--video", action="append", default=[], metavar="FILE|URL", help="video; repeat for several")
    add("--system", metavar="TEXT", help="system message (default: the one of training)")
    add("--max_new_tokens", type=int, metavar="N", help=f"longest answer (default {defaults.max_new_tokens})")
    add("--temperature", type=float, metavar="T", help="0, the default, is greedy")
    add("--top_p", type=float, metavar="P", help="draw from so much of the probability (default 1)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default: a GPU if any)")
    add("--dtype", default="auto", help="float32, bfloat16, float16 (default: 16 bits on a GPU, else float32)")
    add("--load_4bit", "--load-4bit", action="store_true", help="the language model in 4 bits (bitsandbytes)")
    add("--video_fps", type=float, default=EVERY_SECOND.fps, metavar="N", help="frames taken per second (default 1)")
    add(
        "--frames_upbound",
        type=int,
        default=EVERY_SECOND.frames_upbound,
        metavar="N",
        help=f"most frames of a video (default {EVERY_SECOND.frames_upbound})",
    )
    add("--show_managers", "--show-managers", action="store_true", help="after an answer, the managers' weights")
    add("--no_preview", "--no-preview", action="store_false", dest="preview", help="no pictures in the terminal")
    add("--json", action="store_true", help="one question: answer, tokens, timings and images as one JSON object")
    add("--log", type=Path, metavar="FILE", help="write the conversation to FILE as it goes, JSON lines")
    add("--load", type=Path, metavar="FILE", help="go on with a conversation from a file of --log or /save")
    return parser


def _single_question(argument: str | None) -> str | None:
    """The question from the argument or from a pipe; None on a terminal."""
    piped = argument is None and sys.stdin is not None  # None: it is closed
    if piped and sys.stdin.isatty():
        return None
    try:
        question = (sys.stdin.read() if piped else argument or "").lstrip("\ufeff").strip()
    except UnicodeDecodeError:
        raise LlavaError("standard input is no text") from None
    if not question:
        raise LlavaError("no question: give one as an argument or on standard input")
    return question


def _open_log(args: argparse.Namespace, chat: Chat) -> None:
    goes_on = args.load is not None and args.load.absolute() == args.log.absolute()
    session = chat.session
    session.record = LogWriter(args.log, chat.model, session, goes_on)
    if goes_on:  # what the command line changed
        session.set_system(session.system)
        session.set_settings(session.settings)


def _conversation(chat: Chat, talk: Talk | None, shown: list[Medium]) -> int:
    from llava.chat.terminal import converse

    chat.display.note(f"{chat.model}: {chat.session.engine.describe()}. /help lists the commands.")
    if talk is not None:
        chat.replay(talk)
    chat.show(shown)
    converse(chat)
    return 0


def _answer_once(chat: Chat, question: str, shown: list[Medium], as_json: bool, load_seconds: float) -> int:
    session = chat.session
    session.waiting = shown
    for medium in shown:
        if medium.notes:  # what was done to an image is said, its size is known
            chat.display.note(str(medium))
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
        "settings": asdict(chat.session.settings),
        "model": chat.model,
        "device": engine.describe(),
    }
    return result | ({"managers": list(map(asdict, chat.manager_weights()))} if chat.shows_managers else {})
