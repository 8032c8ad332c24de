"""`llava serve` with vLLM: the real server, which is asked what is right and what is wrong.

Part of `make test-vllm`; LLAVA_VLLM_PYTHON names the Python that has vLLM.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from llava.data.image_processor import LlavaOVManagerImageProcessor
from llava.data.processor import LlavaOVManagerProcessor
from llava.data.schema import Dialogue, Turn
from llava.data.video import EVERY_SECOND, read_video
from llava.engine.engine import Engine
from tests.conftest import PATCH, TILE
from tests.serving.served import content, data_url, faults, go_away, png, serving, shown, started
from tests.serving.small_models import small_model
from tests.serving.test_vllm import ENVIRONMENT

pytestmark = pytest.mark.vllm
QUESTION = "What is in the picture?"


@pytest.fixture(scope="module")
def engine(make_config, tiny_tokenizer):
    model = small_model(make_config, "grid_manager")
    return Engine(
        model,
        LlavaOVManagerProcessor(LlavaOVManagerImageProcessor(TILE, PATCH, model.config.tiling), tiny_tokenizer),
    )


@pytest.fixture(scope="module")
def command(engine, tmp_path_factory):
    """What starts a server: see serving."""
    folder = tmp_path_factory.mktemp("served")
    engine.model.save_pretrained(folder / "model")
    engine.processor.save_pretrained(folder / "model")
    options = ["--engine", "vllm", "--dtype", "float32", "--urls", "public", "--videos", "1"]
    options += ["--", "--enforce-eager", "--max-model-len", "2048"]
    with pytest.MonkeyPatch.context() as patched:
        for name, value in ENVIRONMENT.items():
            patched.setenv(name, value)
        patched.delenv("VLLM_ENABLE_V1_MULTIPROCESSING")  # as for everyone: the engine is a process of its own
        yield [sys.executable, "-m", "llava.cli"], folder / "model", options, folder, 600


@pytest.fixture(scope="module")
def served(command):
    with serving(*command) as server:
        yield server


def test_a_server_that_is_killed_leaves_no_engine(command):
    with started(*command) as server:
        below = psutil.Process(server.process.pid).children(recursive=True)
        assert any("EngineCore" in " ".join(process.cmdline()) for process in below)
        server.process.kill()
        assert psutil.wait_procs(below, timeout=60)[1] == []


@pytest.fixture(scope="module")
def expected(engine):
    """A function: a question and what is shown to transformers' answer."""

    def ask(question, *images, new_tokens=8, videos=()):
        dialogue = Dialogue([Turn("human", question)], list(images), list(videos))
        return engine.generate([dialogue], max_new_tokens=new_tokens)[0]

    return ask


def alike(answer: str, wanted: str) -> bool:
    """As long as letters are whole: the two cut an unfinished one off in different ways."""
    answer, wanted = (text.strip().rstrip("\ufffd") for text in (answer, wanted))
    return answer.startswith(wanted) or wanted.startswith(answer)


def test_it_says_which_engine_answers_where(served):
    assert f"vllm answers at {served.url}/v1: as --engine says\n" in served.log.read_text()
    listed = httpx.get(f"{served.url}/v1/models").json()["data"]
    assert [(row["id"], row["owned_by"]) for row in listed] == [(served.model, "vllm")]


def test_answers_are_transformers(served, expected, make_image):
    """Without a word about temperature, too."""
    images = [make_image(150, 97), make_image(40, 220, 1)]
    for number in range(3):
        asked = content(QUESTION, *images[:number])
        for more in ({}, {"temperature": None}):
            assert alike(served.answer(asked, **more), expected(QUESTION, *images[:number]))
    assert alike(served.answer("What is <image>?"), expected("What is <image>?"))


def test_a_video(served, expected, make_clip):
    clip = make_clip(20)
    parts = [{"type": "video_url", "video_url": {"url": data_url(clip.read_bytes(), "video/mp4")}}]
    answer = served.answer([*parts, {"type": "text", "text": QUESTION}])
    assert alike(answer, expected(f"<video>\n{QUESTION}", videos=[read_video(str(clip), EVERY_SECOND).frames]))
    broken = [{"type": "video_url", "video_url": {"url": data_url(b"no video", "video/mp4")}}]
    response = served.post(served.body(broken))
    assert (response.status_code, "video" in response.json()["error"]["message"]) == (400, True), response.text


def test_what_is_wrong_is_told_in_a_sentence_and_the_server_goes_on(served, expected, make_image):
    image = make_image(60, 40)
    right, answer = content(QUESTION, image), expected(QUESTION, image)
    for body, status, message in faults(served, image):
        response = served.post(body)
        error = response.json()["error"]
        assert (response.status_code, message in error["message"]) == (status, True), (message, response.text)
        assert alike(served.answer(right), answer)


def test_a_client_that_goes_away_takes_nothing_with_it(served, expected, make_image):
    image = make_image(60, 40)
    for after in (0, 0.2):
        go_away(served, served.body(content(QUESTION, image), max_tokens=1000), after)
        go_away(served, served.body(content(QUESTION, image), max_tokens=1000, stream=True), after)
    assert alike(served.answer(content(QUESTION, image)), expected(QUESTION, image))


def test_sixty_four_clients_each_get_their_own_answer(served, expected, make_image):
    """Among them requests that something is wrong with."""
    images = [make_image(30 + number % 7, 40, number) for number in range(64)]
    files = [png(image)[:-40] if number % 8 == 7 else png(image) for number, image in enumerate(images)]
    with ThreadPoolExecutor(64) as pool:
        responses = list(pool.map(served.post, [served.body([shown(data_url(file))]) for file in files]))
    assert [response.status_code for response in responses] == ([200] * 7 + [400]) * 8
    answers = {
        number: response.json()["choices"][0]["message"]["content"]
        for number, response in enumerate(responses)
        if response.status_code == 200
    }
    different = [number for number, answer in answers.items() if not alike(answer, expected("", images[number]))]
    assert different == []
    assert len(set(answers.values())) > 40
