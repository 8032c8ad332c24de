"""The check of a GPU without one: every part at tiny size on the CPU, and what only a GPU does played by stubs."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from llava.bench.arms import Side
from llava.mllm import attention as mllm_attention
from llava.train.main import main as train
from tests.paths import ROOT

CUDA = torch.device("cuda")  # a name; nothing runs there


@pytest.fixture
def script(monkeypatch):
    """A function: the name of a file of benchmarks/ to its module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(ROOT)
    return importlib.import_module


@pytest.fixture
def place(script):
    return script("gpu_place").Place("cpu", tiny=True)


def test_without_a_gpu_it_says_so_in_one_line(script, capsys):
    assert script("gpu_check").main([]) == 1
    assert capsys.readouterr().out.startswith(f"no GPU: torch {torch.__version__}, built for ")
    assert script("gpu_check").main(["--device", "cpu"]) == 1
    assert capsys.readouterr().out == "a CPU is too slow for the real sizes: add --tiny\n"


def test_every_part_has_seconds_and_all_together_less_than_eight_minutes(script):
    check, parts = script("gpu_check"), script("gpu_parts")
    assert list(check.SECONDS) == list(parts.PARTS) == list(check.TELLS)
    assert sum(check.SECONDS.values()) + check.DYING * len(check.SECONDS) < 8 * 60


def test_a_part_that_hangs_or_fails_is_told_and_the_others_go_on(script, tmp_path, capsys):
    check, json_file = script("gpu_check"), tmp_path / "out.json"
    scripts = {
        "hangs": f"tell(0.25); open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(100)",
        "fails": "tell(0.25); print('what it printed'); raise ValueError('why')",
        "works": f"tell(len(json.load(open({str(json_file)!r}))['parts']))",
    }
    begin = """import json, os, sys, time
def tell(seconds):
    with open(sys.argv[1], "w") as file:
        file.write(json.dumps({"side": "a", "seconds": seconds}) + chr(10))
"""

    def command_of(part: str, rows: Path) -> list[str]:
        return [sys.executable, "-S", "-c", begin + scripts[part], str(rows)]

    started = time.monotonic()
    report = check.check({"hangs": 3, "fails": 60, "works": 60}, command_of, json_file, {"on_gpu": False})
    assert time.monotonic() - started < 90
    assert json.loads(json_file.read_text()) == report
    hangs, fails, works = (report["parts"][name] for name in scripts)
    assert (hangs["fault"], fails["fault"], works["fault"]) == ("not done after 3 s", "ended with status 1", None)
    assert hangs["rows"] == fails["rows"] == [{"side": "a", "seconds": 0.25}]
    assert works["rows"] == [{"side": "a", "seconds": 2}], "it found the two parts before it in the file"
    assert fails["printed"][0] == "what it printed"
    assert fails["printed"][-1] == "ValueError: why"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    shown = capsys.readouterr().out
    assert "FAILED: not done after 3 s" in shown
    assert "    ValueError: why" in shown


def test_what_a_part_leaves_over_the_next_may_use(script, tmp_path, monkeypatch):
    check, allowed = script("gpu_check"), []
    took = iter([10.0, 55.0, 5.0])

    def run_part(command, rows_file, environment, seconds):
        allowed.append(seconds)
        return {"seconds": next(took), "rows": [], "fault": None}

    monkeypatch.setattr(check, "run_part", run_part)
    check.check({"a": 30, "b": 40, "c": 50}, lambda part, rows: [part], tmp_path / "x.json", {"on_gpu": False})
    assert allowed == [30, 60, 55]


