"""Shows the results of a bench: the table in the terminal and as Markdown, and the picture."""

import io
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llava.bench.table import render_markdown, render_text
from llava.errors import LlavaError

WIDTH = 120  # of the terminal's tables where no terminal tells its own


def show(results: dict[str, Any], markdown: Path | None) -> None:
    """Prints the table, and writes it where a file is named."""
    print(render_text(results, shutil.get_terminal_size((WIDTH, 24)).columns), end="", flush=True)
    if markdown is not None:
        write(markdown, render_markdown(results).encode())


def draw_to(results: dict[str, Any], picture: Path) -> None:
    """Writes the picture. Raises LlavaError without matplotlib, and for a file that is no picture."""
    if picture.suffix not in (".png", ".svg"):
        raise LlavaError(f"{picture}: a picture is a file named .png or .svg")
    if find_spec("matplotlib") is None:
        raise LlavaError(f"{picture}: a picture needs matplotlib: pip install matplotlib")
    from llava.bench.picture import draw, draw_sweep  # imports matplotlib, which nothing else here needs

    content = io.BytesIO()
    figure = draw_sweep(results) if "sweep" in results else draw(results)
    figure.savefig(content, format=picture.suffix.removeprefix("."), dpi=150)
    write(picture, content.getvalue())


def write(file: Path, content: bytes) -> None:
    """Writes a file. Raises LlavaError where it cannot be."""
    try:
        file.write_bytes(content)
    except OSError as error:
        raise LlavaError(f"{file}: cannot be written: {error.strerror}") from error
