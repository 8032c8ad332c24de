"""The page of cases: one HTML file that needs nothing else, no network either."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from llava.data.tile_lines import jpeg_uri
from llava.eval.cases.content import Case
from llava.eval.cases.picture import Shown

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Picture:
    """An image in the page. source: a data URI; width, height in pixels."""

    source: str
    width: int
    height: int
    caption: str
    alt: str

    @classmethod
    def of(cls, shown: Shown) -> "Picture":
        """The image as JPEG."""
        return cls(jpeg_uri(shown.picture), *shown.picture.size, shown.caption, shown.alt)


@dataclass(frozen=True)
class Entry:
    """A case in the page. note: what is to be said instead of pictures. file: of its PNG beside the page."""

    case: Case
    pictures: list[Picture]
    note: str
    file: str


def render_page(title: str, sentences: Sequence[str], runs: Mapping[str, str], entries: Sequence[Entry]) -> str:
    """The page.

    Args:
        title: of the page.
        sentences: that stand above the cases.
        runs: their names, and what they are.
        entries: the cases, in order.
    """
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(
        title=title,
        sentences=sentences,
        runs=runs,
        entries=entries,
        kinds=_kinds(entries),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _kinds(entries: Sequence[Entry]) -> dict[tuple[str, str], list[str]]:
    """(task, its name) -> the kinds of its questions."""
    kinds: dict[tuple[str, str], dict[str, None]] = {}
    for entry in entries:
        kinds.setdefault((entry.case.task, entry.case.name), {}).update(dict.fromkeys(entry.case.kinds))
    return {task: sorted(of_task) for task, of_task in kinds.items()}


def _hash(text: str) -> str:
    """By which a page's policy allows a style or a script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
