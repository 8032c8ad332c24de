"""`llava convert merge-lora`: a plain checkpoint, equal to the adapted model, that needs no peft. Adapters by peft."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava.checkpoint.folder import NEEDED_PROCESSOR_FILES, check_folder
from llava.checkpoint.shards import write_shards
from llava.cli import main
from llava.convert import merge_lora
from llava.engine.engine import Engine
from llava.errors import LlavaError
from tests.convert.conftest import load_strictly

peft = pytest.importorskip("peft")
LAYERS = r"model\.(language_model|vision_tower)\..*(_proj|fc1|fc2)"
NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "gate_proj", "up_proj", "down_proj", "fc1", "fc2")
CASES = {
    "lora": {},
    "dora": {"use_dora": True},
    "scaled by the root": {"use_rslora": True},
    "ranks of their own": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"fc1": 64}},
}
QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]}]
# Runs in a Python that cannot import peft.
ELSEWHERE = """
import sys
sys.modules["peft"] = None
import torch
from llava.engine.engine import Engine
model = Engine.from_pretrained(sys.argv[1], device="cpu").model
with torch.no_grad():
    torch.save(model(**torch.load(sys.argv[2])).logits, sys.argv[3])
"""


@pytest.fixture(scope="module")
def batch(make_processor, make_image) -> dict:
    processor = make_processor()
    text = processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    return dict(processor(text=[text], images=[[make_image()]], return_tensors="pt"))


@pytest.fixture
def adapted(tmp_path, save_model):
    """A function: fields of LoraConfig to (checkpoint whose random adapters peft wrote, the adapted model)."""

    def make(dtype=torch.float32, **fields):
        folder = tmp_path / "checkpoint"
        base = save_model(folder, fusion="paper", dtype=dtype)
        (folder / "run.json").write_text('{"steps": 3}')
        torch.manual_seed(1)
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=LAYERS, init_lora_weights=False, **fields)
        model = peft.get_peft_model(base, config, autocast_adapter_dtype=False).eval()
        model.save_pretrained(folder / "adapter")
        return folder, model

    return make


def logits_of(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits.float()


def merge(folder, out) -> int:
    return main(["convert", "merge-lora", str(folder), "--out", str(out)])


@pytest.mark.parametrize("case", CASES)
def test_the_merged_model_equals_the_adapted_one(adapted, batch, tmp_path, case):
    folder, model = adapted(**CASES[case])
    base = logits_of(load_strictly(folder), batch)
    assert merge(folder, tmp_path / "out") == 0
    merged = load_strictly(tmp_path / "out")
    expected = logits_of(model, batch)
    assert (expected - base).abs().max() > 0.1
    torch.testing.assert_close(logits_of(merged, batch), expected, rtol=1e-4, atol=1e-4)
    names = [set(load_file(path / "model.safetensors")) for path in (folder, tmp_path / "out")]
    assert names[0] == names[1]


def test_nothing_but_the_adapted_weights_changes(adapted, tmp_path):
    folder, _ = adapted()
    merge(folder, tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.removesuffix(".weight").endswith(NAMES)}
    assert len(changed) == 6 * 7 + 4 * 6


def test_the_folder_is_complete_and_plain(adapted, tmp_path, capsys):
    folder, _ = adapted(use_dora=True)
    merge(folder, tmp_path / "out")
    assert capsys.readouterr().out == f"{tmp_path}/out: DoRA of rank 4 merged, 152 weights, no adapters left\n"
    files = {path.name for path in folder.iterdir()} - {"adapter"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files | {"conversion.json"}
    for name in files - {"model.safetensors"}:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    record = json.loads((tmp_path / "out/conversion.json").read_text())
    assert (record["source"], record["kind"], record["adapter"]["r"]) == (str(folder), "merged LoRA", 4)
    check_folder(tmp_path / "out", files=NEEDED_PROCESSOR_FILES, weights=True)


def test_peft_is_not_needed_afterwards(adapted, batch, tmp_path):
    folder, model = adapted()
    merge(folder, tmp_path / "out")
    torch.save(batch, tmp_path / "batch.pt")
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-c", ELSEWHERE, tmp_path / "out", tmp_path / "batch.pt", tmp_path / "logits.pt"]
    subprocess.run(command, check=True, timeout=120, env=environment)
    found = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(found, logits_of(model, batch), rtol=1e-4, atol=1e-4)
    engine = Engine.from_pretrained(folder, device="cpu")  # merges for itself
    torch.testing.assert_close(logits_of(engine.model, batch), found, rtol=0, atol=1e-6)


def test_half_precision_is_rounded_once(adapted, tmp_path):
    """Sums in float32, stored in the checkpoint's bfloat16."""
    folder, _ = adapted(dtype=torch.bfloat16)
    merge(folder, tmp_path / "out")
    base, merged = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    adapter = load_file(folder / "adapter/adapter_model.safetensors")
    layer = "model.language_model.layers.0.self_attn.q_proj"
    A, B = (adapter[f"base_model.model.{layer}.lora_{letter}.weight"].float() for letter in "AB")
    expected = (base[f"{layer}.weight"].float() + 8 / 4 * B @ A).to(torch.bfloat16)
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    torch.testing.assert_close(merged[f"{layer}.weight"], expected, rtol=2**-8, atol=0)
    assert (merged[f"{layer}.weight"] == expected).float().mean() > 0.99


