"""LoRA, DoRA and QLoRA: what trains, what is saved, and that it loads again as it was."""

import json
import shutil
import signal
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from llava.checkpoint.folder import check_folder
from llava.checkpoint.loading import load_model
from llava.cli import main
from llava.data.collator import Collator
from llava.engine.engine import Engine
from llava.errors import LlavaError
from llava.train.estimate.plan import dry_run
from llava.train.loop.components import component_rows
from llava.train.mllm.lora import attach_adapters
from llava.train.recipe.checks import check_recipe
from llava.train.recipe.load import load_recipe
from llava.train.stage import prepare, save, train
from tests.train import faulty
from tests.train.worker import manifest_of

BOTH = {"components.language_model.lora": True, "components.vision_tower.lora": True}
KINDS = {"lora": {"lora.dropout": 0.1}, "dora": {"lora.dora": True}, "qlora": {"lora.base": "nf4"}}
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
EACH_KIND = [pytest.param(kind, marks=needs_bitsandbytes if kind == "qlora" else ()) for kind in KINDS]
WHOLE = ("model.multi_modal_projector.", "model.fusion.", "model.image_newline.")
QUERY = "model.language_model.layers.0.self_attn.q_proj"


class Trained(NamedTuple):
    """folder: the checkpoint. model: as it left training. before: its parameters ahead of the first step."""

    folder: str
    model: torch.nn.Module
    before: dict
    batch: dict
    logits: torch.Tensor


@pytest.fixture(scope="module")
def lora_recipe(tiny_keys, wide_start, tmp_path_factory):
    """A function: dotted keys to stage 2 with adapters of rank 4 in language model and tower, at their own rates."""

    def make(**changes):
        keys = {
            "model.start_from": str(wide_start),
            "run.output_dir": str(tmp_path_factory.mktemp("run") / "out"),
            "lora.rank": 4,
            "components.language_model.lr": 1e-2,
            "components.vision_tower.lr": 2e-2,
            "optim.warmup": 0,
            "optim.max_steps": 3,
        }
        keys = tiny_keys("2", **{**keys, **BOTH, **changes})
        return load_recipe("scripts/train/recipes/mllm/stage2.yaml", "grid_manager", keys=keys)

    return make


@pytest.fixture(scope="module")
def trained(lora_recipe):
    """A function: kind to its trained and saved stage."""
    done = {}

    def run(kind: str) -> Trained:
        if kind not in done:
            recipe = lora_recipe(**KINDS[kind])
            check_recipe(recipe, 1, dry_run=False)
            stage = prepare(recipe)
            model, dataset = stage.trainer.model, stage.trainer.train_dataset
            before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
            train(stage.trainer)
            save(stage, manifest_of(stage))
            batch = Collator(stage.processor.tokenizer.pad_token_id)([dataset[index] for index in (4, 5, 6)])
            for module in model.modules():  # not model.eval(): on some CPUs bitsandbytes then wants larger layers
                if isinstance(module, torch.nn.Dropout):
                    module.eval()
            done[kind] = Trained(recipe.run.output_dir, model, before, batch, logits_of(model, batch))
        return done[kind]

    return run


@pytest.fixture
def adapted(trained, tmp_path):
    """A copy of the checkpoint with LoRA, to be damaged."""
    return shutil.copytree(trained("lora").folder, tmp_path / "adapted")


def logits_of(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


def load_base(folder):
    """The checkpoint as transformers alone reads it, which warns that adapters lie beside it."""
    with pytest.warns(UserWarning, match=r"holds LoRA adapters, which are not applied here"):
        return AutoModelForImageTextToText.from_pretrained(folder)


def is_trained(name: str) -> bool:
    return ".lora_" in name or name.startswith(WHOLE)


@pytest.mark.parametrize("kind", EACH_KIND)
def test_adapters_and_whole_parts_move_and_the_base_stays(trained, kind):
    stage = trained(kind)
    for name, parameter in stage.model.named_parameters():
        assert torch.equal(parameter, stage.before[name]) != is_trained(name), name
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "gate_proj", "up_proj", "down_proj", "fc1", "fc2"]
    expected = {name for name, _ in stage.model.named_modules() if name.rpartition(".")[2] in linear}
    found = {name.partition(".lora_A.")[0] for name in stage.before if ".lora_A." in name}
    assert found == expected
    assert len(found) == 6 * 7 + 4 * 6
    assert any("lora_magnitude_vector" in name for name in stage.before) == (kind == "dora")


