"""Two processes under every strategy train like one: losses, every gradient, learning rates and weights.

The two try the heaviest micro-batch before, which must leave no trace.

"It ran" proves nothing here: where one rank has no image ZeRO-3 can hang, and where none has it reuses the gradients of
the step before. So everything is compared with one process on the same global batches.
"""

import json
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava.fusion.configs.manager import ManagerConfig

WORKER = Path(__file__).with_name("worker.py")
TIMEOUT = 140  # seconds; a run takes about 15, and a hang is noticed by the ranks after 60
STRATEGIES = {"zero3": 3, "zero2": 2, "zero1": 1, "ddp": None}
LOGGED_WORK = ("supervised_tokens", "crops", "num_input_tokens_seen", "samples")  # the same however it is cut
UNCLIPPED = {"optim.warmup": 0, "optim.max_grad_norm": 1e9}
RATES = {"vision_tower": 2e-6, "projector": 1e-5, "fusion": 5e-5, "newline": 1e-5, "language_model": 1e-5}


@pytest.fixture(scope="module")
def run_worker(forked_python):
    """A function: stage, arm, keys, folder and number of processes to what `read_run` tells of their run."""
    return partial(_run_worker, forked_python.command)


def _run_worker(python: Path, stage: str, arm: str, keys: dict, out: Path, processes: int) -> dict:
    out.mkdir()
    keys = keys | {"run.output_dir": f"{out}/checkpoint"}
    command = [WORKER, f"scripts/train/recipes/mllm/stage{stage}.yaml", arm, json.dumps(keys), out]
    if processes > 1 or keys["run.deepspeed"] is not None:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    with (out / "log").open("w") as log:
        process = subprocess.Popen([python, *map(str, command)], stdout=log, stderr=log, env=environment)
        try:
            status = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun passes it on to its ranks
            process.wait()
            status = f"no end within {TIMEOUT} s"
    assert status == 0, f"{status}\n{(out / 'log').read_text()[-5000:]}"
    return read_run(out)


def read_run(out: Path) -> dict:
    """Facts, gradients per step, losses and final weights: what worker.py wrote, its checkpoint's in out/checkpoint."""
    history = json.loads((out / "checkpoint/trainer_state.json").read_text())["log_history"]
    record = json.loads((out / "checkpoint/run.json").read_text())
    adapter = out / "checkpoint/adapter/adapter_model.safetensors"
    return {
        **json.loads((out / "facts.json").read_text()),
        "table": {row["component"]: (row["trainable"], row["lr"]) for row in record["components"] if row["trainable"]},
        "real": {row["component"]: (row["parameters"], row["lr"]) for row in record["optimizer_groups"]},
        "gradients": load_file(out / "gradients.safetensors"),
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "work": [[entry[key] for key in LOGGED_WORK] for entry in history if "loss" in entry],
        "weights": load_file(out / "checkpoint/model.safetensors") | (load_file(adapter) if adapter.exists() else {}),
    }


@pytest.fixture(scope="module")
def stage_2_keys(tiny_keys, tmp_path_factory, make_model, make_processor) -> dict:
    """Stage 2 from a checkpoint whose managers are not zero, so that every part of the model has a gradient."""
    folder = tmp_path_factory.mktemp("start")
    make_model().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return tiny_keys("2", **{"model.start_from": str(folder), **UNCLIPPED})


@pytest.fixture(scope="module")
def one(run_worker, stage_2_keys, tmp_path_factory) -> dict:
    """Stage 2 by one process without DeepSpeed: what the others must equal."""
    return run_worker("2", "grid_manager", stage_2_keys, tmp_path_factory.mktemp("one") / "run", processes=1)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_equal_one(run_worker, stage_2_keys, one, tmp_path, strategy):
    deepspeed = None if strategy == "ddp" else f"scripts/train/deepspeed/{strategy}.json"
    keys = stage_2_keys | {"run.deepspeed": deepspeed, "run.rehearsal": "always"}
    two = run_worker("2", "grid_manager", keys, tmp_path / "two", processes=2)
    assert (one["ranks"], two["ranks"]) == (1, 2)
    assert two["engine"] == ("DistributedDataParallel" if strategy == "ddp" else "DeepSpeedEngine")
    assert two["zero_stage"] == STRATEGIES[strategy]
    assert one["groups"] == two["groups"] == [[name, rate] for name, rate in RATES.items()]
    assert one["table"] == one["real"] == two["table"] == two["real"]
    assert {name: rate for name, (_, rate) in two["real"].items()} == RATES
    compare(one, two)


