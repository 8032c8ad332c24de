"""`llava eval --engine URL`: an OpenAI-compatible server is asked, and answers as the model in this process does.

The server's half is transformers': its processor reads the messages and the pictures in them, and its `generate`
answers.
"""

import base64
import io
import json
import re
import threading

import pytest
import torch
from lmms_eval.models import get_model
from PIL import Image

from llava.cli import main
from llava.data.conversation import literal
from llava.data.placeholders import with_places
from llava.data.schema import Dialogue, Turn
from llava.engine.engine import Engine
from llava.errors import LlavaError
from llava.eval import main as eval_main
from llava.eval.harness import run
from llava.eval.job import Job
from llava.eval.messages import noise_like
from llava.eval.plugin import MODEL_ID
from llava.eval.report.comparison import build_report
from llava.eval.report.tables import render_text
from llava.eval.server import client
from llava.eval.server.client import server_at
from llava.eval.server.messages import data_url, messages_of
from llava.eval.server.settings import ServerSettings
from tests.eval.judge_server import Answer, JudgeServer, question

NAME = "lively"


@pytest.fixture(scope="module")
def engine(tiny_model_dir):
    return Engine.from_pretrained(tiny_model_dir, device="cpu")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(client, "LONGEST_PAUSE", 0.02)


@pytest.fixture(scope="module")
def answered(engine):
    """A script for the server: the model's greedy answer to a request."""
    lock = threading.Lock()

    def answer(payload, number=0):
        inputs = engine.processor.apply_chat_template(
            payload["messages"], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert payload["temperature"] == 0
        with lock, torch.inference_mode():
            ids = engine.model.generate(**inputs, max_new_tokens=payload["max_tokens"], do_sample=False)
        length = inputs["input_ids"].shape[1]
        return engine.processor.tokenizer.decode(ids[0, length:], skip_special_tokens=True)

    return answer


def asdict(server: JudgeServer, **changes) -> dict:
    return {"url": server.url, "model": NAME, "requests": 3} | changes


def job(data, out, **changes) -> Job:
    return Job(**{"model": NAME, "task": "digit_pages", "data": str(data), "out": str(out)} | changes)


def stored(out) -> list[dict]:
    return [json.loads(line) for line in (out / "digit_pages.answers" / "rank0.jsonl").read_text().splitlines()]


def test_a_server_answers_as_the_model_in_this_process(answered, tiny_model_dir, digit_pages, tmp_path):
    """Byte for byte; a server that goes away loses nothing, and the report names both engines."""
    run(job(digit_pages, tmp_path / "here", model=str(tiny_model_dir), batch_size=4, device="cpu"))
    dying = JudgeServer(answered, dies_after=4)
    with dying.running(), pytest.raises(LlavaError, match=r"no connection to .*/v1 .*; what is stored stays, the same"):
        run(job(digit_pages, tmp_path / "there", server=asdict(dying), weights="not told"))
    assert 1 <= len(stored(tmp_path / "there")) <= 4
    server = JudgeServer(lambda payload, number: Answer(answered(payload), wait=0.05))
    with server.running():
        again = job(digit_pages, tmp_path / "there", server=asdict(server), weights="not told")
        before = len(stored(tmp_path / "there"))
        run(again)
        assert len(server.requests) == 10 - before
        assert server.most_at_once == 3
        assert {(payload["model"], payload["max_tokens"]) for _, payload in server.requests} == {(NAME, 16)}
        assert not any("repetition_penalty" in payload for _, payload in server.requests)
    run(again)  # without a server: every answer is stored
    here, there = tmp_path / "here" / "digit_pages", tmp_path / "there" / "digit_pages"
    assert (here / "samples.jsonl").read_bytes() == (there / "samples.jsonl").read_bytes()
    answers = {row["doc_id"]: row["answer"] for row in stored(tmp_path / "there")}
    assert answers == {row["doc_id"]: row["answer"] for row in stored(tmp_path / "here")}
    assert len(set(answers.values())) > 5
    block = json.loads((there / "results.json").read_text())["run"]
    assert (block["engine"], block["model"], block["weights"]) == ("server", NAME, "not told")
    text = " ".join(render_text(build_report([tmp_path / "here", tmp_path / "there"])).split())
    assert "WARNING different engine: transformers (here), server (there)" in text
    assert f"there: {NAME} (weights not told), images as they are, paper protocol, precision not told on" in text
    assert re.search(r"float32 on cpu, engine transformers", text)


DIALOGUES = {
    "text": ([Turn("human", "What is 6 x 7?")], 0),
    "in front": ([Turn("human", "<image>\nWhat?")], 1),
    "no place": ([Turn("human", "What?")], 2),
    "no text": ([Turn("human", "<image> <image>\n")], 2),
    "placed": ([Turn("human", "Is <image> or <image> red?")], 2),
    "at once": ([Turn("human", "<image>What?")], 1),
    "at the end": ([Turn("human", "What?\n<image>")], 1),
    "a word": ([Turn("human", f"<image>\nWhat is {literal('<image>')}? <|im_end|>")], 1),
    "a word alone": ([Turn("human", literal("<image> <video>"))], 0),
    "turns": (
        [Turn("system", "Be short."), Turn("human", "<image>\nHello"), Turn("gpt", "A car."), Turn("human", "And?")],
        1,
    ),
}


@pytest.mark.parametrize("kind", DIALOGUES)
def test_a_server_reads_the_same_prompt_and_the_same_pixels(engine, make_image, kind):
    turns, count = DIALOGUES[kind]
    dialogue = Dialogue(turns, [make_image(70 + 90 * index, 50, index) for index in range(count)])
    messages = json.loads(json.dumps(messages_of(dialogue)))
    expected = engine.processor.encode_prompts([with_places(dialogue)])
    found = engine.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert found["input_ids"].tolist() == expected["input_ids"].tolist()
    if count:
        torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], rtol=0, atol=0)


