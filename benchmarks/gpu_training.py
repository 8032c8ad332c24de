"""`llava train` as it is launched for a real run, on the quickstart's tiny models and data, then one answer."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from gpu_place import Place
from PIL import Image

from llava.data.schema import Dialogue, Turn
from llava.engine.engine import Engine

ARM, STEPS = "grid_manager", 5
DATA = ("--captions", "64", "--pages", "160", "--test_pages", "6")
MODELS = ("--tower_steps", "3", "--language_model_steps", "3")


def training(place: Place) -> Iterator[dict]:
    """Stage 1 under torchrun and ZeRO-1, and an answer of the checkpoint that it leaves, in the type chosen for it."""
    with TemporaryDirectory() as folder:
        data, models, checkpoints = (str(Path(folder, name)) for name in ("data", "models", "checkpoints"))
        _run(sys.executable, "-m", "llava.cli", "demo", "make", data, *DATA)
        _run(sys.executable, "-m", "llava.cli", "demo", "pretrain", models, *MODELS)
        stage = ["bash", "scripts/train/stage1.sh", "--arm", ARM, "--checkpoints", checkpoints]
        stage += ["--override", "scripts/quickstart/stage1.yaml", "--optim.max_steps", str(STEPS)]
        stage += ["--run.deepspeed", "scripts/train/deepspeed/zero1.json", "--run.gradient_checkpointing", "true"]
        stage += ["--data.mixture", f"{data}/stage1.yaml", "--data.image_folder", data]
        stage += ["--model.vision_tower", f"{models}/siglip", "--model.language_model", f"{models}/qwen2"]
        started = time.perf_counter()
        _run(*stage, NPROC_PER_NODE="1", **({} if place.on_gpu else {"DS_ACCELERATOR": "cpu"}))
        seconds = time.perf_counter() - started
        (checkpoint,) = Path(checkpoints).glob("*/run.json")
        record = json.loads(checkpoint.read_text())
        row = {"side": f"stage 1 of {ARM}, {record['steps']} steps, start to checkpoint", "command_seconds": seconds}
        yield row | {"last_loss": record["train_loss"]}

        engine = Engine.from_pretrained(checkpoint.parent, device=place.device.type)
        image = Image.open(f"{data}/example.png")
        started = time.perf_counter()
        engine.generate([Dialogue([Turn("human", "Read place a.")], [image])], max_new_tokens=8)
        seconds = time.perf_counter() - started
        yield {"side": f"an answer on {engine.describe()}", "command_seconds": seconds}


def _run(*command: str, **variables: str) -> None:
    """Raises CalledProcessError when it fails; what it printed stands above that."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # of the `python` in scripts
    subprocess.run(command, env=os.environ | {"PATH": path} | variables, check=True)
