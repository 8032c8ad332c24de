"""`llava chat`: one question and its answer, or a conversation, about images and videos.

Answers go to stdout; everything else (what was loaded, notes, errors) goes to stderr. What the arguments get wrong is
said before torch is imported.
"""

import argparse
import io
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from llava.arguments import ArgumentParser
from llava.chat.chat import Chat
from llava.chat.commands import help_text
from llava.chat.display import Display
from llava.chat.exchange import checked_system
from llava.chat.inline import one_source, split_media
from llava.chat.log import LogWriter, Talk, check_log, load
from llava.chat.media import MediaReader, Medium
from llava.chat.session import Session
from llava.chat.settings import SETTINGS, Settings, changed, settings_notes, written
from llava.chat.single import answer_once
from llava.checkpoint.folder import check_folder
from llava.data.video import EVERY_SECOND, VideoSampling
from llava.engine.checks import DTYPE_NAMES, SPREAD, check_dtype
from llava.errors import LlavaError

if TYPE_CHECKING:
    from llava.engine.engine import Engine


def main(argv: list[str]) -> int:
    """Returns 0, or 130 when Ctrl-C stops a single answer. Raises LlavaError for arguments that cannot be used."""
    args = _parser().parse_args(argv)
    display = Display(args.preview)
    given = {name: getattr(args, name) for name in SETTINGS if hasattr(args, name)}
    settings, system = changed(Settings(), given, "--"), checked_system(args.system)
    check_dtype(args.dtype)
    check_folder(args.model)
    media = MediaReader(VideoSampling(args.video_fps, args.frames_upbound))
    shown = [media.open(one_source(path), kind) for kind in ("image", "video") for path in getattr(args, kind)]
    talk = load(args.load, media) if args.load else None
    goes_on = args.load is not None and args.log is not None and args.load.absolute() == args.log.absolute()
    if args.log:
        check_log(args.log, goes_on)
    question = _single_question(args.question)
    if args.json and question is None:
        raise LlavaError("--json is for a single question: give one as an argument or on standard input")
    if question is not None:
        for medium in shown:
            if medium.notes:  # what was done to an image is said, its size is known
                display.note(str(medium))
        question, named = _with_media(question, args.question is None, media, display)
        shown += named
    if not os.environ.get("TERM"):
        os.environ["TERM"] = "dumb"  # of a terminal without a name nothing can be expected
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a letter that the locale lacks must not end an answer
    if talk is not None:
        settings = changed(talk.settings, given)
    for note in settings_notes(settings):
        display.note(note)

    begin = time.perf_counter()
    with display.working(f"loading {args.model}"):
        engine = _engine(args)
    load_seconds = time.perf_counter() - begin
    session = Session(engine, settings, system)
    chat = Chat(session, media, display, str(args.model), args.show_managers, args.stats)
    if talk is not None:
        session.restore(talk.exchanges, talk.system if system is None else system, settings)
        chat.files.add(args.load.absolute())
    if args.log:
        session.record = LogWriter(args.log, chat.model, session, goes_on)
        if goes_on:  # what the command line changed
            session.set_system(session.system)
            session.set_settings(session.settings)
    if question is None:
        return _conversation(chat, talk, shown)
    return answer_once(chat, question, shown, args.json, load_seconds)


def _engine(args: argparse.Namespace) -> "Engine":
    """The loaded model; here torch is imported."""
    from transformers.utils import logging as transformers_logging

    from llava.engine.engine import Engine

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    return Engine.from_pretrained(args.model, device=args.device, dtype=args.dtype, load_4bit=args.load_4bit)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="llava chat",
        description="Ask a model about images and videos. Without a question, on a terminal, a conversation starts.",
        epilog=help_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("question", nargs="?", metavar="QUESTION", help="answered once; a pipe will do as well")
    add("--model", required=True, type=Path, metavar="DIR", help="checkpoint folder")
    add("--image", action="append", default=[], metavar="FILE|URL", help="image; repeat for several")
    add("--video", action="append", default=[], metavar="FILE|URL", help="video; repeat for several")
    add("--system", metavar="TEXT", help="system message (default: the one of training)")
    for name, default in asdict(Settings()).items():
        add(
            f"--{name}",
            type=_setting(name),
            default=argparse.SUPPRESS,  # or what a log says could not be told from what is given
            metavar=SETTINGS[name].letter,
            help=f"{SETTINGS[name].help} (default {written(default)})",
        )
    devices = f"cpu, cuda, ..., or {SPREAD}: over all GPUs (default: a GPU if any)"
    add("--device", default="auto", metavar="NAME", help=devices)
    add("--dtype", default="auto", help=f"{', '.join(DTYPE_NAMES)} (default: 16 bits on a GPU, else float32)")
    add("--load_4bit", action="store_true", help="the language model in 4 bits (bitsandbytes)")
    add("--video_fps", type=float, default=EVERY_SECOND.fps, metavar="N", help="frames taken per second (default 1)")
    add(
        "--frames_upbound",
        type=int,
        default=EVERY_SECOND.frames_upbound,
        metavar="N",
        help=f"most frames of a video (default {EVERY_SECOND.frames_upbound})",
    )
    add("--show_managers", action="store_true", help="after an answer, the managers' weights")
    add("--stats", action="store_true", help="after an answer, its tokens per second")
    add("--no_preview", action="store_false", dest="preview", help="no pictures in the terminal")
    add("--json", action="store_true", help="one question: answer, tokens, timings and images as one JSON object")
    add("--log", type=Path, metavar="FILE", help="write the conversation to FILE as it goes, JSON lines")
    add("--load", type=Path, metavar="FILE", help="go on with a conversation from a file of --log or /save")
    return parser


def _setting(name: str) -> Callable[[str], float | None]:
    """The type of a setting's flag."""

    def parse(text: str) -> float | None:
        try:
            return SETTINGS[name].parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must {SETTINGS[name].must}, found {text!r}") from None

    return parse


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


def _with_media(question: str, piped: bool, media: MediaReader, display: Display) -> tuple[str, list[Medium]]:
    """The question without the images and videos that it names, and those, opened.

    What a pipe brings need not be written by the user: no URL in it is fetched.
    """
    line = split_media(question, urls=not piped)
    line.check()
    for note in line.notes:
        display.note(note)
    if not line.question:
        raise LlavaError(f"no question, only {', '.join(source for _, source in line.media)}: ask something about it")
    opened = [media.open(source, kind) for kind, source in line.media]
    for medium in opened:
        display.note(f"{medium}, goes with this question")
    return line.question, opened


def _conversation(chat: Chat, talk: Talk | None, shown: list[Medium]) -> int:
    from llava.chat.terminal import converse

    chat.display.note(f"{chat.model}: {chat.session.engine.describe()}. /help lists the commands.")
    if talk is not None:
        chat.replay(talk)
    chat.show(shown)
    converse(chat)
    return 0
