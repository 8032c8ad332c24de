"""What a request for a chat completion may hold, checked before a server sees it.

What is passed on is written anew from what was checked: no field and no part that is not named here, and of pictures
and videos their bytes alone, so that no server fetches or opens anything, nor takes a picture of another request by a
name that this one gives it.
"""

import json
import math
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from llava.serve.limits import Service
from llava.serve.media import checked_url
from llava.serve.names import VLLM
from llava.serve.refusals import MISSING_MODEL, RefusedError

ROLES = ("system", "user", "assistant")
KINDS = {"image_url": "picture", "video_url": "video"}  # parts beside texts
SHOWN = 80  # characters of what is wrong
STOPS = 16  # strings that end an answer, at most
FRAME = 32  # characters of a prompt around the text of a message or part, or nearly


def _is_whole(least: int, most: int = 2**31 - 1) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_stop(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return len(texts) <= STOPS and all(isinstance(text, str) and text for text in texts)


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def _is_stream_options(value: Any) -> bool:
    return isinstance(value, dict) and set(value) <= {"include_usage"} and all(map(_is_truth, value.values()))


# What each may be, in words and as a test. Both engines take these, and vLLM what follows, which transformers ignores.
FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "max_tokens": ("a whole number of at least 1", _is_whole(1)),
    "max_completion_tokens": ("a whole number of at least 1", _is_whole(1)),
    "temperature": ("a number from 0 to 2", _is_number(0, 2)),
    "top_p": ("a number above 0, at most 1", _is_number(math.ulp(0.0), 1)),
    "seed": ("a whole number", _is_whole(0)),
    "n": ("1", _is_whole(1, 1)),
    "stop": (f"a text or at most {STOPS} texts", _is_stop),
    "stream": ("true or false", _is_truth),
    "stream_options": ("an object of include_usage, true or false", _is_stream_options),
    "user": ("a text", lambda value: isinstance(value, str)),
}
OF_VLLM: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "frequency_penalty": ("a number from -2 to 2", _is_number(-2, 2)),
    "presence_penalty": ("a number from -2 to 2", _is_number(-2, 2)),
    "repetition_penalty": ("a number above 0, at most 10", _is_number(math.ulp(0.0), 10)),
    "top_k": ("a whole number", _is_whole(0)),
    "min_p": ("a number from 0 to 1", _is_number(0, 1)),
    "min_tokens": ("a whole number", _is_whole(0)),
    "ignore_eos": ("true or false", _is_truth),
    "logprobs": ("true or false", _is_truth),
    "top_logprobs": ("a whole number from 0 to 20", _is_whole(0, 20)),
}


