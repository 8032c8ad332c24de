"""A stage that is killed anywhere and started again ends as if nothing had happened."""

import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from accelerate import skip_first_batches
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llava.errors import LlavaError
from llava.fusion.methods import METHODS
from llava.mllm import LlavaOVManagerForConditionalGeneration
from llava.train.folders import interim
from llava.train.folders.interim import (
    checkpoints_folder,
    complete_checkpoints,
    finish_checkpoint,
    last_checkpoint,
    read_mark,
    start_anew,
    start_checkpoint,
)
from llava.train.folders.same_run import FREE_KEYS
from llava.train.recipe.checks import check_recipe
from llava.train.recipe.load import load_recipe
from llava.train.recipe.schema import all_recipe_keys
from llava.train.stage import prepare
from tests.train import faulty

STEPS = 16  # four epochs of four steps
SHORT_STEPS = 8  # two epochs, where several processes train


@pytest.fixture
def recipe(tiny_recipe):
    """A function: changes to a stage with noise, four epochs and a checkpoint every third step."""

    def make(stage: str = "1", arm: str = "grid_manager", **changes):
        keys = {"optim.epochs": 4, "fusion.jitter": "paper", "run.save_steps": 3, "run.keep_last": 1}
        return tiny_recipe(stage, arm, **keys | changes)

    return make


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny_keys):
    """Stage 1 in one go."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    keys = {"optim.epochs": 4, "fusion.jitter": "paper", "run.output_dir": f"{folder}/out", "run.save_steps": None}
    made = load_recipe("scripts/train/recipes/mllm/stage1.yaml", "grid_manager", keys=tiny_keys("1", **keys))
    assert faulty.run(made, folder / "log") == [0], (folder / "log").read_text()
    return outcome(folder / "out")


def outcome(folder: Path, count: int = STEPS) -> dict:
    """What must not depend on interruptions: every step's log but its times, weights, and counts."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    exact = re.compile("loss|grad_norm|lr/.*|samples|num_input_tokens_seen|epoch|step")
    steps = [{key: value for key, value in entry.items() if exact.fullmatch(key)} for entry in history[:-1]]
    assert len(steps) == count
    assert all("loss" in step for step in steps)
    record = json.loads((folder / "run.json").read_text())
    counts = {key: record[key] for key in ("steps", "tokens_seen", "skipped", "shortened")}
    return {"steps": steps, "counts": counts, "weights": load_file(folder / "model.safetensors")}


def check_equal(found: dict, expected: dict) -> None:
    assert found["steps"] == expected["steps"]
    assert found["counts"] == expected["counts"]
    assert set(found["weights"]) == set(expected["weights"])
    for name, weight in expected["weights"].items():
        assert torch.equal(found["weights"][name], weight), name


def take_over(made, uninterrupted: dict, log: Path, goes_on_from: int) -> None:
    """Starts an interrupted stage again and compares what it ends in."""
    assert last_step(made) == goes_on_from, log.read_text()
    log.unlink()
    assert faulty.run(made, log) == [0], log.read_text()
    assert (f"goes on after step {goes_on_from}, from" in log.read_text()) == (goes_on_from > 0)
    check_equal(outcome(Path(made.run.output_dir)), uninterrupted)
    assert sorted(path.name for path in log.parent.iterdir()) == ["log", Path(made.run.output_dir).name]


def last_step(made) -> int:
    """The step of the last complete checkpoint, 0 where there is none."""
    found = complete_checkpoints(checkpoints_folder(made.run.output_dir))
    return int(found[0].name.rpartition("-")[2]) if found else 0


@pytest.mark.parametrize(("step", "goes_on_from"), [(2, 0), (5, 3), (13, 12), (16, 15)])
def test_killed_after_a_step(recipe, uninterrupted, tmp_path, step, goes_on_from):
    """12 is the end of an epoch, 3 and 15 lie within one."""
    made, log = recipe(), tmp_path / "log"
    assert faulty.run(made, log, faulty.signal_after_step(step, signal.SIGKILL)) == [-9]
    take_over(made, uninterrupted, log, goes_on_from)


