"""The two-tower model: its sizes, what it takes and refuses, and how transformers runs and keeps it."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    Dinov2Config,
    ViTConfig,
)

from llava.errors import LlavaError
from llava.two_tower.configuration import TwoTowerConfig
from llava.two_tower.modeling import TwoTowerForTask, TwoTowerModel
from llava.two_tower.parts import PREFIXES
from llava.two_tower.tasks import TASKS
from llava.two_tower.towers import POSITIONS, fitted_positions
from tests.two_tower.tiny import tiny_config, tiny_model


def batch_of(config, size=3, length=7):
    generator = torch.Generator().manual_seed(1)
    pixels = config.vision_config.image_size
    ids = torch.randint(3, config.text_config.vocab_size, (size, length), generator=generator)
    mask = torch.ones(size, length, dtype=torch.int64)
    mask[0, 4:] = 0
    ids[0, 4:] = config.text_config.pad_token_id
    images = torch.randn(size, 3, pixels, pixels, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": images}


def fields_of(config, batch):
    """What every task needs beside texts and images."""
    size, length = batch["input_ids"].shape
    masked = (torch.arange(length) % 3 == 1) & batch["attention_mask"].bool()
    return {
        "mlm_input_ids": batch["input_ids"],
        "mlm_labels": torch.where(masked, batch["input_ids"], -100),
        "itm_labels": torch.arange(size) % 2,
        "false_pixel_values": batch["pixel_values"].flip(0)[::2],
        "targets": torch.linspace(0, 1, size * config.num_answers).view(size, -1),
        "labels": torch.arange(size) % 2,
        "pixel_values_2": batch["pixel_values"].roll(1, 0),
        "image_index": torch.arange(size),
        "negative_draws": torch.linspace(0, 0.9, 2 * size).view(size, 2),
    }


def run(model):
    batch = batch_of(model.config)
    fields = fields_of(model.config, batch)
    return model(**batch, **{name: fields[name] for name in TASKS[model.config.task].fields})


def millions(module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize(
    ("kind", "weight", "managers"),
    [("saum", "scalar", 0.13), ("saum", "vector", 0.19), ("aaum", "scalar", 12.05), ("aaum", "vector", 12.06)],
)
def test_sizes_are_those_of_the_paper(kind, weight, managers):
    with torch.device("meta"):
        model = TwoTowerModel(TwoTowerConfig(manager_kind=kind, weight=weight))
    layers = model.cross_modal.layers
    bridges = [bridge for layer in layers for bridge in (layer.text_bridge, layer.image_bridge)]
    assert round(sum(map(millions, bridges)), 2) == managers
    assert round(sum(millions(block) for layer in layers for block in (layer.text, layer.image)), 2) == 113.42
    assert round(millions(model.text_tower)) == 124
    assert round(millions(model.image_tower)) == 86


@pytest.mark.parametrize("task", TASKS)
def test_every_weight_learns_and_belongs_to_one_part(task):
    model = tiny_model(task)
    output = run(model)
    assert output.loss.item() == pytest.approx(sum(loss.item() for loss in output.losses.values()))
    assert tuple(output.losses) == TASKS[task].objectives
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert sum(name.startswith(prefixes) for prefixes in PREFIXES.values()) == 1, name


def gated(layers, gate):
    """METER's gated sum, token by token. layers: (B, L, W) each, the last one is taken whole."""
    sums = torch.empty_like(layers[-1])
    for row, token in np.ndindex(*sums.shape[:2]):
        *lower, last = (states[row, token] for states in layers)
        scores = [(gate.weight @ state + gate.bias).exp() for state in lower]
        sums[row, token] = last + sum(score / sum(scores) * state for score, state in zip(scores, lower))
    return sums


