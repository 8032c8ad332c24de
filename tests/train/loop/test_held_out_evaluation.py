"""Held-out samples evaluated while a stage trains: their loss, the model's answers, and no trace in the training."""

import json
import os
import pickle
import pickletools
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import cross_entropy
from transformers import AutoProcessor, TrainerCallback

from llava.data.images import open_image
from llava.data.mixture import load_mixture
from llava.data.schema import Dialogue, Sample, Turn
from llava.data.video import EVERY_SECOND, read_video
from llava.engine.engine import Engine
from llava.errors import LlavaError
from llava.train import stage as stage_module
from llava.train.loop.held_out import last_exchange
from llava.train.mllm import data
from llava.train.recipe.checks import check_data, check_recipe
from llava.train.recipe.load import load_recipe
from llava.train.stage import prepare, run_stage, train
from tests.train.recorder import record_evaluations
from tests.train.run_ranks import run_ranks

RECIPE = "scripts/train/recipes/mllm/stage2.yaml"
STEPS, ANSWERED = 4, 7
STRATEGIES = {"ddp": None, "zero2": 2, "zero3": 3}


@pytest.fixture(scope="module")
def talkative_start(wide_start, tmp_path_factory):
    """A checkpoint whose answers differ from question to question."""
    folder = shutil.copytree(wide_start, tmp_path_factory.mktemp("talkative"), dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.startswith("model.language_model.layers") and weight.ndim == 2:
            weight *= 10
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def keys(tiny_keys, talkative_start, data_folder):
    """A function: changes to keys of stage 2 on mixed samples; what is held out are the same samples."""

    def make(**changes) -> dict:
        keys = {
            "model.start_from": str(talkative_start),
            "optim.max_steps": STEPS,
            "eval.data": f"{data_folder}/turns.json",
            "eval.steps": 2,
            "eval.at_start": True,
            "eval.batch_size": 3,
            "eval.answers": ANSWERED,
            "eval.max_new_tokens": 5,
        }
        return tiny_keys("2", **keys | changes)

    return make


@pytest.fixture(scope="module")
def no_evaluation():
    """Keys that put back what `keys` asks to evaluate."""
    return {
        "eval.data": None,
        "eval.steps": 500,
        "eval.at_start": False,
        "eval.batch_size": None,
        "eval.answers": 8,
    } | {"eval.max_new_tokens": 64}


@pytest.fixture(scope="module")
def run(keys, tmp_path_factory):
    """A function: changes to a run in this process, to the folder that it leaves."""

    def make(out: Path | None = None, **changes) -> Path:
        out = out or tmp_path_factory.mktemp("run") / "out"
        recipe = load_recipe(RECIPE, "grid_manager", keys=keys(**{"run.output_dir": str(out)} | changes))
        check_recipe(recipe, 1, dry_run=False)
        run_stage(recipe)
        return out

    return make


NOISY = {"fusion.jitter": "paper", "data.workers": 1}


@pytest.fixture(scope="module")
def evaluated(run):
    """The folder of a run with evaluations, with noise and a data loader's worker."""
    return run(**NOISY)


def history(folder: Path, key: str) -> dict[int, float]:
    """{step: value} of what was logged under `key`."""
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry[key] for entry in log if key in entry}


def answer_rows(folder: Path, step: int) -> list[dict]:
    return [json.loads(line) for line in (folder / f"eval/step_{step}.jsonl").read_text().splitlines()]


def same_weights(one: Path, other: Path) -> bool:
    weights, others = (load_file(folder / "model.safetensors") for folder in (one, other))
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def test_training_does_not_notice(run, evaluated, no_evaluation):
    plain = run(**NOISY, **no_evaluation)
    assert list(history(evaluated, "eval_loss")) == [0, 2, 4]
    assert history(plain, "eval_loss") == {}
    assert not (plain / "eval").exists()
    for key in ("loss", "grad_norm"):
        assert history(evaluated, key) == history(plain, key)
        assert len(history(plain, key)) == STEPS
    assert same_weights(evaluated, plain)


def test_the_random_generators_are_left_as_they_were(tiny_recipe, keys):
    trainer = prepare(tiny_recipe("2", **keys(**NOISY))).trainer
    trainer.model.train()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states