def test_a_picture_is_its_pixels_alone(make_image):
    image = make_image(9, 7)
    exif = Image.Exif()
    exif[274] = 6
    image.info |= {"transparency": image.getpixel((0, 0)), "icc_profile": b"a profile", "exif": exif.tobytes()}
    head, data = data_url(image).split(",")
    assert head == "data:image/png;base64"
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (sent.mode, sent.info, sent.tobytes()) == ("RGB", {}, image.tobytes())


def test_a_video_is_refused(make_image):
    dialogue = Dialogue([Turn("human", "<video>\nWhat?")], [], [[make_image(9, 9)]])
    with pytest.raises(LlavaError, match="shows a video, which no OpenAI-compatible server takes; --engine transform"):
        messages_of(dialogue)


def test_what_the_server_refuses_is_the_documents_failure(digit_pages, tmp_path):
    body = '{"error": {"message": "the prompt is\\n too long", "code": 400}}'

    def script(payload, number):
        return Answer(status=400, body=body) if "place 3?" in question(payload) else "5"

    server = JudgeServer(script)
    message = r"^digit_pages document 3: the server refuses it \(400\): the prompt is too long \(1 of 10 documents"
    with server.running(), pytest.raises(LlavaError, match=message):
        run(job(digit_pages, tmp_path, server=asdict(server), weights="not told"))
    assert sorted(row["doc_id"] for row in stored(tmp_path)) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert len(server.requests) == 10


