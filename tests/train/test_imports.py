"""What the process of a rank imports before it trains: a test without a clock of the seconds of a start."""

import gc
import importlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from unittest import mock

import pytest

from llava.train import imports
from llava.train.recipe.load import load_recipe

STAGE2 = "scripts/train/recipes/mllm/stage2.yaml"
ZERO_2 = "scripts/train/deepspeed/zero2.json"
HEAVY = ["datasets", "pandas", "pyarrow", "scipy", "sklearn", "peft", "bitsandbytes", "deepspeed", "torchvision"]
HEAVY += ["torch._inductor.compile_fx", "wandb", "tensorboard", "lmms_eval", "gradio", "vllm", "cv2", "av", "decord"]
RANK = f"""
import gc, json, sys
from importlib.util import find_spec
from llava.train.imports import import_stage
from llava.train.recipe.load import load_recipe
stage = import_stage(load_recipe({STAGE2!r}, "grid_manager", keys={{"run.deepspeed": None}}))
from llava.train.mllm import family
heavy = [name for name in {HEAVY} if sys.modules.get(name) is not None]
from peft import LoraConfig
print(json.dumps([stage.run_stage.__name__, heavy, gc.isenabled(), find_spec("deepspeed") is not None]))
"""


def test_a_rank_imports_nothing_that_its_stage_does_not_call():
    environment = os.environ | {"RANK": "0"}
    done = subprocess.run([sys.executable, "-c", RANK], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["run_stage", [], True, False]


@pytest.mark.parametrize(
    ("rank", "keys", "while_importing", "afterwards"),
    [
        ("0", {"run.deepspeed": None}, [], ["other", "adapters"]),
        ("1", {"run.deepspeed": ZERO_2}, ["deepspeed"], ["other", "adapters", "deepspeed"]),
        (
            "0",
            {"run.deepspeed": None, "components.language_model.lora": True},
            ["adapters"],
            ["other", "adapters"],
        ),
        (
            None,
            {"run.deepspeed": None},
            ["other", "adapters", "deepspeed"],
            ["other", "adapters", "deepspeed"],
        ),
    ],
    ids=["plain", "deepspeed", "adapters", "no rank"],
)
def test_what_a_recipe_needs_is_found(tmp_path, monkeypatch, rank, keys, while_importing, afterwards):
    names = ["other", "adapters", "deepspeed"]
    for name in names:
        (tmp_path / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(imports, "OTHERS", ("other",))
    monkeypatch.setattr(imports, "ADAPTERS", ("adapters",))
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    recipe = load_recipe(STAGE2, "grid_manager", keys=keys)

    def look(module: str) -> list:
        return [module, gc.isenabled(), [name for name in names if find_spec(name)]]

    with mock.patch.dict(sys.modules):
        sys.modules.pop("deepspeed", None)
        with mock.patch.object(importlib, "import_module", look):
            assert imports.import_stage(recipe) == ["llava.train.stage", False, while_importing]
        assert look("") == ["", True, afterwards]
