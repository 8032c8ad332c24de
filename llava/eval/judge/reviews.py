"""Reviews of answers: kept in a file as they come, asked for only once.

The harness scores documents in threads; the functions of a judged task (llava/eval/judge/rubrics.py) find the
`Reviewer` of the task that is running here, because the harness hands them a document and an answer and nothing else.
"""

import json
import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from llava.errors import LlavaError
from llava.eval.judge.client import Judge, Prompt, Reply, ReviewError
from llava.eval.judge.settings import JudgeSettings
from llava.jsonl import append_line, cut_off_half_line, whole_lines

Rating, Results = TypeVar("Rating"), TypeVar("Results")

FAILURES_IN_A_ROW = 8  # the judge is given up after so many, and as many as are asked at a time


class ReviewStore:
    """The reviews of one task in a file, one JSON line each: key, judge, document, reply and its tokens."""

    def __init__(self, file: Path):
        self.file = file
        self._lock = threading.Lock()
        self._replies: dict[str, str] = {}
        if file.exists():
            self._read()

    def get(self, key: str) -> str | None:
        """The judge's words; None when there is no such review."""
        return self._replies.get(key)

    def forget(self, key: str) -> None:
        """Makes room for another review; in the file, the last one counts."""
        self._replies.pop(key, None)

    def add(self, key: str, judge: str, document: str, reply: Reply) -> str:
        """Appends a review at once, unless another thread just did; returns the words that are kept."""
        row = {"key": key, "judge": judge, "document": document, "reply": reply.text}
        row |= {"prompt_tokens": reply.prompt_tokens, "reply_tokens": reply.reply_tokens}
        with self._lock:
            if key in self._replies:
                return self._replies[key]
            self._replies[key] = reply.text
            self.file.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.file, row)
            return reply.text

    def _read(self) -> None:
        cut_off_half_line(self.file)
        for number, line in enumerate(whole_lines(self.file), 1):
            try:
                row = json.loads(line)
                self._replies[row["key"]] = row["reply"]
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                raise LlavaError(f"{self.file}: line {number} is damaged ({error}); delete that line") from error


class Reviewer:
    """Reviews of one task by one judge: from the store, else asked and stored; failures are counted.

    counting: nothing is asked; it is only counted what would be.
    """

    def __init__(self, settings: JudgeSettings, file: Path):
        self.settings = settings
        self.store = ReviewStore(file)
        self._judge = Judge(settings)
        self._lock = threading.Lock()
        self.begin(counting=True)

    def begin(self, counting: bool) -> None:
        """Sets all counts to zero."""
        self.counting = counting
        self.reviews = self.failed = self.missing = self.prompt_tokens = self.reply_tokens = 0
        self._reasons: Counter[str] = Counter()
        self._in_a_row = 0
        self._given_up: str | None = None

    def review(self, document: str, prompt: Prompt, parse: Callable[[str], Rating | None]) -> Rating | None:
        """What the judge thinks, as `parse` reads it; None when there is no usable review."""
        key = prompt.key(self.settings.model)
        stored = self.store.get(key)
        rating = None if stored is None else parse(stored)
        if rating is None:
            self.store.forget(key)  # replies may be read more strictly than when it was stored
        with self._lock:
            self.reviews += 1
            if rating is None and self.counting:
                self.missing += 1
                self.prompt_tokens += prompt.tokens()
                self.reply_tokens += prompt.max_tokens
        if rating is not None or self.counting:
            return rating
        try:
            if self._given_up is not None:
                raise ReviewError(self._given_up)
            reply = self._judge.ask(prompt, parse)
        except ReviewError as error:
            self._fail(error)
            return None
        with self._lock:
            self._in_a_row = 0
            self.prompt_tokens += reply.prompt_tokens
            self.reply_tokens += reply.reply_tokens
        return parse(self.store.add(key, self.settings.model, document, reply))

    def _fail(self, error: ReviewError) -> None:
        with self._lock:
            self.failed += 1
            self._in_a_row += 1
            self._reasons[str(error)] += 1
            if error.final or self._in_a_row >= max(FAILURES_IN_A_ROW, self.settings.parallel):
                self._given_up = self._given_up or str(error)

    def estimate(self) -> str:
        """What asking will take, in one line; after counting."""
        done = self.reviews - self.missing
        line = f"judge {self.settings.model} at {self.settings.url}: {self.missing} reviews to ask for, {done} stored"
        if not self.missing:
            return line
        line += f"; about {self.prompt_tokens:,} prompt tokens, at most {self.reply_tokens:,} reply tokens"
        if self.settings.prices is None:
            return f"{line}; no price given (--judge_prices)"
        per_prompt, per_reply = (price / 1e6 for price in self.settings.prices)
        cost = self.prompt_tokens * per_prompt
        most = cost + self.reply_tokens * per_reply
        return f"{line}; about {_money(cost)} and at most {_money(most)} at the given prices"

    def facts(self, prompts: str) -> dict:
        """What results say of their judge; prompts: the version of the questions to it."""
        name = self.settings.model
        return {"name": name, "prompts": prompts, "reviews": self.reviews, "failed_reviews": self.failed}

    def summary(self) -> str:
        """What happened, in one line; where reviews failed, with the most frequent reason."""
        if not self.failed:
            used = f"{self.prompt_tokens:,} prompt and {self.reply_tokens:,} reply tokens"
            return f"judge {self.settings.model}: {self.reviews} reviews, {used} used now"
        ((reason, _),) = self._reasons.most_common(1)
        return f"{self.failed} of {self.reviews} reviews failed: {reason}"


def _money(amount: float) -> str:
    """In hundredths; what is less than one, with its first two digits."""
    if amount == 0 or amount >= 0.01:
        return f"{amount:.2f}"
    return f"{amount:.{1 - math.floor(math.log10(amount))}f}"


def with_reviews(reviewer: Reviewer, evaluate: Callable[[], Results]) -> Results:
    """What `evaluate` gives when its task asks `reviewer`: run once to count and to print the estimate, then to ask."""
    with reviewing(reviewer):
        results = evaluate()
        print(reviewer.estimate(), file=sys.stderr)
        if reviewer.missing:
            reviewer.begin(counting=False)
            results = evaluate()
            print(reviewer.summary(), file=sys.stderr)
    return results


_current: Reviewer | None = None


@contextmanager
def reviewing(reviewer: Reviewer) -> Iterator[None]:
    """Makes `reviewer` the one that the task's functions ask."""
    global _current
    if _current is not None:
        raise RuntimeError("two judged tasks in one process at a time")
    _current = reviewer
    try:
        yield
    finally:
        _current = None


def current() -> Reviewer:
    """The reviewer of the running task. Raises LlavaError where there is none."""
    if _current is None:
        raise LlavaError("this task needs a judge: run it by `llava eval`")
    return _current