SAVING = {
    "before anything": (faulty.killed_at_event("os.mkdir", "writing/checkpoint-6"), 3),
    "configuration": (faulty.killed_at_event("open", "writing/checkpoint-6/config.json"), 3),
    "half of the optimizer": (faulty.killed_in_half_of("checkpoint-6/optimizer.pt"), 3),
    "half of the noise's state": (faulty.killed_in_half_of("checkpoint-6/rng_state"), 3),
    "before the mark": (faulty.killed_at_event("open", "writing/checkpoint-6/complete.json"), 3),
    "before the rename": (faulty.killed_at_event("os.rename", "writing/checkpoint-6"), 3),
    "before the old one goes": (faulty.killed_at_event("os.remove", "checkpoint-3/complete.json"), 6),
    "while the old one goes": (faulty.killed_at_event("shutil.rmtree", "checkpoint-3", count=2), 6),
    "the stage's own": (faulty.killed_at_event("open", ".unfinished/config.json"), 15),
    "before it is in place": (faulty.killed_at_event("os.rename", "stage1.unfinished"), 15),
}


@pytest.mark.parametrize("where", SAVING)
def test_killed_while_saving(recipe, uninterrupted, tmp_path, where):
    fault, goes_on_from = SAVING[where]
    made, log = recipe(), tmp_path / "log"
    assert faulty.run(made, log, fault) == [-9], log.read_text()
    take_over(made, uninterrupted, log, goes_on_from)


def test_killed_at_random_until_it_is_done(recipe, uninterrupted, tmp_path):
    """Killed from outside, with workers and a checkpoint after every step."""
    made, log = recipe(**{"run.save_steps": 1, "data.workers": 2}), tmp_path / "log"
    chance, statuses = random.Random(0), []
    log.touch()
    while 0 not in statuses and len(statuses) < STEPS:
        steps = log.read_text().count("step ") + chance.randint(1, 5)
        processes = faulty.start(made, log)
        while log.read_text().count("step ") < steps and not faulty.ended(processes[0]):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        faulty.kill_all(processes)
        statuses += faulty.wait(processes)
    assert statuses.count(-9) >= 3
    check_equal(outcome(Path(made.run.output_dir)), uninterrupted)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_exits(recipe, uninterrupted, tmp_path, name):
    number = signal.Signals[name]
    made, log = recipe(**{"run.save_steps": None, "data.workers": 1}), tmp_path / "log"
    assert faulty.run(made, log, faulty.signal_after_step(6, number)) == [128 + number]
    checkpoint = f"{made.run.output_dir}.checkpoints/checkpoint-7"
    printed = log.read_text()
    assert f"\n{name}: saves a checkpoint after this step and exits" in printed
    assert printed.endswith(f"stopped by {name} after step 7 of 16; the same command goes on from {checkpoint}\n")
    take_over(made, uninterrupted, log, 7)