@pytest.mark.parametrize("kind", EACH_KIND)
def test_weights_of_the_base_have_no_gradient(lora_recipe, trained, kind):
    model = prepare(lora_recipe(**KINDS[kind])).trainer.model.train()
    model(**trained("lora").batch).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == is_trained(name), name
        assert (parameter.grad is not None) == is_trained(name), name


@pytest.mark.parametrize("kind", EACH_KIND)
def test_new_adapters_change_nothing(lora_recipe, wide_start, trained, kind):
    batch = trained("lora").batch
    model = prepare(lora_recipe(**KINDS[kind] | {"lora.dropout": 0})).trainer.model
    plain = AutoModelForImageTextToText.from_pretrained(wide_start).train()
    difference = (logits_of(model, batch) - logits_of(plain, batch)).abs().max()
    assert difference < (0.5 if kind == "qlora" else 1e-5)
    assert (difference > 1e-3) == (kind == "qlora")


@pytest.mark.parametrize("kind", EACH_KIND)
def test_the_table_has_a_row_for_adapters(trained, kind):
    """Beside the whole component, of which nothing trains; numbers of 4 bits are counted one by one."""
    stage = trained(kind)
    record = json.loads(Path(stage.folder, "run.json").read_text())
    table = {row["component"]: row for row in record["components"]}
    plain = AutoModelForImageTextToText.from_config(stage.model.config)
    for component, lr, path in (
        ("language_model", 1e-2, plain.model.language_model),
        ("vision_tower", 2e-2, plain.model.vision_tower),
    ):
        base, adapters = table[component], table[f"{component}_lora"]
        assert (base["parameters"], base["trainable"]) == (sum(p.numel() for p in path.parameters()), 0)
        assert (base["lr"], adapters["lr"]) == (None, lr)
        layers = [module for module in path.modules() if isinstance(module, torch.nn.Linear)]
        expected = sum(4 * (layer.in_features + layer.out_features) for layer in layers)
        expected += sum(layer.out_features for layer in layers) * (kind == "dora")
        assert adapters["parameters"] == adapters["trainable"] == expected
    real = {row["component"]: (row["parameters"], row["lr"]) for row in record["optimizer_groups"]}
    assert real == {name: (row["trainable"], row["lr"]) for name, row in table.items() if row["trainable"]}
    assert list(real) == ["vision_tower_lora", "projector", "fusion", "newline", "language_model_lora"]


@pytest.mark.parametrize("kind", EACH_KIND)
def test_saved_adapters_reload_with_equal_logits(trained, kind):
    stage = trained(kind)
    apart = load_model(stage.folder, merge=False)
    merged = load_model(stage.folder)
    assert any(".lora_" in name for name in apart.state_dict())
    assert not any(".lora_" in name or "base_layer" in name for name in merged.state_dict())
    torch.testing.assert_close(logits_of(apart, stage.batch), stage.logits, rtol=0, atol=0 if kind != "qlora" else 1e-5)
    torch.testing.assert_close(logits_of(merged, stage.batch), stage.logits, rtol=1e-4, atol=1e-4)
    engine = Engine.from_pretrained(stage.folder, device="cpu")
    assert torch.equal(logits_of(engine.model, stage.batch), logits_of(merged, stage.batch))


