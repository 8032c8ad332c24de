"""A judge: any model behind an OpenAI-compatible endpoint that rates answers.

The key comes from the environment (OPENAI_API_KEY) alone; it is neither stored nor shown, also not where the server
repeats it in an error.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from PIL import Image

from llava.data.color import to_rgb
from llava.eval.judge.settings import KEY, JudgeSettings
from llava.eval.server.messages import data_url
from llava.eval.server.responses import PASSING, in_one_line, retry_after, without_key
from llava.eval.server.settings import key_in

WORDS = 200  # characters of what a server says
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a failed request is repeated; doubled each time
LONGEST_REQUESTED_PAUSE = 600.0  # a server that asks for more by Retry-After is not waited for
UNUSABLE = {
    401: f"does not accept the key (401); check {KEY}",
    403: f"refuses this key (403); check what {KEY} may use",
    404: "knows no such address or model (404); check --judge and --judge_model",
}
CHANGEABLE = ("max_tokens", "temperature")  # what some models refuse, and say so
THOUGHTS = 4096  # tokens for a model that wants max_completion_tokens, which its thoughts use up too
HOTTER = 0.5  # added to the temperature after an unreadable reply: the same request would bring the same reply


class ReviewError(Exception):
    """No usable review. `final` says that no other review of this judge can succeed either."""

    def __init__(self, reason: str, final: bool = False):
        super().__init__(reason)
        self.final = final


@dataclass(frozen=True)
class Prompt:
    """What a judge is asked about one answer: a text and images, put before the text or after it."""

    text: str
    images: tuple[Image.Image, ...] = ()
    images_first: bool = False
    max_tokens: int = 1024

    def messages(self) -> list[dict]:
        """One user message as the endpoint takes it; images as PNG in data URLs."""
        text = {"type": "text", "text": self.text}
        images = [{"type": "image_url", "image_url": {"url": data_url(to_rgb(image)[0])}} for image in self.images]
        if not images:
            return [{"role": "user", "content": self.text}]
        return [{"role": "user", "content": [*images, text] if self.images_first else [text, *images]}]

    def key(self, model: str) -> str:
        """The SHA-256 of all that decides the review: the judge, the text (with the answer in it), the pixels."""
        digest = hashlib.sha256(json.dumps([model, self.text, self.images_first, self.max_tokens]).encode())
        for image in self.images:
            digest.update(f"{image.size}".encode() + to_rgb(image)[0].tobytes())
        return digest.hexdigest()

    def tokens(self) -> int:
        """About how many tokens it takes: 4 characters each, and what OpenAI's vision models count for the images."""
        return len(self.text) // 4 + sum(_image_tokens(*image.size) for image in self.images)


@dataclass(frozen=True)
class Reply:
    """A judge's text and the tokens that the server counted (0 where it does not say)."""

    text: str
    prompt_tokens: int = 0
    reply_tokens: int = 0


