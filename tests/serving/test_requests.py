"""What a request may hold: what is refused, in which words, and what a server is given of the rest."""

import base64
import io
import json
import struct
import urllib.request
import zlib

import pytest
from PIL import Image

from llava.errors import DataError
from llava.public_hosts import PublicHandler, is_public
from llava.serve import media
from llava.serve.limits import Limits, Service
from llava.serve.refusals import RefusedError, as_error
from llava.serve.request import checked_request

SERVICE = Service("folder/model", "vllm", Limits(pictures=3, megapixels=1, file_mib=1, request_mib=4, characters=5000))
LOOKED_UP = "93.184.215.14"


def data_url(content: bytes, head: str = "data:image/png;base64,") -> str:
    return head + base64.b64encode(content).decode()


def png(width: int = 20, height: int = 10) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def huge() -> bytes:
    """A PNG whose header says 20,000 x 20,000 pixels."""
    content = png()
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def picture(url, **more) -> dict:
    return {"type": "image_url", "image_url": {"url": url}, **more}


def request(content, **fields) -> bytes:
    message = {"role": "user", "content": content}
    return json.dumps({"model": "folder/model", "messages": [message], **fields}).encode()


def refusal(body: bytes, service: Service = SERVICE) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        checked_request(body, service)
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_is_right_is_passed_on():
    parts = [picture(data_url(png())), {"type": "text", "text": "What is <image>? \U0001f600"}]
    body = request(parts, max_tokens=8, temperature=0, stop=["\n"], stream=None)
    expected = json.loads(body)
    del expected["stream"]
    expected["messages"][0]["content"][0] = picture(data_url(png(), "data:image/unknown;base64,"))
    assert json.loads(checked_request(body, SERVICE)) == expected
    text = json.loads(checked_request(request("Hello", stop=[]), SERVICE))
    assert text == {"model": "folder/model", "messages": [{"role": "user", "content": "Hello"}]}


def test_of_two_keys_alike_the_one_that_was_checked_is_passed_on():
    body = request("Hello")[:-1] + b', "messages": [{"role": "user", "content": [1]}]}'
    assert "found 1" in str(refusal(body))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([picture("data:image/png;base64,iVBORw0KGgo")], "picture 1 of the request is not whole base64"),
        ([picture(data_url(b"hello"))], "picture 1 of the request is not an image"),
        ([picture("data:,hello")], "must be a data: URL in base64, found 'data:,hello'"),
        ([picture("file:///etc/passwd")], "must be a data: URL, found 'file:///etc/passwd'"),
        ([picture("/etc/passwd")], "must be a data: URL, found '/etc/passwd'"),
        ([picture("http://example.com/a.png")], "this server fetches nothing ('http://example.com/a.png')"),
        ([picture(data_url(png()))] * 50, "the request shows 50 pictures; this server takes at most 3"),
        ([picture(data_url(png(20_000, 60)))], "has 20000x60 = 1.2 megapixels; at most 1 are taken"),
        ([picture(data_url(huge()))], "picture 1 of the request is refused: Image size (400000000 pixels)"),
        ([picture(data_url(bytes(2 * 2**20)))], "has 2.0 MiB; at most 1 are taken"),
        ([{"type": "video_url", "video_url": {"url": "clip.mp4"}}], "shows 1 videos; this server takes at most 0"),
        ([{"type": "input_audio", "input_audio": {}}], "must be text, image_url or video_url, found 'input_audio'"),
        ([picture(data_url(png()), uuid="of-another")], "this server takes no 'uuid' there"),
        ([picture(None)], "image_url must have a url, found None"),
        ([{"type": "text"}], "must have a text, found None"),
        (["text"], "found 'text'"),
        ("0 " * 2500, "the prompt would have some 5064 characters; at most 5000 are taken"),
        ([picture(data_url(png())), {"type": "text", "text": "0" * 5000}], "would have some 5064 characters"),
        (None, "content must be a text or a list of parts, found None"),
        ("half \ud83d", "a text holds half a character"),
    ],
)  # fmt: skip
def test_content_that_is_refused(content, message):
    refused = refusal(request(content))
    assert message in str(refused)
    assert refused.status == 400


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "nope"}, "unknown model 'nope'; there is 'folder/model'"),
        ({"model": None}, "the request names no model; there is 'folder/model'"),
        ({"messages": []}, "messages must be a list of messages, found []"),
        ({"messages": "hi"}, "messages must be a list of messages, found 'hi'"),
        ({"messages": [{"role": "robot", "content": ""}]}, "one of system, user, assistant; found 'robot'"),
        ({"messages": [{"role": "user", "content": "", "images": []}]}, "message 1: this server takes no 'images'"),
        ({"mm_processor_kwargs": {}}, "this server takes no 'mm_processor_kwargs'"),
        ({"max_tokens": 0}, "max_tokens must be a whole number of at least 1, found 0"),
        ({"max_tokens": "many"}, "max_tokens must be a whole number of at least 1, found 'many'"),
        ({"max_tokens": True}, "found True"),
        ({"temperature": -1}, "temperature must be a number from 0 to 2, found -1"),
        ({"messages": [{"role": "user", "content": []}] * 157}, "would have some 5024 characters; at most 5000 are"),
        ({"n": 9}, "n must be 1, found 9"),
        ({"n": True}, "n must be 1, found True"),
        ({"stream_options": {"include_usage": "many"}}, "stream_options must be an object of include_usage"),
        ({"stop": [""]}, "stop must be"),
        ({"top_p": 0}, "top_p must be a number above 0"),
        ({"top_logprobs": 1.5}, "top_logprobs must be a whole number from 0 to 20, found 1.5"),
        ({"top_logprobs": 21}, "top_logprobs must be a whole number from 0 to 20, found 21"),
    ],
)  # fmt: skip
def test_fields_that_are_refused(fields, message):
    refused = refusal(request("Hello", **fields))
    assert message in str(refused)
    assert (refused.status, refused.code) == ((404, "model_not_found") if "nope" in message else (400, None))


