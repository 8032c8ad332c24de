"""What a logged step counts, against counts by hand. Two processes: see test_distributed.py."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from llava.data.collator import Collator
from llava.mllm.cost import Cost
from llava.train.loop import step_log
from llava.train.loop.step_log import (
    PEAK_BF16_TFLOPS,
    StepLog,
    peak_bf16_tflops,
    peak_memory_gib,
    trained_peak_tflops,
)
from llava.train.mllm.counts import count, count_batch, count_visual
from llava.train.stage import prepare, train

COST = Cost(crop=1000, token=100, token_pair=10, supervised=1)


def make_batch(lengths: list[int], supervised: int, crops: int = 0, frames: int = 0) -> dict:
    """A batch whose last sequence ends in `supervised` labels."""
    items = [
        {"input_ids": [9] * length, "labels": [-100] * length, "num_images": 0, "num_videos": 0} for length in lengths
    ]
    items[-1]["labels"][lengths[-1] - supervised :] = [5] * supervised
    batch = Collator(0)(items)
    for key, number in (("pixel_values", crops), ("pixel_values_videos", frames)):
        if number:
            batch[key] = torch.zeros(number, 3, 2, 2)
    return batch


def test_count_batch():
    found = count_batch(make_batch([3, 5], supervised=2, crops=4, frames=3))
    assert found.tolist() == [8, 9 + 25, 10, 2, 7]
    first_position_predicts_nothing = count_batch(make_batch([4], supervised=4))
    assert first_position_predicts_nothing.tolist() == [4, 16, 4, 3, 0]


def test_count_packed_samples():
    """Samples of 3, 1 and 5 tokens, whose tokens are all labels: each one's first is predicted by nothing."""
    items = [
        {"input_ids": [9] * length, "labels": [5] * length, "num_images": 0, "num_videos": 0} for length in (3, 1, 5)
    ]
    assert count_batch(Collator(0, packing=True)(items)).tolist() == [9, 9 + 1 + 25, 9, 2 + 0 + 4, 0]


def test_visual_tokens_are_counted_as_of_equal_images():
    batch = make_batch([9], supervised=2) | {"visual_positions": torch.arange(7), "image_sizes": [[2, 2]]}
    assert count_visual(batch).tolist() == [7, 49, 1, 0, 0]
    batch["question_lengths"] = [5]
    assert count_visual(batch).tolist() == [7, 49, 1, 5, 35]
    several = batch | {"video_num_frames": [3, 1], "question_lengths": [5, 0, 2]}
    # 3 x (7 / 3)^2; 5 + 7 / 3 + 2, since one asks itself; 7 / 3 as often
    assert count_visual(several).tolist() == [7, 16, 3, 9, 22]
    assert count_visual(make_batch([3], supervised=1)).tolist() == [0, 0, 0, 0, 0]
    inside = {"visual_token": 10**5, "visual_pair": 10**6, "shown": 10**7, "question_token": 10**8}
    cost = replace(COST, **inside, question_pair=10**9)
    log = StepLog(Accelerator(cpu=True), cost, count, peak_tflops=2.0)
    list(log.counted([batch, batch]))
    found = log.read()
    operations = 2 * (100 * 9 + 10 * 81 + 2 + 10**5 * 7 + 10**6 * 49 + 10**7 + 10**8 * 5 + 10**9 * 35)
    assert found["mfu"] == pytest.approx(operations / (18 / found["tokens_per_second"]) / 2e12)


def test_read_adds_up_what_was_counted_since_the_last_time():
    log = StepLog(Accelerator(cpu=True), COST, count, peak_tflops=2.0)
    batches = [make_batch([3, 5], supervised=2, crops=4), make_batch([6], supervised=1)]
    assert list(log.counted(batches)) == batches
    found = log.read()
    assert {key: found[key] for key in ("supervised_tokens", "crops")} == {"supervised_tokens": 3, "crops": 4}
    assert found["padding"] == pytest.approx(2 / 16)
    seconds = 14 / found["tokens_per_second"]
    operations = 1000 * 4 + 100 * 14 + 10 * (9 + 25 + 36) + 3
    assert found["mfu"] == pytest.approx(operations / seconds / 2e12)
    list(log.counted([make_batch([2], supervised=1, crops=1)]))
    assert log.read()["crops"] == 1


