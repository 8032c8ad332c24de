"""The command line's one parser. Imports nothing heavy, so that help and wrong arguments are told at once.

Flags are written with underscores in help and messages, as transformers' commands have them, and read with dashes too.
"""

import argparse
import difflib
import math
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from llava.errors import LlavaError

SHOWN = 60  # characters of a wrong word in a message
LISTED = 12  # choices that are listed behind a wrong one
LONG_DASHES = ("\u2010", "\u2011", "\u2012", "\u2013", "\u2014", "\u2212")  # of word processors and web pages
FLAG = re.compile(r"--?[A-Za-z][\w.-]*")
# argparse's messages in this project's words; the first pattern that is found decides.
WORDS = (
    (r"the following arguments are required: (.+)", r"missing: \1"),
    (r"argument (\S+): expected one argument", r"\1 needs a value"),
    (r"argument (\S+): expected at least one argument", r"\1 needs at least one value"),
    (r"argument (\S+): expected (\d+) arguments", r"\1 needs \2 values"),
    (r"argument (\S+): ignored explicit argument (.+)", r"\1 takes no value, found \2"),
    (r"argument (\S+): must be", r"\1 must be"),
    (r"argument (\S+): ", r"\1: "),
)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, whose errors are LlavaError, one line each, with the flag or choice that may be meant.

    Flags are never completed from their beginning: `--max` would mean another flag as soon as a second begins so.
    takes_keys: what is unknown here belongs to the caller of parse_known_args, so that it is no error.
    """

    def __init__(self, *, takes_keys: bool = False, **options: Any):
        super().__init__(allow_abbrev=False, **options)
        self.takes_keys = takes_keys
        self.commands = None
        for kind, read in ((int, _whole_number), (float, _number), (Path, _path)):
            self.register("type", kind, read)

    def add_commands(self) -> argparse._SubParsersAction:
        """As add_subparsers; a command is always needed, and shown as COMMAND."""
        self.commands = self.add_subparsers(dest="command", metavar="COMMAND", required=True)
        return self.commands

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """The arguments. Raises LlavaError for any that cannot be used, and for what is missing."""
        arguments, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(f"unexpected argument {shown(rest[0])} (a text with blanks needs quotation marks)")
        return arguments

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """The arguments, and the words that are none. Raises LlavaError as parse_args does."""
        words, text = list(args or ()), []
        if "--" in words:
            words, text = words[: words.index("--")], words[words.index("--") :]
        words = [with_underscores(word, self.flags) for word in words]
        if not self.takes_keys:
            self._check_flags(words)
        return super().parse_known_args(words + text, namespace)

    @property
    def flags(self) -> list[str]:
        """Every flag, as it is written."""
        return [flag for action in self._actions for flag in action.option_strings]

    def error(self, message: str) -> NoReturn:
        """Raises LlavaError: argparse's message in this project's words, and where help is if it names no remedy."""
        for pattern, words in WORDS:
            if re.match(pattern, message):
                message = re.sub(pattern, words, message, count=1)
                break
        if self.commands is not None and message == "missing: COMMAND":
            message = f"missing: a command, one of {', '.join(self.commands.choices)}"
        raise LlavaError(message if "did you mean" in message else f"{message}; see {self.prog} --help")

    def _check_flags(self, words: Iterable[str]) -> None:
        """Before argparse looks: it would tell what is missing first, as `--modle DIR` leaves --model missing."""
        for word in words:
            if self.commands is not None and not word.startswith("-"):
                return  # what follows is the command's own
            name = word.partition("=")[0]
            meant = self._meant(name)
            if (FLAG.fullmatch(name) or (meant and name.startswith(LONG_DASHES))) and name not in self.flags:
                self.error(f"unknown option {name[:SHOWN]}{meant}")

    def _meant(self, name: str) -> str:
        names = {flag.lstrip("-"): flag for flag in self.flags}
        meant = nearest(re.sub(r"^\W+", "", name).replace("-", "_"), names)
        return did_you_mean(names.get(meant))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = list(map(str, action.choices))
        listed = ", ".join(choices if len(choices) <= LISTED else [*choices[:LISTED], "..."])
        if action is self.commands:
            raise argparse.ArgumentError(None, unknown("command", value, choices))
        meant = did_you_mean(nearest(str(value), choices))
        raise argparse.ArgumentError(action, f"must be one of {listed}; found {shown(str(value))}{meant}")


def with_underscores(word: str, flags: Collection[str]) -> str:
    """`--max-new-tokens=5` as `--max_new_tokens=5`, if that is one of `flags`; any other word as it is."""
    name, equals, value = word.partition("=")
    flag = f"--{name[2:].replace('-', '_')}"
    return flag + equals + value if name.startswith("--") and flag in flags else word


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The one of `choices` that was probably meant by a wrong word: spelled alike, or the only one that begins so."""
    by_lower = {name.lower(): name for name in choices}
    alike = difflib.get_close_matches(word.lower(), by_lower, n=1)
    beginning = [name for name in by_lower if word and name.startswith(word.lower())]
    matches = alike or (beginning if len(beginning) == 1 else [])
    return by_lower[matches[0]] if matches else None


def did_you_mean(name: str | None) -> str:
    """How a message ends that knows what was meant; nothing where it does not."""
    return f"; did you mean {name}?" if name else ""


def unknown(kind: str, word: str, choices: Sequence[str]) -> str:
    """The message about a word that is none of `choices`. kind: what they are."""
    meant, listed = did_you_mean(nearest(word, choices)), ", ".join(choices)
    return f"unknown {kind} {shown(word)}{meant or f'; choose of {listed}'}"


def shown(word: str) -> str:
    """A wrong word in quotation marks, as much of it as fits into a line."""
    return repr(word if len(word) <= SHOWN else f"{word[:SHOWN]}...")


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, found {shown(text)}") from None


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a number, found {shown(text)}")
    return number


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("must be a path, found an empty text")
    return Path(text)
