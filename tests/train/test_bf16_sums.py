"""How exact a step's gradient in bfloat16 is, that 64 micro-batches add up to under the shipped DeepSpeed files."""

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.train.recorder import record_mixed
from tests.train.run_ranks import run_ranks

MICRO_BATCHES = 64


@pytest.fixture
def gradient(tiny_keys, data_folder, tmp_path):
    """A function: DeepSpeed's configuration or None, and precision, to all gradients of a step of one process."""
    mixture = tmp_path / "mixture.yaml"
    entry = {"json_path": f"{data_folder}/captions.json", "sampling_strategy": "all"}
    mixture.write_text(yaml.safe_dump({"datasets": [entry] * 4}))

    def run(name: str, deepspeed: dict | None, precision: str) -> dict:
        out = tmp_path / name
        out.mkdir()
        (out / "deepspeed.json").write_text(json.dumps(deepspeed))
        keys = {
            "data.mixture": str(mixture),
            "components.language_model.trained": True,
            "optim.global_batch_size": MICRO_BATCHES,
            "optim.batch_size": 1,
            "optim.max_grad_norm": 1e9,
            "run.precision": precision,
            "run.deepspeed": deepspeed and f"{out}/deepspeed.json",
            "run.output_dir": f"{out}/checkpoint",
        }
        recipe = ("scripts/train/recipes/mllm/stage1.yaml", "grid_manager", tiny_keys("1", **keys))
        run_ranks(record_mixed, *recipe, out, processes=1 if deepspeed else None, folder=out, timeout=240)
        return load_file(out / "gradients.safetensors")

    return run


@pytest.mark.slow
def test_gradients_are_added_up_in_float32(gradient):
    zero1, zero2 = (json.loads(Path(f"scripts/train/deepspeed/zero{stage}.json").read_text()) for stage in (1, 2))
    unsaid = {key: value for key, value in zero2.items() if key != "data_types"}
    exact = gradient("exact", None, "fp32")
    errors = []
    for name, deepspeed in (("zero1", zero1), ("zero2", zero2), ("unsaid", unsaid)):
        found = gradient(name, deepspeed, "bf16")
        assert set(found) == set(exact)
        squares = sum((found[key].double() - value.double()).square().sum() for key, value in exact.items())
        errors.append(float(squares / sum(value.double().square().sum() for value in exact.values())) ** 0.5)
    print(f"relative errors {errors[0]:.2%} and {errors[1]:.2%}, added up in bfloat16 {errors[2]:.2%}")
    assert max(errors[:2]) < 0.7 * errors[2] < 0.05  # what is left is what a micro-batch rounds by itself
