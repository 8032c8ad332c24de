"""What is made of a server that refuses, fails or answers in another way than an OpenAI-compatible one."""

import pytest

from llava.data.schema import Dialogue, Turn
from llava.errors import LlavaError
from llava.eval.messages import settings_from
from llava.eval.questions import Question
from llava.eval.server import client
from llava.eval.server.ask import ask_all
from llava.eval.server.client import Server
from llava.eval.server.settings import ServerSettings
from tests.eval.judge_server import Answer, JudgeServer

REFUSED = {
    "OpenAI": ('{"error": {"message": "the prompt is\\n too long", "code": 400}}', "the prompt is too long"),
    "FastAPI": ('{"detail": "no such picture"}', "no such picture"),
    "another": ("<p>no</p>", "<p>no</p>"),
}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(client, "LONGEST_PAUSE", 0.02)


def asked(server: JudgeServer, count: int) -> list[tuple[Question, str | None, LlavaError | None]]:
    """Questions without a picture, put to the server as a run puts them."""
    dialogue = Dialogue([Turn("human", "What is 6 x 7?")], [])
    questions = [Question(number, f"document {number}", f"key{number}", number, dialogue) for number in range(count)]
    return list(ask_all(Server(ServerSettings(server.url, "lively", requests=3)), questions, settings_from({})))


@pytest.mark.parametrize("kind", REFUSED)
def test_servers_say_in_their_ways_why_they_refuse(kind):
    body, sentence = REFUSED[kind]
    server = JudgeServer(lambda payload, number: Answer(status=400, body=body) if number == 1 else "5")
    with server.running():
        rows = asked(server, 3)
    assert sorted(text or str(error) for _, text, error in rows) == [
        "5",
        "5",
        f"the server refuses it (400): {sentence}",
    ]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "first", [Answer(status=503), Answer(status=429, headers={"Retry-After": "0"}), Answer(hang_up=True)]
)
def test_what_may_pass_is_asked_again(first):
    server = JudgeServer(lambda payload, number: first if number < 2 else " 5 \n")
    with server.running():
        assert [row[1:] for row in asked(server, 3)] == [("5", None)] * 3
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            Answer(status=503, body='{"message": "busy"}'),
            r"the server refuses it \(503\): busy \(7 attempts\); what is",
        ),
        (Answer(status=401), "refuses the key .401.; check LLAVA_ENGINE_KEY; what"),
        (
            Answer(status=404, body='{"error": {"message": "no m"}}'),
            r"knows no such .* \(404: no m\); asked was 'lively'",
        ),
        (Answer(body="[]"), r"sends no chat completion: \[\]; what is stored"),
        (Answer(body='{"choices": [{"message": {"content": [1]}}]}'), r"sends no text: \[1\]"),
    ],
)
def test_a_server_that_gives_no_more_ends_the_run(answer, message):
    server = JudgeServer(lambda payload, number: answer)
    with server.running(), pytest.raises(LlavaError, match=message):
        asked(server, 2)


def test_a_key_goes_to_the_server_and_into_no_message(monkeypatch):
    monkeypatch.setenv("LLAVA_ENGINE_KEY", "secret-1")
    monkeypatch.setenv("OPENAI_API_KEY", "the judge's")
    server = JudgeServer(lambda payload, number: Answer(status=400, body='{"message": "not with secret-1"}'))
    with server.running():
        [(_, _, error)] = asked(server, 1)
    assert str(error) == "the server refuses it (400): not with ***"
    assert server.keys == {"Bearer secret-1"}
