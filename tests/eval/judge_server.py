"""An OpenAI-compatible server on 127.0.0.1 that answers as a test says: well, badly, slowly, not at all."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Answer:
    """What the server does with one request.

    text: of a chat completion (None with a refusal). status, headers, body: instead of one. wait: seconds before.
    hang_up: closes the connection without a word.
    """

    text: str | None = None
    refusal: str | None = None
    finish_reason: str = "stop"
    status: int = 200
    headers: dict = field(default_factory=dict)
    body: str | None = None
    wait: float = 0.0
    hang_up: bool = False


DEAD = Answer(hang_up=True)


def question(payload: dict) -> str:
    """The text that a request asks about."""
    content = payload["messages"][-1]["content"]
    return content if isinstance(content, str) else next(part["text"] for part in content if part["type"] == "text")


class JudgeServer:
    """script: from a request's payload and its number (from 0) to an `Answer`, or to a text. requests: (time, payload).

    dies_after: from this request on, connections are closed without a word. models: that it lists, and whose they are.
    """

    def __init__(
        self,
        script: Callable[[dict, int], Answer | str],
        dies_after: int | None = None,
        models: dict[str, str] | None = None,
    ):
        self.script, self.dies_after, self.models = script, dies_after, models
        self.requests: list[tuple[float, dict]] = []
        self.keys: set[str] = set()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                server._answer(self)

            def do_GET(self):
                rows = [{"id": name, "owned_by": owner} for name, owner in (server.models or {}).items()]
                body = json.dumps({"data": rows}).encode()
                self.send_response(200 if self.path == "/v1/models" and server.models is not None else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        payload = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            number = len(self.requests)
            self.requests.append((time.monotonic(), payload))
            self.keys.add(handler.headers["Authorization"])
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        answer = self.script(payload, number)
        if handler.path != "/v1/chat/completions":
            answer = Answer(status=404)
        answer = Answer(text=answer) if isinstance(answer, str) else answer
        time.sleep(answer.wait)
        with self.lock:
            self.at_once -= 1
        if answer.hang_up or (self.dies_after is not None and number >= self.dies_after):
            handler.close_connection = True
            return
        body = answer.body if answer.body is not None else json.dumps(_completion(answer))
        handler.send_response(answer.status)
        for name, value in {"Content-Length": str(len(body.encode())), **answer.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body.encode())

    @contextmanager
    def running(self):
        """Serves inside, and refuses connections afterwards."""
        thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()


def _completion(answer: Answer) -> dict:
    message = {"role": "assistant", "content": answer.text, "refusal": answer.refusal}
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3},
    }
