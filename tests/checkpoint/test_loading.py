"""The model of a folder: as it was saved, or refused with the name of the first parameter that does not fit."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.checkpoint.loading import load_model
from llava.errors import LlavaError

NEWLINE = "model.image_newline.weight"


@pytest.fixture
def change(tiny_model_dir, tmp_path):
    """A function: what becomes of the weights, {name: tensor}, to the folder with the changed ones."""

    def make(changed):
        folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
        save_file(changed(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


def test_every_parameter_is_the_files(tiny_model_dir):
    model = load_model(tiny_model_dir)
    saved = load_file(tiny_model_dir / "model.safetensors")
    weights = model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in saved.items())
    assert weights.keys() - saved.keys() <= {"lm_head.weight"}
    assert not model.training


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        (lambda state: {name: state[name] for name in state if name != NEWLINE}, f"missing {NEWLINE}"),
        (lambda state: state | {"model.extra": torch.zeros(1)}, "unexpected model.extra"),
        (
            lambda state: state | {NEWLINE: torch.zeros(1, 3)},
            f"mismatched {NEWLINE}: (1, 3) in the file, (24,) in the model",
        ),
        (
            lambda state: state | {"model.language_model.layers.0.mlp.up_proj.base_layer.weight": torch.zeros(1)},
            "was written in the midst of a run with LoRA, which alone can go on from it; start from the folder "
            "that the run ends in",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, changed, fault):
    folder = change(changed)
    with pytest.raises(LlavaError) as caught:
        load_model(folder)
    kind, _, name = fault.partition(" ")
    counted = f"{kind} in the weights: 1 parameters, first {name}"
    assert str(caught.value) == f"{folder}: {fault if kind == 'was' else counted}"


def test_the_first_of_several_is_named(change):
    names = [f"model.vision_tower.encoder.layers.{layer}.layer_norm1.bias" for layer in (2, 0, 1)]
    folder = change(lambda state: {name: state[name] for name in state if name not in names})
    with pytest.raises(LlavaError, match=rf"missing in the weights: 3 parameters, first {names[1]}$"):
        load_model(folder)


def test_what_may_be_new_may_be_missing(change):
    folder = change(lambda state: {name: state[name] for name in state if name != NEWLINE})
    assert load_model(folder, may_be_new=("model.image_newline.",)).get_parameter(NEWLINE).shape == (24,)
    with pytest.raises(LlavaError, match=f"first {NEWLINE}"):
        load_model(folder, may_be_new=("model.fusion.",))