@pytest.mark.parametrize("kind", EACH_KIND)
def test_peft_itself_loads_the_adapters(trained, kind):
    """The folder is the base, `adapter` what peft expects of one; loaded without peft, the folder says so."""
    from peft import PeftModel

    stage = trained(kind)
    base = load_base(stage.folder)
    assert (logits_of(base, stage.batch) - stage.logits).abs().max() > 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft warns of weights that are missing
        model = PeftModel.from_pretrained(base, f"{stage.folder}/adapter").eval()
    torch.testing.assert_close(logits_of(model, stage.batch), stage.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", EACH_KIND)
def test_what_is_saved_is_the_base_and_the_whole_parts(trained, wide_start, kind):
    stage = trained(kind)
    before, after = (load_file(f"{folder}/model.safetensors") for folder in (wide_start, stage.folder))
    assert list(before) == list(after)
    for name, weight in after.items():
        assert weight.dtype == torch.float32
        same = torch.equal(weight, before[name])
        quantised = kind == "qlora" and (f"{name.removesuffix('weight')}base_layer.weight") in stage.before
        assert same != (quantised or name.startswith(WHOLE)), name
        if quantised:
            block = before[name].abs().max()
            assert (weight - before[name]).abs().max() <= 0.16 * block, name  # NF4's widest step is 0.304


@needs_bitsandbytes
def test_layers_of_no_whole_blocks_are_not_quantised(tiny_recipe, make_model):
    model = make_model()  # widths of 24, 32 and 48
    model.model.language_model.layers[2].mlp.down_proj = torch.nn.Linear(64, 24, bias=False)
    attach_adapters(model, tiny_recipe(**BOTH | KINDS["qlora"]), torch.float32)
    quantised = [name for name, parameter in model.named_parameters() if type(parameter).__name__ == "Params4bit"]
    assert quantised == ["model.language_model.layers.2.mlp.down_proj.base_layer.weight"]


@needs_bitsandbytes
def test_a_base_of_four_bits_is_quantised_again_to_the_same_values(trained, lora_recipe):
    stage = trained("qlora")
    base = load_base(stage.folder)
    expected = logits_of(base.train(), stage.batch)
    attach_adapters(base, lora_recipe(**KINDS["qlora"]), torch.float32)
    assert any(type(parameter).__name__ == "Params4bit" for parameter in base.parameters())
    torch.testing.assert_close(logits_of(base.train(), stage.batch), expected, rtol=0, atol=1e-5)


def test_the_merged_weight_is_what_the_paper_says(trained):
    """W + alpha / r * B A, from the files alone."""
    folder = trained("lora").folder
    base, adapter = load_file(f"{folder}/model.safetensors"), load_file(f"{folder}/adapter/adapter_model.safetensors")
    A, B = (adapter[f"base_model.model.{QUERY}.lora_{letter}.weight"] for letter in "AB")
    expected = base[f"{QUERY}.weight"] + 32 / 4 * B @ A
    assert (expected - base[f"{QUERY}.weight"]).abs().max() > 0.01
    merged = load_model(folder)
    torch.testing.assert_close(merged.get_submodule(QUERY).weight, expected, rtol=1e-6, atol=1e-6)


def test_the_next_stage_starts_from_the_adapted_model(trained, lora_recipe):
    """Its adapters are merged; new ones, or training in full, begin there."""
    stage = trained("lora")
    for keys in ({}, dict.fromkeys(BOTH, False) | {"lora.rank": 16}):
        recipe = lora_recipe(**{"model.start_from": stage.folder, **keys})
        check_recipe(recipe, 1, dry_run=False)
        model = prepare(recipe).trainer.model
        torch.testing.assert_close(logits_of(model.eval(), stage.batch), stage.logits, rtol=1e-4, atol=1e-4)


def test_only_the_layers_that_are_named_get_adapters(lora_recipe):
    keys = {"components.vision_tower.lora": False, "lora.target_modules": "[q_proj, v_proj]"}
    stage = prepare(lora_recipe(**keys))
    adapted = {name.partition(".lora_")[0] for name, _ in stage.trainer.model.named_parameters() if ".lora_" in name}
    layers = [
        f"model.language_model.layers.{index}.self_attn.{name}" for index in range(6) for name in ("q_proj", "v_proj")
    ]
    assert sorted(adapted) == sorted(layers)
    rows = {row["component"]: row["trainable"] for row in component_rows(stage.trainer.components)}
    assert rows["vision_tower"] > 0  # trains in full beside them
    with pytest.raises(
        LlavaError, match=r"lora\.target_modules: language_model have no linear layer c_attn, fc1; they"
    ):
        prepare(lora_recipe(**keys | {"lora.target_modules": ["q_proj", "c_attn", "fc1"]}))


@pytest.mark.parametrize("kind", EACH_KIND)
def test_a_dry_run_counts_the_same_adapters(lora_recipe, trained, kind):
    printed = dry_run(lora_recipe(**KINDS[kind]))
    words = [line.split() for line in printed[printed.index("\ncomponent ") :].splitlines()]
    rows = {line[0]: line[2] for line in words if line and line[0].endswith("_lora")}
    record = json.loads(Path(trained(kind).folder, "run.json").read_text())
    table = {row["component"]: f"{row['trainable']:,}" for row in record["components"] if "_lora" in row["component"]}
    assert rows == table


FAULTS = {
    "trained": ({"components.vision_tower.trained": False}, "components.vision_tower.lora needs"),
    "rank": ({"lora.rank": 0}, "lora.rank must be at least 1; found 0"),
    "alpha": ({"lora.alpha": 0}, "lora.alpha must be above 0; found 0.0"),
    "dropout": ({"lora.dropout": 1}, "lora.dropout must be at least 0 and below 1; found 1.0"),
    "targets": ({"lora.target_modules": []}, "lora.target_modules is empty"),
    "no component": (dict.fromkeys(BOTH, False), "lora.rank is for no component: components.*.lora is false"),
    "nf4": (
        {"lora.base": "nf4", "run.deepspeed": "scripts/train/deepspeed/zero3.json"},
        "stage 3 would part 4-bit weights (lora.base nf4) from their scales",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_is_found_before_training(lora_recipe, fault):
    keys, words = FAULTS[fault]
    with pytest.raises(LlavaError) as error:
        check_recipe(lora_recipe(**keys), 1, dry_run=True)
    assert words in str(error.value)


@pytest.mark.parametrize(("package", "extra"), [("peft", "train"), ("bitsandbytes", "quantization")])
def test_an_absent_package_is_named(lora_recipe, monkeypatch, package, extra):
    monkeypatch.setattr("llava.train.mllm.rules.find_spec", lambda name: None if name == package else name)
    with pytest.raises(LlavaError, match=rf"needs the package {package}: pip install -e '\.\[{extra}\]'"):
        check_recipe(lora_recipe(**KINDS["qlora"]), 1, dry_run=True)


def test_managers_have_no_adapters(lora_recipe):
    with pytest.raises(LlavaError, match=r"unknown key 'components\.fusion\.lora'"):
        lora_recipe(**{"components.fusion.lora": True})


@pytest.mark.parametrize("kind", EACH_KIND)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(lora_recipe, tmp_path, kind):
    whole, cut = (
        lora_recipe(
            **KINDS[kind]
            | {"optim.max_steps": 5, "lora.dropout": 0.1, "run.save_steps": 2, "run.output_dir": f"{tmp_path}/{name}"}
        )
        for name in ("whole", "cut")
    )
    log = tmp_path / "log"
    assert faulty.run(whole, log) == [0], log.read_text()
    assert faulty.run(cut, log, faulty.signal_after_step(3, signal.SIGKILL)) == [-9], log.read_text()
    with pytest.raises(LlavaError, match=r"checkpoint-2: was written in the midst of .* the run ends in$"):
        prepare(lora_recipe(**{"model.start_from": f"{tmp_path}/cut.checkpoints/checkpoint-2"}))
    assert faulty.run(cut, log) == [0], log.read_text()
    assert "goes on after step 2, from" in log.read_text()
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        expected, found = (load_file(tmp_path / name / file) for name in ("whole", "cut"))
        assert set(found) == set(expected)
        for name, weight in expected.items():
            assert torch.equal(found[name], weight), name


# damaged checkpoints


def test_without_peft_the_way_out_is_named(adapted, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(LlavaError, match=r"pip install peft, or merge them once .* llava convert merge-lora"):
        Engine.from_pretrained(adapted, device="cpu")


def test_an_incomplete_adapter_is_found_before_training(adapted):
    (adapted / "adapter/adapter_config.json").unlink()
    with pytest.raises(LlavaError, match=r"incomplete, its adapter has no adapter_config\.json"):
        check_folder(adapted, weights=True)
    with pytest.raises(LlavaError, match=r"adapter: not readable as LoRA adapters"):
        load_model(adapted)


def test_a_cut_off_adapter_is_found_before_training(adapted):
    path = adapted / "adapter/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LlavaError, match=r"adapter_model\.safetensors is missing or cut off"):
        check_folder(adapted, weights=True)
    with pytest.raises(LlavaError, match=r"adapter: not readable as LoRA adapters"):
        Engine.from_pretrained(adapted, device="cpu")


def test_an_adapter_of_another_model_is_refused(adapted):
    path, name = adapted / "adapter/adapter_model.safetensors", f"base_model.model.{QUERY}.lora_A.weight"
    weights = load_file(path)
    save_file(weights | {name: weights[name][:2]}, path)
    with pytest.raises(LlavaError, match=rf"1 adapter weights do not fit .* {QUERY}.lora_A.weight: \(2, 64\) in the"):
        load_model(adapted)
    del weights[name]
    save_file(weights, path)
    with pytest.raises(LlavaError, match=r"q_proj.lora_A.weight: absent in the file, \(4, 64\) in the model"):
        load_model(adapted)


def test_export_asks_to_merge_first(adapted, tmp_path, capsys):
    assert main(["convert", "export", str(adapted), "--out", f"{tmp_path}/out", "--format", "remote_code"]) == 2
    assert f"first run llava convert merge-lora {adapted} --out DIR" in capsys.readouterr().err


def test_a_disk_that_fills_up_with_the_adapters_leaves_no_checkpoint(lora_recipe, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    recipe = lora_recipe(**{"optim.max_steps": 1})
    stage = prepare(recipe)
    train(stage.trainer)
    monkeypatch.setattr("llava.train.mllm.lora.save_file", full)
    with pytest.raises(LlavaError, match=r"could not be written: .* No space left on device"):
        save(stage, manifest_of(stage))
    assert not any(Path(recipe.run.output_dir).parent.iterdir())
