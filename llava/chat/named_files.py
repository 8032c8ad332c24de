"""Where a line names files that are there, from left to right, the longest name at each place.

A name is read as a shell would read it, then as it stands, blanks and all. A word must then be meant as a file: it has
a `/`, a suffix, quotation marks or an `@` before it. `README` and `data` in a sentence are words.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from llava.chat.media import kind_of
from llava.chat.paths import locate, plain, plain_names

LONGEST, LONGEST_NAME = 1024, 255  # characters of a path and of a name in it, with blanks that are not quoted
_QUOTES = {"`": "`", "“": "”", "„": "“", "\u2018": "\u2019", "«": "»"}  # that no shell knows
_PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">", '"': '"', "'": "'", **_QUOTES}
_CLOSERS = "".join(_PAIRS.values())
_PUNCTUATION = ",.;:!?"
_BEFORE = f"{''.join(_PAIRS)}@=:,;|!"  # besides blanks, what a name can follow
SUFFIX = re.compile(r"\.\w{1,10}\.?$")
_SEPARATOR = re.compile(r"[/\\]+")
_ODD = re.compile(r"[/\\.~]|[^/\\]*[%$:]")  # of which more must be known than the names of the files here
_DRIVE_OR_HOME = re.compile(r"file:/+([A-Za-z]:)?|[A-Za-z]:[/\\]+|[~$]\w*/", re.IGNORECASE)
_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://[^\s<>\"]+", re.IGNORECASE)
_SHELL_PART = re.compile(r"""\\.|'[^'\n]*'|"(?:[^"\\\n]|\\.)*\"""")
_SHELL_WORD = re.compile(rf"""(?:[^ \t\r\n'"\\]|{_SHELL_PART.pattern})+""")
_MARKDOWN = re.compile(r"!?\[[^\]\n]*\]$")
# 'a page.png', "a page.png", a\ page.png or page.png, between white space
_WORD = re.compile(r"""(?<!\S)(?:@?'[^'\n]+'|@?"[^"\n]+"|(?:\\.|[^\s\\]|\\$)+)(?!\S)""")


@dataclass(frozen=True)
class Named:
    """A file or URL at line[begin:end], which its quotation marks and brackets belong to."""

    source: str
    begin: int
    end: int


def find_files(line: str, bare: bool = False) -> list[Named]:
    """Existing files, and URLs of images and videos, in order. bare: words without suffix are meant as files, too."""
    ends = [end for end in range(1, len(line) + 1) if _can_end(line, end)]
    marked = [end for end in ends if SUFFIX.search(line, max(end - 13, 0), end)]
    text = _Text(line, ends, marked, plain_names(Path.cwd()), bare)
    names, position = [], 0
    while position < len(line):
        name = None
        if _can_begin(line, position):
            if url := _URL.match(line, position):
                name = _web(line, url)
                position = url.end()
            else:
                name = _shell_word(line, position) or _span(text, position)
        if name is not None:
            names.append(name)
            position = name.end
        else:
            position += 1
    return names


@dataclass(frozen=True)
class _Text:
    """ends: where a name can end. marked: those of them that follow a suffix. names: of the files here."""

    line: str
    ends: list[int]
    marked: list[int]
    names: set[str]
    bare: bool


def _web(line: str, url: re.Match) -> Named | None:
    source = url[0].rstrip(_PUNCTUATION + _CLOSERS)
    return _widened(line, source, url.start(), url.start() + len(source)) if kind_of(source) else None


def _shell_word(line: str, begin: int) -> Named | None:
    """A file whose name is quoted, or has backslashes before what a shell would split at."""
    word = _SHELL_WORD.match(line, begin, begin + LONGEST)
    if word is None or not any(quote in word[0] for quote in "'\"\\"):
        return None
    ends = [word.end()]
    while ends[-1] > begin + 1 and line[ends[-1] - 1] in _PUNCTUATION + _CLOSERS:
        ends.append(ends[-1] - 1)
    ends += [end for end in range(ends[-1] - 1, begin, -1) if not line[end].isascii() and _can_end(line, end)]
    for end in ends:
        if _SHELL_WORD.fullmatch(line, begin, end):
            source = _SHELL_PART.sub(_unquoted, line[begin:end])
            if _is_file(source):
                return _widened(line, source, begin, end)
    return None


