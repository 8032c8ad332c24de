"""Managers from a recipe: any selection of layers, adaptive ones, and the token ids by which they find a question."""

from itertools import product

import pytest
import torch
from transformers import AutoTokenizer

from llava.data.schema import Turn
from llava.errors import LlavaError
from llava.mllm.questions import questions_of_batch, sequences_of_batch
from llava.train.estimate.plan import dry_run
from llava.train.loop.components import component_rows, freeze
from llava.train.loop.optimizer import create_adamw
from llava.train.mllm.build import build, config_from_sizes
from llava.train.mllm.components import split_components
from tests.conftest import QUERIES

TOP = list(range(14, 27))
EVERY_FOURTH = [0, 4, 8, 12, 16, 20]


def managers_of(tiny_recipe, **changes):
    """The managers of a recipe with these keys, at the real sizes: 26 layers of the tower, 24 of the language model."""
    keys = {"fusion.interval": 4, **{f"fusion.{key}": value for key, value in changes.items()}}
    return config_from_sizes(tiny_recipe("1", **keys)).fusion


@pytest.mark.parametrize(
    ("changes", "vision_layers", "injection_layers"),
    [
        ({}, TOP, EVERY_FOURTH),
        # Figure 10: the bottom half, all, interleaved.
        ({"vision_start": 1, "vision_end": 14}, list(range(1, 14)), EVERY_FOURTH),
        ({"vision_start": 1}, list(range(1, 27)), EVERY_FOURTH),
        ({"vision_start": 2, "vision_interval": 2}, list(range(2, 27, 2)), EVERY_FOURTH),
        ({"vision_start": 0, "vision_interval": 13}, [0, 13, 26], EVERY_FOURTH),
        ({"vision_start": -3}, [24, 25, 26], EVERY_FOURTH),
        ({"vision_end": -11}, [14, 15], EVERY_FOURTH),
        ({"layer_set": "released", "vision_start": 1}, list(range(1, 26)), EVERY_FOURTH),
        ({"vision_layers": [3, -2, -1]}, [3, 25, 26], EVERY_FOURTH),
        ({"vision_layers": "[3, -1]", "injection_layers": [1, -1]}, [3, 26], [1, 23]),
        ({"injection_start": 12}, TOP, [12, 16, 20]),
        ({"injection_start": -6, "injection_end": -1, "interval": 2}, TOP, [18, 20, 22]),
        ({"injection_end": 1}, TOP, [0]),
    ],
)
def test_any_selection_of_layers(tiny_recipe, changes, vision_layers, injection_layers):
    managers = managers_of(tiny_recipe, **changes)
    assert list(managers.vision_layers) == vision_layers
    assert list(managers.injection_layers) == injection_layers
    omits = changes.get("layer_set") == "released"
    expected = [len(vision_layers) - (omits and layer == 0) for layer in injection_layers]
    assert [managers.num_maps(layer) for layer in injection_layers] == expected


@pytest.mark.parametrize("interval", range(1, 25))
def test_every_interval_of_figure_11(tiny_recipe, interval):
    assert managers_of(tiny_recipe, interval=interval).injection_layers == tuple(range(0, 24, interval))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_start": 27}, "manager vision_start 27 does not exist: the model has 27, from 0 to 26"),
        ({"vision_end": 28}, "manager vision_end 28 is out of reach: the model has 27"),
        ({"vision_end": 14}, "vision_start 14 and vision_end 14 leave none of 27 layers: 14 >= 14"),
        ({"injection_start": 9, "injection_end": -20}, "leave none of 24 layers: 9 >= 4"),
        ({"injection_layers": [0, 24]}, r"injection_layers \[24\] do not exist: the model has 24, from 0 to 23"),
        ({"injection_layers": [0, -24]}, r"injection_layers \[0, -24\] must name none twice"),
        ({"injection_layers": []}, "must name at least one layer"),
        ({"vision_layers": [20, 3]}, r"vision_layers \[20, 3\] must ascend"),
    ],
)
def test_a_selection_that_cannot_be_is_named(tiny_recipe, changes, message):
    with pytest.raises(LlavaError, match=message):
        managers_of(tiny_recipe, **changes)


@pytest.mark.parametrize(("query", "question"), list(product((*QUERIES, "none"), ("turn", "released"))))
def test_query_and_question_reach_the_configuration(tiny_recipe, query, question):
    managers = managers_of(tiny_recipe, query=query, question=question)
    assert managers.query == (None if query == "none" else query)
    assert managers.question == question


@pytest.mark.parametrize("query", QUERIES)
def test_adaptive_parameters_belong_to_the_managers_and_move(tiny_recipe, make_image, query):
    recipe = tiny_recipe("1", **{"fusion.query": query})
    torch.manual_seed(0)
    model, processor = build(recipe)
    components = split_components(model, recipe)
    freeze(components)
    optimizer = create_adamw(components, recipe.lr_groups)
    rows = {row["component"]: row for row in component_rows(components)}
    assert rows["fusion"]["trainable"] == sum(parameter.numel() for parameter in model.model.fusion.parameters())
    names = {name for name, _ in model.model.fusion.named_parameters()}
    assert {"managers.1.gate", "managers.1.controller.weight"} <= names
    assert ("managers.1.query_proj.weight" in names) == (query == "cross")

    dialogue = ((Turn("human", "<image>\nWhat is in the picture?"),), [make_image()])
    inputs = processor.encode_prompts([dialogue])
    before = {name: parameter.clone() for name, parameter in model.model.fusion.named_parameters()}
    for _ in range(2):  # in the first step the gates are zero, and what stands behind them has no gradient
        model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.model.fusion.named_parameters():
        # A bias of keys shifts all similarities alike; its gradient is rounding noise.
        if "key_proj.bias" not in name:
            assert not torch.equal(parameter, before[name]), name


