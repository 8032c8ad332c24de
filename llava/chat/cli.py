"""`llava chat`: one question and its answer, or a conversation, about images.

Answers go to stdout; everything else (what was loaded, notes, errors) goes to stderr.
"""

import argparse
import sys
from contextlib import closing
from pathlib import Path

from PIL import Image
from transformers.utils import logging as transformers_logging

from llava.chat.engine import Engine, check_model_folder, join_images
from llava.constants import IMAGE_TOKEN
from llava.data.images import open_image
from llava.data.schema import Dialogue, Turn
from llava.errors import LlavaError

HELP = """\
Type a question. Commands:
  /image PATH   show an image together with the next question; repeat for several
  /reset        forget the conversation and its images
  /help         this text
  /exit         leave; so does Ctrl-D
Ctrl-C stops an answer."""


def main(argv: list[str]) -> int:
    """Returns 0, or 130 when Ctrl-C stops a single answer. Raises LlavaError for arguments that cannot be used."""
    args = _parser().parse_args(argv)
    if args.max_new_tokens < 1:
        raise LlavaError(f"--max_new_tokens must be at least 1, found {args.max_new_tokens}")
    if args.temperature < 0:
        raise LlavaError(f"--temperature must not be negative, found {args.temperature}")
    check_model_folder(args.model)
    images = [open_image(path) for path in args.image]
    question = _single_question(args.question)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    engine = Engine.from_pretrained(args.model, device=args.device, dtype=args.dtype)
    chat = Chat(engine, images, max_new_tokens=args.max_new_tokens, temperature=args.temperature)
    if question is None:
        _note(f"{args.model}: {engine.describe()}. /help lists the commands.")
        converse(chat)
        return 0
    try:
        chat.ask(question)
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava chat",
        description="Ask a model about images. Without a question, on a terminal, a conversation starts.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="answered once; a pipe will do as well")
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="checkpoint folder")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="image; repeat for several")
    parser.add_argument("--max_new_tokens", type=int, default=512, metavar="N", help="longest answer (default 512)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy")
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default: a GPU if any)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 (default: bfloat16 on a GPU)")
    return parser


def _single_question(argument: str | None) -> str | None:
    """The question from the argument or from a pipe; None on a terminal."""
    if argument is None and sys.stdin.isatty():
        return None
    question = (sys.stdin.read() if argument is None else argument).strip()
    if not question:
        raise LlavaError("no question: give one as an argument or on standard input")
    return question


class Chat:
    """A conversation so far, and the images that wait for the next question."""

    def __init__(self, engine: Engine, images: list[Image.Image], *, max_new_tokens: int, temperature: float):
        self.engine = engine
        self.waiting = list(images)
        self.options = {"max_new_tokens": max_new_tokens, "temperature": temperature}
        self.dialogue = Dialogue([])

    def ask(self, question: str) -> None:
        """Prints the answer as it comes and remembers both, also an answer that Ctrl-C cut short.

        Waiting images go in front of the question, or where it says `<image>`. Raises LlavaError when it says so more
        or less often than there are images.
        """
        places = question.count(IMAGE_TOKEN)
        if places not in (0, len(self.waiting)):
            raise LlavaError(f"found {places} {IMAGE_TOKEN} in the question but {len(self.waiting)} new images")
        text = question if places else join_images(question, len(self.waiting))
        dialogue = Dialogue([*self.dialogue.turns, Turn("human", text)], [*self.dialogue.images, *self.waiting])
        pieces: list[str] = []
        try:
            with closing(self.engine.stream(dialogue, **self.options)) as stream:
                for piece in stream:
                    print(piece, end="", flush=True)
                    pieces.append(piece)
        except KeyboardInterrupt:
            self._remember(dialogue, pieces)
            raise
        self._remember(dialogue, pieces)

    def _remember(self, dialogue: Dialogue, pieces: list[str]) -> None:
        print(flush=True)
        # A model that writes <image> must not move the images of later turns.
        answer = "".join(pieces).replace(IMAGE_TOKEN, "").strip()
        self.dialogue = Dialogue([*dialogue.turns, Turn("gpt", answer)], dialogue.images)
        self.waiting = []

    def show(self, path: str) -> None:
        """Opens an image for the next question. Raises DataError when it is none."""
        image = open_image(str(Path(path).expanduser()))
        self.waiting.append(image)
        _note(f"{path}: {image.width}x{image.height}, goes with the next question")

    def reset(self) -> None:
        """Forgets the turns and all images."""
        self.dialogue, self.waiting = Dialogue([]), []
        _note("the conversation starts anew")


def converse(chat: Chat) -> None:
    """Reads questions and commands from the terminal until /exit or Ctrl-D."""
    import readline  # noqa: F401  (importing it gives input() line editing and history)

    while True:
        try:
            line = input("> ").strip()
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            print()
            return
        if line == "/exit":
            return
        try:
            _obey(chat, line)
        except KeyboardInterrupt:
            _note("stopped")
        except (LlavaError, RuntimeError) as error:  # RuntimeError: the device is out of memory, say
            _note(f"error: {error}")


def _obey(chat: Chat, line: str) -> None:
    command, _, rest = line.partition(" ")
    path = rest.strip().strip("'\"")
    if command == "/image" and path:
        chat.show(path)
    elif command == "/image":
        _note("error: /image needs a path")
    elif command == "/reset":
        chat.reset()
    elif command == "/help":
        _note(HELP)
    elif command.startswith("/"):
        _note(f"error: unknown command {command}; /help lists them")
    elif line:
        chat.ask(line)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
