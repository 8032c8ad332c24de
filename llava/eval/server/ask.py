"""The questions of an evaluation, put to a server as the engine would be asked them."""

from collections.abc import Iterator, Sequence
from zlib import crc32

from llava.engine.stop_strings import cut
from llava.errors import LlavaError
from llava.eval.messages import Settings
from llava.eval.questions import Question
from llava.eval.server.client import Server, ServerError
from llava.eval.server.messages import messages_of


def ask_all(
    server: Server, questions: Sequence[Question], settings: Settings
) -> Iterator[tuple[Question, str | None, LlavaError | None]]:
    """Each question with its answer, cut and stripped as the engine's are, or with why it has none; as they come.

    Raises LlavaError when the server gives no more.
    """
    if questions and settings.num_beams > 1:
        raise LlavaError(
            f"{questions[0].name}: the task searches {settings.num_beams} beams, which no OpenAI-compatible server "
            "does; --engine transformers does"
        )

    def ask(question: Question) -> str:
        return cut(server.completion(_payload(question, settings, server)), settings.stop).strip()

    try:
        yield from server.answers(questions, ask)
    except ServerError as error:
        raise LlavaError(f"{error}; what is stored stays, the same command goes on from there") from error


def _payload(question: Question, settings: Settings, server: Server) -> dict:
    payload = {
        "model": server.settings.model,
        "messages": messages_of(question.dialogue),
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
    }
    if settings.temperature > 0:
        payload["seed"] = crc32(question.key.encode())
        if settings.top_p is not None:
            payload["top_p"] = settings.top_p
    if settings.stop:
        payload["stop"] = list(settings.stop)
    if server.settings.plain:
        payload["repetition_penalty"] = 1.0
    return payload
