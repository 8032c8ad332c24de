"""English prose from CPython's own help pages (pydoc_data.topics), split by topic.

Its topics quote each other: "compound" holds all that "if" says. A sentence of a test topic is therefore in no training
page, wherever else it stands. The texts change a little from one version of Python to the next, and pages with them.
"""

import re
from functools import cache

TEST_EVERY = 4  # of the topics in alphabetical order, one of so many is for testing only
SENTENCE_END = re.compile(r"(?<=[.?!])\s+(?=[A-Z])")
WORD = re.compile(r"\(*[A-Za-z0-9]+(?:['/.-][A-Za-z0-9]+)*(?:\(\))?\)*[.,;:?!]?")
MARKUP = str.maketrans({'"': None, "*": None, "\u2019": "'"})
RULE = re.compile(r"[*=~^-]{3,}")  # what underlines a heading
SHORTEST = 5  # words of a sentence
SHORTEST_TOPIC = 60  # words of a topic that can fill pages


@cache
def topics(test: bool) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """The topics of one part, each a tuple of sentences, each a tuple of words as they are written."""
    from pydoc_data.topics import topics as texts

    held_out = [name for index, name in enumerate(sorted(texts)) if index % TEST_EVERY == 0]
    of_test = {sentence for name in held_out for sentence in sentences(texts[name])}
    chosen = []
    for name in sorted(texts):
        if (name in held_out) == test:
            kept = [sentence for sentence in sentences(texts[name]) if test or sentence not in of_test]
            kept = list(dict.fromkeys(kept))
            if sum(map(len, kept)) >= SHORTEST_TOPIC:
                chosen.append(tuple(kept))
    return tuple(chosen)


def sentences(text: str) -> list[tuple[str, ...]]:
    """The sentences of plain words of a help page: no headings, grammar, code or names with underscores."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        if any(RULE.fullmatch(line.strip()) for line in paragraph.split("\n")):
            continue
        for sentence in SENTENCE_END.split(" ".join(paragraph.translate(MARKUP).split())):
            words = tuple(sentence.split())
            if len(words) >= SHORTEST and words[-1][-1] in ".?!:" and all(map(WORD.fullmatch, words)):
                kept.append(words)
    return kept


def bare(word: str) -> str:
    """A word without the punctuation around it, as an answer gives it."""
    return word.strip("().,;:?!")