def _unquoted(part: re.Match) -> str:
    if part[0].startswith("'"):
        return part[0][1:-1]
    if part[0].startswith('"'):
        return re.sub(r'\\([\\"$`])', r"\1", part[0][1:-1])
    return part[0].removeprefix("\\")


def _span(text: _Text, begin: int) -> Named | None:
    """The longest text from `begin` on that is the name of a file."""
    line = text.line
    closer = _QUOTES.get(line[begin - 1]) if begin else None
    at = begin > 0 and line[begin - 1] == "@" and (begin == 1 or line[begin - 2].isspace())
    meant = text.bare or at or closer is not None
    limit = line.find("\n", begin, begin + LONGEST)
    limit = min(limit if limit >= 0 else begin + LONGEST, len(line))
    first, reach = limit, limit  # the first separator, and the one that ends a folder that is not there
    for separator in _SEPARATOR.finditer(line, begin, limit):
        if first == limit:
            first = separator.start()
        head = line[begin : separator.end()]
        beside = first == separator.start() and not _ODD.match(head)
        if beside and plain(line[begin:first]) not in text.names:
            if separator[0] == "\\":  # a letter as others, in a name on this system
                first = limit
                continue
            reach = first
            break
        if not (_DRIVE_OR_HOME.fullmatch(head) or locate(head) is not None):
            reach = separator.start()
            break
    for places, low, high in (
        (text.ends, first, reach),
        (text.ends if meant else text.marked, begin, min(first, begin + LONGEST_NAME)),
    ):
        for index in range(bisect_right(places, high) - 1, bisect_right(places, low) - 1, -1):
            end = places[index]
            if closer is not None and line[end : end + 1] != closer:
                continue
            source = line[begin:end]
            if (low == first or plain(source) in text.names) and _is_file(source):
                return _widened(line, source, begin, end)
    return None


def _is_file(source: str) -> bool:
    path = locate(source)
    return path is not None and path.is_file()


def _widened(line: str, source: str, begin: int, end: int) -> Named:
    """With the `@` before it, and the quotation marks, brackets and Markdown around it."""
    while True:
        before = line[begin - 1] if begin else ""
        if before == "@":
            begin -= 1
        elif before in _PAIRS and before and line[end : end + 1] == _PAIRS[before]:
            begin, end = begin - 1, end + 1
            if before == "(" and (markdown := _MARKDOWN.search(line[:begin])):
                begin = markdown.start()
        else:
            return Named(source, begin, end)


def words_beside(line: str, named: list[Named]) -> list[Named]:
    """The other words, without quotation and what stands around them."""
    words = []
    for match in _WORD.finditer(line):
        if any(name.begin < match.end() and match.start() < name.end for name in named):
            continue
        word = match[0].lstrip("".join(_PAIRS) + "@").rstrip(_PUNCTUATION + _CLOSERS)
        if word:
            words.append(Named(re.sub(r"\\(\W)", r"\1", word), match.start(), match.end()))
    return words


def _joins(letter: str) -> bool:
    """Whether a letter or digit of a script that parts words by blanks; a Chinese sentence has none around a name."""
    return letter.isalnum() and not "\u2e80" <= letter <= "\ud7ff"


def _can_begin(line: str, position: int) -> bool:
    if line[position].isspace():
        return False
    before = line[position - 1] if position else " "
    return before.isspace() or before in _BEFORE or (not before.isascii() and not _joins(before))


def _can_end(line: str, end: int) -> bool:
    """Not within a word, and not before the `.` of `a.png.bak`."""
    rest = line[end : end + 1]
    if line[end - 1].isspace():
        return False
    if rest in ("", *",;|:") or rest.isspace() or rest in _CLOSERS:
        return True
    if rest in ".!?":
        following = line[end : end + 9].lstrip(_PUNCTUATION)[:1]
        return not following or following.isspace() or following in _CLOSERS
    return not rest.isascii() and not _joins(rest)