def test_a_second_ctrl_c_stops_at_once(recipe, tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    made, log = recipe(), tmp_path / "log"
    assert faulty.run(made, log, faulty.after_step(5, twice)) == [-signal.SIGINT]
    assert last_step(made) == 3


def test_minutes_count_too(recipe, tmp_path):
    made, log = recipe(**{"run.save_steps": None, "run.save_minutes": 0, "run.keep_last": 2}), tmp_path / "log"
    assert faulty.run(made, log, faulty.signal_after_step(5, signal.SIGKILL)) == [-9]
    folder = checkpoints_folder(made.run.output_dir)
    assert [path.name for path in complete_checkpoints(folder)] == ["checkpoint-4", "checkpoint-3"]


FULL = {
    "weights": faulty.disk_full_between(4, 7, size=200_000),
    "configuration": faulty.disk_full_at("open", "writing/checkpoint-6/config.json"),
    "optimizer": faulty.torch_save_fails("checkpoint-6/optimizer.pt"),
    "noise": faulty.torch_save_fails("checkpoint-6/rng_state"),
    "state": faulty.disk_full_at("open", "writing/checkpoint-6/trainer_state.json"),
    "mark": faulty.disk_full_at("open", "writing/checkpoint-6/complete.json"),
    "rename": faulty.disk_full_at("os.rename", "writing/checkpoint-6"),
    "folder": faulty.disk_full_at("os.mkdir", "writing/checkpoint-6"),
}


@pytest.mark.parametrize("where", FULL)
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(recipe, uninterrupted, tmp_path, where):
    made, log = recipe(), tmp_path / "log"
    assert faulty.run(made, log, FULL[where]) == [0], log.read_text()
    printed = log.read_text()
    failed = re.findall(r"no checkpoint after step (\d+): .*; the last one is \S+/checkpoint-3\n", printed)
    assert failed == ["6"], printed
    assert printed.count("/checkpoint-9 (") == 1
    check_equal(outcome(Path(made.run.output_dir)), uninterrupted)


def test_a_full_disk_ends_neither_the_run_nor_its_curves(recipe, uninterrupted, tmp_path):
    made, log = recipe(**{"run.report_to": "tensorboard"}), tmp_path / "log"
    fault = faulty.disk_full_at("open", "events.out.tfevents", count=30)
    assert faulty.run(made, log, fault) == [0], log.read_text()
    assert log.read_text().count("tensorboard's file could not be written: [Errno 28]") == 1
    check_equal(outcome(Path(made.run.output_dir)), uninterrupted)
    events = EventAccumulator(next(Path(made.run.output_dir).glob("runs/*")).as_posix()).Reload()
    logged = {event.step for event in events.Scalars("train/loss")}
    assert {1, 7, 15, 16} <= logged < set(range(1, STEPS + 1))


@pytest.mark.parametrize("given", [False, True])
def test_however_often_it_is_started_it_has_one_curve(recipe, uninterrupted, tmp_path, monkeypatch, given):
    """Killed before the first checkpoint and behind it, stopped by a signal: some steps are trained on twice."""
    made, log = recipe(**{"run.report_to": "tensorboard"}), tmp_path / "log"
    output = Path(made.run.output_dir)
    if given:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", f"{tmp_path}/curves/mine")
    ends = [(2, signal.SIGKILL, -signal.SIGKILL), (5, signal.SIGKILL, -signal.SIGKILL), (8, signal.SIGTERM, 143)]
    for step, number, status in ends:
        assert faulty.run(made, log, faulty.signal_after_step(step, number)) == [status], log.read_text()
    assert faulty.run(made, log) == [0], log.read_text()
    (folder,) = (tmp_path / "curves" if given else output / "runs").iterdir()
    assert len(list(folder.iterdir())) == (4 if given else 3)  # a start without a checkpoint leaves nothing of the last
    curve = EventAccumulator(str(folder)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in curve] == [
        (step["step"], pytest.approx(step["loss"])) for step in uninterrupted["steps"]
    ]


def test_too_little_room_is_seen_before_writing(recipe, tmp_path, uninterrupted):
    made, log = recipe(), tmp_path / "log"
    assert faulty.run(made, log, faulty.little_room) == [0], log.read_text()
    assert log.read_text().count(" are free; the last one is none yet\n") == 5
    check_equal(outcome(Path(made.run.output_dir)), uninterrupted)


def write(folder: Path, step: int, keep_last: int = 9) -> Path:
    writing = start_checkpoint(f"{folder}/out")
    (writing / f"checkpoint-{step}/global_step{step}").mkdir(parents=True)
    (writing / f"checkpoint-{step}/global_step{step}/state.pt").write_bytes(b"0123456789")
    return finish_checkpoint(writing, {"step": step, "recipe": {}}, keep_last)


def steps_in(folder: Path) -> list[str]:
    return [path.name for path in complete_checkpoints(checkpoints_folder(f"{folder}/out"))]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: (path / "complete.json").unlink(),
        lambda path: (path / "complete.json").write_text("{"),
        lambda path: next(path.glob("*/state.pt")).write_bytes(b"01234"),
        lambda path: next(path.glob("*/state.pt")).unlink(),
        lambda path: (shutil.rmtree(path), path.mkdir()),
    ],
)
def test_what_is_not_whole_is_never_the_last_one(tmp_path, spoil):
    write(tmp_path, 5)
    spoil(write(tmp_path, 10))
    (tmp_path / "out.checkpoints/checkpoint-x").mkdir()
    assert steps_in(tmp_path) == ["checkpoint-5"]
    write(tmp_path, 15, keep_last=2)
    assert steps_in(tmp_path) == ["checkpoint-15", "checkpoint-5"]
    assert sorted(path.name for path in (tmp_path / "out.checkpoints").glob("checkpoint-*")) == sorted(
        steps_in(tmp_path)
    )


def test_the_last_ones_are_kept_by_number(tmp_path):
    for step in (9, 10, 11):
        write(tmp_path, step, keep_last=2)
    assert steps_in(tmp_path) == ["checkpoint-11", "checkpoint-10"]