def test_settings_are_carried_over(digit_pages, make_image, monkeypatch):
    """Stop strings, drawing with a seed of the question's own, and no penalty where vLLM would take the folder's."""
    server = JudgeServer(lambda payload, number: "Yes.\nQ: more", models={NAME: "vllm"})
    with server.running():
        settings = server_at(server.url, NAME, 3)
        assert settings == ServerSettings(server.url, NAME, "server vllm", 3, plain=True)
        model = get_model(MODEL_ID)("gone", server=settings, weights="not told", device="cpu")
        documents = [{"image": make_image(20, 20, seed)} for seed in range(2)]
        model.task_dict = {"kinds": {"test": documents}}
        drawn = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 5, "until": ["\n\n", "Q:"]}
        assert model.generate_until(requests(drawn)) == ["Yes.", "Yes."]
        with pytest.raises(LlavaError, match="kinds document 0: the task searches 3 beams, which no OpenAI-compatible"):
            model.generate_until(requests({"num_beams": 3}))
    payloads = [payload for _, payload in server.requests]
    assert len(payloads) == 2
    assert len({payload.pop("seed") for payload in payloads}) == 2
    common = {"model": NAME, "max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "stop": ["Q:"]}
    for payload in payloads:
        del payload["messages"]
        assert payload == common | {"repetition_penalty": 1.0}


def test_a_blind_model_behind_a_server_is_sent_noise(make_image):
    server = JudgeServer(lambda payload, number: "Yes.")
    documents = [{"image": make_image(20, 30, seed)} for seed in range(2)]
    with server.running():
        settings = ServerSettings(server.url, NAME, requests=1)
        model = get_model(MODEL_ID)("gone", server=settings, weights="not told", device="cpu", image_noise=True)
        model.task_dict = {"kinds": {"test": documents}}
        assert model.generate_until(requests({})) == ["Yes.", "Yes."]
    for doc_id, (_, payload) in enumerate(server.requests):
        (url,) = [part["image_url"]["url"] for part in payload["messages"][0]["content"] if "image_url" in part]
        sent = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
        assert sent.size == (20, 30)
        assert sent.tobytes() == noise_like(documents[doc_id]["image"], doc_id, 0).tobytes()
        assert sent.tobytes() != documents[doc_id]["image"].tobytes()


def requests(gen_kwargs):
    from lmms_eval.api.instance import Instance

    def messages(doc):
        content = [{"type": "image", "url": doc["image"]}, {"type": "text", "text": "Yes?"}]
        return [{"role": "user", "content": content}]

    metadata = {"task": "kinds", "doc_id": 0, "repeats": 1}
    return [
        Instance("generate_until", ("", messages, gen_kwargs, doc_id, "kinds", "test"), 0, metadata)
        for doc_id in range(2)
    ]


def command(tmp_path, *words):
    return main(["eval", "--tasks", "digit_pages", "--out", str(tmp_path / "run"), *map(str, words)])


def test_the_command_asks_the_server_before_anything_is_started(
    digit_pages, tiny_model_dir, tmp_path, monkeypatch, capsys
):
    jobs = []
    monkeypatch.setattr(eval_main, "_run", lambda started, processes: jobs.extend(started) or 0)
    server = JudgeServer(
        lambda payload, number: "Hi" if payload["model"] == "./other" else Answer(status=404, body='{"detail": "no"}'),
        models={NAME: "someone"},
    )
    words = ["--data", digit_pages, "--engine", f"{server.url}/", "--model"]
    with server.running():
        assert command(tmp_path, *words, NAME, "--requests", 5) == 0
        assert not server.requests
        assert command(tmp_path, *words, "./other", "--image_noise") == 0
        assert command(tmp_path, *words, "third") == 2
    assert "knows no such address or model (404: no); asked was 'third'; it lists lively" in capsys.readouterr().err
    assert command(tmp_path, *words, NAME) == 2
    assert f"error: no server answers at {server.url} (" in capsys.readouterr().err
    assert [(job.model, job.image_noise) for job in jobs] == [(NAME, False), ("./other", True)]
    first = {"url": server.url, "model": NAME, "engine": "server", "requests": 5, "dtype": "auto", "plain": False}
    assert jobs[0].server == first
    assert (jobs[0].weights, jobs[1].server["requests"]) == ("not told", 16)
    assert command(tmp_path, "--data", digit_pages, "--model", f"{tiny_model_dir}/") == 0  # a folder, not a name
    assert (jobs[2].model, jobs[2].server) == (str(tiny_model_dir), None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "vlm"], "unknown engine 'vlm'; did you mean vllm?"),
        (["--engine", "ftp://a/v1"], "--engine must be a base URL like https://host/v1"),
        (["--engine", "http://me:pw@a/v1"], "--engine must hold no user, password or query; a key goes into LLAVA_EN"),
        (["--engine", "http://a/v1", "--batch_size", "2"], "--batch_size says nothing to --engine http://a/v1; leave"),
        (["--engine", "http://a/v1", "--processes", "2"], "--processes says nothing to --engine http://a/v1; leave"),
        (["--engine", "http://a/v1", "--dtype", "float32"], "--dtype says nothing to --engine http://a/v1; leave one"),
        (["--engine", "http://a/v1", "--device", "cpu"], "--device says nothing to --engine http://a/v1; leave one of"),
        (
            ["--engine", "http://a/v1", "--model", "towers"],
            "--engine http://a/v1 is for models that generate text; t",
        ),
        (["--engine", "http://a/v1", "--tasks", "scores.yaml"], "scores: of output type loglikelihood"),
        (["--requests", "2"], "--requests says nothing to --engine transformers; leave one of them out"),
        (["--requests", "0"], "--requests must be at least 1, found 0"),
    ],
)
def test_what_an_engine_does_not_take_is_refused(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "towers").mkdir()
    (tmp_path / "towers" / "config.json").write_text('{"model_type": "manager_tower"}')
    (tmp_path / "scores.yaml").write_text("task: scores\noutput_type: loglikelihood")
    assert command(tmp_path, "--model", "m", *words) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