LORA = {
    "zero3": {},
    "zero3-dora": {"lora.dora": True},
    "zero2": {"lora.base": "nf4", "components.vision_tower.lora": False},
    "ddp": {"lora.dora": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LORA)
def test_lora_on_two_processes(run_worker, stage_2_keys, wide_start, tmp_path, case):
    """LoRA, QLoRA and DoRA: the gathered base and adapters, and the groups after wrapping."""
    strategy = case.partition("-")[0]
    if "nf4" in LORA[case].values():
        pytest.importorskip("bitsandbytes")
    keys = stage_2_keys | {
        "model.start_from": str(wide_start),
        "components.language_model.lora": True,
        "components.vision_tower.lora": True,
        "components.language_model.lr": 1e-3,
        "lora.rank": 2,
        "optim.max_steps": 2,
        **LORA[case],
    }
    one = run_worker("2", "grid_manager", keys, tmp_path / "one", processes=1)
    if strategy != "ddp":
        config = json.loads(Path(f"scripts/train/deepspeed/{strategy}.json").read_text())
        if strategy == "zero3":
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # partitions small weights too
        (tmp_path / "deepspeed.json").write_text(json.dumps(config), encoding="utf-8-sig")  # as Notepad saves it
        keys |= {"run.deepspeed": f"{tmp_path}/deepspeed.json"}
    two = run_worker("2", "grid_manager", keys, tmp_path / "two", processes=2)
    assert two["zero_stage"] == STRATEGIES[strategy]
    assert one["table"] == one["real"] == two["table"] == two["real"]
    adapters = {name for name in one["weights"] if ".lora_" in name}
    assert {name for name in two["real"] if name.endswith("_lora")} == {
        f"{part}_lora" for part in ("vision_tower", "language_model") if any(part in name for name in adapters)
    }
    assert not [name for name in one["gradients"] if "language_model" in name and ".lora_" not in name]
    compare(one, two, steps=2)


@pytest.mark.slow
def test_adaptive_managers_under_zero3(run_worker, tiny_keys, tmp_path, make_model, make_processor):
    """Ranks hold different numbers of images, and must still gather the managers' weights equally often."""
    model = make_model(fusion=ManagerConfig(interval=2, query="cross"))
    for manager in model.model.fusion.managers[1:]:
        torch.nn.init.normal_(manager.gate)
    model.save_pretrained(tmp_path / "start")
    make_processor().save_pretrained(tmp_path / "start")
    keys = tiny_keys("2", **{"model.start_from": f"{tmp_path}/start", "fusion.query": "cross", **UNCLIPPED})
    one = run_worker("2", "grid_manager", keys, tmp_path / "one", processes=1)
    keys |= {"run.deepspeed": "scripts/train/deepspeed/zero3.json"}
    two = run_worker("2", "grid_manager", keys, tmp_path / "two", processes=2)
    assert two["zero_stage"] == 3
    compare(one, two)


@pytest.mark.slow
def test_stage_1_with_frozen_parts_under_zero3(run_worker, tiny_keys, tmp_path):
    keys = tiny_keys("1", **UNCLIPPED)
    one = run_worker("1", "grid_manager", keys, tmp_path / "one", processes=1)
    keys |= {"run.deepspeed": "scripts/train/deepspeed/zero3.json"}
    two = run_worker("1", "grid_manager", keys, tmp_path / "two", processes=2)
    assert two["zero_stage"] == 3
    assert one["groups"] == two["groups"] == [["projector", 1e-3], ["fusion", 1e-3]]
    assert {name.split(".")[1] for name in one["gradients"]} == {"multi_modal_projector", "fusion"}
    compare(one, two)


@pytest.mark.slow
def test_the_script_on_two_processes(tiny_keys, tmp_path):
    """As a user starts it: checks, torchrun, ZeRO-3, data loader workers, a checkpoint, and no warnings."""
    keys = {
        "run.deepspeed": "scripts/train/deepspeed/zero3.json",
        "run.output_dir": f"{tmp_path}/out",
        "data.workers": 1,
        "fusion.jitter": "paper",
    }
    arguments = [word for key, value in tiny_keys("1", **keys).items() for word in (f"--{key}", str(value))]
    environment = {**os.environ, "NPROC_PER_NODE": "2", "OMP_NUM_THREADS": "1"}
    command = ["bash", "scripts/train/stage1.sh", "--arm", "manager", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "batch       4 = 2 x 1 accumulated x 2 processes" in done.stdout
    assert done.stdout.count("step 4/4  loss ") == 1
    assert done.stdout.endswith(f"saved {tmp_path}/out\n")
    assert "Warning" not in done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def compare(one: dict, two: dict, steps: int = 4) -> None:
    assert len(one["losses"]) == len(two["losses"]) == steps
    assert one["losses"] == pytest.approx(two["losses"], abs=1e-5)
    assert one["work"] == two["work"]
    assert set(one["gradients"]) == set(two["gradients"])
    assert {name.split("/")[0] for name in one["gradients"]} == {str(step) for step in range(steps)}
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(
            two["gradients"][name], gradient, rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert set(one["weights"]) == set(two["weights"])
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=0, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
