"""sti against the model written slowly, its tokens wherever they are counted, its cost, and what it refuses."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipVisionModel

from llava.anyres import TilingConfig
from llava.data.collator import Collator
from llava.data.dataset import SupervisedDataset
from llava.data.inspect import inspect_samples
from llava.data.processor import LlavaOVManagerProcessor
from llava.data.schema import Sample, Turn
from llava.errors import LlavaError
from llava.fusion.config import Sizes
from llava.fusion.configs.sti import StiConfig
from llava.fusion.sti import Sti, pooled
from llava.mllm import LlavaOVManagerForConditionalGeneration
from llava.mllm.cost import forward_cost, training_cost
from llava.mllm.parts import PREFIXES
from tests.conftest import GRID, TILE

PAD = TilingConfig(mode="pad", newline_after_one_crop=True)


def slow_logits(model, ids: list[int], crops: torch.Tensor) -> torch.Tensor:
    """Logits (L, V) of one sample, of an image for each crop."""
    inner, config = model.model, model.config
    project, pool = inner.multi_modal_projector, config.fusion.pool
    hidden = model.get_input_embeddings()(torch.tensor(ids)).clone()
    places = iter([place for place, token in enumerate(ids) if token == config.image_token_id])
    for crop in crops:
        states = SiglipVisionModel.forward(inner.vision_tower, crop[None], output_hidden_states=True).hidden_states
        tokens = list(states[4][0])
        for layer in (1, 2):  # the 8th and the 16th of 26
            for first in range(0, 16 - pool + 1, pool):
                tokens.append(sum(states[layer][0, first + number] for number in range(pool)) / pool)
        for token in tokens:
            hidden[next(places)] = project(token)
        if config.tiling.newline_after_one_crop:
            hidden[next(places)] = inner.image_newline()
    assert not list(places)
    mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)[None, None]
    rotary = inner.language_model.rotary_emb(hidden[None], torch.arange(len(ids))[None])
    for layer in inner.language_model.layers:
        hidden = layer(hidden[None], attention_mask=mask, position_embeddings=rotary)[0]
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
    return slow_logits(model, inputs["input_ids"][0].tolist(), inputs.get("pixel_values", ())), inputs


@pytest.fixture
def make(make_model, make_processor):
    """A function: pooled tokens and tiling to a model and its processor."""

    def make(pool: int = 8, tiling: TilingConfig | None = None):
        model = make_model(tiling if tiling is not None else TilingConfig(), StiConfig(pool=pool))
        return model, make_processor(model.config.tiling)

    return make


@pytest.mark.parametrize(("pool", "tiling", "tokens"), [(8, None, 20), (3, None, 26), (5, PAD, 23)])
def test_a_left_padded_batch_equals_the_slow_model(make, samples, pool, tiling, tokens):
    model, processor = make(pool, tiling)
    with torch.no_grad():
        inputs = processor.encode_prompts(samples)
        together = model(**inputs).logits
        shown = (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist()
        assert shown == [tokens, 0, 2 * tokens]
        for row, sample in enumerate(samples):
            expected, _ = slow_of(model, processor, sample)
            torch.testing.assert_close(together[row, -len(expected) :], expected, atol=1e-5, rtol=1e-4)


def test_gradients_equal_those_of_the_slow_model(make, samples):
    (model, processor), found = make(3, PAD), {}
    for backward in ("fast", "slow"):
        model.zero_grad()
        for sample in samples[::2]:
            slow, inputs = slow_of(model, processor, sample)
            logits = slow if backward == "slow" else model(**inputs).logits[0]
            logits.square().mean().backward()
        found[backward] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert found["fast"].keys() == found["slow"].keys()
    for name, gradient in found["slow"].items():
        torch.testing.assert_close(
            found["fast"][name], gradient, atol=1e-6, rtol=1e-3, msg=lambda m, n=name: f"{n} {m}"
        )


def test_samples_that_share_a_row_equal_each_alone(make, samples):
    (model, processor), items = make(), []
    for turns, images in samples:
        sample = Sample("", (*turns, Turn("gpt", "A red car.")), ("",) * len(images), "", ())
        rules = {"template": "qwen_1_5", "label_rule": "answers", "max_length": 1024}
        items.append(processor.encode_sample(sample, images, [], **rules))
    with torch.no_grad():
        row = model(**Collator(0, packing=True)(items), use_cache=False).logits[0]
        alone = torch.cat([model(**Collator(0)([item]), use_cache=False).logits[0] for item in items])
    torch.testing.assert_close(row, alone, atol=2e-5, rtol=1e-4)


def test_generation_with_a_cache_equals_the_slow_model(make, samples):
    model, processor = make()
    output = model.generate(**processor.encode_prompts(samples), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    for row, sample in enumerate(samples):
        inputs = processor.encode_prompts([sample])
        ids, answer = inputs["input_ids"][0].tolist(), output[row, -4:].tolist()
        with torch.no_grad():
            logits = slow_logits(model, ids + answer[:-1], inputs.get("pixel_values", ()))[-4:]
        logits[:, model.config.text_config.eos_token_id] = -torch.inf
        assert logits.argmax(-1).tolist() == answer


def test_pools_cross_rows_and_leave_out_what_is_behind_the_last():
    """As the released code's: means of tokens 0 to 7, 8 to 15, ...; of 27 x 27 tokens the last is in none."""
    state = torch.arange(729.0)[None, :, None]
    assert pooled(state, 8)[0, :, 0].tolist() == [8 * number + 3.5 for number in range(91)]
    assert StiConfig().extra_tokens(729) == 182


