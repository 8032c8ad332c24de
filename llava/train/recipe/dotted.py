"""Dotted keys over nested dataclasses: which there are, what each accepts, and what a wrong one may have meant."""

import contextlib
import difflib
import inspect
import re
import textwrap
import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from llava.bounds import Bounds
from llava.errors import LlavaError
from llava.printable import brief
from llava.text_files import parse_yaml, read_text

UNIONS = (Union, types.UnionType)
LISTS = (list, tuple)  # of items alike: list[int], tuple[int, ...]
NOTHING_CHOSEN: Mapping[str, type] = MappingProxyType({})
ARGUMENT = re.compile(r"^(\w+): (.*(?:\n +.*)*)", re.MULTILINE)  # name: text, whose further lines are indented


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML mapping from a file; LlavaError when it is missing, broken or no mapping."""
    try:
        document = parse_yaml(read_text(path))
    except OSError as error:
        raise LlavaError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise LlavaError(f"{path}: not valid YAML ({error})") from error
    if not isinstance(document, dict):
        raise LlavaError(f"{path}: expected a mapping of keys, found {type(document).__name__}")
    return document


@dataclass(frozen=True)
class Key:
    """What a dotted key accepts.

    Args:
        type: The type of its value.
        default: The value without a source that names the key; MISSING where one must.
        bounds: Of a number; None where any number will do.
        sentence: What the key is for, from its dataclass's docstring.
    """

    type: Any
    default: Any
    bounds: Bounds | None
    sentence: str

    @property
    def required(self) -> bool:
        """Whether some source must name the key."""
        return self.default is MISSING


def dotted_keys(kind: type, prefix: str = "", chosen: Mapping[str, type] = NOTHING_CHOSEN) -> dict[str, Key]:
    """Every key of the dataclass `kind`, in the order of its fields; nested dataclasses become `section.key`.

    Args:
        kind: The dataclass.
        prefix: Of the keys.
        chosen: {section: the dataclass that stands there}, of sections that can be one of several.
    """
    keys = {}
    types_of, annotations, sentences = get_type_hints(kind), get_type_hints(kind, include_extras=True), _sentences(kind)
    for field in fields(kind):
        name = prefix + field.name
        type_of = chosen.get(name, types_of[field.name])
        if is_dataclass(type_of):
            keys |= dotted_keys(type_of, f"{name}.", chosen)
        else:
            bounds = _bounds_in(annotations[field.name])
            keys[name] = Key(type_of, field.default, bounds, sentences.get(field.name, ""))
    return keys


def _bounds_in(annotation: Any) -> Bounds | None:
    """The Bounds of `Annotated[int, Bounds(1)]`, also where None is another choice."""
    if get_origin(annotation) is Annotated:
        return next((extra for extra in annotation.__metadata__ if isinstance(extra, Bounds)), None)
    if get_origin(annotation) in UNIONS:
        return next(filter(None, map(_bounds_in, get_args(annotation))), None)
    return None


def _sentences(kind: type) -> dict[str, str]:
    """{field: its text under `Args:`} of the docstrings of `kind` and of the classes that it extends."""
    sentences = {}
    for base in reversed(kind.__mro__):
        _, _, listed = inspect.cleandoc(base.__doc__ or "").partition("\nArgs:\n")
        for name, text in ARGUMENT.findall(textwrap.dedent(listed.partition("\n\n")[0])):
            sentences[name] = " ".join(text.split())
    return sentences


def flatten(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}, "run.seed": 2} -> {"optim.lr": 1, "run.seed": 2}. No leaf is a mapping.

    Raises LlavaError for a key that is given in both ways.
    """
    flat = {}
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        leaves = flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
        if twice := flat.keys() & leaves.keys():
            raise LlavaError(f"the key '{min(twice)}' is given twice, with a dot and in its section")
        flat |= leaves
    return flat


def shown(value: Any) -> str:
    """A value as a recipe has it: none for None."""
    return "none" if value is None else str(value)


def suggestion(key: str, keys: Collection[str]) -> str:
    """For max_steps or optim.maxsteps: `; did you mean 'optim.max_steps'?`; for what resembles no key: nothing."""
    same_leaf = [name for name in keys if name.rpartition(".")[2] == key.rpartition(".")[2]]
    close = same_leaf or difflib.get_close_matches(key, keys, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def coerce(value: Any, expected: Any) -> Any:
    """`value` as `expected`, or a ValueError that says what was expected and found.

    Text is read as YAML where no text is expected, so that the command line and a file accept the same spellings.
    """
    if get_origin(expected) in UNIONS:
        return _coerce_union(value, get_args(expected))
    if get_origin(expected) is Literal:
        if value in get_args(expected):
            return value
        raise ValueError(f"must be one of {', '.join(get_args(expected))}; found {brief(value)}")
    if expected is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    parsed = _parse(value, texts=get_origin(expected) in LISTS and get_args(expected)[0] is str)
    if get_origin(expected) in LISTS and isinstance(parsed, (list, tuple)):
        return get_origin(expected)(coerce(item, get_args(expected)[0]) for item in parsed)
    if expected is float and isinstance(parsed, (int, float, str)) and not isinstance(parsed, bool):
        with contextlib.suppress(ValueError, OverflowError):  # YAML takes 1e-3 for a text
            return float(parsed)
    if type(parsed) is expected:
        return parsed
    raise ValueError(f"must be {type_name(expected)}; found {brief(value)}")


def _coerce_union(value: Any, members: tuple[Any, ...]) -> Any:
    if type(None) in members and value in (None, "none", "null"):
        return None
    members = [member for member in members if member is not type(None)]
    for member in members[:-1]:
        with contextlib.suppress(ValueError):
            return coerce(value, member)
    try:
        return coerce(value, members[-1])
    except ValueError:
        if get_origin(members[-1]) in LISTS or len(members) == 1:
            raise  # it says which item is wrong
        raise ValueError(f"must be {' or '.join(map(type_name, members))}; found {brief(value)}") from None


def _parse(value: Any, texts: bool = False) -> Any:
    """The YAML of a text. texts: every word in it stays one, also `0012` and `no`."""
    if not isinstance(value, str):
        return value
    try:
        return yaml.load(value, yaml.BaseLoader) if texts else parse_yaml(value)
    except yaml.YAMLError:
        return value


def type_name(expected: Any) -> str:
    """How a message names what a value must be."""
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "none"}
    if get_origin(expected) in LISTS:
        return f"a list, each item {type_name(get_args(expected)[0])}"
    if get_origin(expected) in UNIONS:
        return " or ".join(map(type_name, get_args(expected)))
    if get_origin(expected) is Literal:
        choices = get_args(expected)
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    return names[expected]


def assemble(kind: type, values: dict[str, Any], prefix: str = "", chosen: Mapping[str, type] = NOTHING_CHOSEN) -> Any:
    """An instance of the dataclass `kind` and those nested in it from dotted `values`; the others take defaults.

    chosen: as of dotted_keys.
    """
    hints = get_type_hints(kind)
    arguments = {}
    for field in fields(kind):
        name = prefix + field.name
        type_of = chosen.get(name, hints[field.name])
        if is_dataclass(type_of):
            arguments[field.name] = assemble(type_of, values, f"{name}.", chosen)
        elif name in values and field.init:
            arguments[field.name] = values[name]
    return kind(**arguments)