def twin_of_gated_meter(model, input_ids, attention_mask, pixel_values):
    """What enters the cross-modal layers from hooks on the towers' own."""
    texts, images = [], []
    hooks = [
        layer.register_forward_hook(lambda *call, kept=kept: kept.append(call[-1]))
        for layers, kept in ((model.text_tower.encoder.layer, texts), (model.image_tower.encoder.layers, images))
        for layer in layers
    ]
    model.text_tower(input_ids=input_ids, attention_mask=attention_mask)
    model.image_tower(pixel_values=pixel_values)
    for hook in hooks:
        hook.remove()
    text = model.text_projection(gated(texts, model.text_gate.gate)) + model.type_embedding.weight[0]
    normed = list(map(model.image_tower.post_layernorm, images))
    image = model.image_projection(gated(normed, model.image_gate.gate)) + model.type_embedding.weight[1]
    padding = attention_mask.bool()[:, None, None]
    for layer in model.cross_modal.layers:
        text, image = layer.text(text, image, padding, None), layer.image(image, text, None, padding)
    return text, image


def test_gated_meter_is_its_slow_twin():
    model = tiny_model("snli_ve", bridge="meter", gated_fusion=True).model
    batch, results = batch_of(model.config), []
    output = model(**batch)
    for text, image in ((output.text_features, output.image_features), twin_of_gated_meter(model, **batch)):
        model.zero_grad()
        (text.square().sum() + image.square().sum()).backward()
        named = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        results.append({"text": text, "image": image, **named})
    assert {"text_gate.gate.weight", "image_gate.gate.bias"} < results[1].keys()
    torch.testing.assert_close(*results, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("bridge", ["manager", "bridge_tower", "meter"])
def test_a_saved_model_is_the_same(bridge, tmp_path):
    model = tiny_model("nlvr2", bridge=bridge)
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() | {"_name_or_path": ""} == model.config.to_dict()
    again, loading = TwoTowerForTask.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values()), loading
    assert torch.equal(run(again).logits, run(model).logits)
    plain = AutoModel.from_pretrained(tmp_path)
    assert isinstance(plain, TwoTowerModel)
    batch = batch_of(model.config)
    assert torch.equal(plain(**batch).pooled, model.model(**batch).pooled)


def test_attention_implementations_agree():
    model = tiny_model("snli_ve")
    expected = run(model).logits
    model.set_attn_implementation("eager")
    assert model.model.cross_modal.layers[0].text.self_attention.config._attn_implementation == "eager"
    torch.testing.assert_close(run(model).logits, expected, atol=1e-5, rtol=0)


def test_gradient_checkpointing_changes_no_gradient():
    """Nor does it draw other noise and dropout when a layer is computed again."""
    model = tiny_model("pretrain").train()
    gradients = []
    for checkpoints in (False, True):
        if checkpoints:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        model.zero_grad()
        run(model).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert model.model.cross_modal.layers[0].gradient_checkpointing
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-6, rtol=1e-5)