def test_what_transformers_would_ignore_is_refused_for_it_alone():
    body = request("Hello", top_k=5)
    assert json.loads(checked_request(body, SERVICE))["top_k"] == 5
    service = Service("folder/model", "transformers", Limits())
    assert "this server takes no 'top_k', when transformers answers; it takes max_tokens," in str(
        refusal(body, service)
    )


@pytest.mark.parametrize("body", [b"{nope", b"", b"\xff", b'"text"', b"[" * 100_000, b'{"max_tokens": NaN}'])
def test_what_is_no_json(body):
    assert str(refusal(body)).startswith(("the body is not JSON: ", "the body must be a JSON object"))


def test_a_picture_is_not_decoded_to_be_checked(monkeypatch):
    def load(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    assert checked_request(request([picture(data_url(png()))]), SERVICE)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *((address, True) for address in ("8.8.8.8", LOOKED_UP, "2606:4700::6810:84e5")),
        *((address, False) for address in ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254")),
        *((address, False) for address in ("0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::")),
        *((address, False) for address in ("fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8")),
        *((address, False) for address in ("64:ff9b::7f00:1", "2002:7f00:1::", "2001::1", "ff02::1")),
    ],
)
def test_which_addresses_are_public(address, public):
    assert is_public(address) == public


@pytest.mark.parametrize("place", ["127.0.0.1", "localhost", "0x7f000001", "2130706433", "[::1]"])
def test_a_private_address_is_not_asked(place):
    service = Service("folder/model", "vllm", Limits(urls="public"))
    message = str(refusal(request([picture(f"http://{place}:9/a.png")]), service))
    assert "is refused" in message
    assert message.endswith("is no public address")


def test_a_name_of_one_private_address_is_not_asked(monkeypatch):
    found = [(None, None, None, "", (address, 80)) for address in (LOOKED_UP, "10.0.0.1")]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: found)
    with pytest.raises(DataError, match=r"a\.example is refused: 10\.0\.0\.1 is no public address"):
        urllib.request.build_opener(PublicHandler).open("http://a.example/a.png", timeout=1)


def test_what_was_looked_up_is_what_is_connected_to(monkeypatch):
    """A name that leads elsewhere at a second look is not looked up again."""
    asked = []

    def connect(place, seconds):
        asked.append(place)
        raise ConnectionRefusedError

    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(None, None, None, "", (LOOKED_UP, 80))])
    monkeypatch.setattr("socket.create_connection", connect)
    service = Service("folder/model", "vllm", Limits(urls="public"))
    for scheme, port in (("http", 80), ("https", 443)):
        assert "cannot be reached" in str(refusal(request([picture(f"{scheme}://a.example/a.png")]), service))
        assert asked.pop() == (LOOKED_UP, port)
    assert asked == []


def test_a_public_picture_is_fetched(monkeypatch):
    monkeypatch.setattr(media, "fetch", lambda url, file, *_, public: file.write_bytes(png()) if public else None)
    service = Service("folder/model", "vllm", Limits(urls="public"))
    passed = json.loads(checked_request(request([picture("https://a.example/a.png")]), service))
    assert passed["messages"][0]["content"] == [picture(data_url(png(), "data:image/unknown;base64,"))]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b'{"detail": "too long"}', 400, "too long"),
        (b'{"detail": [{"loc": ["body"]}]}', 422, '[{"loc": ["body"]}]'),
        (b'{"error": "busy"}', 503, "busy"),
        (b"Internal Server Error", 500, "the server failed at this request; its log says at what"),
        (b"Not Found", 404, "Not Found"),
    ],
)
def test_errors_get_one_form(body, status, message):
    error = json.loads(as_error(body, status))["error"]
    assert error["message"] == message
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    whole = json.dumps({"error": {"message": "as it is"}}).encode()
    assert as_error(whole, status) == whole