def test_one_gpu_is_shown_or_none(script, monkeypatch):
    environment = script("gpu_check").part_environment
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert environment(on_gpu=True)["CUDA_VISIBLE_DEVICES"] == "3"
    assert environment(on_gpu=False)["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert environment(on_gpu=True)["CUDA_VISIBLE_DEVICES"] == "0"
    assert environment(on_gpu=True)["HF_HUB_OFFLINE"] == "1"


def test_the_arms_at_tiny_size(script, place):
    rows = list(script("gpu_parts").arms(place))
    assert [row["side"] for row in rows] == [
        *("baseline", "manager", "grid", "grid_manager", "grid_manager", "nothing checkpointed")
    ]
    assert [row["crops"] for row in rows] == [2, 2, 10, 10, 20, 10]  # 100x70 fills 2x2 tiles of 56, 160x160 3x3
    assert rows[3]["loss"] == pytest.approx(rows[5]["loss"], rel=1e-5), "checkpointing changes no loss"
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
        assert row["samples_per_second"] == pytest.approx(2 / row["seconds"])
        assert not {"mfu", "gpu_waits", "waits_forward", "memory_gib"} & set(row), "a CPU has none of these"
    shown = script("gpu_check").told("arms", {"seconds": 1, "rows": rows, "fault": None}).splitlines()
    assert shown[1].split() == ["images", "tokens", "seconds", "samples/s", "tokens/s"]
    assert len(shown) == 2 + len(rows)


def test_attention_and_packing_at_tiny_size(script, place):
    parts = script("gpu_parts")
    first, *rows = parts.attention(place)
    assert first == {"side": "flash_attention_2", "fault": "needs a GPU"}
    assert [row["side"] for row in rows] == ["sdpa", "sdpa"]
    padded, packed = parts.packing(place)
    assert padded["tokens"] == packed["tokens"]
    assert padded["loss"] == pytest.approx(packed["loss"], rel=1e-4)


def test_answers_at_tiny_size(script, place):
    one, many = script("gpu_parts").generation(place)
    assert (one["side"], many["side"]) == ("batch 1, sdpa", "batch 2, sdpa")
    assert many["tokens"] > one["tokens"] > 0
    assert min(one["answers_per_second"], one["first_token_seconds"], one["cutting_seconds"]) > 0


def test_precision_at_tiny_size(script, place):
    exact, rounded = script("gpu_parts").precision(place)
    assert len(exact["losses"]) == len(rounded["losses"]) == place.steps
    assert exact["losses"][-1] < exact["losses"][0]
    assert exact["losses"] != rounded["losses"]
    assert 0 < rounded["largest_difference"] < 0.01


def test_training_as_a_run_launches_it(script, place, tiny_model_dir, make_image, monkeypatch, capsys):
    """The commands are played; the launch's recipe is resolved by the real one."""
    training, commands = script("gpu_training"), []

    def run(*command, **variables):
        commands.append(list(command))
        if "--checkpoints" in command:
            folder = Path(command[command.index("--checkpoints") + 1], "stage1-manager")
            shutil.copytree(tiny_model_dir, folder)
            (folder / "run.json").write_text(json.dumps({"steps": 5, "train_loss": 2.5}))
            assert variables == {"NPROC_PER_NODE": "1", "DS_ACCELERATOR": "cpu"}
        elif "make" in command:
            Path(command[5]).mkdir()
            make_image().save(Path(command[5], "example.png"))

    monkeypatch.setattr(training, "_run", run)
    trained, answered = training.training(place)
    assert (trained["side"], trained["last_loss"]) == ("stage 1 of grid_manager, 5 steps, start to checkpoint", 2.5)
    assert answered["side"] == "an answer on cpu, float32, sdpa"
    assert [command[3:5] for command in commands[:2]] == [["demo", "make"], ["demo", "pretrain"]]
    _, launcher, *arguments = commands[2]
    recipe = launcher.replace("scripts/train/", "scripts/train/recipes/mllm/").replace(".sh", ".yaml")
    arguments[arguments.index("--data.mixture") + 1] = "scripts/train/mixtures/stage1.yaml"  # one that is there
    assert train(["--recipe", recipe, *arguments, "--dry_run"]) == 0
    assert re.search(r"^run.deepspeed +scripts/train/deepspeed/zero1.json$", capsys.readouterr().out, re.MULTILINE)


def test_a_command_that_fails_fails_the_part(script):
    with pytest.raises(subprocess.CalledProcessError):
        script("gpu_training")._run("false")


def test_the_device_is_described(script, place):
    (facts,) = script("gpu_parts").device(place)
    assert facts["torch"] == torch.__version__
    assert facts["matmul_tflops"] > 0
    assert "torch" in script("gpu_check").told("device", {"seconds": 1, "rows": [facts], "fault": None})


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_steps_under_deepspeed(script, place, monkeypatch, stage):
    """DeepSpeed is played by a plain step, NCCL by gloo. `gpu_check.py --device cpu --tiny` runs the real one."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "DS_ACCELERATOR"):
        monkeypatch.setenv(name, "x")  # put back afterwards
    deepspeed, ops = ModuleType("deepspeed"), ModuleType("deepspeed.ops")
    deepspeed.ops, ops.__compatible_ops__ = ops, {}

    class Engine:
        def __init__(self, model, optimizer, config):
            self.model, self.optimizer, self.config = model, optimizer, config

        def __call__(self, **batch):
            return self.model(**batch)

        def backward(self, loss):
            assert torch.distributed.get_world_size() == 1
            loss.backward()

        def step(self):
            self.optimizer.step()
            self.optimizer.zero_grad()

    engines = []
    deepspeed.initialize = lambda **given: (engines.append(Engine(**given)), engines[-1:])[1]
    monkeypatch.setitem(sys.modules, "deepspeed", deepspeed)
    monkeypatch.setitem(sys.modules, "deepspeed.ops", ops)
    (row,) = script("gpu_parts").PARTS[f"zero{stage}"](place)
    (engine,) = engines
    assert (row["side"], len(row["losses"])) == (f"ZeRO-{stage}, gloo", place.steps)
    assert row["losses"][-1] < row["losses"][0]
    assert engine.config["zero_optimization"]["stage"] == stage
    assert engine.model.model.without_images == ("all" if stage == 3 else "trained")
    assert not torch.distributed.is_initialized()
    shown = script("gpu_check").told(f"zero{stage}", {"seconds": 1, "rows": [row], "fault": None})
    assert "first loss  last loss" in shown


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_nothing_is_left_to_choose_in_the_shipped_files(script, stage):
    config = script("gpu_parts").deepspeed_config(stage, 896)
    assert "auto" not in json.dumps(config)
    assert (config["zero_optimization"]["stage"], config["bf16"]["enabled"]) == (stage, True)


def test_a_side_without_enough_memory_says_so(script, place):
    module = script("gpu_place")

    def too_much(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    bench = place.bench()
    row = module.side_row(place, bench, Side("large", "grid", loss=too_much), ["640x480"])
    assert row == {"side": "large", "images": "640x480", "fault": "out of memory"}
    shown = script("gpu_check").told("arms", {"seconds": 1, "rows": [row], "fault": None})
    assert shown.splitlines()[1:] == ["large, 640x480: out of memory"]


def test_what_only_a_gpu_tells_of_a_step(script, place, monkeypatch):
    """The row and its table, with the meter played."""
    module, waits = script("gpu_place"), script("gpu_meter").Waits(2, 1, {"llava/mllm/modeling.py:7": 3})
    measured = {"seconds_of": 0.5, "memory_of": {"memory_gib": 12.34, "reserved_gib": 13.0}}
    measured |= {"work_of": (0.4, 9876), "waits_of": waits, "start_memory": None}
    for name, value in measured.items():
        monkeypatch.setattr(module, name, lambda *_, value=value: value)
    bench, place.peak = place.bench(), 0.01  # TFLOP/s
    row = module.side_row(place, bench, Side("grid_manager", "grid_manager"), ["640x480", "640x480"])
    assert row["gpu_waits"] == pytest.approx(0.2)
    assert row["mfu"] == pytest.approx(row["tflop"] / 0.5 / 0.01)
    json.dumps(row)
    shown = script("gpu_check").told("arms", {"seconds": 1, "rows": [row], "fault": None}).splitlines()
    heads = ["images", "tokens", "seconds", "samples/s", "tokens/s", "MFU", "GiB", "waits", "kernels", "host waits"]
    assert re.split(" {2,}", shown[1].strip()) == heads
    assert shown[2].endswith(f"{row['mfu']:.1%}  12.3  20.0%    9,876       2 + 1")
    assert shown[3:] == ["grid_manager, 640x480+640x480 waits at 3 x llava/mllm/modeling.py:7"]


def test_waits_are_counted_by_what_torch_warns_of(script, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    class Loss:
        def backward(self):
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)

    def forward():
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        return Loss()

    waits = script("gpu_meter").waits_of(forward, CUDA)
    assert (waits.forward, waits.backward, modes) == (2, 1, ["warn", "default"])
    assert sorted(waits.at.values()) == [1, 2]
    assert all(site.startswith("tests/benchmarks/test_gpu_check.py:") for site in waits.at)
    assert script("gpu_meter").waits_of(forward, torch.device("cpu")) is None


def test_the_gpu_works_where_kernels_cover_the_time(script, monkeypatch):
    meter = script("gpu_meter")

    def event(start, end, kind=DeviceType.CUDA, annotation=False):
        span = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(device_type=kind, time_range=span, is_user_annotation=annotation)

    events = [event(50, 60), event(0, 20), event(10, 30), event(0, 900, DeviceType.CPU), event(0, 700, annotation=True)]

    class Profile:
        def __init__(self, activities):
            assert activities == [torch.profiler.ProfilerActivity.CUDA]

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def events(self):
            return events

    steps = []
    monkeypatch.setattr(meter, "profile", Profile)
    monkeypatch.setattr(meter, "synchronize", lambda device: steps.append("synchronized"))
    assert meter.work_of(lambda: steps.append("step"), CUDA) == (pytest.approx(40e-6), 3)
    assert steps == ["step", "synchronized"]
    events.clear()
    assert meter.work_of(lambda: None, CUDA) is None, "a profiler that may not see the GPU"


def test_seconds_are_those_of_steps_that_follow_each_other(script, monkeypatch):
    meter, steps = script("gpu_meter"), []
    now = [0.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(meter, "synchronize", lambda device: steps.append("|"))

    def step():
        steps.append("s")
        now[0] += 0.5

    assert meter.seconds_of(step, CUDA, patience=2.0) == 0.5
    assert "".join(steps) == "s|s|ssss|", "one to load kernels, one to see how long, then as many as there is time for"


def test_a_gpu_of_each_kind(script, monkeypatch):
    """What is measured follows what the GPU has."""
    place = script("gpu_place")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(mllm_attention, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    modern = place.Place("cuda", tiny=False)
    assert (modern.dtype, modern.peak, modern.attentions()) == ("bfloat16", 989, ["sdpa", "flash_attention_2"])
    assert modern.attention() == "flash_attention_2"
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # as one that cannot be imported
    assert (modern.attention(), modern.attentions()) == ("sdpa", ["sdpa"])
    assert modern.lacks_for_flash().startswith("a flash_attn that can be imported: ")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    old = place.Place("cuda", tiny=False)
    assert (old.dtype, old.peak, old.attentions()) == ("float32", None, ["sdpa"])
    assert old.lacks_for_flash() == "bfloat16 or float16"
