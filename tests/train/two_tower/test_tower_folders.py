"""Towers as their publishers save them, alone or within a model of another task."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersModel,
    RobertaConfig,
    RobertaForMaskedLM,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from llava.errors import LlavaError
from llava.train.two_tower.build import load_tower
from llava.two_tower.towers import make_image_tower, make_text_tower
from tests.parts import TOWERS

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
IMAGES = {"image_size": 32, "patch_size": 16}
CLIP = CLIPVisionConfig(**SIZES, **IMAGES)
TEXT_OF_CLIP = {**SIZES, "vocab_size": 9, "bos_token_id": 7, "eos_token_id": 8}
WHOLE_CLIP = CLIPConfig(vision_config=CLIP.to_dict(), text_config=TEXT_OF_CLIP)
BERT, ROBERTA = BertConfig(**SIZES, vocab_size=40), RobertaConfig(**SIZES, vocab_size=40)
VIT = ViTConfig(**SIZES, **IMAGES)
# (class that is saved, its configuration, where the tower is in it)
SAVED = {
    "CLIP's tower": (CLIPVisionModel, CLIP, ""),
    "CLIP": (CLIPModel, WHOLE_CLIP, "vision_model"),
    "ViT": (ViTModel, VIT, ""),
    "ViT's classifier": (ViTForImageClassification, VIT, "vit"),
    "DINOv2": (Dinov2Model, TOWERS["dinov2"], ""),
    "DINOv2's classifier": (Dinov2ForImageClassification, TOWERS["dinov2_giant"], "dinov2"),
    "registers": (Dinov2WithRegistersModel, TOWERS["registers"], ""),
    "BERT": (BertModel, BERT, ""),
    "BERT's MLM": (BertForMaskedLM, BERT, "bert"),
    "RoBERTa's MLM": (RobertaForMaskedLM, ROBERTA, "roberta"),
}


@pytest.fixture
def save(tmp_path):
    """A function: a name of SAVED to the tower that is saved there, and a new one of its kind."""

    def make(name):
        kind, config, inside = SAVED[name]
        torch.manual_seed(0)
        model = kind(config).eval()
        model.save_pretrained(tmp_path)
        tower = model.get_submodule(inside)
        is_text = hasattr(tower.config, "vocab_size")
        return tower, (make_text_tower if is_text else make_image_tower)(tower.config).eval()

    return make


def states(tower) -> torch.Tensor:
    """Of made-up input."""
    generator = torch.Generator().manual_seed(1)
    if hasattr(tower.config, "vocab_size"):
        return tower(input_ids=torch.randint(5, 40, (2, 6), generator=generator)).last_hidden_state
    side = tower.config.image_size
    return tower(pixel_values=torch.randn(2, 3, side, side, generator=generator)).last_hidden_state


def without(folder, name, **others) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file({**weights, **others}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", SAVED)
def test_a_tower_is_loaded_whole(name, save, tmp_path):
    tower, new = save(name)
    with torch.no_grad():
        expected = states(tower)
        assert not torch.allclose(states(new), expected)
        load_tower(new, str(tmp_path), "model.vision_tower")
        assert torch.equal(states(new), expected)


@pytest.mark.parametrize("name", ["DINOv2", "registers"])
def test_a_mask_token_need_not_be_there(name, save, tmp_path):
    """It stands for masked patches in its own pre-training."""
    tower, new = save(name)
    without(tmp_path, "embeddings.mask_token")
    load_tower(new, str(tmp_path), "model.vision_tower")
    with torch.no_grad():
        assert torch.equal(states(new), states(tower))


def test_what_does_not_fit_is_told_in_one_line(save, tmp_path):
    _, new = save("DINOv2")

    def refuse(message):
        with pytest.raises(LlavaError, match=message) as caught:
            load_tower(new, str(tmp_path), "model.vision_tower")
        assert str(caught.value).startswith(f"model.vision_tower {tmp_path}: ")
        assert "\n" not in str(caught.value)

    without(tmp_path, "layernorm.weight")
    refuse(r"1 weights are missing, first layernorm\.weight")
    save("DINOv2")
    without(tmp_path, "layernorm.weight", **{"layernorm.weight": torch.ones(32), "extra": torch.ones(1)})
    refuse("1 weights are unexpected, first extra")
    save("DINOv2")
    without(tmp_path, "layernorm.weight", **{"layernorm.weight": torch.ones(8)})
    refuse(r"1 weights are of another shape, first layernorm\.weight: found \(8,\), expected \(32,\)")
    (tmp_path / "model.safetensors").unlink()
    refuse("its weights cannot be loaded: .*no file named")