@pytest.fixture
def unfinished(recipe, tmp_path):
    """Stage 1, killed after its first checkpoint."""
    faulty.run(recipe(), tmp_path / "log", faulty.signal_after_step(4, signal.SIGKILL))
    return tmp_path


CHANGES = {
    "optim.lr": (5e-4, "optim.lr was 0.001 and is 0.0005"),
    "optim.global_batch_size": (8, "optim.global_batch_size was 4 and is 8"),
    "run.seed": (1, "run.seed was 42 and is 1"),
    "optim.max_steps": (9, "optim.max_steps was none and is 9"),
    "data.max_length": (500, "data.max_length was 512 and is 500"),
    "components.projector.lr": (0.1, "components.projector.lr was none and is 0.1"),
    "tiling.pinpoints": ([[56, 56]], r"tiling.pinpoints was \(1x1\),...,\(2x2\) and is \[\[56, 56\]\]"),
}


def test_an_older_versions_checkpoint_is_refused(recipe, tmp_path):
    write(tmp_path, 5)  # whose mark has no totals
    with pytest.raises(LlavaError, match=r"checkpoint-5: was written by an older version of this code. Go on with"):
        check_recipe(recipe(**{"run.output_dir": str(tmp_path / "out")}), 1, dry_run=False)


def test_another_recipe_is_refused(recipe, unfinished):
    check_recipe(recipe(), 1, dry_run=False)
    for key, (value, message) in CHANGES.items():
        with pytest.raises(LlavaError, match=message) as caught:
            check_recipe(recipe(**{key: value}), 1, dry_run=False)
        assert "\n" not in str(caught.value)
        check_recipe(recipe(**{key: value, "run.resume": False}), 1, dry_run=False)
    with pytest.raises(LlavaError, match="arm was grid_manager and is manager"):
        check_recipe(recipe(arm="manager"), 1, dry_run=False)
    free = {"run.logging_steps": 5, "data.workers": 3, "run.save_steps": 7, "run.keep_last": 4}
    free |= {"optim.batch_size": 4, "model.attention": "eager", "data.on_bad_sample": "skip"}
    check_recipe(recipe(**free), 1, dry_run=False)


def test_free_keys_exist():
    assert set(FREE_KEYS) < set(all_recipe_keys())


def test_resume_false_starts_anew(recipe, unfinished):
    made, log = recipe(**{"run.resume": False, "optim.lr": 1e-4, "optim.max_steps": 2}), unfinished / "log"
    assert faulty.run(made, log) == [0]
    assert "goes on" not in log.read_text()
    assert json.loads(Path(made.run.output_dir, "run.json").read_text())["steps"] == 2
    assert sorted(path.name for path in unfinished.iterdir()) == ["log", "stage1", "stage1.checkpoints.1"]
    assert read_mark(unfinished / "stage1.checkpoints.1/checkpoint-3")["step"] == 3


def test_checkpoints_go_where_delete_says_so_alone(recipe, tmp_path):
    for word, left in ((False, ["out.checkpoints.1"]), (False, ["out.checkpoints.1", "out.checkpoints.2"])):
        write(tmp_path, 5)
        start_anew(recipe(**{"run.resume": word, "run.output_dir": f"{tmp_path}/out"}).run)
        assert sorted(path.name for path in tmp_path.iterdir()) == left
    write(tmp_path, 5)
    start_anew(recipe(**{"run.resume": "delete", "run.output_dir": f"{tmp_path}/out"}).run)
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    with pytest.raises(LlavaError, match=r"run\.resume must be true or false or delete; found 'deleted'"):
        recipe(**{"run.resume": "deleted"})


