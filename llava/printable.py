"""Foreign text in terminals, logs and headers: it neither rules a terminal nor breaks a line nor fills a screen."""

import reprlib
from typing import Any

LINE_LIMIT = 400  # characters of a message; what says why stands at its end
ID_LIMIT = 120
# Control characters, halves of surrogate pairs, which no UTF-8 can hold, and marks that turn a line's direction.
_HIDDEN = [*range(32), *range(127, 160), *range(0xD800, 0xE000), 0x2028, 0x2029, *range(0x202A, 0x202F)]
_HIDDEN += range(0x2066, 0x206A)
_ALL_CODES = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _HIDDEN} | {9: "\\t", 10: "\\n"}
_CODES = {code: escape for code, escape in _ALL_CODES.items() if chr(code) not in "\n\t"}

_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother, _BRIEF.maxlong = 3, ID_LIMIT, ID_LIMIT, ID_LIMIT


def visible(text: str) -> str:
    """Characters that could rule a terminal, or that UTF-8 cannot hold, as their codes; newlines and tabs stay."""
    return text.translate(_CODES)


def one_line(text: str, limit: int = LINE_LIMIT) -> str:
    """As `visible`, newlines and tabs as their codes too; of more than `limit` characters the middle is left out."""
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]} ... ({len(text):,} characters) ... {text[-half:]}"
    return text.translate(_ALL_CODES)


def is_key(text: str) -> bool:
    """Whether a request's header can hold it as a key: printable ASCII, without spaces around it."""
    return bool(text) and text.isascii() and text.isprintable() and text == text.strip()


def brief(value: Any) -> str:
    """A value of JSON as Python writes it, in at most LINE_LIMIT characters or so, however long or deep it is."""
    return one_line(_BRIEF.repr(value))
