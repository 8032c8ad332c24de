"""vLLM with the plugin against transformers, model by model: the same prompts, ids, and probabilities.

Part of `make test-vllm`, which makes vLLM's environment; LLAVA_VLLM_PYTHON names its Python.
"""

import json
import os
import pickle
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava.data.image_processor import LlavaOVManagerImageProcessor
from llava.data.options import AS_UINT8
from llava.data.processor import LlavaOVManagerProcessor
from llava.engine.engine import Engine
from tests.conftest import PATCH, TILE
from tests.paths import ROOT
from tests.serving.small_models import MODELS, mixed_requests, small_model

pytestmark = pytest.mark.vllm
EACH = 18  # requests to each model
RANKS, SHARED = 2, ("baseline", "grid_manager", "grid_mmfuser", "grid_deepstack")  # models that two ranks share
COMPILED = ("grid_manager", "grid_deepstack")  # models that are compiled
PIPED = ("grid_deepstack",)  # models whose layers stand on two ranks
OF_EACH_KIND = 8  # requests to each of those
TOKENS = 8  # of an answer
TIE = 1e-4  # of logarithms of probability, between which rounding decides
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


@pytest.fixture(scope="module")
def vllm_python() -> str:
    python = os.environ.get("LLAVA_VLLM_PYTHON")
    if python is None:
        pytest.fail("LLAVA_VLLM_PYTHON names no Python that has vLLM: run `make test-vllm`")
    return python


@pytest.fixture(scope="module")
def answered(vllm_python, make_config, tiny_tokenizer, tmp_path_factory) -> Path:
    """A folder of models, each with requests and what vLLM and transformers answered."""
    root = tmp_path_factory.mktemp("models")
    for name in chosen(MODELS):
        model_with_requests(root / name, EACH, make_config, tiny_tokenizer)
        ask_again(root / name, tiny_tokenizer)
    ask_vllm(vllm_python, root)
    return root


def chosen(names: Iterable[str]) -> list[str]:
    """Those of the models that LLAVA_VLLM_MODELS names, all where it is not set."""
    wanted = os.environ.get("LLAVA_VLLM_MODELS")
    return [name for name in names if wanted is None or name in wanted.split(",")]