def test_a_base_in_shards(adapted, batch, tmp_path):
    folder, model = adapted()
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    assert len(set(write_shards(folder, weights.items(), 200_000)["weight_map"].values())) > 1
    merge(folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*index*"))
    torch.testing.assert_close(
        logits_of(load_strictly(tmp_path / "out"), batch), logits_of(model, batch), rtol=1e-4, atol=1e-4
    )


# refusals: one line, nothing left behind


@pytest.fixture
def refused(tmp_path, capsys):
    """A function: a checkpoint to the one line of its refusal."""

    def run(folder, out="out") -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()  # the progress of saving
        assert merge(folder, tmp_path / out) == 2
        error = capsys.readouterr().err
        error = error[error.index("error: ") :]  # behind the progress of loading
        assert error.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return run


def test_a_plain_checkpoint_needs_no_merge(tmp_path, save_model, refused):
    save_model(tmp_path / "plain")
    assert "has no LoRA adapters (no folder adapter); it is plain already" in refused(tmp_path / "plain")


def test_a_taken_out_is_kept(adapted, tmp_path, refused):
    folder, _ = adapted()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    assert f"{tmp_path}/out exists and is not an empty folder" in refused(folder)
    assert "exists and is not an empty folder" in refused(folder, out="checkpoint")


def test_an_absent_checkpoint(tmp_path, refused):
    assert "no such model folder" in refused(tmp_path / "nowhere")


def test_adapters_of_another_kind(adapted, refused):
    folder, _ = adapted()
    (folder / "adapter/adapter_config.json").write_text(json.dumps({"peft_type": "IA3", "target_modules": ["q_proj"]}))
    assert "adapters of type PeftType.IA3; expected LORA" in refused(folder)


def test_adapters_for_other_layers(adapted, refused):
    folder, _ = adapted()
    config = json.loads((folder / "adapter/adapter_config.json").read_text())
    config["target_modules"] = ["q_proj"]
    (folder / "adapter/adapter_config.json").write_text(json.dumps(config))
    assert "adapter weights do not fit the model" in refused(folder)


def test_a_full_disk_leaves_nothing(adapted, tmp_path, monkeypatch):
    folder, _ = adapted()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llava.checkpoint.shards.write_shards", full)
    with pytest.raises(LlavaError, match=r"could not be written: .* No space left on device"):
        merge_lora.run(type("Arguments", (), {"checkpoint": folder, "out": tmp_path / "out"}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_too_small_a_disk_is_found_first(adapted, refused, monkeypatch):
    folder, _ = adapted()
    monkeypatch.setattr(merge_lora.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**6}))
    assert " MB, 1.00 MB are free" in refused(folder)
