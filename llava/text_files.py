"""Text files that users write: in UTF-8 with or without a byte order mark, or in UTF-16 and UTF-32 with one."""

import codecs
import io
import json
import os
from typing import Any, TextIO

import yaml

from llava.errors import LlavaError

_MARKS = {  # the longer first: UTF-32's begins as UTF-16's does
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
UTF_8 = "utf-8-sig"  # of a file without a mark


def open_text(path: str | os.PathLike) -> TextIO:
    """A stream of a file's text without its byte order mark, every line ended by a newline, however it was.

    Raises OSError, also for a name that no file can have; reading raises UnicodeError for what is no text.
    """
    try:
        stream = open(path, "rb")  # noqa: SIM115
    except ValueError as error:  # a NUL or half a character in the name
        raise OSError(None, str(error), str(path)) from None
    return io.TextIOWrapper(stream, encoding=encoding_of(stream.peek(4)))


def encoding_of(begin: bytes) -> str:
    """What the first four bytes of a file say of its encoding."""
    return next((name for mark, name in _MARKS.items() if begin.startswith(mark)), UTF_8)


def read_text(path: str | os.PathLike) -> str:
    """A file's text, see open_text."""
    with open_text(path) as stream:
        return stream.read()


def read_json(path: str | os.PathLike, by_hand: bool = False) -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        path: The file.
        by_hand: Whether a user wrote it, who may leave a byte order mark or UTF-16, see open_text. In a model folder
            neither may stand: transformers, which reads it after this, takes plain UTF-8 alone.

    Raises:
        LlavaError: It is missing, broken or something else; in one line.
    """
    try:
        if by_hand:
            text = read_text(path)
        else:
            with open(path, encoding="utf-8") as stream:
                text = stream.read()
        content = json.loads(text)
    except OSError as error:
        raise LlavaError(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError:
        raise LlavaError(f"{path}: not readable as JSON (nested too deeply)") from None
    except ValueError as error:
        raise LlavaError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise LlavaError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def parse_yaml(text: str) -> Any:
    """What a YAML text says. Raises yaml.YAMLError, with one line, also for a key that is given twice."""
    try:
        return yaml.load(text, _OneOfEachKey)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise yaml.YAMLError(f"{where}{' '.join(filter(None, (error.context, error.problem)))}") from None
    except yaml.YAMLError as error:
        raise yaml.YAMLError(" ".join(str(error).split())) from None
    except (ValueError, OverflowError) as error:  # a date or a number that there cannot be
        raise yaml.YAMLError(" ".join(str(error).split())[:200]) from None
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


class _OneOfEachKey(yaml.SafeLoader):
    """YAML takes the last of several equal keys and says nothing; and it takes what contains itself."""

    def construct_document(self, node: yaml.Node) -> Any:
        self.deep_construct = True  # so that what contains itself is an error
        return super().construct_document(node)

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name = (key.tag, key.value)
                if name in lines:
                    problem = f"the key {key.value!r} was given on line {lines[name]} already"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
                lines[name] = key.start_mark.line + 1
        return node
