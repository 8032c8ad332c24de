"""deepstack against the model written slowly, where its tiles go, its cost, and what is saved of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipVisionModel

from llava.anyres import TilingConfig, count_layouts, image_layout
from llava.data.collator import Collator
from llava.data.processor import LlavaOVManagerProcessor
from llava.data.schema import Sample, Turn
from llava.errors import LlavaError
from llava.fusion.config import Sizes
from llava.fusion.configs.deepstack import DeepstackConfig
from llava.fusion.deepstack import Deepstack, stack_grid
from llava.mllm import LlavaOVManagerForConditionalGeneration
from llava.mllm.cost import forward_cost, training_cost
from llava.mllm.parts import PREFIXES
from llava.prepare_data.preview import PreviewedImage, describe_image
from tests.conftest import GRID, PATCH, TILE
from tests.mllm.slow_model import shrink

SIDE = TILE // PATCH
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 112]]
ANYRES = TilingConfig.from_llava("anyres", "spatial_unpad", PINPOINTS, TILE)
NEWLINE = replace(ANYRES, newline_after_one_crop=True)
FLAT = TilingConfig.from_llava("anyres", "flat", PINPOINTS, TILE)


def slow_stacks(model, states: torch.Tensor, layout) -> list[dict[int, torch.Tensor]]:
    """Of one image's tiles (C - 1, T, width) the stacks, each by the number of the crop's token.

    One patch at a time: the tiles side by side, the padding cut off, as many columns and rows as whole crops have.
    """
    columns, rows = layout.grid
    top, left, height, width = layout.window
    project = model.model.multi_modal_projector
    picture = [
        [project(states[y // SIDE * columns + x // SIDE][y % SIDE * SIDE + x % SIDE]) for x in range(columns * SIDE)]
        for y in range(rows * SIDE)
    ]
    picture = [row[left : left + width] for row in picture[top : top + height]]
    columns, rows = stack_grid(columns, rows, model.config.fusion.max_stacks)
    picture = shrink(picture, rows * SIDE, columns * SIDE)
    return [
        {y * SIDE + x: picture[y * rows + i][x * columns + j] for y in range(SIDE) for x in range(SIDE)}
        for i in range(rows)
        for j in range(columns)
    ]


def slow_logits(model, ids: list[int], images) -> torch.Tensor:
    """Logits (L, V) of one sample. images: (crops, (width, height)) of each."""
    inner, config, fusion = model.model, model.config, model.config.fusion
    hidden = model.get_input_embeddings()(torch.tensor(ids)).clone()
    places = [place for place, token in enumerate(ids) if token == config.image_token_id]
    stacks = []  # of each image: the places of its tokens, and its stacks
    for crops, size in images:
        layout = image_layout(*size, config.tiling, tile=TILE, side=SIDE, several_images=len(images) > 1)
        state = SiglipVisionModel.forward(inner.vision_tower, crops, output_hidden_states=True).hidden_states[-1]
        of_image, places = places[: SIDE * SIDE], places[SIDE * SIDE :]
        for token, place in enumerate(of_image):
            hidden[place] = inner.multi_modal_projector(state[0, token])
        if config.tiling.newline_after_one_crop:
            hidden[places.pop(0)] = inner.image_newline()
        if layout.num_crops > 1:
            stacks.append((of_image, slow_stacks(model, state[1:], layout)))
    assert not places
    mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)[None, None]
    rotary = inner.language_model.rotary_emb(hidden[None], torch.arange(len(ids))[None])
    for index, layer in enumerate(inner.language_model.layers):
        hidden = hidden.clone()
        for of_image, of_layers in stacks:
            for number, stack in enumerate(of_layers):
                if index == fusion.start + number * fusion.interval:
                    for token, features in stack.items():
                        gate = 1 if inner.fusion.gates is None else inner.fusion.gates.weight[number]
                        hidden[of_image[token]] += gate * features
        hidden = layer(hidden[None], attention_mask=mask, position_embeddings=rotary)[0]
    return model.lm_head(inner.language_model.norm(hidden))


@pytest.fixture
def samples(make_image):
    """A large image, none, two small ones, and one of another shape."""
    return [
        ((Turn("human", "<image>\nWhat is in the picture?"),), [make_image(150, 97)]),
        ((Turn("human", "What is it?"),), []),
        ((Turn("human", "<image> <image>\nWhich?"),), [make_image(60, 40, 1), make_image(40, 90, 2)]),
        ((Turn("human", "<image>\nWhat is it?"),), [make_image(40, 90, 3)]),
    ]


@pytest.fixture
def make(make_model, make_processor):
    """A function: a configuration, and a tiling, to a model whose gates are drawn and its processor."""

    def make(config: DeepstackConfig, tiling: TilingConfig = ANYRES):
        model = make_model(tiling, config)
        if model.model.fusion.gates is not None:
            torch.nn.init.normal_(model.model.fusion.gates.weight)
        return model, make_processor(model.config.tiling)

    return make


def slow_of(model, processor, sample) -> tuple[torch.Tensor, dict]:
    """(slow logits, inputs) of a sample alone."""
    inputs = processor.encode_prompts([sample])
    return slow_logits(model, inputs["input_ids"][0].tolist(), crops_of(inputs)), inputs


def crops_of(inputs: dict) -> list[tuple[torch.Tensor, tuple[int, int]]]:
    """(crops, (width, height)) of each image of a sample alone: of one all, of several one each."""
    sizes = [(width, height) for height, width in inputs["image_sizes"].tolist()] if "image_sizes" in inputs else []
    several = [crop[None] for crop in inputs.get("pixel_values", ())]
    return list(zip([inputs["pixel_values"]] if len(sizes) == 1 else several, sizes))


CASES = {
    "max_9": (DeepstackConfig(), GRID),
    "anyres": (DeepstackConfig(), ANYRES),
    "flat": (DeepstackConfig(start=0, interval=2, max_stacks=2), FLAT),
    "newline": (
        DeepstackConfig(initialisation="zero"),
        NEWLINE,
    ),
    "square": (DeepstackConfig(), TilingConfig()),
}


@pytest.mark.parametrize(("config", "tiling"), CASES.values(), ids=CASES)
def test_a_left_padded_batch_equals_the_slow_model(make, samples, config, tiling):
    """The released code adds at the image's place in the prompt without padding and images: wrong in such a batch."""
    model, processor = make(config, tiling)
    with torch.no_grad():
        together = model(**processor.encode_prompts(samples)).logits
        for row, sample in enumerate(samples):
            expected, _ = slow_of(model, processor, sample)
            torch.testing.assert_close(together[row, -len(expected) :], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("initialisation", ["own", "zero"])
def test_gradients_equal_those_of_the_slow_model(make, samples, initialisation):
    (model, processor), found = make(DeepstackConfig(initialisation=initialisation), NEWLINE), {}
    for backward in ("fast", "slow"):
        model.zero_grad()
        for sample in (samples[0], samples[2]):
            slow, inputs = slow_of(model, processor, sample)
            logits = slow if backward == "slow" else model(**inputs).logits[0]
            logits.square().mean().backward()
        found[backward] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert sum("fusion.gates" in name for name in found["slow"]) == (initialisation == "zero")
    assert found["fast"].keys() == found["slow"].keys()
    for name, gradient in found["slow"].items():
        torch.testing.assert_close(
            found["fast"][name], gradient, atol=1e-6, rtol=1e-3, msg=lambda m, n=name: f"{n} {m}"
        )


def test_samples_that_share_a_row_equal_each_alone(make, samples):
    (model, processor), items = make(DeepstackConfig()), []
    for turns, images in samples:
        sample = Sample("", (*turns, Turn("gpt", "A red car.")), ("",) * len(images), "", ())
        rules = {"template": "qwen_1_5", "label_rule": "answers", "max_length": 1024}
        items.append(processor.encode_sample(sample, images, [], **rules))
    with torch.no_grad():
        row = model(**Collator(0, packing=True)(items), use_cache=False).logits[0]
        alone = torch.cat([model(**Collator(0)([item]), use_cache=False).logits[0] for item in items])
    torch.testing.assert_close(row, alone, atol=2e-5, rtol=1e-4)


def test_generation_with_a_cache_equals_the_slow_model(make, samples):
    model, processor = make(DeepstackConfig())
    output = model.generate(**processor.encode_prompts(samples), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    for row, sample in enumerate(samples):
        inputs = processor.encode_prompts([sample])
        ids, answer = inputs["input_ids"][0].tolist(), output[row, -4:].tolist()
        with torch.no_grad():
            logits = slow_logits(model, ids + answer[:-1], crops_of(inputs))[-4:]
        logits[:, model.config.text_config.eos_token_id] = -torch.inf
        assert logits.argmax(-1).tolist() == answer


def test_a_token_receives_the_patches_that_show_what_it_shows(make_model, make_image):
    """Of an image that fills 3 x 2 tiles, stack 0 is every 3rd column and 2nd row of the tiles, beginning at once."""
    model = make_model(ANYRES, DeepstackConfig(max_stacks=6, start=0))
    visual = torch.arange(7 * 16).float()[:, None].expand(-1, 24).reshape(7, 16, 24)  # patch t of crop c: 16 c + t
    layout = image_layout(168, 112, model.config.tiling, tile=TILE, side=SIDE, several_images=False)
    stacks = model.model.fusion._stacks(visual, layout)
    assert layout.grid == (3, 2)
    assert len(stacks) == 6
    # Row 0 of the map: columns 0, 3, 6, 9, which are patches 0 and 3 of crop 1, 2 of crop 2, 1 of crop 3.
    assert stacks[0][:4, 0].tolist() == [16, 16 + 3, 32 + 2, 48 + 1]
    # Stack 5 is row 1, column 2: token 5, at row 1 and column 1, has row 3 and column 5: patch 13 of crop 2.
    assert stacks[5][5, 0] == 32 + 13
    every = torch.stack(stacks)[..., 0].flatten().sort().values
    assert every.tolist() == list(range(16, 7 * 16))


def test_padding_reaches_no_token(make_model):
    """A flat image in a square of tiles: what the tiles' padding becomes has no influence."""
    model = make_model(TilingConfig.from_llava("anyres", "flat", [[112, 112]], TILE), DeepstackConfig())
    layout = image_layout(112, 56, model.config.tiling, tile=TILE, side=SIDE, several_images=False)
    assert layout.window == (2, 0, 4, 8)
    visual = torch.ones(5, 16, 24)
    visual[1:3, :8] = visual[3:, 8:] = 100.0  # the first two rows of patches of the map, and the last two
    stacks = model.model.fusion._stacks(visual, layout)
    assert [(stack == 1).all().item() for stack in stacks] == [True] * 4 + [False]
    assert (stacks[4] == 0).all()


@pytest.mark.parametrize(
    ("grid", "most", "stacks"),
    [
        ((2, 2), 4, (2, 2)),
        ((2, 3), 9, (2, 3)),
        ((6, 6), 9, (3, 3)),
        ((6, 2), 9, (4, 2)),
        ((1, 6), 5, (1, 5)),
        ((6, 6), 1, (1, 1)),
    ],
)
def test_a_grid_of_more_tiles_than_stacks_is_shrunk(grid, most, stacks):
    assert stack_grid(*grid, most) == stacks


def test_an_image_so_long_that_unpadding_leaves_nothing_has_no_stack(make):
    model, _ = make(DeepstackConfig())
    layout = image_layout(4000, 2, model.config.tiling, tile=TILE, side=SIDE, several_images=False)
    assert layout.num_crops > 1
    assert 0 in layout.window[2:]
    assert all((stack == 0).all() for stack in model.model.fusion._stacks(torch.ones(layout.num_crops, 16, 24), layout))


def test_at_zero_it_is_the_model_that_sees_one_crop(make_model, make_processor, samples):
    """Bit for bit behind the tower; in whole as far as the tower's products of more crops round alike."""
    stacked, square = make_model(ANYRES, DeepstackConfig(initialisation="zero")), make_model(TilingConfig(), None)
    square.load_state_dict(stacked.state_dict(), strict=False)
    assert (stacked.model.fusion.gates.weight == 0).all()
    for sample in (samples[0], samples[3]):
        inputs = make_processor(stacked.config.tiling).encode_prompts([sample])
        alone = make_processor(TilingConfig()).encode_prompts([sample])
        assert torch.equal(inputs["input_ids"], alone["input_ids"])
        with torch.no_grad():
            features = stacked.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
            logits = stacked(inputs["input_ids"], mm_encoder_outputs={"image": features}).logits
            features.deepstack_features = None
            assert torch.equal(square(inputs["input_ids"], mm_encoder_outputs={"image": features}).logits, logits)
            torch.testing.assert_close(square(**alone).logits, logits)


def test_the_first_crop_alone_has_places(make_processor, make_model, make_image, tmp_path):
    """Also of the processor that is saved with the model, and where many images are counted at once."""
    model = make_model(GRID, DeepstackConfig())
    make_processor(model.config.tiling).save_pretrained(tmp_path)
    processor = LlavaOVManagerProcessor.from_pretrained(tmp_path)
    assert processor.image_processor.tiling == model.config.tiling
    inputs = processor.encode_prompts([((Turn("human", "<image>\nWhat?"),), [make_image(300, 200)])])
    assert len(inputs["pixel_values"]) > 10
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 16
    rng = np.random.default_rng(0)
    sizes, several = rng.integers(1, 500, (50, 2)), rng.integers(0, 2, 50).astype(bool)
    crops, tokens = count_layouts(sizes, several, model.config.tiling, tile=TILE, side=SIDE)
    layouts = [processor.image_processor.layout(tuple(size), more) for size, more in zip(sizes.tolist(), several)]
    assert crops.tolist() == [layout.num_crops for layout in layouts]
    assert tokens.tolist() == [layout.num_tokens for layout in layouts] == [16] * 50


def test_a_preview_says_where_the_tiles_go(make, make_image):
    _, processor = make(DeepstackConfig())
    layout = processor.image_processor.layout((112, 56), False)
    crops = processor.image_processor.crops(make_image(112, 56), False)
    assert describe_image(PreviewedImage("a.png", (112, 56), layout, 0, crops.transpose(0, 2, 3, 1), SIDE), 1) == [
        "image 1: a.png, 112 x 56 pixels, 16 tokens",
        "  crop 0, the whole image: 16",
        "  crops 1 to 2, 1 x 2 tiles: 4 x 8 patches, kept 4 x 8",
        "    patches kept in crops 1 to 2: 16 16",
        "    none in the sequence: the model's fusion takes them in by another way",
    ]


def test_videos_are_as_without(make, make_model):
    model, _ = make(DeepstackConfig())
    plain = make_model(ANYRES, None)
    frames, ids = torch.randn(2, 3, TILE, TILE), torch.tensor([[5, *[model.config.video_token_id] * 9, 6]])
    with torch.no_grad():
        given = {"pixel_values_videos": frames, "video_num_frames": torch.tensor([2])}
        assert torch.equal(model(ids, **given).logits, plain(ids, **given).logits)


def test_it_is_saved_and_loads_strictly(make, samples, tmp_path):
    model, processor = make(DeepstackConfig(initialisation="zero"))
    model.save_pretrained(tmp_path)
    loaded, info = LlavaOVManagerForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    assert loaded.config.fusion == DeepstackConfig(1, 1, 5, "zero")
    assert loaded.config.tiling.in_sequence == "main"
    inputs = processor.encode_prompts(samples)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_layers_and_parameters_at_the_real_sizes():
    """No parameters; gates that start at zero have one vector of the width 896 for each of 9 stacks."""
    sizes = Sizes(26, 1152, 24, 896, 729)
    config = DeepstackConfig().resolved(26, 24)
    assert config.injection_layers == (1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert sum(parameter.numel() for parameter in Deepstack(config, sizes).parameters()) == 0
    gated = Deepstack(DeepstackConfig(initialisation="zero").resolved(26, 24), sizes)
    assert sum(parameter.numel() for parameter in gated.parameters()) == 9 * 896 == 8064
    assert (gated.gates.weight == 0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"max_stacks": 24},
            r"max_stacks must be from 1 to 23, found 24: of 24 layers these are those from 1 on, every 1",
        ),
        ({"start": 20, "interval": 2, "max_stacks": 4}, r"max_stacks must be from 1 to 2, found 4: of 24 layers"),
        ({"start": 24}, r"max_stacks must be from 1 to 0, found 1"),
        ({"start": -1}, r"deepstack start must be at least 0 and interval at least 1, found -1 and 1"),
    ],
)
def test_stacks_that_no_layer_is_left_for_are_refused(fields, message):
    """The released code drops them."""
    with pytest.raises(LlavaError, match=message):
        DeepstackConfig(**fields).resolved(26, 24)


TRAINED = [(), ("fusion",), ("projector", "fusion"), tuple(PREFIXES)]


@pytest.mark.parametrize("trained", TRAINED, ids=lambda trained: "+".join(trained) or "forward")
def test_its_cost_is_what_torch_counts(make_model, make_image, make_processor, trained):
    """Of one sample of five crops and 16 visual tokens."""
    model = make_model(ANYRES, DeepstackConfig(initialisation="zero", start=2)).train()
    model.set_attn_implementation("eager")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(prefix for part in trained for prefix in PREFIXES[part])))
    inputs = make_processor(model.config.tiling).image_processor([make_image(112, 112)])
    assert len(inputs["pixel_values"]) == 5
    ids = torch.tensor([[5, *[model.config.image_token_id] * 16, 6]])
    labels = torch.full_like(ids, -100)
    labels[0, -1] = 6
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(bool(trained)):
        loss = model(input_ids=ids, labels=labels, skip_logits=True, **inputs).loss
        if trained:
            loss.backward()
    cost = training_cost(model.config, trained)
    assert cost(5, 18, 1) + cost.token_pair * 18**2 == counter.get_total_flops()
    assert training_cost(model.config, ()) == forward_cost(model.config)
