"""The middleware around a server that only echoes: paths, bodies, turns, clients that go away."""

import asyncio
import json

import pytest

from llava.errors import LlavaError
from llava.serve.limits import KEY, VARIABLE, Limits, Service, key_of_requests
from llava.serve.middleware import COMPLETIONS, CheckedRequests, ToldByVariable
from llava.serve.names import AT_ONCE

SERVICE = Service("model", "transformers", Limits(request_mib=1, waiting=100))
BODY = json.dumps({"model": "model", "messages": [{"role": "user", "content": "Hello"}]}).encode()


class Server:
    """A server that answers what it was sent; `held` keeps all answers back while it is not set."""

    def __init__(self, status: int = 200, answer: bytes | None = None):
        self.status, self.answer = status, answer
        self.held = asyncio.Event()
        self.held.set()
        self.inside = self.most = self.seen = 0

    async def __call__(self, scope, receive, send):
        self.seen += 1
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            message = await receive() if scope["method"] == "POST" else {"body": scope["path"].encode()}
            await self.held.wait()
            await asyncio.sleep(0)
            await send({"type": "http.response.start", "status": self.status, "headers": []})
            body = message["body"] if self.answer is None else self.answer
            await send({"type": "http.response.body", "body": body[:5], "more_body": True})
            await send({"type": "http.response.body", "body": body[5:]})
        finally:
            self.inside -= 1


async def ask(app, body=BODY, path=COMPLETIONS, method="POST", gone: asyncio.Event | None = None, **headers):
    """(status, body) of what is answered, None where nothing is. gone: set when the client goes away."""
    given = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {"type": "http", "path": path, "method": method}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in given.items()]
    pieces = [body[:7], body[7:]]
    sent = []

    async def receive():
        if pieces:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    if not sent:
        return None
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def sentence(answer) -> tuple[int, str]:
    status, body = answer
    return status, json.loads(body)["error"]["message"]


def test_a_request_comes_through_and_its_answer_back():
    async def run():
        app = CheckedRequests(Server(), SERVICE)
        status, body = await ask(app)
        assert (status, json.loads(body)) == (200, json.loads(BODY))
        assert await ask(app, path="/health", method="GET") == (200, b"/health")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        ({"path": "/reset"}, 404, "there is no /reset; this server answers /v1/chat/completions,"),
        ({"path": "/v1/completions"}, 404, "there is no /v1/completions"),
        ({"path": f"{COMPLETIONS}/"}, 404, "there is no "),
        ({"path": "/docs", "method": "GET"}, 404, "there is no /docs"),
        ({"path": "/v1/models", "method": "POST"}, 404, "there is no /v1/models"),
        ({"method": "GET"}, 405, "takes POST, not GET"),
        ({"method": "OPTIONS"}, 405, "takes POST, not OPTIONS"),
        ({"content_type": "text/plain"}, 415, "Content-Type must be application/json, found text/plain"),
        ({"content_length": str(2**21)}, 413, "the request has 2.0 MiB or more; at most 1 are taken"),
        ({"body": b" " * 2**21}, 413, "the request has 2.0 MiB or more; at most 1 are taken"),
        ({"body": b"{nope"}, 400, "the body is not JSON"),
    ],
)
def test_what_is_refused_never_reaches_the_server(given, status, message):
    async def run():
        server = Server()
        found, words = sentence(await ask(CheckedRequests(server, SERVICE), **given))
        assert found == status
        assert message in words
        assert server.seen == 0

    asyncio.run(run())


def test_a_servers_error_leaves_in_one_form():
    async def run():
        app = CheckedRequests(Server(400, b'{"detail": "the prompt has 9 tokens"}'), SERVICE)
        assert sentence(await ask(app)) == (400, "the prompt has 9 tokens")

    asyncio.run(run())


def test_sixty_four_at_once_each_get_their_own_answer():
    async def run():
        server = Server()
        app = CheckedRequests(server, SERVICE)
        bodies = [BODY.replace(b"Hello", b"Hello %d" % number) for number in range(64)]
        answers = await asyncio.gather(*(ask(app, body) for body in bodies))
        assert [json.loads(body) for _, body in answers] == list(map(json.loads, bodies))
        assert server.most == AT_ONCE["transformers"]
        assert (app.present, app.turns._value) == (0, AT_ONCE["transformers"])

    asyncio.run(run())


def test_more_than_may_wait_are_told_so():
    async def run():
        server = Server()
        server.held.clear()
        app = CheckedRequests(server, Service("model", "transformers", Limits(waiting=1)))
        first = [asyncio.ensure_future(ask(app)) for _ in range(3)]
        while server.inside < AT_ONCE["transformers"]:
            await asyncio.sleep(0.01)
        assert sentence(await ask(app)) == (503, "3 requests are being answered or wait; try again later")
        server.held.set()
        assert [status for status, _ in await asyncio.gather(*first)] == [200] * 3

    asyncio.run(run())


def test_who_goes_away_while_waiting_is_not_answered():
    async def run():
        server, gone = Server(), asyncio.Event()
        server.held.clear()
        app = CheckedRequests(server, SERVICE)
        first = [asyncio.ensure_future(ask(app)) for _ in range(2)]
        while server.inside < AT_ONCE["transformers"]:
            await asyncio.sleep(0.01)
        waiting = asyncio.ensure_future(ask(app, gone=gone))
        while app.present < 3:
            await asyncio.sleep(0.01)
        gone.set()
        assert await asyncio.wait_for(waiting, 5) is None
        server.held.set()
        assert [status for status, _ in await asyncio.gather(*first)] == [200] * 2
        assert server.seen == 2
        assert (app.present, app.turns._value) == (0, 2)

    asyncio.run(run())


def test_vllm_makes_it_by_its_name(monkeypatch):
    monkeypatch.setenv(VARIABLE, SERVICE.to_json())
    assert ToldByVariable(None).service == SERVICE


def test_with_a_key_only_who_has_it_is_answered(monkeypatch):
    monkeypatch.setenv(KEY, "right-key")

    async def run():
        server = Server()
        app = CheckedRequests(server, SERVICE)
        for header in ({}, {"authorization": "Bearer wrong-key"}, {"authorization": "right-key"}):
            for place in ({}, {"path": "/v1/models", "method": "GET"}, {"path": "/nope"}):
                status, body = await ask(app, **place, **header)
                assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")
        assert server.seen == 0
        assert (await ask(app, path="/health", method="GET"))[0] == 200
        assert (await ask(app, authorization="Bearer right-key"))[0] == 200

    asyncio.run(run())


@pytest.mark.parametrize("key", ["", " a", "a\n", "gr\u00fcn"])
def test_what_is_no_key_is_refused_at_the_start(monkeypatch, key):
    monkeypatch.setenv(KEY, key)
    with pytest.raises(LlavaError, match="LLAVA_SERVE_KEY must be a key of printable ASCII"):
        key_of_requests()