def test_a_start_never_passes_by_checkpoints_of_which_none_is_whole(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(interim, "STALE", 0)
    (write(tmp_path, 5) / "complete.json").unlink()
    keys = {"run.output_dir": f"{tmp_path}/out"}
    with pytest.raises(LlavaError, match=r"out.checkpoints: of .* none is whole \(checkpoint-5\).*--run.resume delete"):
        check_recipe(recipe(**keys), 1, dry_run=False)
    assert (tmp_path / "out.checkpoints/checkpoint-5").is_dir()
    check_recipe(recipe(**keys, **{"run.resume": "delete"}), 1, dry_run=False)


def test_a_stale_listing_is_waited_for(recipe, tmp_path, monkeypatch):
    """As on a network disk: another machine's view of the last checkpoint becomes whole a little later."""
    write(tmp_path, 5)
    mark = write(tmp_path, 10) / "complete.json"
    mark.rename(tmp_path / "mark")
    waits = []
    monkeypatch.setattr(
        interim, "sleep", lambda _: (waits.append(1), len(waits) == 3 and (tmp_path / "mark").rename(mark))
    )
    run = recipe(**{"run.output_dir": f"{tmp_path}/out"}).run
    assert last_checkpoint(run).name == "checkpoint-10"
    assert len(waits) == 3
    mark.unlink()
    monkeypatch.setattr(interim, "STALE", 0)
    assert last_checkpoint(run).name == "checkpoint-5"


def test_other_data_is_refused(recipe, unfinished, data_folder):
    other = unfinished / "data"
    shutil.copytree(data_folder, other)
    moved = {"data.mixture": f"{other}/captions.yaml", "data.image_folder": str(other)}
    records = json.loads((other / "captions.json").read_text())
    records[7]["conversations"][1]["value"] += " Or blue."
    (other / "captions.json").write_text(json.dumps(records))
    log = unfinished / "log"
    assert faulty.run(recipe(**moved), log) == [2]
    message = r"error: \S+/checkpoint-3: the data has changed since: its hash was \w{12} and is \w{12}\. Restore it,"
    assert re.search(message, log.read_text())
    shutil.copy(data_folder / "captions.json", other)
    assert faulty.run(recipe(**moved), log) == [0]


def test_a_million_rows_are_skipped_in_seconds(tiny_recipe):
    """Through the Trainer's and accelerate's own skipping: no sample is opened but those of the first batches."""
    rows = 1_000_000
    stage = prepare(tiny_recipe("1", **{"optim.global_batch_size": 512, "optim.batch_size": 16}))
    trainer, opened = stage.trainer, []

    class Rows(torch.utils.data.Dataset):
        is_multimodal = [index % 5 > 0 for index in range(rows)]

        def __len__(self):
            return rows

        def __getitem__(self, index):
            opened.append(index)
            return {"input_ids": [1, 2], "labels": [1, 2], "num_images": 0, "num_videos": 0, "sample": str(index)}

    chance = random.Random(0)
    trainer.train_dataset, trainer.costs = Rows(), [chance.randint(50, 8000) for _ in range(rows)]
    started = time.process_time()  # the machine may be busy with others
    batches = rows // 16 - 10
    loader = skip_first_batches(trainer.get_train_dataloader(), batches)
    loader.set_epoch(0)
    first = next(iter(loader))
    seconds = time.process_time() - started
    print(f"{batches * 16:,} rows skipped in {seconds:.1f} s")
    assert seconds < 10
    assert len(opened) <= 32
    everything = list(trainer.train_sampler)
    assert [int(name) for name in first["samples"]] == everything[batches * 16 :][:16]


@pytest.fixture(scope="module")
def two_uninterrupted(tmp_path_factory, tiny_keys):
    """Stage 1 in one go by two processes under ZeRO-3."""
    folder = tmp_path_factory.mktemp("two")
    keys = {"optim.epochs": 2, "fusion.jitter": "paper", "run.output_dir": f"{folder}/out"}
    keys["run.deepspeed"] = "scripts/train/deepspeed/zero3.json"
    made = load_recipe("scripts/train/recipes/mllm/stage1.yaml", "grid_manager", keys=tiny_keys("1", **keys))
    assert faulty.run(made, folder / "log", ranks=2) == [0, 0], (folder / "log").read_text()
    return outcome(folder / "out", count=SHORT_STEPS)


TWO = {
    "zero3, rank 1 in half of its state": ("zero3", faulty.killed_in_half_of("checkpoint-6/global_step6/zero"), 3),
    "zero2, rank 1 after a step": ("zero2", faulty.signal_after_step(7, signal.SIGKILL), 6),
    "ddp, rank 1 after a step": (None, faulty.signal_after_step(7, signal.SIGKILL), 6),
}


@pytest.fixture(scope="module")
def without_noise(tmp_path_factory, tiny_keys):
    """Stage 1 in one go by one process."""
    folder = tmp_path_factory.mktemp("without_noise")
    keys = {"optim.epochs": 2, "fusion.jitter": "none", "run.output_dir": f"{folder}/out"}
    made = load_recipe("scripts/train/recipes/mllm/stage1.yaml", "grid_manager", keys=tiny_keys("1", **keys))
    assert faulty.run(made, folder / "log") == [0], (folder / "log").read_text()
    return outcome(folder / "out", count=SHORT_STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero3", "zero2", None])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes(recipe, without_noise, tmp_path, strategy, before, after):
    keys = {"run.deepspeed": strategy and f"scripts/train/deepspeed/{strategy}.json", "fusion.jitter": "none"}
    keys["optim.epochs"] = 2
    made, log = recipe(**keys), tmp_path / "log"
    processes = faulty.start(made, log, faulty.signal_after_step(7, signal.SIGKILL), ranks=before)
    faulty.wait(processes[-1:])
    faulty.kill_all(processes[:-1])
    faulty.wait(processes[:-1])
    assert last_step(made) == 6, log.read_text()
    assert faulty.run(made, log, ranks=after) == [2] * after
    assert f"was written by {before} processes and {after} are to go on" in log.read_text()
    made = recipe(**keys, **{"run.reshape": True})
    assert faulty.run(made, log, ranks=after) == [0] * after, log.read_text()
    assert log.read_text().count("goes on after step 6, from") == 1
    check_close(outcome(Path(made.run.output_dir), count=SHORT_STEPS), without_noise)


def check_close(found: dict, expected: dict) -> None:
    for step, wanted in zip(found["steps"], expected["steps"]):
        assert step == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", TWO)
def test_two_processes(recipe, two_uninterrupted, tmp_path, case):
    """All strategies train alike, so one reference serves; step 6 lies within the second epoch."""
    strategy, fault, goes_on_from = TWO[case]
    keys = {"run.deepspeed": strategy and f"scripts/train/deepspeed/{strategy}.json", "data.workers": 1}
    keys["optim.epochs"] = 2
    made, log = recipe(**keys), tmp_path / "log"
    processes = faulty.start(made, log, fault, ranks=2)
    assert faulty.wait(processes[1:]) == [-9], log.read_text()
    faulty.kill_all(processes[:1])  # torchrun's part
    faulty.wait(processes[:1])
    assert last_step(made) == goes_on_from, log.read_text()
    log.unlink()
    assert faulty.run(made, log, ranks=2) == [0, 0], log.read_text()
    assert log.read_text().count(f"goes on after step {goes_on_from}, from") == 1
    check_close(outcome(Path(made.run.output_dir), count=SHORT_STEPS), two_uninterrupted)


OTHER_METHODS = {"cross_attention": {}, "igva": {"heads": 2, "head_width": 4, "blocks": 1}}


@pytest.mark.slow
@pytest.mark.parametrize("method", OTHER_METHODS)
def test_other_methods_on_two_processes(tiny_keys, make_config, make_processor, tmp_path, method):
    """Under ZeRO-3, killed and started again, as one process in one go; no weight of the method is as it begins."""
    torch.manual_seed(0)
    model = LlavaOVManagerForConditionalGeneration(make_config(fusion=METHODS[method](**OTHER_METHODS[method])))
    for parameter in model.model.fusion.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path / "start")
    make_processor().save_pretrained(tmp_path / "start")
    keys = {key: value for key, value in tiny_keys("2").items() if not key.startswith("fusion.")}
    keys |= {f"fusion.{key}": value for key, value in OTHER_METHODS[method].items()}
    keys |= {"model.start_from": f"{tmp_path}/start", "run.save_steps": 2}

    def make(name: str, **changes):
        changed = keys | {"run.output_dir": f"{tmp_path}/{name}/out"} | changes
        return load_recipe("scripts/train/recipes/mllm/stage2.yaml", f"grid_{method}", keys=changed)

    one, log = make("one"), tmp_path / "log"
    assert faulty.run(one, log) == [0], log.read_text()
    two = make("two", **{"run.deepspeed": "scripts/train/deepspeed/zero3.json"})
    processes = faulty.start(two, log, faulty.signal_after_step(4, signal.SIGKILL), ranks=2)
    assert faulty.wait(processes[1:]) == [-9], log.read_text()
    faulty.kill_all(processes[:1])
    faulty.wait(processes[:1])
    assert last_step(two) == 2, log.read_text()
    assert faulty.run(two, log, ranks=2) == [0, 0], log.read_text()
    assert log.read_text().count("goes on after step 2, from") == 1
    check_close(*(outcome(Path(made.run.output_dir), count=4) for made in (two, one)))