class Judge:
    """Asks one judge; safe to use from several threads."""

    def __init__(self, settings: JudgeSettings):
        self.settings = settings
        self._key = key_in(KEY)
        self._refused: set[str] = set()  # those of CHANGEABLE that this judge does not take
        self._pace = _Pace(settings.per_minute)
        self._client = httpx.Client(
            timeout=settings.timeout,
            limits=httpx.Limits(max_connections=settings.parallel),
            headers={"Authorization": f"Bearer {self._key}"},
        )

    def ask(self, prompt: Prompt, parse: Callable[[str], Any]) -> Reply:
        """A reply in which `parse` finds a rating (it gives None where a reply is unreadable).

        Repeats after time-outs, broken connections, 429, 5xx, refusals and unreadable replies. Raises ReviewError.
        """
        messages, temperature, pause = prompt.messages(), 0.0, FIRST_PAUSE
        for attempt in range(self.settings.retries + 1):
            self._pace.wait()
            try:
                reply = self._post(messages, prompt.max_tokens, temperature)
                if parse(reply.text) is not None:
                    return reply
                raise _RefusedError(f"unreadable reply: {self._shown(reply.text)!r}")
            except _RefusedError as error:
                reason, final = str(error), False
                temperature = min(temperature + HOTTER, 1.0)
            except _PassingError as error:
                reason, final = str(error), error.final
                if error.pause is not None:
                    self._pace.pause(error.pause)  # the server says when: all threads keep to it
                elif attempt < self.settings.retries:
                    time.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
        raise ReviewError(reason, final)

    def _post(self, messages: list[dict], max_tokens: int, temperature: float) -> Reply:
        payload = {"model": self.settings.model, "messages": messages}
        if "max_tokens" in self._refused:
            payload["max_completion_tokens"] = max_tokens + THOUGHTS
        else:
            payload["max_tokens"] = max_tokens
        if "temperature" not in self._refused:
            payload["temperature"] = temperature
        try:
            response = self._client.post(f"{self.settings.url}/chat/completions", json=payload)
        except httpx.TimeoutException as error:
            raise _PassingError(f"no answer within {self.settings.timeout:g} s") from error
        except httpx.HTTPError as error:
            reason = f"no connection to {self.settings.url} ({self._shown(str(error))})"
            raise _PassingError(reason, final=isinstance(error, httpx.ConnectError)) from error
        status = response.status_code
        if status in UNUSABLE:
            raise ReviewError(f"the judge at {self.settings.url} {UNUSABLE[status]}", final=True)
        if status == 400 and (name := _refused_parameter(response)) in payload:
            self._refused.add(name)
            return self._post(messages, max_tokens, temperature)
        if status != 200:
            reason = f"status {status}: {self._shown(response.text)}"
            if status not in PASSING and status < 500:
                raise ReviewError(reason)
            pause = retry_after(response.headers.get("Retry-After"))
            if pause is not None and pause > LONGEST_REQUESTED_PAUSE:
                raise ReviewError(f"{reason} (it asks to wait {pause:.0f} s)")
            raise _PassingError(reason, pause)
        return self._read(response)

    def _read(self, response: httpx.Response) -> Reply:
        try:
            body = response.json()
            choice, usage = body["choices"][0], body.get("usage") or {}
            text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
            counts = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _RefusedError(f"not a chat completion: {self._shown(response.text)}") from error
        if refusal or choice.get("finish_reason") == "content_filter":
            raise _RefusedError(f"the judge refused: {self._shown(str(refusal or 'content filter'))}")
        if not isinstance(text, str) or not text.strip():
            raise _RefusedError("empty reply")
        return Reply(without_key(text.strip(), self._key), *counts)

    def _shown(self, text: str) -> str:
        return in_one_line(text, self._key, WORDS)


class _PassingError(Exception):
    """A failure that may pass. pause: the seconds that the server asks for. final: until it does, nothing works."""

    def __init__(self, reason: str, pause: float | None = None, final: bool = False):
        super().__init__(reason)
        self.pause, self.final = pause, final


class _RefusedError(Exception):
    """An answer without a review in it."""


class _Pace:
    """Spaces the requests of all threads evenly, and holds all of them back where a server asks for a pause."""

    def __init__(self, per_minute: int | None):
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0  # time.monotonic() of the next request
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            start = max(time.monotonic(), self._next)
            self._next = start + self._interval
        time.sleep(max(0.0, start - time.monotonic()))

    def pause(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def _refused_parameter(response: httpx.Response) -> str | None:
    """Which of CHANGEABLE an error is about; None where it is about something else."""
    try:
        name = response.json()["error"]["param"]
    except (ValueError, LookupError, TypeError):
        return None
    return name if name in CHANGEABLE else None


def _image_tokens(width: int, height: int) -> int:
    """85 and 170 for each 512-pixel tile, after fitting into 2048 x 2048 and the shorter side to 768 (GPT-4o)."""
    scale = min(1.0, 2048 / max(width, height))
    scale = min(scale, 768 / min(width, height))
    across, down = (-(-round(side * scale) // 512) for side in (width, height))
    return 85 + 170 * across * down
