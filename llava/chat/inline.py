"""Images and videos named inside a line: typed, pasted, or dropped onto the terminal, which writes their path.

Files that are there, and URLs, are taken where named_files.py finds them. Of the rest, what can only be a path is taken
too, and what looks like one is told.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from llava.chat.media import SUFFIXES, is_image, kind_of
from llava.chat.named_files import SUFFIX, Named, find_files, words_beside
from llava.chat.paths import locate
from llava.errors import LlavaError
from llava.fetch import is_url

_ROOTED = re.compile(r"/|~[\w.-]*/|\.\.?/|file:", re.IGNORECASE)
_EXPLICIT = re.compile(rf"{_ROOTED.pattern}|\.{{0,2}}\\\w|[A-Za-z]:[\\/]", re.IGNORECASE)


@dataclass(frozen=True)
class Line:
    """question: the line without what it shows. media: (`image` or `video`, path or URL), in order.

    notes: what looks like a file and is not shown, at most one line. says_nothing: the question is only such files.
    """

    question: str
    media: list[tuple[str, str]]
    notes: list[str]
    says_nothing: bool = False

    def check(self) -> None:
        """Raises LlavaError for a question of nothing but files that cannot be shown."""
        if self.says_nothing:
            raise LlavaError(self.notes[0])


def split_media(line: str, urls: bool = True) -> Line:
    """What a line says and what it shows.

    Taken out are URLs that end as images or videos do, and files that are one or may become one: what can only be meant
    as a path, since it begins with `/`, `~/`, `./`, `../` or `file:`, is taken also where it does not exist, if it ends
    so. urls: whether those of the web are taken.
    """
    named = find_files(line)
    taken, media, unread = [], [], []
    for name in named:
        kind = kind_of(name.source) or (is_image(locate(name.source)) and "image")
        if kind and (urls or not _is_web(name.source)):
            taken.append(name)
            media.append((kind, name.source))
        else:
            unread.append(name)
    missing = []
    for name in words_beside(line, named):
        if _can_only_be_a_path(name.source) and locate(name.source) is None:
            taken.append(name)
            media.append((kind_of(name.source), name.source))
        elif _looks_like_a_file(name.source):
            missing.append(name)
    order = sorted(range(len(taken)), key=lambda index: taken[index].begin)
    question = _without(line, taken).strip() if taken else line
    if taken and not any(map(str.isalnum, question)):
        question = ""
    note = _note(unread, missing)
    media = [media[index] for index in order]
    says_nothing = bool(note) and not any(map(str.isalnum, _without(line, [*taken, *unread, *missing])))
    return Line(question, media, [note] if note else [], says_nothing)


def begins_with_media(line: str) -> bool:
    """Whether the line begins with a file or a path, and not with a command."""
    named = [
        *find_files(line),
        *(name for name in words_beside(line, []) if kind_of(name.source) and _ROOTED.match(name.source)),
    ]
    return any(name.begin == 0 for name in named)


def sources_of(text: str) -> list[str]:
    """What an argument names: one path, perhaps with blanks in it, or several paths and URLs, quoted where need be."""
    text = text.strip()
    if (is_url(text) and " " not in text) or locate(text) is not None:
        return [text]
    named = find_files(text, bare=True)
    if not named:
        return [text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" else text]
    return [name.source for name in sorted([*named, *words_beside(text, named)], key=lambda name: name.begin)]


def one_source(text: str) -> str:
    """What an argument for one image or video names; the text itself where it does not name just one file."""
    sources = sources_of(text)
    return sources[0] if len(sources) == 1 else text


def _can_only_be_a_path(word: str) -> bool:
    return kind_of(word) is not None and _ROOTED.match(word) is not None


def _looks_like_a_file(word: str) -> bool:
    """Whether somebody who writes it probably means a file."""
    if is_url(word) and not word.lower().startswith("file:"):
        return False
    if word.startswith("data:image/"):
        return True
    suffix = Path(word.replace("\\", "/")).suffix.lower()
    if any(suffix in suffixes for suffixes in SUFFIXES.values()):
        return True
    return bool(_EXPLICIT.match(word)) and ("/" in word[3:] or "\\" in word[3:] or bool(SUFFIX.search(word)))


def _note(unread: list[Named], missing: list[Named]) -> str:
    """What is not shown and why; empty if all is."""
    reasons = {}
    for name in unread:
        reason = "not fetched" if _is_web(name.source) else "no image or video that is read here"
        reasons.setdefault(reason, []).append(name.source)
    for name in missing:
        if name.source.startswith("data:"):
            reasons.setdefault("not read", []).append(f"{name.source[:20]}...")
        else:
            folder = locate(name.source) is not None
            reasons.setdefault("a folder" if folder else "does not exist", []).append(name.source)
    parts = []
    for reason, sources in reasons.items():
        parts.append(f"{', '.join(dict.fromkeys(sources))} ({reason})")
    return f"not shown: {'; '.join(parts)}" if parts else ""


def _is_web(source: str) -> bool:
    return is_url(source) and not source.lower().startswith("file:")


def _without(line: str, names: list[Named]) -> str:
    for name in sorted(names, key=lambda name: -name.begin):
        line = line[: name.begin] + line[name.end :]
    return re.sub(r"[ \t]{2,}", " ", line)