def test_the_loss_is_the_mean_over_all_supervised_tokens(evaluated, data_folder):
    """Sample by sample, all logits, by hand."""
    engine = Engine.from_pretrained(evaluated, device="cpu")
    total, count = 0.0, 0
    for sample in load_mixture(data_folder / "turns.json", 0).samples:
        images, videos = shown(sample, data_folder)
        item = engine.processor.encode_sample(
            sample, images, videos, template="qwen_1_5", label_rule="answers", max_length=512
        )
        visual = {key: item[key] for key in item if key.startswith(("pixel", "image_sizes", "video_num"))}
        visual |= {f"batch_{key}": torch.tensor([item[key]]) for key in ("num_images", "num_videos") if item[key]}
        with torch.no_grad():
            logits = engine.model(input_ids=torch.tensor([item["input_ids"]]), **visual).logits[0, :-1]
        labels = torch.tensor(item["labels"])[1:]
        total += cross_entropy(logits.double(), labels, ignore_index=-100, reduction="sum").item()
        count += (labels != -100).sum().item()
    assert count > 100
    assert history(evaluated, "eval_loss")[STEPS] == pytest.approx(total / count, abs=2e-6)


def shown(sample: Sample, folder: Path) -> tuple[list, list]:
    """A sample's images and the frames of its videos."""
    images = [open_image(folder / path) for path in sample.images]
    return images, [read_video(folder / path, EVERY_SECOND).frames for path in sample.videos]


def test_the_answers_are_those_of_the_chat(evaluated, data_folder):
    engine = Engine.from_pretrained(evaluated, device="cpu")
    rows = answer_rows(evaluated, STEPS)
    assert [row["sample"] for row in rows] == [f"sample-{index}" for index in range(ANSWERED)]
    for row, sample in zip(rows, load_mixture(data_folder / "turns.json", 0).samples):
        question, reference = sample.turns
        dialogue = Dialogue([question], *shown(sample, data_folder))
        assert row["answer"] == engine.generate([dialogue], max_new_tokens=5)[0]
        assert (row["question"], row["reference"]) == (question.text, reference.text)
        assert (row["images"], row["videos"]) == (list(sample.images), list(sample.videos))
    assert len({row["answer"] for row in rows} - {""}) > 3
    assert answer_rows(evaluated, 0) != rows


def test_a_caption_is_asked_for_as_stage_1_trains_it(tiny_recipe, data_folder):
    """With the image alone in front, whatever the label rule; a newline ends it."""
    recipe = tiny_recipe(
        "1", **{"eval.data": f"{data_folder}/captions.json", "eval.answers": 2, "data.label_rule": "released"}
    )
    held_out = prepare(recipe).trainer.evaluation.held_out
    batch = held_out.batch([0, 1])
    tokenizer = held_out.prompts.processor.tokenizer
    assert set(batch["input_ids"].flatten().tolist()) <= set(
        tokenizer.convert_tokens_to_ids(["<image>", tokenizer.pad_token])
    )

    class Writes:
        def generate(self, input_ids, **others):
            written = tokenizer("A red car.\n A red", add_special_tokens=False)["input_ids"]
            return torch.cat([input_ids, torch.tensor([written] * len(input_ids))], dim=1)

    assert held_out.answers(Writes(), batch, all_ranks=False) == ["A red car."] * 2


def test_the_last_question_is_asked():
    turns = [("human", "<image> a"), ("gpt", "1"), ("human", "<image> b"), ("gpt", "2"), ("human", "<image> c")]
    sample = Sample("x", tuple(Turn(*turn) for turn in turns), ("1.png", "2.png", "3.png"), "row 1")
    assert last_exchange(sample) == replace(sample, turns=sample.turns[:4], images=("1.png", "2.png"))


