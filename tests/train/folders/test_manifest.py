"""What a run leaves behind to be known by: rows, hashes, hardware, time."""

import hashlib
import json
import random
from datetime import datetime
from pathlib import Path

import pytest

from llava.data.mixture import load_mixture
from llava.errors import LlavaError
from llava.train import stage as stage_module
from llava.train.folders.manifest import sampled_rows, write_start
from llava.train.ranks.preflight import unbroken_runs
from llava.train.stage import run_stage


@pytest.fixture
def mixture(data_folder, tmp_path):
    """Both data files: 5 drawn rows of the first, the first two and the last quarter of the second."""
    strategies = [("captions", "random:5"), ("turns", "first:2"), ("turns", "end:25%")]
    lines = [f"- {{json_path: {data_folder}/{name}.json, sampling_strategy: '{how}'}}" for name, how in strategies]
    path = tmp_path / "mixed.yaml"
    path.write_text("datasets:\n" + "\n".join(lines))
    return path


def test_rows_tell_which_samples_were_taken(mixture, data_folder):
    loaded = load_mixture(mixture, 42)
    found = sampled_rows(loaded)
    drawn = sorted(random.Random("42/captions.json").sample(range(16), 5))
    rows = [[row + 1 for first, last in entry["rows"] for row in range(first - 1, last)] for entry in found]
    assert rows == [[row + 1 for row in drawn], [1, 2], [13, 14, 15, 16]]
    assert found[1]["rows"] == [(1, 2)]
    records = json.loads((data_folder / "captions.json").read_text())
    ids = "\n".join(records[row]["id"] for row in drawn)
    assert found[0]["ids"] == hashlib.sha256(ids.encode()).hexdigest()
    assert [sample.id for sample in loaded.samples[:5]] == ids.split("\n")
    assert found[1]["ids"] == hashlib.sha256(b"sample-0\nsample-1").hexdigest()


def test_unbroken_runs():
    assert unbroken_runs([1, 2, 3, 7, 9, 10]) == [(1, 3), (7, 7), (9, 10)]
    assert unbroken_runs([]) == []


def test_the_manifest(tiny_recipe, mixture, data_folder, start_folders):
    recipe = tiny_recipe("1", **{"data.mixture": str(mixture), "data.template": "qwen_1_5", "optim.max_steps": 1})
    run_stage(recipe)
    folder = Path(recipe.run.output_dir)
    record = json.loads((folder / "run.json").read_text())
    assert record["data"] == {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (mixture, data_folder / "captions.json", data_folder / "turns.json")
    }
    weights = start_folders / "siglip/model.safetensors"
    assert record["start"][str(weights)] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert record["order_seed"] == 42
    ids = "\n".join(sample.id for sample in load_mixture(mixture, 42).samples)
    assert record["sampled_ids"] == hashlib.sha256(ids.encode()).hexdigest()
    (machine,) = record["hardware"]
    assert machine["ranks"] == "0"
    assert set(machine) == {"ranks", "host", "device", "memory_gb", "cpus", "network", "free_disk_gb"}
    started, ended = (datetime.fromisoformat(record[key]) for key in ("started", "ended"))
    assert 0 < record["seconds"] < 100
    assert abs((ended - started).total_seconds() - record["seconds"]) <= 1
    sampled = json.loads((folder / "sampled.json").read_text())
    assert [entry["sampling_strategy"] for entry in sampled] == ["random:5", "first:2", "end:25%"]
    assert len(record["code"]) == 64


def test_a_run_that_is_cut_off_has_its_manifest(tiny_recipe, monkeypatch):
    def cut_off(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage_module, "train", cut_off)
    recipe = tiny_recipe("1")
    with pytest.raises(KeyboardInterrupt):
        run_stage(recipe)
    record = json.loads(Path(f"{recipe.run.output_dir}.unfinished/run.json").read_text())
    assert record["recipe"] == recipe.to_dict()
    assert record["plan"]["steps"] == 4
    assert "train_loss" not in record


def test_a_manifest_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(LlavaError, match=r"gone: the manifest could not be written: .*No such file"):
        write_start(tmp_path / "gone", {}, [])
