"""Memory follows the largest shard, not the model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.convert.conftest import released_state, save_state

NUM_LAYERS, WIDTH, MLP = 8, 512, 4096  # 7 M parameters a layer
SHARD_MB = 20
MEASURABLE = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
# A small conversion first, so that what is imported and cached on the way is not counted.
SCRIPT = """
import re, sys
from llava.cli import main
from llava.checkpoint import shards
small, large, tower, out, size = sys.argv[1:]
def memory(kind):  # VmRSS: now, VmHWM: at most
    return int(re.search(kind + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
def convert(source, name):
    options = ["--vision_tower", tower, "--max_shard_size", size]
    assert main(["convert", "import", source, "--out", out + name, *options]) == 0
shards.MAPPED_BYTES = 10**7
convert(small, "/of_small")
open("/proc/self/clear_refs", "w").write("5")  # forgets the peak that importing took
before = memory("VmRSS")
convert(large, "/of_large")
print("GROWN", memory("VmHWM") - before)
"""


def widen(folder, state: dict[str, torch.Tensor], layout: str) -> int:
    """Makes the released folder's language model a large one, random where it matters; returns the bytes of it all."""
    state = {name: tensor for name, tensor in state.items() if not name.startswith(("model.layers.", "model.norm"))}
    state = {name: tensor for name, tensor in state.items() if "mm_projector" not in name}
    state |= {"model.embed_tokens.weight": torch.randn(512, WIDTH), "model.norm.weight": torch.ones(WIDTH)}
    state |= {"model.mm_projector.0.weight": torch.randn(WIDTH, 32), "model.mm_projector.0.bias": torch.ones(WIDTH)}
    state |= {"model.mm_projector.2.weight": torch.randn(WIDTH, WIDTH), "model.mm_projector.2.bias": torch.ones(WIDTH)}
    state["model.image_newline"] = torch.ones(WIDTH)
    for layer in range(NUM_LAYERS):
        for name, shape in {
            **{f"mlp.{name}_proj.weight": (MLP, WIDTH) for name in ("gate", "up")},
            "mlp.down_proj.weight": (WIDTH, MLP),
            **{f"self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qo"},
            **{f"self_attn.{name}_proj.weight": (WIDTH // 2, WIDTH) for name in "kv"},
            **{f"self_attn.{name}_proj.bias": (width,) for name, width in zip("qkv", (WIDTH, WIDTH // 2, WIDTH // 2))},
            **{f"{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")},
        }.items():
            state[f"model.layers.{layer}.{name}"] = torch.full(shape, float(layer))
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": NUM_LAYERS}
    (folder / "config.json").write_text(json.dumps(config))
    for file in folder.glob("*.safetensors"):
        file.unlink()
    save_state(state, folder, layout)
    return sum(tensor.nbytes for tensor in state.values())


@pytest.fixture
def measure(make_released, tower_config, tmp_path):
    """A function: layout and largest shard to (bytes converted, growth of the peak memory, files written)."""

    def run(layout: str, max_shard_size: str) -> tuple[int, int, list[int]]:
        make_released().rename(tmp_path / "small")
        large = make_released()
        total = widen(large, released_state("base"), layout)
        arguments = [tmp_path / "small", large, tower_config, tmp_path, max_shard_size]
        command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        sizes = [file.stat().st_size for file in (tmp_path / "of_large").glob("*.safetensors")]
        shutil.rmtree(large)
        shutil.rmtree(tmp_path / "of_large")
        grown = int(done.stdout.split("GROWN ")[1])
        print(f"{layout}: {total / 1e6:.0f} MB in {len(sizes)} shards, peak memory grew by {grown / 1e6:.0f} MB")
        return total, grown, sizes

    return run


@MEASURABLE
@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_the_peak_is_about_one_shard(layout, measure):
    total, grown, sizes = measure(layout, f"{SHARD_MB}MB")
    assert total > 220e6
    assert len(sizes) > 10
    assert max(sizes) <= SHARD_MB * 1e6 + 1e5
    assert grown < 2 * SHARD_MB * 1e6


@MEASURABLE
def test_the_measurement_sees_a_shard_that_is_the_whole_model(measure):
    total, grown, sizes = measure("safetensors", "5GB")
    assert len(sizes) == 1
    assert grown > 0.8 * total
