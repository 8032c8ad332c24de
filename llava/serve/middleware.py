"""What stands before a server, as ASGI has it: requests are checked, counted and let through one after another.

client ── key ── few paths ── body, bounded ── checked_request, in a thread ── its turn ── the server
   └──────────────── one error form, whoever refuses ──────────────────────────────────────────┘
"""

import asyncio
import hmac
import os
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from llava.constants import MEBIBYTE
from llava.serve.limits import VARIABLE, Service, key_of_requests
from llava.serve.names import AT_ONCE
from llava.serve.refusals import INVALID_KEY, RefusedError, as_error, error_json
from llava.serve.request import checked_request

Message = dict[str, Any]
Receive, Send = Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]
COMPLETIONS = "/v1/chat/completions"
HEALTH = "/health"
READ = (HEALTH, "/v1/models", "/metrics")
JSON = b"application/json"


class GoneError(Exception):
    """The client went away."""


class CheckedRequests:
    """ASGI middleware around a server: what comes in is checked, and every error leaves in one form."""

    def __init__(self, app: Any, service: Service):
        self.app, self.service = app, service
        self.key = key_of_requests()
        self.present = 0  # requests, of which some wait
        self.turns = asyncio.Semaphore(AT_ONCE[service.engine])

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            try:
                await self._answer(scope, receive, _Errors(send))
            except GoneError:
                return
            except RefusedError as refused:
                await _send_error(send, str(refused), refused.status, refused.code)

    async def _answer(self, scope: Any, receive: Receive, send: Send) -> None:
        self._check_key(scope)
        if scope["path"] in READ and scope["method"] == "GET":
            await self.app(scope, receive, send)
            return
        _check_place(scope)
        limits = self.service.limits
        if self.present >= AT_ONCE[self.service.engine] + limits.waiting:
            raise RefusedError(
                f"{self.present} requests are being answered or wait; try again later", HTTPStatus.SERVICE_UNAVAILABLE
            )
        self.present += 1
        try:
            body = await _body(scope, receive, limits.request_mib)
            body = await asyncio.to_thread(checked_request, body, self.service)
            await self._in_turn(_with_length(scope, body), _Once(body, receive), send)
        finally:
            self.present -= 1

    def _check_key(self, scope: Any) -> None:
        """Raises RefusedError for a request without the key, where there is one; `/health` needs none."""
        if self.key is None or scope["path"] == HEALTH:
            return
        scheme, _, given = _header(scope, b"authorization").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.key.encode()):
            raise RefusedError(
                "this server wants its key: Authorization: Bearer KEY", HTTPStatus.UNAUTHORIZED, INVALID_KEY
            )

    async def _in_turn(self, scope: Any, receive: "_Once", send: Send) -> None:
        turn = asyncio.ensure_future(self.turns.acquire())
        try:
            await asyncio.wait({turn, receive.later}, return_when=asyncio.FIRST_COMPLETED)
            if receive.later.done():
                raise GoneError
            await self.app(scope, receive, send)
        finally:
            receive.later.cancel()
            if turn.done():
                self.turns.release()
            else:
                turn.cancel()


class ToldByVariable(CheckedRequests):
    """The same, for a server that makes it by its name: what is served stands in the environment."""

    def __init__(self, app: Any):
        super().__init__(app, Service.from_json(os.environ[VARIABLE]))


class _Once:
    """What a server receives: the checked body, then that the client went away, when it does."""

    def __init__(self, body: bytes, receive: Receive):
        self.body: bytes | None = body
        self.later = asyncio.ensure_future(receive())

    async def __call__(self) -> Message:
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await asyncio.shield(self.later)


class _Errors:
    """Sends what a server sends, and its errors in OpenAI's form."""

    def __init__(self, send: Send):
        self.send = send
        self.start: Message | None = None  # of an error, until its body is there
        self.body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= HTTPStatus.BAD_REQUEST:
            self.start = message
        elif self.start is None:
            await self.send(message)
        else:
            self.body += message.get("body", b"")
            if not message.get("more_body", False):
                status = self.start["status"]
                await _send_json(self.send, as_error(self.body, status), status)


def _check_place(scope: Any) -> None:
    """Raises RefusedError for what is no request for a completion."""
    if scope["path"] != COMPLETIONS:
        answered = ", ".join((COMPLETIONS, *READ))
        raise RefusedError(f"there is no {scope['path']}; this server answers {answered}", HTTPStatus.NOT_FOUND)
    if scope["method"] != "POST":
        raise RefusedError(f"{COMPLETIONS} takes POST, not {scope['method']}", HTTPStatus.METHOD_NOT_ALLOWED)
    kind = _header(scope, b"content-type").partition(b";")[0].strip().lower()
    if kind != JSON:  # which a page of elsewhere cannot send by a visitor's browser
        raise RefusedError(
            f"Content-Type must be application/json, found {kind.decode('latin-1') or 'none'}",
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )


async def _body(scope: Any, receive: Receive, mebibytes: int) -> bytes:
    """The whole body. Raises RefusedError for one that is too large, without reading it to its end."""
    announced = _header(scope, b"content-length")
    pieces, size = [], int(announced) if announced.isdigit() else 0
    _check_size(size, mebibytes)
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise GoneError
        pieces.append(message.get("body", b""))
        size, more = size + len(pieces[-1]), message.get("more_body", False)
        _check_size(size, mebibytes)
    return b"".join(pieces)


def _check_size(size: int, mebibytes: int) -> None:
    if size > mebibytes * MEBIBYTE:
        raise RefusedError(
            f"the request has {size / MEBIBYTE:.1f} MiB or more; at most {mebibytes} are taken",
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )


def _header(scope: Any, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key.lower() == name), b"")


def _with_length(scope: Any, body: bytes) -> Any:
    """The request's scope, for another body."""
    old = (b"content-length", b"transfer-encoding", b"content-type", b"content-encoding")
    kept = [(name, value) for name, value in scope["headers"] if name.lower() not in old]
    new = [(b"content-length", str(len(body)).encode()), (b"content-type", JSON)]
    return {**scope, "headers": [*kept, *new]}


async def _send_error(send: Send, message: str, status: int, code: str | None) -> None:
    await _send_json(send, error_json(message, status, code), status)


async def _send_json(send: Send, body: bytes, status: int) -> None:
    headers = [(b"content-type", JSON), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
