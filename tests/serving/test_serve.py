"""`llava serve` with transformers: one process, which is asked what is right and what is wrong."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from llava.cli import main
from llava.data.schema import Dialogue, Turn
from llava.fusion.configs.manager import ManagerConfig
from llava.serve import main as module
from llava.serve import with_vllm
from tests.serving.served import content, data_url, faults, go_away, png, serving, shown

QUESTION = "What is in the picture?"


@pytest.fixture(scope="module")
def served(forked_python, tiny_model_dir, tmp_path_factory):
    options = ["--engine", "transformers", "--device", "cpu", "--urls", "public"]
    command = [forked_python.command, "-m", "llava.cli"]
    with serving(command, tiny_model_dir, options, tmp_path_factory.mktemp("served"), seconds=100) as server:
        yield server


@pytest.fixture(scope="module")
def expected(engine):
    """A function: a question and images to the engine's answer."""

    def ask(question, *images, new_tokens=8):
        return engine.generate([Dialogue([Turn("human", question)], list(images))], max_new_tokens=new_tokens)[0]

    return ask


def test_it_says_which_engine_answers_where(served):
    printed = served.log.read_text()
    assert f"transformers answers at {served.url}/v1: as --engine says\n" in printed
    listed = httpx.get(f"{served.url}/v1/models").json()["data"]
    assert [(row["id"], row["owned_by"]) for row in listed] == [(served.model, "transformers")]


def test_answers_are_the_engines(served, expected, make_image):
    images = [make_image(150, 97), make_image(40, 220, 1)]
    for number in range(3):
        assert served.answer(content(QUESTION, *images[:number])) == expected(QUESTION, *images[:number])
    assert served.answer("What is <image>?") == expected("What is <image>?")
    assert len({expected(QUESTION, *images[:number]) for number in range(3)}) == 3


def test_a_streamed_answer_is_the_same(served, expected, make_image):
    image = make_image(150, 97)
    lines = served.post(served.body(content(QUESTION, image), stream=True)).text.splitlines()
    pieces = [
        json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines if line.startswith("{", 6)
    ]
    text = "".join(piece.get("content") or "" for piece in pieces)
    assert expected(QUESTION, image).rstrip("\ufffd").startswith(text.strip().rstrip("\ufffd"))
    assert sum("content" in piece for piece in pieces) > 1


def test_an_answer_ends_where_the_model_reads_no_further(served):
    """2,048 tokens; vLLM refuses such a request."""
    body = served.body("0 " * 1000, max_tokens=2000)
    response = served.post(body).json()
    assert response["usage"]["prompt_tokens"] < 2048
    assert response["usage"]["total_tokens"] == 2048
    assert response["choices"][0]["finish_reason"] == "length"


def test_it_samples_where_it_is_asked_to(served):
    answers = {served.answer(QUESTION, temperature=2, seed=seed) for seed in range(4)}
    assert len(answers) > 1


def test_what_is_wrong_is_told_in_a_sentence_and_the_server_goes_on(served, expected, make_image):
    image = make_image(60, 40)
    right, answer = content(QUESTION, image), expected(QUESTION, image, new_tokens=3)
    for body, status, message in faults(served, image):
        response = served.post(body)
        error = response.json()["error"]
        assert (response.status_code, message in error["message"]) == (status, True), (message, response.text)
        assert "\n" not in error["message"]
        assert served.answer(right, max_tokens=3) == answer


def test_a_client_that_goes_away_takes_nothing_with_it(served, expected, make_image):
    image = make_image(60, 40)
    for after in (0, 0.2):
        go_away(served, served.body(content(QUESTION, image), max_tokens=100), after)
        go_away(served, served.body(content(QUESTION, image), max_tokens=100, stream=True), after)
    assert served.answer(content(QUESTION, image)) == expected(QUESTION, image)