def test_a_run_that_goes_on_evaluates_on(run, evaluated, monkeypatch, tmp_path):
    """Stopped by a signal, which no evaluation delays, then with another `eval.steps`, which is heeded."""
    out = tmp_path / "out"

    class Stop(TrainerCallback):
        def __init__(self, trainer):
            self.request = trainer.stop_request

        def on_substep_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                self.request.signal = signal.SIGTERM

    def train_until_stopped(trainer):
        trainer.add_callback(Stop(trainer))
        return train(trainer)

    with monkeypatch.context() as patched:
        patched.setattr(stage_module, "train", train_until_stopped)
        with pytest.raises(SystemExit):
            run(out, **NOISY)
    assert [path.name for path in Path(f"{out}.unfinished/eval").iterdir()] == ["step_0.jsonl"]
    run(out, **NOISY, **{"eval.steps": 1})
    assert sorted(path.name for path in (out / "eval").iterdir()) == [f"step_{step}.jsonl" for step in (0, 3, 4)]
    assert history(out, "loss") == history(evaluated, "loss")
    losses, expected = history(out, "eval_loss"), history(evaluated, "eval_loss")
    assert list(losses) == [0, 3, 4]
    assert (losses[0], losses[4]) == (expected[0], expected[4])
    assert answer_rows(out, 4) == answer_rows(evaluated, 4)
    assert same_weights(out, evaluated)


@pytest.fixture(scope="module")
def run_apart(keys, tmp_path_factory):
    """A function: ranks (None: without torchrun) and strategy to what was logged, and the answers by step."""

    def make(ranks: int | None, strategy: str | None, **changes) -> tuple[list[dict], dict]:
        out = tmp_path_factory.mktemp("apart")
        deepspeed = f"scripts/train/deepspeed/{strategy}.json" if STRATEGIES.get(strategy) else None
        changes = {
            "eval.steps": STEPS,
            "components.language_model.lora": True,
            "lora.rank": 4,
            "optim.batch_size": 2 if ranks else 4,
            "run.deepspeed": deepspeed,
            "run.output_dir": f"{out}/out",
        } | changes
        arguments = (RECIPE, "grid_manager", keys(**changes), out)
        run_ranks(record_evaluations, *arguments, processes=ranks, folder=out, timeout=240)
        rows = {step: answer_rows(out / "out.unfinished", step) for step in (0, STEPS)}
        return json.loads((out / "facts.json").read_text()), rows

    return make


@pytest.fixture(scope="module")
def alone(run_apart):
    """One process without strategy, whose batches hold other samples together."""
    return run_apart(None, None, **{"eval.batch_size": 5})


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_evaluate_like_one(run_apart, alone, strategy):
    """With adapters; 16 samples in batches of 3 for two ranks: one with images beside one without, and unequal ends."""
    (log, rows), (expected_log, expected_rows) = run_apart(2, strategy), alone
    for key, steps in (("eval_loss", [0, STEPS]), ("loss", [1, 2, 3, 4])):
        values, expected = (
            {entry["step"]: entry[key] for entry in found if key in entry} for found in (log, expected_log)
        )
        assert list(values) == list(expected) == steps
        assert values == pytest.approx(expected, abs=1e-5)
    assert rows == expected_rows
    assert len(rows[4]) == ANSWERED


def test_a_sample_that_is_lost_in_the_midst_ends_nothing(run, data_folder, tmp_path, capsys, monkeypatch):
    images = shutil.copytree(data_folder, tmp_path / "images")

    def train_without_an_image(trainer):
        (images / "2.png").unlink()
        return train(trainer)

    monkeypatch.setattr(stage_module, "train", train_without_an_image)
    folder = run(**{"eval.image_folder": str(images), "eval.at_start": False})
    said = capsys.readouterr().out
    assert "after step 2: no held-out loss: 1 samples cannot be read any more; training goes on" in said
    assert f"after step 4: no held-out answers: sample 'sample-2' ({data_folder}/turns.json row 3): image" in said
    assert history(folder, "eval_loss") == {}
    assert len(history(folder, "loss")) == STEPS
    assert not (folder / "eval").exists()


