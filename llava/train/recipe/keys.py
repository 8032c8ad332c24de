"""Every key of a recipe with its type, bounds, default and sentence, for the terminal and for docs/recipe_keys.md."""

import inspect
import shutil
import textwrap
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from llava.fusion.methods import METHODS
from llava.train.recipe.dotted import Key, shown, type_name
from llava.train.recipe.load import NO_METHOD
from llava.train.recipe.schema import Recipe, recipe_keys
from llava.train.two_tower.recipe import TwoTowerRecipe, two_tower_keys

PAGE = """# Every key of a recipe

As `llava train --keys` prints them; this page is what `llava train --keys markdown` writes. A key is given in a
recipe's file, in an `--override` file, or on the command line as `--key value`; a key without default is given by the
stages' own files ([scripts/train/recipes](../scripts/train/recipes)). More on recipes: [train.md](train.md#recipes).
A stage of the two towers has the sections at the end of this page, and of the others `optim` and `run` alone.
"""


def sections() -> dict[str, tuple[str, dict[str, Key]]]:
    """{section: (its sentence, {dotted key: key})}; the keys of no section are those of "".

    The section `fusion` has a part for each method that has keys, after `fusion.method`. Behind all stand the sections
    that a recipe of the two towers has of its own.
    """
    keys, hints = recipe_keys(NO_METHOD), get_type_hints(Recipe)
    names = ["", *(one.name for one in fields(Recipe) if is_dataclass(hints[one.name]))]
    listed = {}
    for name in names:
        of_section = {dotted: key for dotted, key in keys.items() if _section(dotted) == name}
        if name == "fusion":
            of_section = {"fusion.method": keys["fusion.method"]}
        listed[name] = (_first_sentences(hints[name] if name else Recipe), of_section)
        if name == "fusion":
            listed |= _methods()
    return listed | _two_towers()


def _two_towers() -> dict[str, tuple[str, dict[str, Key]]]:
    """The parts of `sections` that list the keys which a recipe of the two towers has of its own."""
    keys, hints, shared = two_tower_keys(), get_type_hints(TwoTowerRecipe), get_type_hints(Recipe).values()
    listed = {}
    for name in [one.name for one in fields(TwoTowerRecipe) if is_dataclass(hints[one.name])]:
        if hints[name] not in shared:
            of_section = {dotted: key for dotted, key in keys.items() if _section(dotted) == name}
            listed[f"{name}, two towers"] = (_first_sentences(hints[name]), of_section)
    return listed


def _methods() -> dict[str, tuple[str, dict[str, Key]]]:
    """The parts of `sections` that list what can be chosen of a method of fusion."""
    listed = {}
    for method, kind in METHODS.items():
        keys = {dotted: key for dotted, key in recipe_keys(method).items() if _section(dotted) == "fusion"}
        del keys["fusion.method"]
        if keys:
            listed[f"fusion, method {method}"] = (_first_sentences(kind), keys)
    return listed


def _section(dotted: str) -> str:
    return dotted.partition(".")[0] if "." in dotted else ""


def _first_sentences(kind: type) -> str:
    """What a dataclass's docstring says before its first blank line."""
    return " ".join(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].split())


def accepted(key: Key) -> str:
    """The type of a key's value, its choices or its bounds."""
    return type_name(key.type) + (f", {key.bounds}" if key.bounds is not None else "")


def default(key: Key) -> str:
    """A key's default, empty where it has none."""
    return "" if key.required else _spelled(key.default)


def _spelled(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else shown(value)


def as_text() -> str:
    """All keys for the terminal, as wide as it is."""
    width = min(shutil.get_terminal_size().columns, 120)
    lines = []
    for name, (sentence, keys) in sections().items():
        lines += [*textwrap.wrap(f"{name}: {sentence}" if name else sentence, width), ""]
        for dotted, key in keys.items():
            given = "" if key.required else f"; default {default(key)}"
            lines += textwrap.wrap(f"  {dotted}  {accepted(key)}{given}", width, subsequent_indent=" " * 6)
            lines += textwrap.wrap(key.sentence, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append("")
    return "\n".join(lines).rstrip()


def as_markdown() -> str:
    """All keys as a page, a table a section."""
    parts = [PAGE]
    for name, (sentence, keys) in sections().items():
        rows = ["| key | value | default | |", "|---|---|---|---|"]
        for dotted, key in keys.items():
            given = f"`{default(key)}`" if not key.required else ""
            rows.append(f"| `{dotted}` | {_cell(accepted(key))} | {given} | {_cell(key.sentence)} |")
        parts += [f"## {name or 'The stage'}\n", f"{textwrap.fill(sentence, 120)}\n", "\n".join(rows) + "\n"]
    return "\n".join(parts).rstrip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


FORMS = {"text": as_text, "markdown": as_markdown}
