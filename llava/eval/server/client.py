"""Asks an OpenAI-compatible server, many questions at a time: httpx, bounded, with pauses after what may pass.

A question that the server refuses is that document's failure; a server that is gone, or wants another key, ends all.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from llava.constants import LOCAL_HOSTS
from llava.errors import LlavaError
from llava.eval.server.responses import PASSING, in_one_line, retry_after
from llava.eval.server.settings import KEY, VLLM, ServerSettings, key_in

RETRIES, FIRST_PAUSE, LONGEST_PAUSE = 6, 1.0, 30.0  # seconds, doubled each time
TIMEOUT = 600.0  # seconds without an answer: a long one, behind all others that are in flight
UNREADY = (408, 409, 429, 502, 503, 504)  # of the server, whatever it is asked; any other 5xx may be of this question
WORDS = 300  # characters of what a server says

Item = TypeVar("Item")


class ServerError(LlavaError):
    """Nothing more can be asked of this server."""


class _PassingError(Exception):
    """A failure that may pass. pause: the seconds that the server asks for. lasting: what it is where it does not."""

    def __init__(self, reason: str, lasting: type[LlavaError], pause: float | None = None):
        super().__init__(reason)
        self.lasting, self.pause = lasting, pause


class Server:
    """A server of one model; safe to use from several threads."""

    def __init__(self, settings: ServerSettings):
        self.settings = settings
        self._key = key_in(KEY)
        self._ended = threading.Event()  # set where no more is asked
        self._client = httpx.Client(
            timeout=httpx.Timeout(TIMEOUT, connect=30.0),
            limits=httpx.Limits(max_connections=settings.requests),
            headers={"Authorization": f"Bearer {self._key}"},
            trust_env=urlsplit(settings.url).hostname not in LOCAL_HOSTS,  # no proxy leads to this machine
        )

    def answers(
        self, items: Iterable[Item], ask: Callable[[Item], str]
    ) -> Iterator[tuple[Item, str | None, LlavaError | None]]:
        """Each item with what `ask` made of it, or why nothing, as they come; so many are asked at a time as are set.

        Raises ServerError when there is nothing to be had from the server any more; what is in flight is given up.
        """
        self._ended.clear()
        pool = ThreadPoolExecutor(self.settings.requests, thread_name_prefix="request")
        try:
            coming = {pool.submit(ask, item): item for item in items}
            for done in as_completed(coming):
                try:
                    yield coming[done], done.result(), None
                except ServerError:
                    raise
                except LlavaError as error:
                    yield coming[done], None, error
        finally:
            self._ended.set()  # ends the pauses of what is given up; without a failure nothing is left
            pool.shutdown(wait=False, cancel_futures=True)

    def completion(self, payload: dict) -> str:
        """The text that completes a request. Raises LlavaError where the server refuses it, ServerError."""
        pause = FIRST_PAUSE
        for attempt in range(RETRIES + 1):
            if self._ended.is_set():
                raise ServerError("given up")
            try:
                return self._post(payload)
            except _PassingError as error:
                failure = error
            if attempt < RETRIES:
                self._ended.wait(pause if failure.pause is None else min(failure.pause, LONGEST_PAUSE))
                pause = min(2 * pause, LONGEST_PAUSE)
        raise failure.lasting(f"{failure} ({RETRIES + 1} attempts)")

    def known_models(self) -> dict[str, str]:
        """The models that the server lists, and whose they are; {} where it has no list. ServerError without server."""
        try:
            response = self._client.get(f"{self.settings.url}/models", timeout=30.0)
        except httpx.HTTPError as error:
            raise ServerError(f"no server answers at {self.settings.url} ({self._shown(str(error))})") from error
        self._check_key(response)
        try:
            return {str(row["id"]): str(row.get("owned_by")) for row in response.json()["data"]}
        except (ValueError, LookupError, TypeError, AttributeError):
            return {}

    def check_model(self, models: Iterable[str]) -> None:
        """Raises ServerError that names the models where the server does not answer as this one."""
        payload = {"model": self.settings.model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        try:
            self.completion(payload)
        except LlavaError as error:
            listed = f"; it lists {', '.join(models)}" if models else ""
            why = "" if isinstance(error, ServerError) else f"{self.settings.url}, asked for {self.settings.model!r}: "
            raise ServerError(f"{why}{error}{listed}") from error

    def _post(self, payload: dict) -> str:
        url = self.settings.url
        try:
            response = self._client.post(f"{url}/chat/completions", json=payload)
        except httpx.TimeoutException as error:
            raise _PassingError(f"{url} gives no answer within {TIMEOUT:g} s", ServerError) from error
        except httpx.HTTPError as error:
            raise _PassingError(f"no connection to {url} ({self._shown(str(error))})", ServerError) from error
        self._check_key(response)
        status = response.status_code
        if status == 404:
            raise ServerError(
                f"{url} knows no such address or model (404: {self._sentence(response)}); asked was "
                f"{self.settings.model!r}"
            )
        reason = f"the server refuses it ({status}): {self._sentence(response)}"
        if status in PASSING or status >= 500:
            lasting = ServerError if status in UNREADY else LlavaError
            raise _PassingError(reason, lasting, retry_after(response.headers.get("Retry-After")))
        if status != 200:
            raise LlavaError(reason)
        try:
            content = response.json()["choices"][0]["message"].get("content")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ServerError(f"{url} sends no chat completion: {self._shown(response.text)}") from error
        if content is not None and not isinstance(content, str):
            raise ServerError(f"{url} sends no text: {self._shown(repr(content))}")
        return content or ""

    def _check_key(self, response: httpx.Response) -> None:
        if response.status_code in (401, 403):
            raise ServerError(f"{self.settings.url} refuses the key ({response.status_code}); check {KEY}")

    def _sentence(self, response: httpx.Response) -> str:
        """What the server says of it: OpenAI's and vLLM's `error.message`, FastAPI's `detail`, or all."""
        try:
            body: Any = response.json()
        except ValueError:
            return self._shown(response.text)
        for names in (("error", "message"), ("message",), ("detail",), ("error",)):
            value = body
            for name in names:
                value = value.get(name) if isinstance(value, dict) else None
            if isinstance(value, str):
                return self._shown(value)
        return self._shown(response.text)

    def _shown(self, text: str) -> str:
        return in_one_line(text, self._key, WORDS)


def server_at(url: str, model: str, requests: int) -> ServerSettings:
    """The server at an address, after asking it for its model. Raises ServerError where that is not to be had."""
    settings = ServerSettings(url, model, requests=requests)
    server = Server(settings)
    models = server.known_models()
    if model not in models:
        server.check_model(models)
    if models.get(model) == VLLM:
        return ServerSettings(url, model, f"server {VLLM}", requests, plain=True)
    return settings
