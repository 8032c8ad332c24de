"""Answers to questions as VQA compares them: normalised, scored by how many people gave them, and in a vocabulary.

The rules are those of the VQA challenge's evaluation (Antol et al., 2015; visualqa.org/evaluation.html), as the
reference applies them.
"""

import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from functools import lru_cache

SCORES = (0.0, 0.3, 0.6, 0.9)  # of an answer that so many of ten people gave; 1 for more
LEAST_COUNT = 9  # how often an answer is the most frequent one, to stand in the vocabulary
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBERS)}}
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# Each is also read without one of its apostrophes. Not among them: words that are others without it (let's, she's), and
# those with a capital I, which letters made small no longer have.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, letter in enumerate(word)
    if letter == "'"
}


@lru_cache(maxsize=1 << 16)  # the same answers come again and again
def normalize_answer(answer: str) -> str:
    """An answer in the form in which answers are compared.

    Punctuation goes or becomes a blank, letters are small, articles go, numbers up to ten are digits, and contractions
    have their apostrophe.
    """
    text = answer
    for mark in PUNCTUATION:
        at_edge = f"{mark} " in answer or f" {mark}" in answer or _COMMA_IN_NUMBER.search(answer)
        text = text.replace(mark, "" if at_edge else " ")
    words = (DIGITS.get(word, word) for word in _PERIOD.sub("", text).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def form_among(answer: str, vocabulary: Container[str]) -> str | None:
    """The form in which an answer stands in a vocabulary: its own, else the normalised one; None where it does not."""
    if answer in vocabulary:
        return answer
    normalized = normalize_answer(answer)
    return normalized if normalized in vocabulary else None


def score_answers(answers: Sequence[str]) -> tuple[list[str], list[float]]:
    """The different answers of several people, normalised, and how right each is.

    One answer alone, as of question sets that are written by one person each (VG-QA), is right.
    """
    if len(answers) == 1:
        return [normalize_answer(answers[0])], [1.0]
    counts = Counter(map(normalize_answer, answers))
    return list(counts), [SCORES[count] if count < len(SCORES) else 1.0 for count in counts.values()]


def build_vocabulary(majority_answers: Iterable[str], least_count: int = LEAST_COUNT) -> tuple[str, ...]:
    """The answers that are often enough the most frequent one of a question, in the order of their first occurrence.

    Of VQAv2's training and validation questions they are 3,129.
    """
    counts = Counter(map(normalize_answer, majority_answers))
    return tuple(answer for answer, count in counts.items() if count >= least_count)
