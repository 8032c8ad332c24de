"""What is fetched from the web, and what is refused, from a server on this machine."""

from threading import Event

import pytest

from llava import fetch as module
from llava.errors import DataError
from llava.fetch import fetch
from tests.ports import free_port

LIMIT = 2**18


@pytest.fixture
def refusal(tmp_path, web):
    """A function: why a URL is not fetched. A path stands for the server's URL with it."""

    def why(url: str) -> str:
        with pytest.raises(DataError) as caught:
            fetch(web.url + url if url.startswith("/") else url, tmp_path / "file", "image", LIMIT)
        assert "\n" not in str(caught.value)
        return str(caught.value).replace(web.url, "")

    return why


def test_a_file_is_fetched_also_through_a_redirect_on_its_host(web, tmp_path):
    web.answers = {
        "/a.png": (200, {"Content-Length": "6"}, b"pixels"),
        "/moved.png": (302, {"Location": "/a.png"}, b""),
        "/moved-again.png": (301, {"Location": f"{web.url}/moved.png"}, b"x" * 10_000),
    }
    for path in web.answers:
        fetch(web.url + path, tmp_path / "file", "image", LIMIT)
        assert (tmp_path / "file").read_bytes() == b"pixels"
    assert web.requests == ["/a.png", "/moved.png", "/a.png", "/moved-again.png", "/moved.png", "/a.png"]


def test_a_redirect_to_elsewhere_is_refused(web, refusal):
    port = web.server_port
    targets = [
        f"http://localhost:{port}/a.png",
        f"http://127.0.0.1:{port + 1}/a.png",
        f"https://127.0.0.1:{port}/a.png",
        "//example.com/a.png",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
        "ftp://127.0.0.1/a.png",
        "data:image/png;base64,AAAA",
        "http://127.0.0.1:port/a.png",
    ]
    for number, target in enumerate(targets):
        web.answers[f"/{number}"] = (302, {"Location": target}, b"")
        assert refusal(f"/{number}") == f"/{number} is refused: it redirects to {target}, not to the same host"
    web.answers = {"/x": (302, {}, b""), "/loop": (302, {"Location": "/loop"}, b"")}
    assert refusal("/x") == "/x is refused: it redirects to nowhere, not to the same host"
    assert refusal("/loop") == "/loop is refused: it redirects more than 5 times"


def test_what_is_too_large_is_not_fetched(web, refusal, tmp_path):
    mebi = 2**20
    web.answers = {
        "/said": (200, {"Content-Length": str(3 * mebi)}, b""),
        "/unsaid": (200, {}, (b"x" * 100_000 for _ in range(10))),
    }
    assert refusal("/said") == "/said has 3.0 MiB; at most 0.25 are fetched"
    assert "/unsaid is larger than 0.25 MiB" in refusal("/unsaid")
    assert (tmp_path / "file").stat().st_size < 500_000


def test_what_is_too_slow_is_given_up(web, refusal, monkeypatch):
    given_up = Event()

    def wait():
        given_up.wait(60)
        yield b"x"

    def drip():
        while not given_up.wait(0.05):
            yield b"x"

    monkeypatch.setattr(module, "SECONDS_OF_SILENCE", 0.2)
    web.answers["/silent"] = (200, {}, wait())
    assert refusal("/silent") == "/silent: nothing came for 0.2 seconds"
    monkeypatch.setattr(module, "SECONDS_OF_SILENCE", 10)
    monkeypatch.setattr(module, "SECONDS", 0.2)
    web.answers["/slow"] = (200, {}, drip())
    assert refusal("/slow") == "/slow has not come within 0.2 seconds"
    given_up.set()


def test_other_answers_are_named(web, refusal):
    web.answers = {
        "/missing": (404, {}, b"no"),
        "/page": (200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>"),
        "/short": (200, {"Content-Length": "9"}, b"pixel"),
    }
    assert refusal("/missing") == "/missing: the server answers 404 Not Found"
    assert refusal("/page") == "/page is a web page, no image"
    assert refusal("/short") == "/short broke off after 5 of 9 bytes"


def test_urls_that_are_not_fetched(refusal):
    assert "cannot be reached: [Errno 111] Connection refused" in refusal(f"http://127.0.0.1:{free_port()}/a.png")
    assert "cannot be reached: " in refusal("http://no-such-host.invalid/a.png")
    assert "only http and https are fetched, not ftp" in refusal("ftp://example.com/a.png")
    assert "it names no host" in refusal("http:///a.png")
    assert "is not a URL: " in refusal("http://[1/a.png")
    assert "is not a URL: " in refusal("http://host:port/a.png")
    message = refusal("http://me:secret@example.com/a.png")
    assert "it holds a name or a password" in message
    assert "secret" not in message
