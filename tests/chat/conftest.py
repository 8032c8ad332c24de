"""A chat without a terminal, on the tiny model, and a web server of scripted answers."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from llava.chat.chat import Chat
from llava.chat.display import Display
from llava.chat.media import MediaReader
from llava.chat.session import Session
from llava.chat.settings import Settings
from llava.data.video import VideoSampling


@pytest.fixture
def make_chat(engine):
    """A function: a new chat with answers of at most 6 tokens. Its notes go to stderr."""

    def make(**options) -> Chat:
        session = Session(engine, Settings(max_new_tokens=6))
        return Chat(session, MediaReader(VideoSampling(fps=2.0, frames_upbound=4)), Display(), "tiny", **options)

    return make


@pytest.fixture
def page(tmp_path, make_image):
    """An image of 120x90 pixels, with a blank in its name."""
    path = tmp_path / "a page.png"
    make_image(120, 90).save(path)
    return path


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        status, headers, body = self.server.answers[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        pieces = [body] if isinstance(body, bytes) else body
        for piece in pieces:  # the client may hang up
            try:
                self.wfile.write(piece)
            except OSError:
                return

    def log_message(self, *args):
        pass


@pytest.fixture
def web(monkeypatch):
    """A server on this machine. answers: {path: (status, headers, body or an iterator of pieces)}."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.answers, server.requests = {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
