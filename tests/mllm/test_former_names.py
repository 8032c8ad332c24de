"""Checkpoints from before `fusion`: `managers` in config.json, `model.managers.` in the names of weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from llava.checkpoint.loading import load_model
from llava.convert.main import main
from llava.data.schema import Turn
from llava.errors import LlavaError
from llava.fusion.configs.manager import ManagerConfig
from llava.mllm import LlavaOVManagerConfig, LlavaOVManagerForConditionalGeneration

# As written by the commit before (addd03c), for static managers and for adaptive ones.
MANAGERS = {
    "paper": {"vision_layers": [3, 4], "injection_layers": [0, 2, 4], "first_omits_last_map": False}
    | {"scope": "all", "jitter": "paper", "query": None, "question": "turn"},
    "cross": {"vision_layers": [2, 3], "injection_layers": [0, 3], "first_omits_last_map": True}
    | {"scope": "main", "jitter": "released", "query": "cross", "question": "released"},
}
# Every parameter of theirs there.
NAMES = {
    "paper": ["layer_embedding", *(f"managers.{index}.scores" for index in range(3))],
    "cross": ["layer_embedding", "managers.0.scores", "managers.1.gate", "managers.1.controller.weight"]
    + [f"managers.1.{name}_proj.{kind}" for name in ("query", "key") for kind in ("weight", "bias")],
}


@pytest.fixture(params=MANAGERS)
def former(request, make_model, make_processor, tmp_path):
    """(a model, the folder that the code before would have written of it)."""
    managers = MANAGERS[request.param]
    model = make_model(fusion=ManagerConfig(**managers))
    for parameter in model.model.fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path / "former"
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["fusion"]
    (folder / "config.json").write_text(json.dumps(config | {"managers": managers}))
    weights = load_file(folder / "model.safetensors")
    fused = {name for name in weights if name.startswith("model.fusion.")}
    renamed = {f"model.managers.{name}": weights[f"model.fusion.{name}"] for name in NAMES[request.param]}
    assert len(renamed) == len(fused)
    others = {name: tensor for name, tensor in weights.items() if name not in fused}
    save_file(others | renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return model, folder


@pytest.fixture
def inputs(make_processor, make_image):
    return make_processor().encode_prompts([((Turn("human", "<image>\nWhat is it?"),), [make_image()])])


def assert_alike(model, expected) -> None:
    """The same configuration, and the same weights by the names of today."""
    assert model.config.fusion == expected.config.fusion
    weights = model.state_dict()
    assert set(weights) == set(expected.state_dict())
    for name, tensor in expected.state_dict().items():
        assert torch.equal(weights[name], tensor), name


def test_they_load_strictly_and_answer_alike(former, inputs):
    expected, folder = former
    model = load_model(folder)
    assert_alike(model, expected)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected(**inputs).logits)
    assert_alike(AutoModel.from_pretrained(folder), expected.model)


def test_a_model_without_head_too(former, tmp_path):
    """AutoModel saves weights without `model.` in front."""
    expected, _ = former
    expected.model.save_pretrained(tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    renamed = {name.replace("fusion.", "managers.", 1): tensor for name, tensor in weights.items()}
    assert {name.split(".")[0] for name in renamed} >= {"managers", "vision_tower"}
    save_file(renamed, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    assert_alike(AutoModel.from_pretrained(tmp_path / "base"), expected.model)


def test_they_are_saved_by_the_names_of_today(former, tmp_path):
    expected, folder = former
    load_model(folder).save_pretrained(tmp_path / "again")
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == set(expected.state_dict()) - {"lm_head.weight"}
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert "managers" not in config
    assert config["fusion"]["method"] == "manager"
    assert_alike(load_model(tmp_path / "again"), expected)


def test_an_exported_folder_has_the_names_of_today(former, tmp_path):
    expected, folder = former
    assert main(["export", str(folder), "--format", "remote_code", "--out", str(tmp_path / "out")]) == 0
    assert any("model.fusion." in name for name in load_file(tmp_path / "out" / "model.safetensors"))
    assert_alike(LlavaOVManagerForConditionalGeneration.from_pretrained(tmp_path / "out"), expected)


def test_no_managers_are_no_fusion(make_model, tmp_path):
    make_model(fusion=None).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("fusion") == {"method": "none"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"managers": None}))
    assert LlavaOVManagerConfig.from_pretrained(tmp_path).fusion.method == "none"


def test_both_names_at_once_are_refused(make_config):
    config = make_config().to_dict()
    with pytest.raises(LlavaError, match="managers is the former name of fusion: both are given"):
        LlavaOVManagerConfig.from_dict(config | {"managers": MANAGERS["paper"]})


def test_what_the_fixture_writes_has_nothing_of_today(former):
    _, folder = former
    assert "fusion" not in (folder / "config.json").read_text()
    assert not any("fusion" in name for name in load_file(folder / "model.safetensors"))
