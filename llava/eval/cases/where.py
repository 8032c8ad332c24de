"""`--where`: which documents are wanted, in words.

WHERE  = TERM {("," | "and") TERM}          all of them hold
TERM   = RUN ("right" | "wrong") | RUN ("better" | "worse") "than" RUN
RUN    = a run's name, in quotation marks if it has blanks, commas or quotation marks of the other kind
"""

import re
from collections.abc import Callable, Mapping, Sequence

from llava.arguments import did_you_mean, nearest, shown, unknown
from llava.errors import LlavaError

Shares = Mapping[str, float | None]  # run -> what its answer is worth, from 0 to 1; None without a score
Wanted = Callable[[Shares], bool]
WORDS = ("right", "wrong", "better", "worse")
TOKEN = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|(,)|([^\s,"']+))""")


def is_right(share: float | None, least: float) -> bool:
    """Whether an answer counts as right; one without a score is neither right nor wrong."""
    return share is not None and share >= least


def read_where(text: str, runs: Sequence[str], least: float) -> tuple[Wanted, list[str]]:
    """What a document must fulfil, and the runs that this is about.

    Args:
        text: see above.
        runs: their names.
        least: from which share an answer is right.

    Raises:
        LlavaError: for an unknown run or word, and where one is missing.
    """
    tokens = _tokens(text)
    terms: list[Wanted] = []
    names: list[str] = []
    while True:
        term, used = _term(tokens, runs, least)
        terms.append(term)
        names += used
        if not tokens:
            return (lambda shares: all(term(shares) for term in terms)), list(dict.fromkeys(names))
        if (joint := tokens.pop(0)) not in (",", "and"):
            raise _error(f"behind a term comes a comma, or and; found {shown(joint)}")


def _term(tokens: list[str], runs: Sequence[str], least: float) -> tuple[Wanted, list[str]]:
    run = _run(tokens, runs)
    word = _taken(tokens, f"behind {run!r} comes {', '.join(WORDS[:-1])} or {WORDS[-1]}")
    if word == "right":
        return (lambda shares: is_right(shares[run], least)), [run]
    if word == "wrong":
        return (lambda shares: shares[run] is not None and not is_right(shares[run], least)), [run]
    if word not in WORDS:
        meant = did_you_mean(nearest(word, WORDS))
        raise _error(f"behind {run!r} comes {', '.join(WORDS[:-1])} or {WORDS[-1]}; found {shown(word)}{meant}")
    if (than := _taken(tokens, f"behind {word!r} comes than")) != "than":
        raise _error(f"behind {word!r} comes than; found {shown(than)}")
    other = _run(tokens, runs)
    sign = 1 if word == "better" else -1
    return (lambda shares: _more(shares[run], shares[other], sign)), [run, other]


def _more(share: float | None, other: float | None, sign: int) -> bool:
    return share is not None and other is not None and sign * (share - other) > 0


def _run(tokens: list[str], runs: Sequence[str]) -> str:
    name = _taken(tokens, f"a run's name is missing; the runs are {', '.join(runs)}")
    if name not in runs:
        raise _error(unknown("run", name, runs))
    return name


def _taken(tokens: list[str], message: str) -> str:
    if not tokens:
        raise _error(f"{message}; found the end")
    return tokens.pop(0)


def _tokens(text: str) -> list[str]:
    tokens, place = [], 0
    while text[place:].strip():
        match = TOKEN.match(text, place)
        if match is None:
            raise _error(f"quotation marks without an end: {shown(text[place:].strip())}")
        tokens.append(next(group for group in match.groups() if group is not None))
        place = match.end()
    return tokens


def _error(message: str) -> LlavaError:
    return LlavaError(f"--where: {message}")