def test_an_evaluation_takes_no_time_of_the_steps():
    log = StepLog(Accelerator(cpu=True), COST, count, peak_tflops=None)
    with log.left_out():  # before the first step
        pass
    started = time.perf_counter()
    list(log.counted([make_batch([6], supervised=1)]))
    with log.left_out():
        time.sleep(0.5)
    seconds = 6 / log.read()["tokens_per_second"]
    assert 0 < seconds < time.perf_counter() - started - 0.5


def test_the_share_of_waiting(monkeypatch):
    now = [5.0]
    monkeypatch.setattr(step_log.time, "perf_counter", lambda: now[0])

    def slow():
        for length in (3, 4):
            now[0] += 0.2
            yield make_batch([length], supervised=1)

    log = StepLog(Accelerator(cpu=True), COST, count, peak_tflops=None)
    for _ in log.counted(slow()):
        now[0] += 0.1
    found = log.read()
    assert found["data_wait"] == pytest.approx(0.4 / 0.6)
    assert "mfu" not in found


@pytest.mark.parametrize(
    ("device", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10G", 70),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_the_peak_of_a_device_by_its_name(device, tflops):
    assert peak_bf16_tflops(device) == tflops


def test_every_entry_of_the_table_can_be_found():
    assert PEAK_BF16_TFLOPS
    assert [name for name, peak in PEAK_BF16_TFLOPS.items() if peak_bf16_tflops(f"NVIDIA {name}") != peak] == []


def test_memory_is_the_resident_set_at_its_highest():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs Linux")
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    assert peak_memory_gib(torch.device("cpu")) == pytest.approx(int(line.split()[1]) / 2**20, rel=0.02)


@pytest.mark.parametrize("packing", [False, True])
def test_every_step_of_a_stage(tiny_recipe, make_model, make_processor, tmp_path, packing):
    """Text, images and videos, two micro-batches of two samples a step."""
    make_model().save_pretrained(tmp_path / "start")
    make_processor().save_pretrained(tmp_path / "start")
    stage = prepare(tiny_recipe("2", **{"model.start_from": f"{tmp_path}/start", "data.packing": packing}))
    assert stage.trainer.model.config._attn_implementation == "sdpa"
    text = stage.trainer.model.config.text_config._attn_implementation
    assert text == ("sdpa_by_sample" if packing else "sdpa")
    order = list(stage.trainer._get_train_sampler())
    train(stage.trainer)
    steps = [entry for entry in stage.trainer.state.log_history if "loss" in entry]
    assert len(steps) == 4
    seen = 0
    for number, found in enumerate(steps):
        items = [stage.trainer.train_dataset[index] for index in order[4 * number : 4 * number + 4]]
        lengths = [len(item["input_ids"]) for item in items]
        positions = sum(lengths) if packing else 2 * max(lengths[:2]) + 2 * max(lengths[2:])
        visual = [item[key] for item in items for key in ("pixel_values", "pixel_values_videos") if key in item]
        assert found["crops"] == sum(map(len, visual))
        assert found["supervised_tokens"] == sum(label != -100 for item in items for label in item["labels"][1:])
        assert found["padding"] == pytest.approx(1 - sum(lengths) / positions)
        seen += sum(lengths)
        assert found["num_input_tokens_seen"] == seen
        assert found["tokens_per_second"] > 0
        assert 0 < found["data_wait"] < 1
        assert found["peak_memory_gib"] > 0.05
    assert trained_peak_tflops(stage.trainer.args) is None
    assert "mfu" not in steps[0]


def test_skipped_samples_count_as_nothing_supervised(tiny_recipe, data_folder, tmp_path):
    images = shutil.copytree(data_folder, tmp_path / "images")
    keys = {"data.image_folder": str(images), "data.on_bad_sample": "skip", "optim.max_steps": 1}
    stage = prepare(tiny_recipe("1", **keys))
    shutil.rmtree(images)
    train(stage.trainer)
    found = stage.trainer.state.log_history[0]
    assert (found["supervised_tokens"], found["crops"]) == (0, 0)
    assert Collator(0)([stage.trainer.train_dataset[0]])["labels"].tolist() == [[-100]]
