"""Each fault that ends a run is provoked, then repaired with the key that its error names, and the run ends."""

import json
import re
import shlex
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llava.data.dataset import SupervisedDataset
from llava.data.mixture import load_mixture
from llava.errors import DataError, LlavaError
from llava.train import stage
from llava.train.folders.interim import checkpoints_folder, complete_checkpoints
from llava.train.folders.resume_point import _costs_before
from llava.train.loop.trainer import LlavaTrainer
from llava.train.mllm.data import check_sizes
from llava.train.recipe.checks import check_data, check_recipe
from llava.train.recipe.load import load_recipe
from llava.train.recipe.way_on import past_non_finite
from tests.train import faulty


@pytest.fixture
def images(data_folder, tmp_path) -> Path:
    """Images of the test's own."""
    return shutil.copytree(data_folder, tmp_path / "images")


@pytest.fixture
def run(tiny_recipe, images, tmp_path):
    """A function: a name and keys to the losses of the four steps of stage 1, and the weights."""

    def run(name: str = "out", **changes) -> tuple[list[float], dict[str, torch.Tensor]]:
        output = tmp_path / name
        keys = {"data.image_folder": str(images), "run.output_dir": str(output), "run.save_steps": 2, **changes}
        recipe = tiny_recipe("1", **keys)
        check_recipe(recipe, 1, dry_run=False)
        stage.run_stage(recipe)
        return outcome(output)

    return run


def outcome(output: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry], load_file(output / "model.safetensors")


def option(message: str, key: str) -> dict[str, str]:
    """A key of an error with the value that a user would copy."""
    return {key: shlex.split(re.search(rf"--{re.escape(key)} (.*)", message)[1])[0]}


def saved(output: Path) -> list[str]:
    return [path.name for path in complete_checkpoints(checkpoints_folder(str(output)))]


def check_close(found, expected) -> None:
    losses, weights = expected
    assert len(losses) == 4
    assert found[0] == pytest.approx(losses, abs=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(found[1][name], weight, rtol=0, atol=1e-5)


def test_out_of_memory(run, monkeypatch, tmp_path, capsys):
    """From the third step on two samples do not fit. Each step learns what it would have learned."""
    expected = run("whole")
    compute_loss = LlavaTrainer.compute_loss

    def lacking(self, model, inputs, *args, **kwargs):
        if self.state.global_step == 2 and len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it")
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LlavaTrainer, "compute_loss", lacking)
    with pytest.raises(
        LlavaError, match=r"is out of memory in step 3, with sample 'sample-\d+' .*2.00 GiB\.\n"
    ) as raised:
        run()
    message = str(raised.value)
    assert f"To go on from {tmp_path}/out.checkpoints/checkpoint-2 " in message
    assert len(json.loads(option(message, "data.skip_ids")["data.skip_ids"])) == 2
    capsys.readouterr()
    found = run(**option(message, "optim.batch_size"))
    assert "goes on after step 2" in capsys.readouterr().out
    check_close(found, expected)


@pytest.fixture
def losing(monkeypatch, images):
    """A function: after step 2 the first image of step 4 is lost. Returns a list of its sample's number."""

    def losing() -> list[int]:
        prepare, lost = stage.prepare, []

        def prepared(*args):
            made = prepare(*args)
            lost.append(list(made.trainer._get_train_sampler())[12])
            made.trainer.add_callback(faulty.AfterStep(2, partial((images / f"{lost[0]}.png").unlink, missing_ok=True)))
            return made

        monkeypatch.setattr(stage, "prepare", prepared)
        return lost

    return losing