def test_sixty_four_clients_each_get_their_own_answer(served, expected, make_image):
    """Every eighth shows a picture that is cut short, and is told so."""
    images = [make_image(30 + number % 7, 40, number) for number in range(64)]
    files = [png(image)[:-40] if number % 8 == 7 else png(image) for number, image in enumerate(images)]
    bodies = [served.body([shown(data_url(file))], max_tokens=3) for file in files]
    with ThreadPoolExecutor(64) as pool:
        responses = list(pool.map(served.post, bodies))
    assert [response.status_code for response in responses] == ([200] * 7 + [400]) * 8
    assert all("truncated" in response.json()["error"]["message"] for response in responses[7::8])
    right = [image for number, image in enumerate(images) if number % 8 != 7]
    bodies = [response.json() for response in responses if response.status_code == 200]
    answers = [body["choices"][0]["message"]["content"].strip() for body in bodies]
    assert answers == [expected("", image, new_tokens=3) for image in right]
    assert len(set(answers)) > 10


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_else_is_there(served, method):
    for path in ("/reset", "/load_model", "/v1/responses", "/docs"):
        assert httpx.request(method, served.url + path).status_code == 404


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--engine transformers --videos 1", "transformers' server reads no videos of a request; vLLM does"),
        ("--engine transformers -- --max-model-len 8", "--max-model-len is for vLLM, and transformers answers"),
        ("--engine vllm", "vLLM is not installed; docs/serve.md says how to install it"),
        ("--port 0", "--port must be from 1 to 65535, found 0"),
        ("--pictures -1", "--pictures must be at least 0, found -1"),
        ("--megapixels 0", "--megapixels must be above 0, found 0"),
        ("--urls all", "--urls must be one of none, public; found 'all'"),
        ("--host no-such-host.invalid", "nothing can be served at no-such-host.invalid, port 8000"),
    ],
)
def test_wrong_arguments(words, message, tiny_model_dir, monkeypatch, capsys):
    monkeypatch.delenv("LLAVA_VLLM_PYTHON", raising=False)
    assert main(["serve", str(tiny_model_dir), *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_why_transformers_answers_in_place_of_vllm(tiny_model_dir, make_model, tmp_path, monkeypatch):
    """A release that does not fit, and a model that reads hidden states."""

    def choice(folder):
        return module._choice(module._parser().parse_args([str(folder)]))

    monkeypatch.delenv("LLAVA_VLLM_PYTHON", raising=False)
    monkeypatch.setattr(with_vllm, "installed_vllm", lambda: "0.31.0")
    python, why = choice(tiny_model_dir)
    assert (python, "fits vLLM 0.32 to 0.33, and this is vLLM 0.31.0" in why) == (None, True)
    monkeypatch.setattr(with_vllm, "installed_vllm", lambda: "0.32.0")
    assert choice(tiny_model_dir)[1] == "it is installed"
    make_model(fusion=ManagerConfig(query="self", interval=2)).config.save_pretrained(tmp_path)
    python, why = choice(tmp_path)
    assert (python, "vLLM cannot run this fusion" in why) == (None, True)


@pytest.mark.parametrize("words", ["--tensor-parallel-size 3", "--max-model-len 8 --tensor-parallel-size=3", "-tp 3"])
def test_more_ranks_than_share_the_model_are_refused_before_vllm_starts(words, tiny_model_dir, monkeypatch, capsys):
    monkeypatch.delenv("LLAVA_VLLM_PYTHON", raising=False)
    monkeypatch.setattr(with_vllm, "installed_vllm", lambda: "0.32.0")
    monkeypatch.setattr(module, "become", lambda *arguments: pytest.fail("vLLM would start"))
    assert main(["serve", str(tiny_model_dir), "--", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "vLLM cannot share this model among 3 ranks (tensor parallel): its 4 heads of attention cannot be" in error
    for fine in ([], ["-tp", "2"], ["-tp"], ["-tp", "many"]):  # the last two vLLM refuses
        with_vllm.check_options(tiny_model_dir, fine)