def checked_request(body: bytes, service: Service) -> bytes:
    """The request as a server is given it. Raises RefusedError, in one sentence."""
    request = _object(body)
    model, messages = request.pop("model", None), request.pop("messages", None)
    if not isinstance(model, str):
        raise RefusedError(f"the request names no model; there is {service.model!r}")
    if model != service.model:
        raise RefusedError(
            f"unknown model {_shown(model)}; there is {service.model!r}", HTTPStatus.NOT_FOUND, MISSING_MODEL
        )
    fields = {name: value for name, value in request.items() if value is not None}
    _check_fields(fields, service.engine)
    if fields.get("stop") == []:  # which says nothing, and makes transformers' server fail
        del fields["stop"]
    checked = {"model": model, "messages": _checked_messages(messages, service), **fields}
    try:
        return json.dumps(checked, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RefusedError("a text holds half a character (a surrogate without the other)") from None


def _object(body: bytes) -> dict[str, Any]:
    def not_json(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    try:
        request = json.loads(body, parse_constant=not_json)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the body is not JSON: {error}") from None
    if not isinstance(request, dict):
        raise RefusedError(f"the body must be a JSON object, found {_shown(request)}")
    return request


def _check_fields(fields: dict[str, Any], engine: str) -> None:
    accepted = FIELDS | OF_VLLM if engine == VLLM else FIELDS
    for name, value in fields.items():
        if name not in accepted:
            whose = ", when transformers answers" if name in OF_VLLM else ""
            raise RefusedError(f"this server takes no {_shown(name)}{whose}; it takes {', '.join(accepted)}")
        words, fits = accepted[name]
        if not fits(value):
            raise RefusedError(f"{name} must be {words}, found {_shown(value)}")


def _checked_messages(messages: Any, service: Service) -> list[dict]:
    if not isinstance(messages, list) or not messages:
        raise RefusedError(f"messages must be a list of messages, found {_shown(messages)}")
    counts = dict.fromkeys(KINDS, 0)
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise RefusedError(f"message {number} must be an object, found {_shown(message)}")
        _check_keys(message, ("role", "content", "name"), f"message {number}")
        if message.get("role") not in ROLES:
            raise RefusedError(
                f"message {number}: role must be one of {', '.join(ROLES)}; found {_shown(message.get('role'))}"
            )
        content = message.get("content")
        if not isinstance(content, str | list):
            raise RefusedError(f"message {number}: content must be a text or a list of parts, found {_shown(content)}")
        for part in content if isinstance(content, list) else ():
            kind = _kind(part, number)
            if kind in counts:
                counts[kind] += 1
    _check_counts(counts, service)
    _check_length(messages, service.limits.characters)
    pictures = iter(range(1, sum(counts.values()) + 1))
    return [
        {"role": message["role"], "content": _checked_content(message["content"], number, pictures, service)}
        for number, message in enumerate(messages, start=1)
    ]


def _check_counts(counts: dict[str, int], service: Service) -> None:
    most = {"image_url": service.limits.pictures, "video_url": service.limits.videos}
    for kind, count in counts.items():
        if count > most[kind]:
            raise RefusedError(f"the request shows {count} {KINDS[kind]}s; this server takes at most {most[kind]}")


def _check_length(messages: list[dict], most: int) -> None:
    """Raises RefusedError for texts of which a server would make tokens for minutes, and answer nobody meanwhile."""
    characters = FRAME * len(messages)
    for message in messages:
        content = message["content"]
        texts = [content] if isinstance(content, str) else [part.get("text") for part in content]
        characters += sum(FRAME + len(text) for text in texts if isinstance(text, str))
    if characters > most:
        raise RefusedError(f"the prompt would have some {characters} characters; at most {most} are taken")


def _kind(part: Any, number: int) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text" and kind not in KINDS:
        what = _shown(kind if isinstance(kind, str) else part)
        raise RefusedError(f"message {number}: a part must be text, image_url or video_url, found {what}")
    return kind


def _checked_content(content: str | list, number: int, pictures: Iterator[int], service: Service) -> str | list[dict]:
    if isinstance(content, str):
        return content
    return [_checked_part(part, number, pictures, service) for part in content]


def _checked_part(part: dict, number: int, pictures: Iterator[int], service: Service) -> dict:
    kind = part["type"]
    _check_keys(part, ("type", kind), f"message {number}")
    value = part.get(kind)
    if kind == "text":
        if not isinstance(value, str):
            raise RefusedError(f"message {number}: a part of type text must have a text, found {_shown(value)}")
        return {"type": kind, kind: value}
    if isinstance(value, dict):
        _check_keys(value, ("url", "detail"), f"message {number}: {kind}")
        value = value.get("url")
    if not isinstance(value, str):
        raise RefusedError(f"message {number}: {kind} must have a url, found {_shown(value)}")
    name = f"{KINDS[kind]} {next(pictures)} of the request"
    return {"type": kind, kind: {"url": checked_url(value, KINDS[kind], name, service.limits)}}


def _check_keys(given: dict, accepted: tuple[str, ...], place: str) -> None:
    for name in given:
        if name not in accepted:
            raise RefusedError(f"{place}: this server takes no {_shown(name)} there")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
