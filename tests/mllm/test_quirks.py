"""Faults of the released code that are not copied: for each, the behaviour as it should be.

The numbers are those of tests/golden/data/QUIRKS.md, where F marks a fault to fix. What the model does with a batch is
compared with the slow model, one sample at a time.
"""

import re
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import SiglipVisionModel

from llava.anyres import TilingConfig
from llava.convert.from_released import fusion_from_released
from llava.data.collator import Collator
from llava.data.schema import Sample, Turn
from llava.errors import DataError, LlavaError
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.managers import AdaptiveManager, StaticManager
from tests.conftest import GRID, QUERIES, SCOPES
from tests.mllm.slow_model import slow_logits
from tests.paths import GOLDEN_DIR

SQUARE = TilingConfig()
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
ANYRES = TilingConfig.from_llava("anyres", "spatial_unpad", PINPOINTS, 56)
SPATIAL = TilingConfig.from_llava("anyres", "spatial", PINPOINTS, 56)


def test_every_quirk_that_is_to_be_fixed_has_a_test():
    lines = (GOLDEN_DIR / "QUIRKS.md").read_text().splitlines()
    to_fix = {int(match[1]) for line in lines if (match := re.match(r"(\d+)\. F\b", line))}
    tested = {int(match[1]) for name in globals() if (match := re.match(r"test_quirk_(\d+)", name))}
    assert to_fix == {21, 22, 24, 25, 26, 27, 28, 29, 30, 34}
    assert to_fix <= tested
    of_26 = {match[1] for name in globals() if (match := re.match(r"test_quirk_26(\w)_", name))}
    assert of_26 == {"a", "b", "c"}


@pytest.fixture(scope="module")
def build(make_model, make_processor):
    """A function: tiling and fields of the managers (scope, query, ...) to a model without zeros, and its processor."""

    def make(tiling: TilingConfig = GRID, **fields):
        model = make_model(tiling, ManagerConfig(interval=2, **fields))
        for manager in model.model.fusion.managers:
            if isinstance(manager, AdaptiveManager):
                torch.nn.init.normal_(manager.gate)
                torch.nn.init.normal_(manager.controller.weight, std=0.3)
        return model, make_processor(tiling)

    return make


@pytest.fixture(scope="module")
def ask(make_image):
    """A function: sizes of images (none for a question without) to a dialogue."""

    def make(*sizes: tuple[int, int], text: str = "What is in the picture?"):
        images = [make_image(*size, seed) for seed, size in enumerate(sizes)]
        return (Turn("human", " ".join(["<image>"] * len(sizes)) + "\n" * bool(sizes) + text),), images, []

    return make


def one_by_one(model, processor, dialogues) -> list[torch.Tensor]:
    """Logits (L, V) of each dialogue by the slow model."""
    logits = []
    for dialogue in dialogues:
        inputs = processor.encode_prompts([dialogue])
        ids = inputs["input_ids"][0].tolist()
        with torch.no_grad():
            logits.append(slow_logits(model, ids, images_of(model, inputs), [text_of_last_turn(model, ids)] * 9))
    return logits


def images_of(model, inputs) -> list:
    """(crops, (width, height)) of each image of a batch of one."""
    if "pixel_values" not in inputs:
        return []
    sizes, pixels = [(width, height) for height, width in inputs["image_sizes"].tolist()], inputs["pixel_values"]
    pixels = pixels / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels
    if len(sizes) == 1:
        return [(pixels, sizes[0])]
    return [(crop[None], size) for crop, size in zip(pixels, sizes)]


def text_of_last_turn(model, ids: list[int]) -> list[int]:
    """Positions of the text of the last user turn, which holds the images: from the role's newline to <|im_end|>."""
    config = model.config
    ends = [place for place, token in enumerate(ids) if token == config.turn_end_token_id]
    starts = [place for place, token in enumerate(ids[: ends[-1]]) if token == config.turn_start_token_id]
    begin = ids.index(config.newline_token_id, starts[-1]) + 1
    return [place for place in range(begin, ends[-1]) if ids[place] != config.image_token_id]


def assert_batch_equals_one_by_one(model, processor, dialogues) -> None:
    inputs = processor.encode_prompts(dialogues)
    with torch.no_grad():
        together = model(**inputs).logits
    for row, alone in enumerate(one_by_one(model, processor, dialogues)):
        torch.testing.assert_close(together[row, -len(alone) :], alone, atol=1e-4, rtol=1e-4)


