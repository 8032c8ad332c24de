"""Markdown while it streams, plain text, and pictures, on consoles of a size that is known."""

import io
import re

import pytest
from PIL import Image
from rich.console import Console

from llava.chat.display import Display, MarkdownStream, begin_of_last_block, render
from llava.chat.preview import can_preview, preview

ANSWER = """\
# A heading

Some **bold** words
and <b>no HTML</b>, [a link](https://x.org), ![a picture](x.png).

1. one

   in two paragraphs
2. two

| a | b |
|---|---|
| 1 | 2 |

```python
for i in range(3):

    print(i)
```

- last
""" + "".join(f"- item {number}\n" for number in range(40))


def console(height: int = 10) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=40, height=height, color_system=None, legacy_windows=0
    )


class Screen:
    """What a terminal shows of what rich writes: lines, the cursor moved up, lines erased."""

    def __init__(self, height: int):
        self.lines, self.row, self.column, self.height = [""], 0, 0, height

    def feed(self, text: str) -> None:
        for piece in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
            if piece == "\n":
                self.row, self.column = self.row + 1, 0
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif piece == "\r":
                self.column = 0
            elif piece.endswith("A"):
                self.row -= int(piece[2:-1] or 1)
                assert self.row >= len(self.lines) - self.height, "the cursor cannot leave the screen"
            elif piece.endswith("K"):
                self.lines[self.row] = ""
            elif not piece.startswith("\x1b"):
                line = self.lines[self.row]
                self.lines[self.row] = line[: self.column] + piece + line[self.column + len(piece) :]
                self.column += len(piece)


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("size", [5, 100, len(ANSWER)])
def test_streamed_markdown_ends_as_if_it_came_at_once(size, monkeypatch):
    """Longer than the screen, and every state is drawn: nothing is left behind, doubled or lost."""
    monkeypatch.setattr("llava.chat.display.FRAMES_PER_SECOND", 10**9)
    whole, part = console(), console()
    whole.print(render(ANSWER))
    stream = MarkdownStream(part)
    for begin in range(0, len(ANSWER), size):
        stream.add(ANSWER[begin : begin + size])
    stream.end()
    screen = Screen(part.height)
    screen.feed(part.file.getvalue())
    expected = lines_of(whole.file.getvalue())
    assert lines_of("\n".join(screen.lines)) == expected
    assert " • item 39" in expected
    assert "and <b>no HTML</b>, a link (https://x.org), ![a " in " ".join(expected)


def test_the_end_of_a_block_higher_than_the_screen_is_shown_while_it_grows():
    part = console(height=6)
    stream = MarkdownStream(part)
    stream.add("".join(f"- item {number}\n" for number in range(30)))
    shown = part.file.getvalue()
    assert "item 29" in shown
    assert "item 20" not in shown
    stream.end()
    assert part.file.getvalue().count("item 20") == 1


def test_blocks_are_final_when_another_has_begun():
    assert begin_of_last_block("one\n\ntwo\n") == 5
    assert begin_of_last_block("one\n\ntwo") == 0, "two could be the beginning of anything"
    assert begin_of_last_block("- one\n\n- two\n") == 0
    assert begin_of_last_block("```\na\n\nb\n") == 0
    assert begin_of_last_block("```\na\n```\nb\n") == 10
    assert begin_of_last_block("") == 0


def test_a_terminal_is_not_given_control_characters():
    part = console()
    stream = MarkdownStream(part)
    stream.add("a\x1b]0;title\x07b\x9b2Jc")
    stream.end()
    assert "a]0;titleb2Jc" in part.file.getvalue()


def test_without_a_terminal_the_text_is_as_it_is(capsys):
    display = Display()
    with display.answer() as show:
        for piece in ("# no *Mark", "down*\n\n<b> [x]"):
            show(piece)
    display.note("done [bold]")
    display.error("two\nlines")
    assert capsys.readouterr() == ("# no *Markdown*\n\n<b> [x]\n", "done [bold]\nerror: two lines\n")


def test_a_preview_shows_two_pixels_in_a_character(monkeypatch):
    image = Image.new("RGB", (2, 3), (1, 2, 3))
    image.putpixel((1, 1), (9, 8, 7))
    screen = Console(file=io.StringIO(), force_terminal=True, width=40, color_system="truecolor")
    screen.print(preview(image, screen), end="")
    top = "\x1b[38;2;1;2;3;48;2;1;2;3m▀\x1b[0m\x1b[38;2;1;2;3;48;2;9;8;7m▀\x1b[0m\n"
    assert screen.file.getvalue() == top + "\x1b[38;2;1;2;3m▀\x1b[0m" * 2 + "\n"
    wide = preview(Image.new("RGB", (20_000, 1)), screen).segments
    assert len([segment for segment in wide if segment.text == "▀"]) == 39
    assert len(preview(Image.new("RGB", (1, 20_000)), screen).segments) == 28
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setattr(screen, "_environ", {"TERM": "xterm"})
    monkeypatch.setattr(type(screen), "encoding", "utf-8")
    assert can_preview(screen)
    monkeypatch.setenv("COLORTERM", "")
    assert not can_preview(screen)
    assert not can_preview(Console(file=io.StringIO()))