def test_bfloat16():
    model = tiny_model("retrieval", noise=False)
    expected = run(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run(model)
    assert mixed.loss.dtype == torch.float32
    torch.testing.assert_close(mixed.losses["itc"], expected.losses["itc"], atol=0.2, rtol=0.1)
    halved = run(model.to(torch.bfloat16))
    assert halved.logits.dtype == torch.bfloat16
    torch.testing.assert_close(halved.logits.float(), expected.logits, atol=0.3, rtol=0.1)


def test_the_cross_modal_encoder_compiles_as_one_graph():
    model = tiny_model("snli_ve")
    expected = run(model).logits
    model.model.cross_modal.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(run(model).logits, expected, atol=1e-6, rtol=0)


def test_layers_are_compiled_once_for_texts_of_any_length():
    """As a stage compiles them: the first is one graph, all others another."""
    graphs = []
    model = tiny_model("snli_ve", cross_modal_layers=3).model
    batch = batch_of(model.config)
    texts = [
        {name: tensor[:, :length] for name, tensor in batch.items() if name != "pixel_values"} for length in (6, 4)
    ]
    expected = [model(**text, pixel_values=batch["pixel_values"]).pooled for text in texts]

    def as_it_is(graph, _):
        graphs.append(graph)
        return graph.forward

    for layer in model.cross_modal.layers:
        layer.compile(dynamic=True, backend=as_it_is)
    for text, pooled in zip(texts, expected):
        found = model(**text, pixel_values=batch["pixel_values"]).pooled
        torch.testing.assert_close(found, pooled, atol=1e-6, rtol=0)
    assert len(graphs) == 2


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_other_towers(kind):
    """BERT with a ViT-like tower, whose widths are neither each other's nor the model's."""
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 2}
    text = BertConfig(vocab_size=40, hidden_size=24, intermediate_size=32, max_position_embeddings=20, **sizes)
    images = {"image_size": 24, "patch_size": 8, "hidden_size": 32, **sizes}
    vision = ViTConfig(intermediate_size=32, **images) if kind == "vit" else Dinov2Config(mlp_ratio=1, **images)
    config = tiny_config("retrieval")
    config = TwoTowerConfig(**config.to_dict() | {"text_config": text, "vision_config": vision})
    model = TwoTowerForTask(config)
    assert torch.isfinite(run(model).loss)
    name = POSITIONS[kind]
    state = model.model.image_tower.state_dict()
    smaller = torch.randn(1, 1 + 2 * 2, 32)
    fitted = fitted_positions({**state, name: smaller}, vision)
    assert fitted[name].shape == state[name].shape
    assert torch.equal(fitted[name][:, 0], smaller[:, 0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bridge": "bridge"}, ["bridge", "manager, bridge_tower, meter", "'bridge'"]),
        ({"text_layers": 4}, ["text_layers is 4", "1 to 3"]),
        ({"bridge": "bridge_tower", "cross_modal_layers": 4}, ["cross_modal_layers is 4", "1 to 3"]),
        ({"hidden_size": 15}, ["15", "2 heads"]),
        ({"gated_fusion": True}, ["METER", "manager"]),
        ({"gated_fusion": True, "bridge": "meter", "hidden_size": 32}, ["32", "16"]),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, ["clip_vision_model", "'siglip_vision_model'"]),
    ],
)
def test_a_wrong_configuration_is_refused_in_one_line(options, words):
    fields = tiny_config("pretrain").to_dict() | options
    with pytest.raises(LlavaError) as error:
        TwoTowerConfig(**fields)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_images_of_another_size_are_refused():
    model = tiny_model("snli_ve")
    with pytest.raises(LlavaError, match="takes images of 16 x 16 pixels, found 8 x 24"):
        model.model.encode_image(torch.zeros(1, 3, 24, 8))


@pytest.mark.parametrize("deviation", [0.02, 0.1])
def test_new_layers_begin_as_wide_as_they_are_told(deviation):
    """Between the towers; the towers begin by their own configuration's word."""
    model = TwoTowerForTask(tiny_config("vqav2", num_answers=5, hidden_size=64, initializer_range=deviation))
    linear = [module.weight for module in model.model.cross_modal.modules() if isinstance(module, torch.nn.Linear)]
    assert torch.cat([weight.flatten() for weight in linear]).std().item() == pytest.approx(deviation, rel=0.05)


def test_a_frozen_tower_trains_without_dropout():
    """Its states are those of evaluation, and a tower that learns keeps its dropout."""
    model = tiny_model("vqav2", num_answers=5).model
    batch = batch_of(model.config)
    answered = model.encode_text(batch["input_ids"], batch["attention_mask"]).states
    model.train()
    assert not torch.equal(model.encode_text(batch["input_ids"], batch["attention_mask"]).states, answered)
    model.text_tower.requires_grad_(False)
    model.train()
    assert torch.equal(model.encode_text(batch["input_ids"], batch["attention_mask"]).states, answered)
    assert (model.training, model.text_tower.training, model.image_tower.training) == (True, False, True)
    assert model.cross_modal.training