def test_a_lost_file(run, losing, monkeypatch, images, data_folder, tmp_path, capsys):
    """What was learned is saved first. Then all is as if the sample had been left out from the start, or never lost.

    The run that goes on with it has another kernel of attention, other workers, and evaluates.
    """
    expected, never_lost = [], run("whole")
    lost = losing()
    with pytest.raises(DataError, match=r"png does not exist; mend it, or .*checkpoint-3, or leave out") as raised:
        run(**{"run.save_steps": None})
    monkeypatch.undo()
    assert saved(tmp_path / "out") == ["checkpoint-3"]
    key = option(str(raised.value), "data.skip_ids")
    assert key == {"data.skip_ids": f'["sample-{lost[0]}"]'}
    for name in ("skipping", "mended"):
        shutil.copytree(tmp_path / "out.checkpoints", tmp_path / f"{name}.checkpoints")

    with pytest.raises(DataError, match=r"sample-.*png does not exist\nMend them, or ") as raised:
        run()
    assert option(str(raised.value), "data.skip_ids") == key
    capsys.readouterr()
    found, skipping = run(**key), run("skipping", **{"data.on_bad_sample": "skip"})
    printed = capsys.readouterr().out
    assert printed.count("goes on after step 3") == 2
    assert printed.count("; 1 bad samples were skipped\n") == 2

    shutil.copy(data_folder / f"{lost[0]}.png", images)
    expected = run("from_the_start", **key)
    assert expected[0] != never_lost[0]
    check_close(found, expected)
    check_close(skipping, expected)
    held_out = {"eval.data": str(data_folder / "captions.json"), "eval.steps": 1, "eval.answers": 1}
    mended = run("mended", **{"model.attention": "eager", "data.workers": 1, "run.report_to": "none", **held_out})
    check_close(mended, never_lost)
    history = json.loads((tmp_path / "mended/trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [4]


def test_costs_of_lost_and_mended_files_are_the_runs_and_others_are_refused(tiny_recipe, tmp_path):
    """Costs: 10 with the image read, 1 without. Sample 2 was lost since, sample 3 was lost then."""
    recipe = tiny_recipe("1", **{"data.skip_ids": ["sample-4"]})
    samples = load_mixture(recipe.data.mixture, 0).samples
    text = np.ones(16, dtype=np.int64)
    before, now = text * 10, text * 10
    now[2], before[3], now[4] = 1, 1, 20
    assert _costs_before(tmp_path, now) is None  # an older version's checkpoint
    np.save(tmp_path / "costs.npy", before)
    assert _costs_before(tmp_path, before) is None
    assert np.array_equal(_costs_before(tmp_path, now), before)
    check_sizes(tmp_path, recipe, samples, before, now, text)
    now[5] = 20
    message = (
        r"1 samples show images .* of other sizes, first sample 'sample-5' .*skip_ids '\[\"sample-4\",\"sample-5\"\]'"
    )
    with pytest.raises(LlavaError, match=message):
        check_sizes(tmp_path, recipe, samples, before, now, text)


def test_a_sample_that_is_not_finite(run, monkeypatch, capsys):
    load = SupervisedDataset.__getitem__

    def spoiled(self, index):
        encoded = load(self, index)
        if "'sample-5'" in str(encoded["sample"]) and "pixel_values" in encoded:
            encoded["pixel_values"] = torch.full(encoded["pixel_values"].shape, float("nan"))
        return encoded

    monkeypatch.setattr(SupervisedDataset, "__getitem__", spoiled)
    with pytest.raises(LlavaError, match=r"a loss is not finite.*(?s:.*)\nTo go on without these samples: ") as raised:
        run(**{"run.save_steps": 1})
    key = option(str(raised.value), "data.skip_ids")
    assert "sample-5" in json.loads(key["data.skip_ids"])
    losses, _ = run(**key, **{"run.save_steps": 1})
    assert len(losses) == 4
    assert capsys.readouterr().out.endswith("; 2 bad samples were skipped\n")


def test_many_samples_to_blame_are_in_a_file(tiny_recipe, tmp_path):
    recipe = tiny_recipe("1", **{"data.skip_ids": ["0012"]})
    ids = [f"{number:04}" for number in range(12, 40)]
    told = past_non_finite(ids, recipe, tmp_path / "skip.yaml")
    assert told.startswith(f"\nTo go on without these 28 samples: --override {tmp_path}/skip.yaml ")
    assert past_non_finite([], recipe, tmp_path / "skip.yaml") == ""
    made = load_recipe("scripts/train/recipes/mllm/stage1.yaml", "manager", [str(tmp_path / "skip.yaml")])
    assert made.data.skip_ids == ids


def test_ids_that_no_sample_has_are_refused(tiny_recipe):
    recipe = tiny_recipe("1", **{"data.skip_ids": "[sample-3, 0012, gone]"})
    for find in (check_data, stage.prepare):
        with pytest.raises(
            LlavaError, match=r"data\.skip_ids: no sample of .* has the id '0012', 'gone'; in a YAML file"
        ):
            find(recipe)


@pytest.mark.slow
def test_a_lost_file_of_one_rank(tiny_recipe, losing, images, tmp_path, monkeypatch):
    """Both ranks save first and end; with the key of the error both go on."""
    keys = {"data.image_folder": str(images), "run.deepspeed": "scripts/train/deepspeed/zero2.json"}
    made, log = tiny_recipe("1", **keys), tmp_path / "log"
    losing()
    assert faulty.run(made, log, ranks=2) == [2, 2], log.read_text()
    monkeypatch.undo()
    assert "Traceback" not in log.read_text()
    assert saved(Path(made.run.output_dir)) == ["checkpoint-3"]
    (error,) = re.findall("^error: .*", log.read_text(), re.M)
    repaired = tiny_recipe("1", **keys, **option(error, "data.skip_ids"))
    assert faulty.run(repaired, log, ranks=2) == [0, 0], log.read_text()
    assert log.read_text().count("goes on after step 3") == 1


@pytest.mark.slow
def test_another_deepspeed_file(tiny_recipe, run, tmp_path):
    """Offload and other buckets within a stage; another stage with run.reshape. Killed in between, never noticed."""
    expected, log = run("whole"), tmp_path / "log"

    def start(file: str, step: int | None, **changes) -> None:
        keys = {"run.deepspeed": f"scripts/train/deepspeed/{file}.json", "run.save_steps": 1, **changes}
        made = tiny_recipe("1", **keys)
        fault = None if step is None else faulty.signal_after_step(step, signal.SIGKILL)
        assert faulty.run(made, log, fault) == [0 if step is None else -9], log.read_text()

    start("zero2", 2)
    start("zero2_offload", 3)
    refused = tiny_recipe("1", **{"run.deepspeed": "scripts/train/deepspeed/zero3.json"})
    with pytest.raises(
        LlavaError, match=r"stage was 2 and is 3.*--run.reshape true .*--run.deepspeed \S+offload.json$"
    ):
        check_recipe(refused, 1, dry_run=False)
    start("zero3", 4, **{"run.reshape": True})
    start("zero2", None, **{"run.reshape": True})
    assert [int(step) for step in re.findall(r"goes on after step (\d)", log.read_text())] == [1, 2, 3]
    check_close(outcome(tmp_path / "stage1"), expected)


@pytest.mark.slow
def test_zero_2_goes_on_as_zero_1(tiny_recipe, tmp_path):
    """In bfloat16, where DeepSpeed has an optimizer of its own for ZeRO-1. Killed twice; moments are ZeRO-2's."""
    log = tmp_path / "log"

    def start(file: str, step: int | None, **changes) -> Path:
        keys = {"run.deepspeed": f"scripts/train/deepspeed/{file}.json", "run.precision": "bf16", "run.save_steps": 1}
        made = tiny_recipe("1", **keys, **changes)
        fault = None if step is None else faulty.signal_after_step(step, signal.SIGKILL)
        assert faulty.run(made, log, fault) == [0 if step is None else -9], log.read_text()
        return Path(made.run.output_dir)

    expected = outcome(start("zero1", None, **{"run.output_dir": f"{tmp_path}/whole"}))
    start("zero2", 3)
    start("zero1", 4, **{"run.reshape": True})
    unsaid = json.loads(Path("scripts/train/deepspeed/zero1.json").read_text())
    del unsaid["data_types"]
    (tmp_path / "unsaid.json").write_text(json.dumps(unsaid))
    refused = tiny_recipe("1", **{"run.deepspeed": f"{tmp_path}/unsaid.json", "run.precision": "bf16"})
    with pytest.raises(LlavaError, match=r"data_types was \S.* and is none\).*--run.reshape true"):
        check_recipe(refused, 1, dry_run=False)
    found = outcome(start("zero1", None))
    assert [int(step) for step in re.findall(r"goes on after step (\d)", log.read_text())] == [2, 3]
    assert found[0] == pytest.approx(expected[0], abs=0.01)
    names = [name for name in expected[1] if name.endswith("scores")]  # zero at first: bfloat16 shows each step
    learned, expected_learned = (
        torch.cat([weights[name].flatten() for name in names]) for _, weights in (found, expected)
    )
    error = float((learned - expected_learned).norm() / expected_learned.norm())
    print(f"relative error {error:.2%}")
    assert error < 0.03
