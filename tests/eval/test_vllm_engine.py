"""`llava eval --engine vllm` with vLLM itself: the same answers as of the model in this process.

Part of `make test-vllm`; LLAVA_VLLM_PYTHON names the Python that has vLLM.
"""

import json

import pytest

from llava.cli import main
from llava.data.image_processor import LlavaOVManagerImageProcessor
from llava.data.processor import LlavaOVManagerProcessor
from llava.eval.report.comparison import build_report
from llava.eval.report.tables import render_text
from llava.eval.store import load_run
from tests.conftest import PATCH, TILE
from tests.serving.small_models import small_model
from tests.serving.test_vllm import ENVIRONMENT

pytestmark = pytest.mark.vllm


def test_the_same_answers(make_config, tiny_tokenizer, digit_pages, tmp_path, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING")
    model = small_model(make_config, "grid_manager")
    pictures = LlavaOVManagerImageProcessor(TILE, PATCH, model.config.tiling)
    model.save_pretrained(tmp_path / "model")
    LlavaOVManagerProcessor(pictures, tiny_tokenizer).save_pretrained(tmp_path / "model")
    words = ["eval", "--tasks", "digit_pages", "--model", str(tmp_path / "model"), "--data", str(digit_pages)]
    assert main([*words, "--out", str(tmp_path / "here"), "--device", "cpu"]) == 0
    there = [*words, "--out", str(tmp_path / "there"), "--engine", "vllm", "--dtype", "float32"]
    assert main([*there, "--", "--enforce-eager"]) == 0
    answers = {}
    for run in ("here", "there"):
        rows = (tmp_path / run / "digit_pages.answers" / "rank0.jsonl").read_text().splitlines()
        answers[run] = {row["doc_id"]: row["answer"].rstrip("\ufffd") for row in map(json.loads, rows)}
    assert len(set(answers["here"].values())) > 5
    assert answers["here"] == answers["there"]
    (result,) = load_run(tmp_path / "there")
    assert (result.run["engine"], result.run["documents"]) == ("vllm", 10)
    text = " ".join(render_text(build_report([tmp_path / "here", tmp_path / "there"])).split())
    assert "WARNING different engine: transformers (here), vllm (there)" in text
