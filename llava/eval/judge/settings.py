"""Which judge is asked, and how: from flags, else from the environment variables that lmms-eval reads."""

import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava.arguments import ArgumentParser
from llava.errors import LlavaError
from llava.eval.server.settings import base_url, check_base_url

KEY, URL, MODEL = "OPENAI_API_KEY", ("OPENAI_API_URL", "OPENAI_BASE_URL"), "MODEL_VERSION"
NO_JUDGE = (
    f"no judge is named: give --judge URL and --judge_model NAME (or {URL[0]} and {MODEL}), or store the answers now "
    "with --predict_only and let them be judged later by `llava eval judge RUN`"
)


@dataclass(frozen=True)
class JudgeSettings:
    """url: the endpoint's base ("https://.../v1"). model: the judge's name there.

    parallel: requests at a time. per_minute: no more requests than this (None: no limit). retries: how often a failed
    request is repeated. timeout: seconds without an answer. prices: of a million prompt and a million reply tokens.
    """

    url: str
    model: str
    parallel: int = 8
    per_minute: int | None = None
    retries: int = 6
    timeout: float = 120.0
    prices: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_base_url(self.url, "the judge's address", KEY)
        for name, least in (("parallel", 1), ("per_minute", 1), ("retries", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise LlavaError(f"--judge_{name} must be at least {least}, found {value}")
        if self.timeout <= 0:
            raise LlavaError(f"--judge_timeout must be above 0, found {self.timeout}")
        if self.prices is not None and min(self.prices) < 0:
            raise LlavaError(f"--judge_prices must not be negative, found {min(self.prices)}")


def judge_settings(
    url: str | None, model: str | None, environment: Mapping[str, str] = os.environ, **settings: Any
) -> JudgeSettings | None:
    """The settings, what is not given taken from lmms-eval's environment variables; None when no address is named.

    An address may end in /chat/completions. Raises LlavaError for a judge without a name and for wrong values.
    """
    url = url or next((environment[name] for name in URL if environment.get(name)), None)
    model = model or environment.get(MODEL)
    if url is None:
        return None
    if not model:
        raise LlavaError(f"a judge needs the name of a model: --judge_model NAME or {MODEL}")
    return JudgeSettings(base_url(url), model, **settings)


def add_judge_arguments(parser: ArgumentParser) -> None:
    """The flags that `judge_settings_from` reads."""
    group = parser.add_argument_group(
        "judge", f"any OpenAI-compatible endpoint; its key, if it wants one, is taken from {KEY}"
    )
    group.add_argument("--judge", metavar="URL", help=f"base URL, .../v1 (default: {URL[0]} or {URL[1]})")
    group.add_argument("--judge_model", metavar="NAME", help=f"the judge's name there (default: {MODEL})")
    group.add_argument("--judge_parallel", type=int, default=8, metavar="N", help="requests at a time (default 8)")
    group.add_argument("--judge_per_minute", type=int, metavar="N", help="at most N requests per minute")
    group.add_argument("--judge_retries", type=int, default=6, metavar="N", help="of a failed request (default 6)")
    group.add_argument(
        "--judge_timeout", type=float, default=120.0, metavar="SECONDS", help="to wait for an answer (default 120)"
    )
    group.add_argument(
        "--judge_prices",
        type=float,
        nargs=2,
        metavar=("PROMPT", "REPLY"),
        help="of a million prompt and a million reply tokens, for the estimate",
    )


def judge_settings_from(args: Namespace) -> JudgeSettings | None:
    """The settings that the flags and the environment give; None when no judge is named."""
    return judge_settings(
        args.judge,
        args.judge_model,
        parallel=args.judge_parallel,
        per_minute=args.judge_per_minute,
        retries=args.judge_retries,
        timeout=args.judge_timeout,
        prices=args.judge_prices and tuple(args.judge_prices),
    )