@pytest.fixture
def offline_wandb(tmp_path, monkeypatch):
    """A folder for wandb, which is not told to stay offline; it keeps the first folder that a process names."""
    for name in ("MODE", "PROJECT"):
        monkeypatch.setenv(f"WANDB_{name}", "")  # so that it is put back as it was
        monkeypatch.delenv(f"WANDB_{name}")
    for name, value in {"DIR": str(tmp_path), "DATA_DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield tmp_path
    import wandb

    wandb.teardown()  # finishes, and ends the process that writes


def test_a_table_with_pictures_in_wandb(run, evaluated, offline_wandb):
    """Three tables wait to be synchronised, with their pictures; wandb stays offline unless it is asked otherwise."""
    folder = run(**NOISY, **{"run.report_to": "wandb"})
    assert os.environ["WANDB_MODE"] == "offline"
    assert list(offline_wandb.glob("wandb/offline-run-*/*.wandb"))
    rows = answer_rows(folder, STEPS)
    assert rows == answer_rows(evaluated, STEPS)
    staged = list((offline_wandb / "artifacts/staging").iterdir())
    tables = [json.loads(path.read_text()) for path in staged if path.read_bytes().startswith(b'{"')]
    tables = {table["data"][0][0]: table for table in tables if "columns" in table}
    assert sorted(tables) == [0, 2, 4]
    table = tables[STEPS]
    assert table["columns"] == ["step", "sample", "pictures", "question", "reference", "answer"]
    assert [[cell for number, cell in enumerate(row) if number != 2] for row in table["data"]] == [
        [row[key] for key in table["columns"] if key != "pictures"] for row in rows
    ]
    pictures = [row[2] and (row[2]["width"], row[2]["height"]) for row in table["data"]]
    two = (56 + 56, 56)
    assert pictures == [two, None, (60, 130), (112 + 56, 112), None, two, (3 * 64, 48)]
    sizes = {Image.open(path).size for path in staged if path.read_bytes().startswith(b"\x89PNG")}
    assert sizes == set(pictures) - {None}


def test_text_and_pictures_in_tensorboard(run):
    folder = run(**{"run.report_to": "tensorboard", "eval.at_start": False})
    events = EventAccumulator(str(next(folder.glob("runs/*"))), size_guidance={"tensors": 0}).Reload()
    assert [event.step for event in events.Scalars("eval/loss")] == [2, 4]
    text = events.Tensors("eval/1/text_summary")[-1].tensor_proto.string_val[0].decode()
    row = answer_rows(folder, STEPS)[0]
    assert all(f"**{key}** {row[key]}" in text for key in ("sample", "question", "reference", "answer"))
    assert events.Tags()["images"] == ["eval/1", "eval/3", "eval/4", "eval/6", "eval/7"]


def test_what_cannot_be_logged_is_told_once(run, capsys, monkeypatch):
    def full(self, step, rows):
        raise OSError("No space left on device")

    monkeypatch.setattr("llava.train.loop.answer_log.AnswerLog._write_file", full)
    folder = run()
    assert len(history(folder, "loss")) == STEPS
    told = "the held-out answers could not be written to a file: No space left on device; training goes on"
    assert capsys.readouterr().out.count(told) == 1


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"eval.data": "absent.json"}, "eval.data absent.json: 1 data files missing, first absent.json"),
        ({"eval.data": "absent.yaml"}, "mixture absent.yaml cannot be read"),
        ({"eval.image_folder": "absent"}, "eval.image_folder absent is not a folder"),
        ({"eval.steps": 0}, "eval.steps must be at least 1; found 0"),
        ({"eval.batch_size": 0}, "eval.batch_size must be at least 1; found 0"),
        ({"eval.answers": -1}, "eval.answers must be at least 0; found -1"),
        ({"eval.max_new_tokens": 0}, "eval.max_new_tokens must be at least 1; found 0"),
        ({"eval.data": None}, "eval.steps is for nothing: eval.data is none"),
    ],
)
def test_faults_of_the_recipe(tiny_recipe, keys, changes, fault):
    with pytest.raises(LlavaError, match=fault):
        check_recipe(tiny_recipe("2", **keys(**changes)), 1, dry_run=False)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"image": "absent.png"}, "absent.png does not exist"),
        ({"image": "cut.png"}, "cut.png cannot be decoded"),
        ({"conversations": [{"from": "human", "value": "What?"}]}, "no answer to learn from"),
        ({"image": "1.png"}, "found 0 <image> placeholders but 1 images"),
    ],
)
def test_faults_of_the_samples_are_found_before_training(tiny_recipe, keys, data_folder, tmp_path, change, fault):
    """Although bad training samples are to be skipped."""
    images = shutil.copytree(data_folder, tmp_path / "images")
    pixels = bytearray((images / "0.png").read_bytes())
    pixels[60:-30] = bytes(len(pixels) - 90)  # whole by its header and its end
    (images / "cut.png").write_bytes(pixels)
    records = json.loads((data_folder / "turns.json").read_text())
    records[1] |= change
    if "image" in change and change["image"] != "1.png":
        records[1]["conversations"][0]["value"] = "<image>\nWhat?"
    (tmp_path / "held_out.json").write_text(json.dumps(records))
    changes = {"eval.data": f"{tmp_path}/held_out.json", "eval.image_folder": str(images)}
    recipe = tiny_recipe("2", **keys(**changes, **{"data.on_bad_sample": "skip"}))
    check_recipe(recipe, 1, dry_run=False)
    for find in (check_data, prepare):
        with pytest.raises(LlavaError, match=f"1 of 16 samples are unusable:\n.*{fault}"):
            find(recipe)


