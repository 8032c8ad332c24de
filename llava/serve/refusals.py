"""What a server says to a request that it does not answer, in the form that OpenAI's clients read."""

import json
from http import HTTPStatus

from llava.errors import LlavaError

MISSING_MODEL, INVALID_KEY = "model_not_found", "invalid_api_key"  # OpenAI's words


class RefusedError(LlavaError):
    """A request that is not answered. status: HTTP's; code: OpenAI's word for the reason, where it has one."""

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


def error_json(message: str, status: int, code: str | None = None) -> bytes:
    """The body of an answer of that status."""
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def as_error(body: bytes, status: int) -> bytes:
    """An error that a server wrote, in OpenAI's form if it is not: FastAPI has `detail`, others a text or nothing."""
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    error = content.get("error", content.get("detail")) if isinstance(content, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return body
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, str):
        error = "the server failed at this request; its log says at what"
    return error_json(error if isinstance(error, str) else _sentence(error or body.decode(errors="replace")), status)


def _sentence(value: object) -> str:
    return " ".join((value if isinstance(value, str) else json.dumps(value)).split())[:500]