def asked_text(model, processor, dialogue) -> str:
    """What the model takes for the question about the first image."""
    inputs = processor.encode_prompts([dialogue])
    positions = (inputs["input_ids"].flatten() == model.config.image_token_id).nonzero()[:, 0]
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    asked = questions_of_batch(
        ids,
        sequences_of_batch(ids, mask, None, None),
        positions,
        [len(positions)],
        model.config.fusion.question,
        model.config,
    )
    return processor.tokenizer.decode(ids.flatten()[asked[0]])


def test_a_new_model_finds_the_question_by_its_tokenizer(start_folders, tiny_recipe, make_image):
    model, processor = build(tiny_recipe("1", **{"fusion.query": "last"}))
    tokenizer = AutoTokenizer.from_pretrained(start_folders / "qwen2")
    found = [getattr(model.config, f"{name}_token_id") for name in ("turn_start", "turn_end", "newline")]
    assert tokenizer.convert_ids_to_tokens(found) == ["<|im_start|>", "<|im_end|>", "\u010a"]
    dialogue = ((Turn("human", "Hi"), Turn("gpt", "Yes?"), Turn("human", "<image>\nA red car?")), [make_image()])
    assert asked_text(model, processor, dialogue) == "\nA red car?"


def test_a_later_stage_finds_the_question_by_the_tokenizer_of_its_start(
    make_model, make_processor, make_image, tiny_recipe, tmp_path
):
    """Also where the start's configuration, made for managers without question, has Qwen2's ids."""
    start = make_model(fusion=None)
    start.config.turn_start_token_id, start.config.turn_end_token_id, start.config.newline_token_id = (
        151644,
        151645,
        198,
    )
    start.save_pretrained(tmp_path / "start")
    make_processor().save_pretrained(tmp_path / "start")
    changes = {"model.start_from": f"{tmp_path}/start", "fusion.query": "cross"}
    model, processor = build(tiny_recipe("2", **changes))
    assert asked_text(model, processor, ((Turn("human", "<image>\nA car?"),), [make_image()])) == "\nA car?"


def test_a_language_model_without_turns_is_refused(start_folders, tiny_recipe, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(start_folders / "qwen2")
    tokenizer.split_special_tokens = True
    monkeypatch.setattr("llava.train.mllm.build.AutoTokenizer.from_pretrained", lambda folder: tokenizer)
    with pytest.raises(LlavaError, match=r"tokens of '<\|im_start\|>', not 1"):
        build(tiny_recipe("1"))


@pytest.mark.parametrize(
    ("start", "asked", "message"),
    [
        ({}, {"query": "last"}, "has fusion manager of query None, the recipe asks for last"),
        ({"query": "last"}, {}, "has fusion manager of query last, the recipe asks for None"),
        ({"query": "last"}, {"query": "average"}, "has fusion manager of query last, the recipe asks for average"),
        (
            {"query": "last", "question": "released"},
            {"query": "last"},
            "has fusion manager of question released, the recipe asks for turn",
        ),
        ({"vision_start": 1}, {}, r"has fusion manager of vision_layers \(1, 2, 3, 4\), the recipe asks for \(3, 4\)"),
        (
            {"injection_start": 2},
            {},
            r"has fusion manager of injection_layers \(2, 4\), the recipe asks for \(0, 2, 4\)",
        ),
    ],
)
def test_a_start_with_other_managers_is_refused(tiny_recipe, tmp_path, start, asked, message):
    model, processor = build(tiny_recipe("1", **{f"fusion.{key}": value for key, value in start.items()}))
    model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    changes = {"model.start_from": str(tmp_path / "start")}
    build(tiny_recipe("2", **changes, **{f"fusion.{key}": value for key, value in start.items()}))
    with pytest.raises(LlavaError, match=message):
        build(tiny_recipe("2", **changes, **{f"fusion.{key}": value for key, value in asked.items()}))


def test_the_dry_run_shows_the_managers(tiny_recipe):
    keys = {"model.vision_tower": "absent", "fusion.interval": 12, "fusion.vision_start": -2}
    lines = dry_run(tiny_recipe("1", **keys, **{"fusion.query": "cross"})).splitlines()
    managers = "2 managers before language-model layers 0, 12, of vision states 25, 26"
    asked = "adaptive behind the first, query cross of the question, rule turn"
    assert f"fusion      {managers}; {asked}" in lines
    width, states = 896, 2
    adaptive = states * width + states * 2 * width + 2 * (width * width + width)
    row = next(line.split() for line in lines if line.startswith("fusion ") and "states" not in line)
    assert (
        row[1] == f"{states * width + states * width + adaptive:,}"
    )  # layer embedding, static scores, the adaptive one