def test_samples_that_are_shortened(tiny_recipe, keys, data_folder, tmp_path):
    """They count, but are asked nothing; one that would lose every answer is refused before training."""
    records = json.loads((data_folder / "turns.json").read_text())
    long = [
        *records[2]["conversations"],
        {"from": "human", "value": "What? " * 150},
        {"from": "gpt", "value": "A car."},
    ]
    changes = {"eval.data": f"{tmp_path}/held_out.json", "data.on_over_long": "truncate", "data.max_length": 300}
    for turns, refused in ((long, False), (long[2:], True)):
        record = {"id": "long", "conversations": turns} | ({} if refused else {"image": "2.png"})
        (tmp_path / "held_out.json").write_text(json.dumps([record, *records[:2]]))
        recipe = tiny_recipe("2", **keys(**changes))
        if refused:
            with pytest.raises(LlavaError, match=r"1 of 3 samples are unusable:\n.*a cut there would leave no answer"):
                prepare(recipe)
        else:
            held_out = prepare(recipe).trainer.evaluation.held_out
            assert [sample.id for sample in held_out.dataset.samples] == ["long", "sample-0", "sample-1"]
            assert [sample.id for sample in held_out.prompts.samples] == ["sample-0", "sample-1"]


def test_what_is_known_of_the_samples_is_sent_as_arrays(tiny_recipe, keys, data_folder, tmp_path, monkeypatch):
    """Nothing else of it grows with their number; which samples are asked does with `eval.answers`."""
    records, sent = json.loads((data_folder / "turns.json").read_text()), []

    def send(function, seconds):
        sent.append(pickle.dumps(function(), protocol=5))
        return pickle.loads(sent[-1])

    monkeypatch.setattr(data, "on_first_rank", send)
    for times in (1, 3):
        (tmp_path / f"{times}.json").write_text(json.dumps(records * times))
        recipe = tiny_recipe("2", **keys(**{"eval.data": f"{tmp_path}/{times}.json"}))
        processor = AutoProcessor.from_pretrained(recipe.model.start_from)
        held_out = data.held_out(recipe, processor, lambda crops, *_, **__: crops, 512)
        items = [held_out.dataset[number] for number in range(16)]
        crops = [
            sum(len(item[key]) for key in ("pixel_values", "pixel_values_videos") if key in item) for item in items
        ]
        assert held_out.costs.tolist() == crops * times
        assert [sample.id for sample in held_out.prompts.samples] == [f"sample-{index}" for index in range(ANSWERED)]
    few, many = ([code.name for code, *_ in pickletools.genops(value)] for value in sent)
    assert len(few) == len(many) < 500


def test_an_empty_file(tiny_recipe, keys, tmp_path):
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(LlavaError, match="its 1 data files give 0 samples"):
        check_data(tiny_recipe("2", **keys(**{"eval.data": f"{tmp_path}/empty.json"})))