def test_quirk_21_every_kind_of_model_can_be_imported_and_built(build):
    imported = subprocess.run(
        [sys.executable, "-c", "from llava.fusion.managers import AdaptiveManager, StaticManager; import llava.mllm"],
        capture_output=True,
        check=False,
    )
    assert imported.returncode == 0, imported.stderr
    for query in (None, *QUERIES):
        first, *others = build(query=query)[0].model.fusion.managers
        assert isinstance(first, StaticManager)
        assert {type(manager) for manager in others} == {StaticManager if query is None else AdaptiveManager}


@pytest.mark.parametrize("query", QUERIES)
def test_quirk_22_left_padding_asks_with_the_right_tokens(build, ask, query):
    model, processor = build(query=query)
    dialogues = [ask((150, 97)), ask((56, 56), text="A red car?"), ask(text="Hi")]
    assert_batch_equals_one_by_one(model, processor, dialogues)
    if query == "self":
        return
    # The comparison would notice: a question shifted by the padding gives other logits.
    inputs = processor.encode_prompts(dialogues[1:2])
    ids, images = inputs["input_ids"][0].tolist(), images_of(model, inputs)
    asked = text_of_last_turn(model, ids)
    right, shifted = (slow_logits(model, ids, images, [[p - by for p in asked]]) for by in (0, 3))
    assert (right - shifted).abs().max() > 1e-2


def test_quirk_24_a_batch_may_be_of_any_size(build, ask):
    model, processor = build()
    assert_batch_equals_one_by_one(model, processor, [ask((60 + 20 * index, 50)) for index in range(5)])


