"""Other towers and language models: each pair against the slow twin, which runs transformers' own tower."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from llava.anyres import TilingConfig
from llava.checkpoint.compose import make_processor
from llava.constants import LANGUAGE_MODEL_TYPES, TOWER_TYPES
from llava.data.schema import Turn
from llava.fusion.configs.manager import ManagerConfig
from llava.mllm import LlavaOVManagerForConditionalGeneration
from llava.mllm.cost import training_cost
from llava.mllm.decoder import DECODERS
from llava.mllm.kinds import TOWER_KINDS
from llava.mllm.parts import FINAL_NORMS, PREFIXES, UNUSED
from llava.mllm.vision import TOWERS
from tests.mllm.slow_model import slow_logits
from tests.mllm.test_cost import counted
from tests.parts import LANGUAGE_MODELS, PAIRS
from tests.parts import TOWERS as TINY_TOWERS

each_pair = pytest.mark.parametrize("pair", PAIRS)


@pytest.fixture
def make_pair(make_config, tiny_tokenizer):
    """A function: name of a pair to a model of it, all of whose weights are random, and its processor."""

    def make(pair: str, fusion="paper"):
        tower, (language_model, fields) = TINY_TOWERS[PAIRS[pair][0]], LANGUAGE_MODELS[PAIRS[pair][1]]
        tiling = TilingConfig.from_llava("anyres_max_4", "spatial_unpad", "(1x1),...,(3x3)", tower.image_size)
        torch.manual_seed(0)
        config = make_config(tiling, fusion, tower, language_model, **fields)
        model = LlavaOVManagerForConditionalGeneration(config).eval()
        for parameter in model.parameters():  # class tokens and registers begin at zero, norms and scales at one
            parameter.data += 0.1 * torch.randn(parameter.shape)
        return model, make_processor(model.config, tiny_tokenizer, {})

    return make


def test_every_kind_is_in_every_list():
    assert tuple(TOWERS) == tuple(TOWER_KINDS) == TOWER_TYPES
    assert tuple(DECODERS) == LANGUAGE_MODEL_TYPES
    assert {tower.model_type for tower in TINY_TOWERS.values()} == set(TOWER_TYPES)
    assert {kind.model_type for kind, _ in LANGUAGE_MODELS.values()} == set(LANGUAGE_MODEL_TYPES)
    assert {name for pair in PAIRS.values() for name in pair} == {*TINY_TOWERS, *LANGUAGE_MODELS}


@each_pair
def test_forward_and_backward_equal_the_slow_twins(make_pair, make_image, pair):
    """One image of many tiles, none, several; then four tokens of each, cached and from the whole sequence."""
    model, processor = make_pair(pair)
    pictures = [[make_image(150, 97)], [], [make_image(60, 40, 1), make_image(40, 90, 2)]]
    turns = ["<image>\nWhat is in the picture?", "What is it?", "<image> <image>\nWhich?"]
    dialogues = [((Turn("human", turn),), images) for turn, images in zip(turns, pictures)]
    inputs = processor.encode_prompts(dialogues)
    found = model(**inputs).logits
    weights = torch.randn(model.config.text_config.vocab_size, generator=torch.Generator().manual_seed(1))
    loss, slow_loss, crops = 0.0, 0.0, iter(inputs["pixel_values"])
    for row, images in enumerate(pictures):
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
        counts = [processor.image_processor.layout(one.size, len(images) > 1).num_crops for one in images]
        shown = [(torch.stack([next(crops) for _ in range(n)]), one.size) for n, one in zip(counts, images)]
        expected = slow_logits(model, ids, shown)
        torch.testing.assert_close(found[row, -len(ids) :], expected, atol=2e-4, rtol=1e-4)
        loss += (found[row, -len(ids) :] @ weights).tanh().mean()
        slow_loss += (expected @ weights).tanh().mean()
    assert next(crops, None) is None
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    gradients, expected = (torch.autograd.grad(one, list(trained.values())) for one in (loss, slow_loss))
    for name, gradient, slow in zip(trained, gradients, expected, strict=True):
        torch.testing.assert_close(gradient, slow, atol=2e-5, rtol=2e-3, msg=lambda text, name=name: f"{name}: {text}")
        assert gradient.any(), name
    frozen = {name for name, one in model.named_parameters() if not one.requires_grad}
    assert all(name.startswith(UNUSED) for name in frozen)
    assert len([name for name in frozen if name.startswith(FINAL_NORMS)]) == 2

    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with torch.no_grad():
        answers = model.generate(**inputs, **settings)[:, -4:]
        for step in range(4):
            ids = torch.cat([inputs["input_ids"], answers[:, :step]], 1)
            mask = torch.cat([inputs["attention_mask"], torch.ones(3, step, dtype=torch.int64)], 1)
            logits = model(**{**inputs, "input_ids": ids, "attention_mask": mask}).logits[:, -1]
            logits[:, model.generation_config.eos_token_id] = -torch.inf
            assert torch.equal(logits.argmax(-1), answers[:, step])


@each_pair
def test_saved_and_loaded(make_pair, make_image, tmp_path, pair):
    model, processor = make_pair(pair, ManagerConfig(interval=2, query="cross"))
    inputs = processor.encode_prompts([((Turn("human", "<image>\nWhat?"),), [make_image(150, 97)])])
    model.save_pretrained(tmp_path)
    again, loading = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    kinds = (again.config.vision_config.model_type, again.config.text_config.model_type)
    assert kinds == (model.config.vision_config.model_type, model.config.text_config.model_type)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
        text = AutoModelForCausalLM.from_config(model.config.text_config).eval()
        text.model.load_state_dict(model.model.language_model.state_dict())
        ids = torch.arange(5, 25)[None]
        torch.testing.assert_close(model(input_ids=ids).logits, text(ids).logits)  # the head is tied


@pytest.mark.parametrize("trained", [tuple(PREFIXES), ("projector", "fusion")], ids="+".join)
@each_pair
def test_operations(make_pair, pair, trained):
    model, _ = make_pair(pair, None)
    model.set_attn_implementation("eager")
    for name, parameter in model.train().named_parameters():
        beginnings = tuple(prefix for part in trained for prefix in PREFIXES[part])
        parameter.requires_grad_(name.startswith(beginnings) and not name.startswith(UNUSED))
    found, units = counted(model, 60, 20, backward=True)
    cost = training_cost(model.config, trained)
    assert cost(*units) + cost.token_pair * units[1] ** 2 == pytest.approx(found, rel=1e-9)