def model_with_requests(folder: Path, number: int, make_config, tokenizer) -> None:
    """The model of the folder's name, with requests and transformers' answers."""
    model = small_model(make_config, folder.name)
    processor = LlavaOVManagerProcessor(LlavaOVManagerImageProcessor(TILE, PATCH, model.config.tiling), tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    requests, expected = [], []
    engine = Engine(model, processor)
    for request in mixed_requests(folder.name, number):
        requests.append((prompt_of(processor, request), request.images, request.videos))
        expected.append(transformers_answer(engine, request))
    (folder / "requests.pickle").write_bytes(pickle.dumps(requests))
    (folder / "expected.json").write_text(json.dumps(expected))


def ask_again(folder: Path, tokenizer) -> None:
    """Requests about two pictures, of which the first is shown again and again behind another beginning.

    So nothing of a picture is found among the beginnings of prompts, and only the encoder cache can have it.
    """
    processor = LlavaOVManagerProcessor.from_pretrained(folder)
    rng = np.random.default_rng(3)
    first, second = (Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(2))
    asked = [
        ([first], "What is it?"),
        ([first], "What is it?"),
        ([first], "Where is it?"),
        ([second], "What is it?"),
        ([first, second], "What is it?"),
        ([first], "What is it?"),  # behind an emptied cache
    ]
    requests = []
    for number, (images, question) in enumerate(asked):
        messages = [
            {"role": "system", "content": f"Request {number}."},
            {"role": "user", "content": f"{'<image>' * len(images)}\n{question}"},
        ]
        requests.append((processor.apply_chat_template(messages, add_generation_prompt=True), images, []))
    (folder / "asked_again.pickle").write_bytes(pickle.dumps(requests))


def ask_vllm(python: str, root: Path, *options: str) -> None:
    """vLLM's answers to the requests of all models there, see vllm_answers.py."""
    words = [python, ROOT / "tests/serving/vllm_answers.py", root, "--tokens", str(TOKENS)]
    here = {"PYTHONPATH": str(ROOT), "VLLM_CACHE_ROOT": str(root / "vllm")}  # this tree, nothing compiled before
    with open(root / "log.txt", "w") as log:
        done = subprocess.run(
            [*words, *options],
            env=os.environ | ENVIRONMENT | here,
            stdout=log, stderr=subprocess.STDOUT, cwd=root, check=False,
        )  # fmt: skip
    assert done.returncode == 0, (root / "log.txt").read_text()[-4000:]


def prompt_of(processor, request) -> str:
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": roles[turn.role], "content": turn.text} for turn in request.turns]
    return processor.apply_chat_template(messages, add_generation_prompt=True)


def transformers_answer(engine, request) -> dict:
    inputs = engine.processor.encode_prompts([request.dialogue], pixels=AS_UINT8)
    length = inputs["input_ids"].shape[1]
    with torch.inference_mode():
        output = engine.model.generate(
            **inputs, max_new_tokens=TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    ids = output.sequences[0, length:].tolist()
    steps = torch.cat(output.logits).log_softmax(-1)
    best = steps.topk(2).values
    ties = ((best[:, 0] - best[:, 1]) < TIE).nonzero().flatten().tolist()
    return {
        "prompt": inputs["input_ids"][0].tolist(),
        "ids": ids,
        "logprobs": [steps[place, token].item() for place, token in enumerate(ids)],
        "decided": ties[0] if ties else len(ids),  # as many tokens, before two are as likely
    }


def pairs(answered: Path):
    for folder in sorted(path.parent for path in answered.glob("*/answers.json")):
        ours, theirs = (json.loads((folder / f"{name}.json").read_text()) for name in ("answers", "expected"))
        assert len(ours) == len(theirs) > 0
        yield from ((folder.name, number, *pair) for number, pair in enumerate(zip(ours, theirs)))


def test_prompts_are_the_same(answered):
    assert [(name, n) for name, n, ours, theirs in pairs(answered) if ours["prompt"] != theirs["prompt"]] == []


def test_greedy_ids_are_the_same(answered):
    found = list(pairs(answered))
    assert len(found) == EACH * len(chosen(MODELS))
    ties = sum(theirs["decided"] < len(theirs["ids"]) for *_, theirs in found)
    print(f"{len(found)} requests to {len({name for name, *_ in found})} models, {ties} of them up to a tie")
    assert different(found) == []
    assert ties < len(found) / 20


def different(found: Iterable[tuple]) -> list[tuple]:
    """Of `pairs` those whose ids are not the same, up to the first tie."""
    return [
        (name, number, ours["ids"], theirs["ids"])
        for name, number, ours, theirs in found
        if ours["ids"][: theirs["decided"]] != theirs["ids"][: theirs["decided"]]
    ]


def largest_gap(found: Iterable[tuple]) -> float:
    """Of `pairs`, between logarithms of probability; below 1e-3."""
    most = 0.0
    for name, number, ours, theirs in found:
        gaps = [abs(a - b) for a, b in zip(ours["logprobs"][: theirs["decided"]], theirs["logprobs"])]
        assert max(gaps, default=0) < 1e-3, (name, number, gaps)
        most = max(most, *gaps)
    return most


def test_probabilities_are_the_same(answered):
    print(f"largest difference of a logarithm of probability: {largest_gap(pairs(answered)):.1e}")


def test_answers_differ_and_beginnings_were_reused(answered):
    """Else the comparison would show nothing."""
    found = list(pairs(answered))
    assert len({tuple(ours["ids"]) for *_, ours, _ in found}) > len(found) / 2
    assert sum(ours["cached"] > 0 for *_, ours, _ in found) > 0
    assert max(len(ours["prompt"]) for *_, ours, _ in found) > 256  # which is cut into chunks


def test_a_placeholder_without_a_picture_is_refused(answered):
    found = {path.parent.name: path.read_text() for path in answered.glob("*/refused.txt")}
    assert len(found) == len(list(answered.glob("*/requests.pickle")))
    assert set(found.values()) == {"found 1 <image> placeholders in the prompt but 0 images"}


def test_a_picture_is_encoded_once(answered):
    """Again for another question where the fusion is guided by it, and where a prompt's pictures are cut otherwise."""
    found = {path.parent.name: json.loads(path.read_text()) for path in answered.glob("*/encoded.json")}
    guided = {name: MODELS[name][1].guided for name in chosen(MODELS)}
    assert found == {name: [1, 0, int(is_guided), 1, 2, 1] for name, is_guided in guided.items()}


def test_a_compiled_decoder_answers_as_transformers_does(vllm_python, make_config, tiny_tokenizer, tmp_path):
    """vLLM compiles on a CPU, too: one graph of the whole decoder, by inductor."""
    for name in chosen(COMPILED):
        model_with_requests(tmp_path / name, OF_EACH_KIND, make_config, tiny_tokenizer)
    ask_vllm(vllm_python, tmp_path, "--compile")
    facts = [json.loads((tmp_path / name / "compiled.json").read_text()) for name in chosen(COMPILED)]
    for one in facts:
        assert (one["mode"], one["backend"], one["compiled"]) == ("DYNAMO_TRACE_ONCE", "inductor", [True])
        assert one["apart"], "models whose fusion adds before other layers share what is compiled"
    assert facts
    assert all(one["graphs"] > 0 for one in facts)
    found = list(pairs(tmp_path))
    assert len(found) == OF_EACH_KIND * len(chosen(COMPILED))
    assert different(found) == []
    print(f"compiled, {len(found)} requests, largest difference {largest_gap(found):.1e}")


def test_two_ranks_answer_as_transformers_does(vllm_python, make_config, tiny_tokenizer, tmp_path):
    """They share the language model (tensor parallel), and each has the whole vision side."""
    for name in chosen(SHARED):
        model_with_requests(tmp_path / name, OF_EACH_KIND, make_config, tiny_tokenizer)
    ask_vllm(vllm_python, tmp_path, "--ranks", str(RANKS))
    found = list(pairs(tmp_path))
    assert len(found) == OF_EACH_KIND * len(chosen(SHARED))
    assert f"Worker_TP{RANKS - 1}" in (tmp_path / "log.txt").read_text()
    assert [(name, n) for name, n, ours, theirs in found if ours["prompt"] != theirs["prompt"]] == []
    assert different(found) == []
    print(f"{RANKS} ranks, {len(found)} requests, largest difference {largest_gap(found):.1e}")


def test_a_pipeline_of_two_answers_as_transformers_does(vllm_python, make_config, tiny_tokenizer, tmp_path):
    """What later layers receive goes on to their rank. Compiled, as vLLM's pipelines on a CPU do not start eager."""
    for name in chosen(PIPED):
        model_with_requests(tmp_path / name, OF_EACH_KIND, make_config, tiny_tokenizer)
    ask_vllm(vllm_python, tmp_path, "--stages", str(RANKS), "--compile")
    found = list(pairs(tmp_path))
    assert len(found) == OF_EACH_KIND * len(chosen(PIPED))
    assert f"Worker_PP{RANKS - 1}" in (tmp_path / "log.txt").read_text()
    assert different(found) == []
    print(f"pipeline of {RANKS}, {len(found)} requests, largest difference {largest_gap(found):.1e}")
