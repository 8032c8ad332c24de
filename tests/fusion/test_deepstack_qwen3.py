"""deepstack_qwen3 against the model written slowly, its layers, its cost, and what is saved of it."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipVisionModel

from llava.anyres import TilingConfig
from llava.data.collator import Collator
from llava.data.schema import Sample, Turn
from llava.errors import LlavaError
from llava.fusion.base import FusionCost
from llava.fusion.config import Sizes
from llava.fusion.configs.deepstack_qwen3 import DeepstackQwen3Config
from llava.fusion.deepstack_qwen3 import DeepstackQwen3
from llava.fusion.none import NoFusion
from llava.mllm import LlavaOVManagerForConditionalGeneration
from llava.mllm.cost import forward_cost, training_cost
from llava.mllm.parts import PREFIXES
from tests.conftest import GRID, TILE
from tests.mllm.slow_model import packed_slowly

ANYRES = TilingConfig.from_llava("anyres", "spatial_unpad", [[56, 112], [112, 56], [112, 112]], TILE)
FLAT = TilingConfig.from_llava("anyres", "flat", [[56, 112], [112, 56], [112, 112]], TILE)


@pytest.fixture
def model(make_model):
    return make_model(fusion=DeepstackQwen3Config())


def slow_merger(merger, state: torch.Tensor) -> torch.Tensor:
    """LayerNorm, Linear, GELU, Linear, from their formulas."""
    norm, first, second = merger.norm, merger.linear_1, merger.linear_2
    mean, variance = state.mean(-1, keepdim=True), state.var(-1, correction=0, keepdim=True)
    hidden = ((state - mean) / (variance + 1e-6).sqrt() * norm.weight + norm.bias) @ first.weight.T + first.bias
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    return hidden @ second.weight.T + second.bias


def slow_logits(model, ids: list[int], images) -> torch.Tensor:
    """Logits (L, V) of one sample. images: (crops, (width, height)) of each."""
    inner, config = model.model, model.config
    hidden = model.get_input_embeddings()(torch.tensor(ids)).clone()
    places = [place for place, token in enumerate(ids) if token == config.image_token_id]
    added = []  # of every visual token, in order
    for crops, size in images:
        states = SiglipVisionModel.forward(inner.vision_tower, crops, output_hidden_states=True).hidden_states
        maps = [inner.multi_modal_projector(states[4])]
        maps += [slow_merger(merger, states[layer]) for merger, layer in zip(inner.fusion.mergers, (1, 3, 4))]
        newline = inner.image_newline()
        newlines = torch.stack([newline, *[torch.zeros_like(newline)] * 3])
        added += [
            vectors for vectors, _ in packed_slowly(config, torch.stack(maps, 2), newlines, size, len(images) > 1)
        ]
    assert len(added) == len(places)
    for place, vectors in zip(places, added):
        hidden[place] = vectors[0]
    mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)[None, None]
    rotary = inner.language_model.rotary_emb(hidden[None], torch.arange(len(ids))[None])
    for index, layer in enumerate(inner.language_model.layers):
        hidden = layer(hidden[None], attention_mask=mask, position_embeddings=rotary)[0]
        if index < 3:  # "after layers 0, 1, 2"
            hidden = hidden.clone()
            for place, vectors in zip(places, added):
                hidden[place] += vectors[1 + index]
    return model.lm_head(inner.language_model.norm(hidden))


@pytest.fixture
def samples(make_image):
    """A large image, none, and two small ones."""
    return [
        ((Turn("human", "<image>\nWhat is in the picture?"),), [make_image(150, 97)]),
        ((Turn("human", "What is it?"),), []),
        ((Turn("human", "<image> <image>\nWhich?"),), [make_image(60, 40, 1), make_image(40, 90, 2)]),
    ]


def slow_of(model, processor, sample) -> tuple[torch.Tensor, dict]:
    """(slow logits, inputs) of a sample alone."""
    inputs = processor.encode_prompts([sample])
    sizes = [(width, height) for height, width in inputs["image_sizes"].tolist()] if sample[1] else []
    pixels = [inputs["pixel_values"]] if len(sizes) == 1 else [crop[None] for crop in inputs.get("pixel_values", ())]
    return slow_logits(model, inputs["input_ids"][0].tolist(), list(zip(pixels, sizes))), inputs


@pytest.mark.parametrize("tiling", [GRID, ANYRES, FLAT, TilingConfig()], ids=["max_9", "anyres", "flat", "square"])
def test_a_left_padded_batch_equals_the_slow_model(make_model, make_processor, samples, tiling):
    model, processor = make_model(tiling, DeepstackQwen3Config()), make_processor(tiling)
    with torch.no_grad():
        together = model(**processor.encode_prompts(samples)).logits
        for row, sample in enumerate(samples):
            expected, _ = slow_of(model, processor, sample)
            torch.testing.assert_close(together[row, -len(expected) :], expected, atol=1e-5, rtol=1e-4)


def test_gradients_equal_those_of_the_slow_model(model, make_processor, samples):
    processor, found = make_processor(), {}
    for backward in ("fast", "slow"):
        model.zero_grad()
        for sample in samples[::2]:
            slow, inputs = slow_of(model, processor, sample)
            logits = slow if backward == "slow" else model(**inputs).logits[0]
            logits.square().mean().backward()
        found[backward] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert sum("fusion.mergers" in name for name in found["slow"]) == 3 * 6
    assert found["fast"].keys() == found["slow"].keys()
    for name, gradient in found["slow"].items():
        assert gradient.abs().max() > 0 or "k_proj.bias" in name, name
        torch.testing.assert_close(
            found["fast"][name], gradient, atol=1e-6, rtol=1e-3, msg=lambda m, n=name: f"{n} {m}"
        )


def test_samples_that_share_a_row_equal_each_alone(model, make_processor, samples):
    processor, items = make_processor(), []
    for turns, images in samples:
        sample = Sample("", (*turns, Turn("gpt", "A red car.")), ("",) * len(images), "", ())
        rules = {"template": "qwen_1_5", "label_rule": "answers", "max_length": 1024}
        items.append(processor.encode_sample(sample, images, [], **rules))
    with torch.no_grad():
        row = model(**Collator(0, packing=True)(items), use_cache=False).logits[0]
        alone = torch.cat([model(**Collator(0)([item]), use_cache=False).logits[0] for item in items])
    torch.testing.assert_close(row, alone, atol=2e-5, rtol=1e-4)


def test_generation_with_a_cache_equals_the_slow_model(model, make_processor, samples):
    processor = make_processor()
    output = model.generate(**processor.encode_prompts(samples), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    for row, sample in enumerate(samples):
        _, inputs = slow_of(model, processor, sample)
        ids, answer = inputs["input_ids"][0].tolist(), output[row, -4:].tolist()
        sizes = [(width, height) for height, width in inputs["image_sizes"].tolist()] if sample[1] else []
        several = [crop[None] for crop in inputs.get("pixel_values", ())]
        pixels = [inputs["pixel_values"]] if len(sizes) == 1 else several
        with torch.no_grad():
            logits = slow_logits(model, ids + answer[:-1], list(zip(pixels, sizes)))[-4:]
        logits[:, model.config.text_config.eos_token_id] = -torch.inf
        assert logits.argmax(-1).tolist() == answer


def test_it_is_saved_and_loads_strictly(model, make_processor, samples, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = LlavaOVManagerForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    assert loaded.config.fusion == DeepstackQwen3Config((1, 3, 4), (1, 2, 3))
    inputs = make_processor().encode_prompts(samples)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_its_first_weights_are_those_of_linear_layers(model):
    for merger in model.model.fusion.mergers:
        assert (merger.norm.weight == 1).all()
        for linear in (merger.linear_1, merger.linear_2):
            bound = linear.in_features**-0.5
            assert 0.9 * bound < linear.weight.abs().max() <= bound
            assert linear.bias.abs().max() > 0


def test_layers_and_parameters_at_the_real_sizes():
    """Behind blocks 8, 16 and 24 of 27 are states 9, 17 and 25; 7.1 M parameters at the widths 1152 and 896."""
    assert DeepstackQwen3Config().resolved(27, 24).vision_layers == (9, 17, 25)
    config = DeepstackQwen3Config().resolved(26, 24)
    assert (config.vision_layers, config.injection_layers) == ((9, 16, 24), (1, 2, 3))
    assert config.tower_layers(26) == (26, 9, 16, 24)
    with torch.device("meta"):
        fusion = DeepstackQwen3(config, Sizes(26, 1152, 24, 896, 729))
    expected = 3 * (2 * 1152 + 1152 * 1152 + 1152 + 1152 * 896 + 896)
    assert sum(parameter.numel() for parameter in fusion.parameters()) == expected == 7_090_944


@pytest.mark.parametrize(
    ("fields", "sizes", "message"),
    [
        ({}, (2, 6), r"deepstack_qwen3 vision_layers \[1, 1, 2\] must name none twice"),
        ({}, (26, 3), r"deepstack_qwen3 injection_layers \[3\] do not exist: the model has 3, from 0 to 2"),
        ({"vision_layers": (1, 27, 28)}, (26, 24), r"deepstack_qwen3 vision_layers \[27, 28\] do not exist"),
    ],
)
def test_layers_that_do_not_exist_are_named(fields, sizes, message):
    with pytest.raises(LlavaError, match=message):
        DeepstackQwen3Config(**fields).resolved(*sizes)


def test_as_many_states_as_layers(make_config):
    with pytest.raises(LlavaError, match=r"fusion.vision_layers are 2, fusion.injection_layers 3: one for each"):
        make_config(fusion={"method": "deepstack_qwen3", "vision_layers": [1, 2]})


TRAINED = [(), ("vision_tower",), ("fusion",), ("projector", "fusion"), ("language_model",), tuple(PREFIXES)]


@pytest.mark.parametrize("trained", TRAINED, ids=lambda trained: "+".join(trained) or "forward")
def test_its_cost_is_what_torch_counts(make_model, trained):
    """Of one sample of one crop; eager attention is plain matrix products, the masked half of them too."""
    model = make_model(TilingConfig(), DeepstackQwen3Config()).train()
    model.set_attn_implementation("eager")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(prefix for part in trained for prefix in PREFIXES[part])))
    ids = torch.tensor([[5, *[model.config.image_token_id] * 16, 6]])
    inputs = {"pixel_values": torch.randn(1, 3, TILE, TILE), "image_sizes": torch.tensor([[TILE, TILE]])}
    labels = torch.full_like(ids, -100)
    labels[0, -1] = 6
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(bool(trained)):
        loss = model(input_ids=ids, labels=labels, skip_logits=True, **inputs).loss
        if trained:
            loss.backward()
    cost = training_cost(model.config, trained)
    assert cost(1, 18, 1) + cost.token_pair * 18**2 == counter.get_total_flops()
    assert training_cost(model.config, ()) == forward_cost(model.config)


def test_products_with_the_towers_states_cost_as_they_train(make_config, monkeypatch):
    """`from_states` has no gradient of its input while the tower is frozen."""
    config = make_config(fusion=None)
    plain = {trained: training_cost(config, trained).crop for trained in ((), ("fusion",), ("vision_tower",))}
    monkeypatch.setattr(NoFusion, "cost", lambda config, sizes: FusionCost(from_states=1000))
    added = [training_cost(config, trained).crop - crop for trained, crop in plain.items()]
    assert added == [1000, 2000, 2000]
