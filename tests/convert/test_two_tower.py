"""Two-tower checkpoints of others: the authors' .ckpt files, and transformers' BridgeTower folders."""

import json
import math
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BridgeTowerConfig,
    BridgeTowerForContrastiveLearning,
    BridgeTowerForImageAndTextRetrieval,
    BridgeTowerModel,
)
from transformers.models.bridgetower.modeling_bridgetower import BridgeTowerBertCrossLayer

from llava.two_tower.modeling import TwoTowerForTask
from tests.golden.two_tower_case import ModelCase
from tests.paths import TWO_TOWER_GOLDEN_DIR
from tests.two_tower.test_modeling import batch_of


@pytest.fixture
def golden(tmp_path):
    """A function: (family, name) to the case, its .ckpt as Lightning saves it, and the text tower's folder."""

    def save(family, name, **settings):
        case = ModelCase(TWO_TOWER_GOLDEN_DIR, family, name)
        file, tower = tmp_path / f"{name}.ckpt", tmp_path / "tower"
        hyper_parameters = {"config": case.spec["config"] | settings}
        torch.save({"state_dict": case.state, "hyper_parameters": hyper_parameters, "epoch": 3}, file)
        case.text_tower.save_pretrained(tower)
        return case, file, tower

    return save


@pytest.mark.parametrize(
    ("family", "name", "task", "logits"),
    [
        ("A", "mt_aaue_vector", "vqav2", "vqa.logits"),
        ("A", "bt", "snli_ve", "snli.logits"),
        ("A", "meter", "pretrain", None),
        ("B", "itc_mt_aaue_vector", "retrieval", None),
    ],
)
def test_the_authors_checkpoints(golden, convert, family, name, task, logits):
    case, file, tower = golden(family, name)
    folder, printed = convert(file, "--text_tower", tower, "--task", task)
    assert "head of another task" in printed
    assert "note: no tokenizer" in printed
    model, loading = TwoTowerForTask.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    assert model.config.bridge == {"mt": "manager", "bt": "bridge_tower", "me": "meter", "it": "manager"}[name[:2]]
    assert case.spec["config"]["nlvr2_drop_rate"] == 0.1 or name == "meter"
    assert model.config.head_dropout == 0  # that rate is of NLVR2's head alone
    with torch.no_grad():
        output = model.model(**case.batch)
        torch.testing.assert_close(output.pooled, case.out("cls_feats"), atol=1e-5, rtol=0)
        if logits is not None:
            torch.testing.assert_close(model(**case.batch).logits, case.out(logits), atol=1e-5, rtol=0)
        if task == "retrieval":
            text = model.model.encode_text(case.batch["input_ids"], case.batch["attention_mask"])
            embedded = model.contrastive.embed_text(text.cls)
            torch.testing.assert_close(embedded, case.out("itc.text"), atol=1e-5, rtol=0)
    record = json.loads((folder / "conversion.json").read_text())
    assert record["keys"]["mapped"] == len(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize(
    ("settings", "words", "message"),
    [
        ({}, (), "has heads of vqav2, nlvr2, snli_ve, pretrain; choose one: --task"),
        ({"model_type": "MT"}, ("--task", "vqav2"), "of the bridge bridge_tower, but its configuration says manager"),
        ({"vit_remove_last": True}, ("--task", "vqav2"), "vit_remove_last True is not supported, only False"),
        ({"num_layers": 4}, ("--task", "vqav2"), "keys do not fit"),
        ({"num_heads": 5}, ("--task", "vqav2"), "bt.ckpt: hidden_size 48 is no multiple of 5 heads"),
        ({}, ("--task", "vqav2", "--language_model", "."), "--language_model is not for two-tower models: SOURCE"),
        ({}, ("--newline_after_one_crop", "true"), "--newline_after_one_crop is not for two-tower models: SOURCE"),
        ({}, ("--task", "vqav2", "--text_tower", "nowhere"), "--text_tower nowhere: no such file or folder"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(golden, refused, settings, words, message):
    _, file, _ = golden("A", "bt", **settings)
    assert message in refused(file, *words)


def test_a_tokenizer_that_cannot_be_read_is_told_in_one_line(golden, refused):
    _, file, tower = golden("A", "bt")
    (tower / "tokenizer.json").write_text("{")
    error = refused(file, "--task", "vqav2", "--text_tower", tower)
    assert f"{tower}: its tokenizer cannot be loaded: " in error


class Foreign:
    pass


def test_files_that_are_no_checkpoints(tmp_path, refused):
    contents = {
        "other": torch.zeros(2),
        "config": {"state_dict": {"a": torch.zeros(2)}},
        "code": {"state_dict": Foreign},
    }
    messages = {"other": "no checkpoint of Lightning", "config": "no hyper_parameters", "code": "might run code"}
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.ckpt")
        assert messages[name] in refused(tmp_path / f"{name}.ckpt", "--task", "vqav2")


def test_what_lightning_leaves_in_a_file_is_passed_over(golden, convert, monkeypatch):
    """Its callbacks are kept by their classes, which are not installed here; what they hold is not run."""
    _, file, _ = golden("A", "bt")
    lightning = ModuleType("pytorch_lightning")
    lightning.Checkpoint = type("Checkpoint", (dict,), {"__module__": "pytorch_lightning"})
    content = torch.load(file, weights_only=True)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pytorch_lightning", lightning)
        callbacks = {lightning.Checkpoint: {"best": 1.0}, "state": lightning.Checkpoint(best=2.0)}
        torch.save(content | {"callbacks": callbacks}, file)
    convert(file, "--task", "vqav2")


def make_peer(kind, **sizes):
    """transformers' BridgeTower with weights that count, its cross-modal LayerNorms as where it was trained."""
    common = {"hidden_size": 64, "num_hidden_layers": 4}
    text = {"num_attention_heads": 4, "intermediate_size": 256, "vocab_size": 50, "max_position_embeddings": 20}
    config = BridgeTowerConfig(
        text_config=common | text,
        vision_config={**common, "patch_size": 8, "image_size": 32},
        hidden_size=64,
        num_attention_heads=4,
        num_hidden_layers=3,
        **sizes,
    )
    torch.manual_seed(0)
    peer = kind._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in peer.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    for layer in peer.modules():
        if isinstance(layer, BridgeTowerBertCrossLayer):  # transformers adds 1e-5
            for norm in (module for module in layer.modules() if isinstance(module, torch.nn.LayerNorm)):
                norm.eps = 1e-12
    return peer


@torch.no_grad()
def test_bridge_tower_of_transformers_is_the_same_model(tmp_path, convert):
    peer = make_peer(BridgeTowerModel)
    peer.save_pretrained(tmp_path / "peer")
    folder, printed = convert(tmp_path / "peer", "--task", "pretrain")
    assert "head mlm is new" in printed
    assert "1e-12 as where it was trained; transformers adds 1e-05" in printed
    model = TwoTowerForTask.from_pretrained(folder)
    batch = batch_of(model.config)
    ours, theirs = model.model(**batch), peer(**batch)
    names = {"text_features": "text_features", "image_features": "image_features", "pooled": "pooler_output"}
    for name, expected in names.items():
        torch.testing.assert_close(ours[name], theirs[expected], atol=1e-5, rtol=0)


@torch.no_grad()
def test_heads_of_transformers_bridge_tower(tmp_path, convert, refused):
    peer = make_peer(BridgeTowerForImageAndTextRetrieval)
    peer.save_pretrained(tmp_path / "peer")
    folder, _ = convert(tmp_path / "peer", "--task", "retrieval")
    model = TwoTowerForTask.from_pretrained(folder)
    batch = batch_of(model.config)
    mask = batch["attention_mask"]
    matched = model.match(
        model.model.encode_text(batch["input_ids"], mask), model.model.encode_image(batch["pixel_values"]), mask
    )
    torch.testing.assert_close(matched, peer(**batch).logits, atol=1e-5, rtol=0)
    make_peer(BridgeTowerModel, link_tower_type="scaled_add").save_pretrained(tmp_path / "other")
    error = refused(tmp_path / "other", "--task", "retrieval", out="none")
    assert "link_tower_type 'scaled_add' is not supported, only 'add'" in error


@torch.no_grad()
def test_the_contrastive_heads_of_transformers_bridge_tower(tmp_path, convert):
    peer = make_peer(BridgeTowerForContrastiveLearning, contrastive_hidden_size=8, logit_scale_init_value=2.6592)
    peer.save_pretrained(tmp_path / "peer")
    folder, printed = convert(tmp_path / "peer", "--task", "retrieval")
    assert "head itm is new" in printed
    assert "ITC embeds the image tower's own state, transformers the projected one" in printed
    model = TwoTowerForTask.from_pretrained(folder)
    assert model.contrastive.temperature.item() == pytest.approx(math.exp(-peer.logit_scale.item()))
    batch = batch_of(model.config)
    theirs = peer(**batch)
    text = model.model.encode_text(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(model.contrastive.embed_text(text.cls), theirs.text_embeds, atol=1e-5, rtol=0)
    image = model.model.encode_image(batch["pixel_values"])
    projected = image.states[-1, :, 0]
    torch.testing.assert_close(model.contrastive.embed_image(projected), theirs.image_embeds, atol=1e-5, rtol=0)
    assert (model.contrastive.embed_image(image.cls) - theirs.image_embeds).abs().max() > 0.1  # as the note says
