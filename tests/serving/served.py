"""A server of `llava serve` in a process, good requests to it, and requests that something is wrong with."""

import base64
import io
import json
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from tests.ports import free_port


@dataclass
class Served:
    """url: of the server, without /v1. model: its name there. log: what the server printed."""

    url: str
    model: str
    log: Path
    process: subprocess.Popen

    def body(self, content, **fields) -> dict:
        message = {"role": "user", "content": content}
        return {"model": self.model, "messages": [message], "max_tokens": 8, "temperature": 0, **fields}

    def post(self, body: dict | bytes, seconds: float = 120) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        return httpx.post(f"{self.url}/v1/chat/completions", content=content, headers=headers, timeout=seconds)

    def answer(self, content, **fields) -> str:
        response = self.post(self.body(content, **fields))
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"].strip()


@contextmanager
def serving(command: Sequence, model: Path, options: Sequence[str], folder: Path, seconds: int) -> Iterator[Served]:
    """A server that `command` starts, which is what `llava` is; on the way out it ends at SIGTERM."""
    with started(command, model, options, folder, seconds) as server:
        yield server
        assert server.process.poll() is None, server.log.read_text()[-4000:]


@contextmanager
def started(command: Sequence, model: Path, options: Sequence[str], folder: Path, seconds: int) -> Iterator[Served]:
    """As serving, but that it may have ended before."""
    port = free_port()
    log = folder / "log"
    words = [*command, "serve", model, "--port", str(port), *options]
    with log.open("w") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, cwd=folder)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + seconds
    try:
        while process.poll() is None and time.monotonic() < end and not _is_well(url):
            time.sleep(0.1)
        if not _is_well(url):
            pytest.fail(f"no server within {seconds} s, exit status {process.poll()}:\n{log.read_text()[-4000:]}")
        yield Served(url, str(model), log, process)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _is_well(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def huge_png() -> bytes:
    """A small file whose header says 20,000 x 20,000 pixels."""
    content = png(Image.new("L", (20, 10)))
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def shown(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def content(question: str, *images: Image.Image) -> list[dict]:
    return [*(shown(data_url(png(image))) for image in images), {"type": "text", "text": question}]


def faults(served: Served, image: Image.Image) -> list[tuple[dict | bytes, int, str]]:
    """(request, status, part of the sentence)."""
    question = {"type": "text", "text": "What is it?"}
    whole = png(image)
    return [
        (served.body([shown(data_url(whole[: len(whole) // 2])), question]), 400, "truncated"),
        (served.body([shown(data_url(b"hello")), question]), 400, "not an image"),
        (served.body([shown(data_url(whole)[:-3]), question]), 400, "not whole base64"),
        (served.body([shown(data_url(whole))] * 50), 400, "shows 50 pictures; this server takes at most 16"),
        (served.body([shown(data_url(huge_png())), question]), 400, "400000000 pixels"),
        (served.body([shown("http://127.0.0.1:9/a.png"), question]), 400, "127.0.0.1 is no public address"),
        (served.body([shown("http://[::1]:9/a.png"), question]), 400, "::1 is no public address"),
        (served.body([shown("http://169.254.169.254/latest"), question]), 400, "169.254.169.254 is no public address"),
        (served.body([shown("file:///etc/passwd"), question]), 400, "must be a data: URL"),
        (served.body([shown("/etc/passwd"), question]), 400, "must be a data: URL"),
        (served.body("0 " * 5000), 400, "tokens"),
        (served.body("0 " * 600_000), 400, "at most 1000000 are taken"),
        (served.body("Hello", max_tokens=100_000), 400, "max_tokens"),
        (served.body("Hello", model="nope"), 404, "unknown model 'nope'"),
        (served.body("Hello", top_k="many"), 400, "top_k"),
        (json.dumps(served.body("Hello")).encode()[:-1], 400, "not JSON"),
        (b"[]", 400, "must be a JSON object"),
        ({"model": served.model}, 400, "messages must be a list"),
    ]


def go_away(served: Served, body: dict, after: float) -> None:
    """Sends a request and leaves without waiting for its answer."""
    content, place = json.dumps(body).encode(), urlsplit(served.url)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((place.hostname, place.port)) as client:
        client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        time.sleep(after)