def test_quirk_25_beams_of_samples_with_several_images(build, ask):
    """The beams' scores are those of their tokens under the slow model."""
    model, processor = build()
    dialogues = [ask((60, 40), (40, 90)), ask((56, 56), (80, 30), (30, 30), text="A car?"), ask((150, 97))]
    inputs = processor.encode_prompts(dialogues)
    found = model.generate(
        **inputs,
        num_beams=3,
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    forbidden = model.generation_config.eos_token_id
    for row, dialogue in enumerate(dialogues):
        alone = processor.encode_prompts([dialogue])
        prompt, answer = alone["input_ids"][0].tolist(), found.sequences[row, -4:].tolist()
        with torch.no_grad():
            logits = slow_logits(model, prompt + answer, images_of(model, alone))[len(prompt) - 1 : -1]
        chosen = logits.log_softmax(-1)[range(4), answer]
        assert forbidden not in answer
        torch.testing.assert_close(found.sequences_scores[row], chosen.sum() / 4, atol=1e-4, rtol=1e-4)


def test_quirk_26a_scope_grid_leaves_an_image_of_one_crop_alone(build, ask, make_model):
    for tiling in (SQUARE, ANYRES):
        model, processor = build(tiling, scope="grid")
        baseline = make_model(tiling, fusion=None)
        baseline.load_state_dict({name: weight for name, weight in model.state_dict().items() if "fusion" not in name})
        dialogue = ask((60, 40), (40, 90)) if tiling is ANYRES else ask((60, 40))
        inputs = processor.encode_prompts([dialogue, ask()])
        assert torch.equal(model(**inputs).logits, baseline(**inputs).logits)
        assert_batch_equals_one_by_one(model, processor, [dialogue, ask()])


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("query", [None, "last"])
def test_quirk_26b_truncation_never_cuts_a_grid(build, ask, scope, query):
    """It drops the turn of the image, or makes the image smaller; a batch cut by hand is refused with both numbers."""
    model, processor = build(scope=scope, query=query)
    (turn,), images, _ = ask((336, 336))
    turns = (Turn("human", "Hi"), Turn("gpt", "Yes."), turn, Turn("gpt", "A red car."))
    sample = Sample("1", turns, ("a.png",), "memory")
    settings = {"template": "qwen_1_5", "label_rule": "answers"}
    whole = processor.encode_sample(sample, images, max_length=1000, **settings)
    begin = whole["input_ids"].index(model.config.image_token_id)
    with pytest.raises(DataError, match=f"found {len(whole['input_ids'])} tokens but max_length is {begin + 40}"):
        processor.encode_sample(sample, images, max_length=begin + 40, **settings)
    kept = {}
    for way in ("truncate", "shrink_images"):
        cut = processor.encode_sample(sample, images, max_length=begin + 60, on_over_long=way, **settings)
        assert len(cut["input_ids"]) <= begin + 60
        kept[way] = cut["num_images"]
        assert_sample_equals_slow(model, processor, cut)
    assert kept == {"truncate": 0, "shrink_images": 1}
    batch = Collator(processor.tokenizer.pad_token_id)([whole])
    length, tokens = batch["input_ids"].shape[1], whole["input_ids"].count(model.config.image_token_id)
    batch |= {"input_ids": batch["input_ids"][:, : begin + 40], "labels": None}
    with pytest.raises(LlavaError, match=rf"sequence_lengths \[{length}\] do not fit 1 row of {begin + 40} tokens"):
        model(**batch)
    with pytest.raises(LlavaError, match=f"found 40 image tokens but {tokens} features"):
        model(**{**batch, "sequence_lengths": None, "visual_positions": None})


def assert_sample_equals_slow(model, processor, encoded: dict) -> None:
    ids = encoded["input_ids"]
    batch = {name: encoded[name] for name in ("pixel_values", "image_sizes") if name in encoded}
    batch |= {"input_ids": torch.tensor([ids]), "batch_num_images": torch.tensor([encoded["num_images"]])}
    asked = text_of_last_question(model, ids)
    with torch.no_grad():
        found = model(**batch).logits[0]
        expected = slow_logits(model, ids, images_of(model, batch), [asked] * encoded["num_images"])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def text_of_last_question(model, ids: list[int]) -> list[int]:
    """As text_of_last_turn, where the assistant's answer follows, perhaps cut off."""
    starts = [place for place, token in enumerate(ids) if token == model.config.turn_start_token_id]
    return text_of_last_turn(model, ids[: starts[-1]])


@pytest.mark.parametrize("query", [None, *QUERIES])
def test_quirk_26c_grids_of_fewer_tokens_than_a_crop_beside_text(build, ask, query):
    model, processor = build(scope="grid", query=query)
    dialogues = [ask((50, 20)), ask(text="Hi"), ask((600, 20)), ask((150, 97))]
    counts = [processor.image_processor.layout(dialogue[1][0].size, False).num_tokens for dialogue in dialogues[::2]]
    assert 16 < counts[0] < 16 + 16
    assert counts[1] == 16  # no row is left of the grid
    assert_batch_equals_one_by_one(model, processor, dialogues)


@pytest.mark.parametrize("grid_type", [None, *SCOPES])
def test_quirk_27_a_grid_type_of_none_manages_everything(make_model, make_processor, ask, grid_type):
    config = {
        "mm_manager_type": "static_zerouni",
        "mm_manager_grid_type": grid_type,
        "mm_manager_select_layer_index_list": [2, 3, 4],
        "mm_manager_index_list": [0, 2, 4],
    }
    managers = fusion_from_released(config)
    assert managers.scope == (grid_type or "all")
    model, processor = make_model(ANYRES, managers), make_processor(ANYRES)
    assert_batch_equals_one_by_one(model, processor, [ask((100, 70)), ask((40, 200), text="A car?")])


@pytest.mark.parametrize("query", [None, *QUERIES])
@pytest.mark.parametrize("scope", SCOPES)
def test_quirk_28_managers_on_tiles_that_are_joined_but_not_unpadded(build, ask, scope, query):
    model, processor = build(SPATIAL, scope=scope, query=query)
    assert_batch_equals_one_by_one(model, processor, [ask((100, 70)), ask((40, 200)), ask((60, 40), (40, 90))])


def test_quirk_29_truncation_before_the_image(build, ask):
    model, processor = build()
    (turn,), images, _ = ask((150, 97))
    turns = (Turn("human", "Hi"), Turn("gpt", "0123456789"), turn, Turn("gpt", "A red car."))
    sample = Sample("1", turns, ("a.png",), "memory")
    settings = {"template": "qwen_1_5", "label_rule": "answers", "on_over_long": "truncate"}
    begin = processor.encode_sample(sample, images, max_length=1000, **settings)["input_ids"].index(
        model.config.image_token_id
    )
    for max_length in (begin - 5, begin, begin + 1):
        cut = processor.encode_sample(sample, images, max_length=max_length, **settings)
        assert (cut["num_images"], model.config.image_token_id in cut["input_ids"]) == (0, False)
        assert_sample_equals_slow(model, processor, cut)


@pytest.mark.parametrize("query", [None, *QUERIES])
@pytest.mark.parametrize("scope", SCOPES)
def test_quirk_30_several_images_beside_tiled_ones(build, ask, scope, query):
    model, processor = build(scope=scope, query=query)
    dialogues = [ask((150, 97)), ask((60, 40), (40, 90), (56, 56)), ask(text="Hi"), ask((300, 30), text="01?")]
    assert_batch_equals_one_by_one(model, processor, dialogues)


@pytest.mark.parametrize("query", QUERIES)
def test_quirk_30_adaptive_managers_and_several_images_in_bfloat16(build, ask, query):
    model, processor = build(query=query)
    inputs = processor.encode_prompts([ask((60, 40), (40, 90)), ask((150, 97))])
    expected = model(**inputs).logits
    found = model.to(torch.bfloat16)(**inputs).logits
    model.to(torch.float32)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().mean() < 0.05 * expected.abs().mean()


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: values read back and indices found."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")
        self.count += (
            function.name() == "aten::index.Tensor" and args[1][0] is not None and args[1][0].dtype == torch.bool
        )
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("query", [None, "self", "cross"])
def test_quirk_34_the_host_waits_as_often_for_one_image_as_for_many(
    make_model, make_processor, ask, query, monkeypatch
):
    tolist, lists = torch.Tensor.tolist, []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: lists.append(1) or tolist(tensor))
    waits = []
    for dialogues, layers in (
        ([ask((60, 40)), ask()], [0, 1]),
        ([ask((150, 97)), ask((56, 56), (40, 90)), ask()], range(6)),
    ):
        model = make_model(fusion=ManagerConfig((3, 4), tuple(layers), query=query))
        inputs = make_processor().encode_prompts(dialogues)
        lists.clear()
        with torch.no_grad(), Waits() as mode:
            model(**inputs)
        waits.append(mode.count + len(lists))
    assert waits[0] == waits[1] <= 8