def test_a_data_set_counts_them_where_there_are_no_videos(make, make_image, tmp_path):
    """A start sizes its samples before it reads one, and asks for videos only where some are."""
    _, processor = make()
    make_image(100, 70).save(tmp_path / "a.png")
    turns = (Turn("human", "<image>\nWhat is it?"), Turn("gpt", "A car."))
    samples = [Sample("0", turns, ("a.png",), "", ()), Sample("1", turns, ("a.png",), "", ())]
    dataset = SupervisedDataset(samples, processor, image_folder=tmp_path)
    sizes = dataset.sizes(inspect_samples(samples, tmp_path))
    text = dataset.text_sizes()
    assert (sizes.tokens - text.tokens).tolist() == [20, 20]
    assert dataset[0]["input_ids"].count(processor.image_token_id) == 20


def test_it_is_saved_and_loads_strictly(make, samples, tmp_path):
    model, processor = make()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, info = LlavaOVManagerForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    assert loaded.config.fusion == StiConfig((1, 2), 8)
    inputs = LlavaOVManagerProcessor.from_pretrained(tmp_path).encode_prompts(samples)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**processor.encode_prompts(samples)).logits)


def test_layers_and_parameters_at_the_real_sizes():
    """The 8th and the 16th, and no parameters."""
    config = StiConfig().resolved(26, 24)
    assert config.vision_layers == (8, 16)
    assert config.tower_layers(26) == (26, 8, 16)
    assert sum(p.numel() for p in Sti(config, Sizes(26, 1152, 24, 896, 729)).parameters()) == 0


def test_tiles_and_videos_are_refused(make, make_config):
    with pytest.raises(LlavaError, match="adds tokens to a crop has no place on a map of tiles: tiling mode anyres"):
        make_config(GRID, StiConfig())
    model, _ = make()
    with pytest.raises(LlavaError, match="adds tokens to a crop takes no videos, whose frames are pooled"):
        model.get_video_features(torch.zeros(2, 3, TILE, TILE), torch.tensor([2]))


TRAINED = [(), ("projector",), tuple(PREFIXES)]


@pytest.mark.parametrize("trained", TRAINED, ids=lambda trained: "+".join(trained) or "forward")
def test_its_cost_is_what_torch_counts(make, trained):
    """Of one sample of one crop, 26 visual tokens."""
    model = make(3)[0].train()
    model.set_attn_implementation("eager")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(prefix for part in trained for prefix in PREFIXES[part])))
    ids = torch.tensor([[5, *[model.config.image_token_id] * 26, 6]])
    inputs = {"pixel_values": torch.randn(1, 3, TILE, TILE), "image_sizes": torch.tensor([[TILE, TILE]])}
    labels = torch.full_like(ids, -100)
    labels[0, -1] = 6
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(bool(trained)):
        loss = model(input_ids=ids, labels=labels, skip_logits=True, **inputs).loss
        if trained:
            loss.backward()
    cost = training_cost(model.config, trained)
    assert cost(1, 28, 1) + cost.token_pair * 28**2 == counter.get_total_flops()
    assert training_cost(model.config, ()) == forward_cost(model.config)
