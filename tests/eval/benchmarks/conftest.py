"""What the twins' tests share: HF's caches kept out of the home folder, and one run of a scripted model on a twin."""

import gc
import json
import os

import pytest

from tests.eval.benchmarks.judged import judge
from tests.eval.benchmarks.twins import Twin, scripted, write_twin
from tests.eval.judge_server import JudgeServer


@pytest.fixture(scope="session", autouse=True)
def _private_caches(tmp_path_factory):
    os.environ["HF_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("datasets_cache"))


@pytest.fixture(scope="session")
def judge_server():
    """The judge of the judged twins."""
    with JudgeServer(judge).running() as server:
        yield server


@pytest.fixture
def evaluate(tiny_model_dir, tmp_path, monkeypatch, judge_server):
    """A function: a twin and a model's answers to (the results, the rows of the samples)."""
    from llava.engine.engine import Engine
    from llava.eval.harness import Job, run

    def evaluate(twin: Twin, answers: list[str], plain: bool = False, **changes) -> tuple[dict, list[dict]]:
        data = tmp_path / ("plain" if plain else "data")
        if not data.exists():
            write_twin(twin, data, plain)
        gc.freeze()  # the harness collects garbage after every run, and all that pytest holds would be searched
        monkeypatch.setattr(Engine, "generate", scripted(answers))
        for name, value in {"OPENAI_API_URL": judge_server.url, "MODEL_VERSION": "scripted-judge"}.items():
            monkeypatch.setenv(name, value)
        out = (
            tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        )  # answers that are stored for one model are not another's
        settings = {"batch_size": 4, "device": "cpu"} | changes
        folder = run(Job(model=str(tiny_model_dir), task=twin.task, data=str(data), out=str(out), **settings))
        lines = (folder / "samples.jsonl").read_text().splitlines()
        return json.loads((folder / "results.json").read_text()), [json.loads(line) for line in lines]

    return evaluate