def test_quirk_34_the_tower_takes_a_list_and_keeps_and_runs_only_what_is_asked_for(build):
    tower = build()[0].model.vision_tower
    ran = []
    hooks = [
        layer.register_forward_hook(lambda module, args, output, index=index: ran.append(index))
        for index, layer in enumerate([*tower.encoder.layers, tower.post_layernorm], start=1)
    ]
    crops = torch.randn(2, 3, 56, 56)
    states = tower(crops, [3, 1])
    for hook in hooks:
        hook.remove()
    assert ran == [1, 2, 3]
    expected = SiglipVisionModel.forward(tower, crops, output_hidden_states=True).hidden_states
    assert len(states) == 2
    for found, index in zip(states, (3, 1)):
        torch.testing.assert_close(found, expected[index])


@pytest.mark.parametrize("size", [42, 70])
def test_quirk_34_no_number_of_tokens_is_built_in(make_config, tiny_tokenizer, size):
    from llava.mllm import LlavaOVManagerForConditionalGeneration

    config = make_config(SQUARE)
    config.vision_config.image_size = size
    model = LlavaOVManagerForConditionalGeneration(config)
    features = model.get_image_features(torch.randn(1, 3, size, size), torch.tensor([[9, 9]]))
    assert len(features.pooler_output[0]) == (size // 14) ** 2


@pytest.mark.parametrize("query", [None, *QUERIES])
@pytest.mark.parametrize("scope", SCOPES)
def test_reproduced_15_an_image_that_loses_all_rows_of_its_grid(build, ask, scope, query):
    model, processor = build(scope=scope, query=query)
    dialogues = [ask((600, 20)), ask((20, 700), text="A car?")]
    layouts = [processor.image_processor.layout(dialogue[1][0].size, False) for dialogue in dialogues]
    assert [(layout.num_crops > 1, layout.rows * layout.columns) for layout in layouts] == [(True, 0)] * 2
    assert_batch_equals_one_by_one(model, processor, dialogues)


@pytest.mark.parametrize("query", [None, "average"])
def test_reproduced_16_a_map_that_is_shrunk_to_its_budget(build, ask, query):
    model, processor = build(query=query)
    layout = processor.image_processor.layout((336, 336), False)
    assert layout.shrunk
    assert_batch_equals_one_by_one(model, processor, [ask((336, 336))])


def test_note_31_the_given_embeddings_stay_as_they_are(build, ask):
    model, processor = build()
    inputs = processor.encode_prompts([ask((150, 97))])
    given = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: given.append((kwargs["inputs_embeds"], kwargs["inputs_embeds"].clone())),
        with_kwargs=True,
    )
    model(**inputs)
    assert all(torch.equal(embeddings, before) for embeddings, before in given)
    assert given


def test_note_33_a_frozen_language_model_leaves_the_other_gradients_as_they_are(build, ask):
    model, processor = build(jitter="none")
    inputs = processor.encode_prompts([ask((150, 97)), ask()])
    gradients = []
    for trained in (True, False):
        model.zero_grad()
        model.model.language_model.requires_grad_(trained)
        model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
        parts = (model.model.multi_modal_projector, model.model.fusion)
        gradients.append([parameter.grad.clone() for part in parts for parameter in part.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))
