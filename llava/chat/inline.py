"""Images and videos named inside a line: pasted, or dropped onto the terminal, which writes their path."""

import re

from llava.chat.fetch import is_url
from llava.chat.media import kind_of, local_path
from llava.errors import DataError

# 'a page.png', "a page.png", a\ page.png or page.png, between white space
_WORD = re.compile(r"""(?<!\S)(?:'([^'\n]+)'|"([^"\n]+)"|((?:\\.|[^\s\\])+))(?!\S)""")
_PUNCTUATION = ",.;:!?"


def split_media(line: str) -> tuple[str, list[tuple[str, str]]]:
    """The line without what it shows, and that: (`image` or `video`, path or URL) in order.

    Taken out is a word that ends as images or videos do and is a URL, or the path of a file. Another word is text,
    unless it can only be meant as a path, since it begins with `/`, `~/`, `./`, `../` or `file:`.
    """
    found = []

    def take(match: re.Match) -> str:
        quoted = match[1] or match[2]
        word = quoted or re.sub(r"\\(.)", r"\1", match[3])
        for candidate in (word,) if quoted else (word.rstrip(_PUNCTUATION), word):
            kind = kind_of(candidate)
            if kind is not None and _is_meant(candidate):
                found.append((kind, candidate))
                return "" if quoted else word[len(candidate) :]
        return match[0]

    rest = _WORD.sub(take, line)
    return (re.sub(r"[ \t]{2,}", " ", rest).strip() if found else line), found


def begins_with_media(line: str) -> bool:
    """Whether the first word is taken out by split_media: a path that begins like a command, say."""
    match = _WORD.match(line)
    return match is not None and bool(split_media(match[0])[1])


def _is_meant(word: str) -> bool:
    if is_url(word) or word.startswith(("/", "~/", "./", "../", "file:")):
        return True
    try:
        return local_path(word).is_file()
    except (DataError, OSError, ValueError):  # a word too long to be a name, say
        return False
