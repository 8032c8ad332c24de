"""Adaptive managers (AAUM): neutrality, the question they ask with, and batches."""

import pytest
import torch

from llava.data.schema import Turn
from llava.errors import LlavaError
from llava.fusion.config import Sizes
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.managers import AdaptiveManager
from llava.fusion.visual_managers import VisualManagers
from tests.conftest import QUERIES


def adaptive(query: str) -> ManagerConfig:
    return ManagerConfig(interval=2, query=query)


@pytest.fixture
def make_adaptive(make_model):
    """A function: query to a model with random gates."""

    def make(query: str, gates: bool = True):
        model = make_model(fusion=adaptive(query))
        generator = torch.Generator().manual_seed(1)
        for manager in model.model.fusion.managers[1:]:
            manager.gate.data = torch.randn(manager.gate.shape, generator=generator) if gates else manager.gate * 0
        return model

    return make


@pytest.fixture
def dialogues(make_image):
    image = make_image
    return [
        ((Turn("human", "<image>\nWhat is in the picture?"),), [image(150, 97)]),
        ((Turn("human", "Hi"),), []),
        ((Turn("human", "Hi"), Turn("gpt", "Yes?"), Turn("human", "<image>\nA car?")), [image(56, 56, 1)]),
        ((Turn("human", "<image> <image>\nWhich?"),), [image(60, 40, 2), image(40, 90, 3)]),
        ((Turn("human", "<image>"),), [image(30, 90, 4)]),
    ]


@pytest.mark.parametrize("query", QUERIES)
def test_a_left_padded_batch_equals_its_samples_one_by_one(make_adaptive, make_processor, dialogues, query):
    model, processor = make_adaptive(query), make_processor()
    with torch.no_grad():
        together = model(**processor.encode_prompts(dialogues)).logits
        for row, dialogue in enumerate(dialogues):
            alone = model(**processor.encode_prompts([dialogue])).logits[0]
            torch.testing.assert_close(together[row, -len(alone) :], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("query", QUERIES)
def test_beams_equal_those_of_each_sample(make_adaptive, make_processor, dialogues, query):
    model, processor = make_adaptive(query), make_processor()
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": 2, "do_sample": False}
    chosen = [dialogues[0], dialogues[3]]
    together = model.generate(**processor.encode_prompts(chosen), **settings)[:, -4:]
    for row, dialogue in enumerate(chosen):
        alone = model.generate(**processor.encode_prompts([dialogue]), **settings)[0, -4:]
        assert torch.equal(together[row], alone)


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_static_cache_gives_the_same_tokens_for_a_left_padded_batch(
    make_adaptive, make_processor, dialogues, query, attention
):
    """Its masks are prepared by generate, (B, 1, L, keys)."""
    model, inputs = make_adaptive(query), make_processor().encode_prompts(dialogues)
    model.set_attn_implementation(attention)
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "disable_compile": True}
    expected = model.generate(**inputs, **settings)
    assert torch.equal(model.generate(**inputs, **settings, cache_implementation="static"), expected)


@pytest.mark.parametrize("query", QUERIES)
def test_a_prompt_in_chunks_is_refused_where_the_question_may_be_in_another(
    make_adaptive, make_processor, dialogues, query
):
    model, inputs = make_adaptive(query), make_processor().encode_prompts(dialogues[:1])
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    if query == "self":
        chunked = model.generate(**inputs, **settings, prefill_chunk_size=7)
        assert torch.equal(chunked, model.generate(**inputs, **settings))
        return
    with pytest.raises(LlavaError, match=rf"query {query} of the question, .*\) needs the whole prompt, .* found 7"):
        model.generate(**inputs, **settings, prefill_chunk_size=7)


@pytest.mark.parametrize("query", QUERIES)
def test_a_turn_behind_a_cached_one_equals_the_whole(make_adaptive, make_processor, make_image, query):
    model, processor = make_adaptive(query), make_processor()
    turns = (Turn("human", "Hi"), Turn("gpt", "Yes?"), Turn("human", "<image>\nA car?"))
    whole = processor.encode_prompts([(turns, [make_image(56, 56, 1)])])
    begin = processor.encode_prompts([(turns[:1], [])])
    seen = begin["input_ids"].shape[1]
    assert torch.equal(begin["input_ids"], whole["input_ids"][:, :seen])
    with torch.no_grad():
        expected = model(**whole).logits[:, seen:]
        cache = model(**begin, use_cache=True).past_key_values
        rest = {**whole, "input_ids": whole["input_ids"][:, seen:]}
        torch.testing.assert_close(model(**rest, past_key_values=cache).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("query", QUERIES)
def test_with_zero_gates_only_the_first_manager_acts(make_adaptive, make_model, make_processor, dialogues, query):
    inputs = make_processor().encode_prompts(dialogues)
    static = make_model(fusion=ManagerConfig(vision_layers=(3, 4), injection_layers=(0,)))
    closed = make_adaptive(query, gates=False)
    closed.load_state_dict(static.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(closed(**inputs).logits, static(**inputs).logits)


@pytest.mark.parametrize("query", QUERIES)
def test_one_manager_equals_a_slow_loop(query):
    torch.manual_seed(0)
    manager = AdaptiveManager(num_maps=3, width=4, query=query)
    torch.nn.init.normal_(manager.gate)
    visual, question, maps = torch.randn(5, 4), torch.randn(2, 4), torch.randn(3, 5, 4)
    expected = torch.zeros(5, 4)
    for token in range(5):
        asked = {"self": None, "last": question[1], "average": (question[0] + question[1]) / 2, "cross": None}[query]
        if query == "cross":
            keys = [manager.key_proj(states) for states in question]
            similarity = torch.stack([manager.query_proj(visual[token]) @ key / 4**0.5 for key in keys])
            weights = similarity.exp() / similarity.exp().sum()
            asked = weights[0] * question[0] + weights[1] * question[1]
        states = visual[token] if asked is None else torch.cat([asked, visual[token]])
        for index in range(3):
            score = manager.controller.weight[index] @ states
            expected[token] += score * manager.gate[index] * maps[index, token]
    torch.testing.assert_close(manager(visual, [5], [question], list(maps)), expected)


def small_managers(query: str) -> VisualManagers:
    """A static and an adaptive manager of three maps, width 4."""
    torch.manual_seed(0)
    managers = VisualManagers(ManagerConfig((1, 2, 3), (0, 1), jitter="none", query=query), Sizes(3, 6, 2, 4, 1))
    torch.nn.init.normal_(managers.managers[1].gate)
    return managers


@pytest.mark.parametrize("query", QUERIES)
def test_images_do_not_hear_each_others_questions(query):
    managers = small_managers(query)
    lengths, questions = [2, 3, 1], [torch.randn(2, 4), torch.randn(0, 4), torch.randn(3, 4)]
    visual, maps = torch.randn(6, 4), torch.randn(3, 6, 4)
    together = managers.adapt(1, visual, lengths, questions, list(maps))
    for found, states, question, own in zip(
        together.split(lengths), visual.split(lengths), questions, maps.split(lengths, 1)
    ):
        torch.testing.assert_close(found, managers.adapt(1, states, [len(states)], [question], list(own)))


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize(("lengths", "asked"), [([2, 3], [2, 4]), ([2, 3], [0, 4]), ([0], [0])])
def test_everything_given_to_a_manager_has_a_gradient(query, lengths, asked):
    """Also without questions or images: else ZeRO-3 keeps a manager's weights, on one rank and not on another."""
    managers, given = small_managers(query), []

    def keep(_, arguments):
        visual, _, questions, maps, _ = arguments
        given.extend([visual, *questions, *maps])
        for tensor in given:
            tensor.retain_grad()

    managers.managers[1].register_forward_pre_hook(keep)
    states = torch.randn(20, 4, requires_grad=True) * 1
    maps = [states[: sum(lengths)] * index for index in range(3)]
    managers.adapt(1, states[: sum(lengths)] + 1, lengths, [states[:number] for number in asked], maps).sum().backward()
    assert len(given) == 4 + (len(lengths) if query != "self" else 0)
    assert all(tensor.grad is not None for tensor in given)


@pytest.mark.parametrize("query", QUERIES)
def test_paper_jitter_multiplies_the_output_of_each_manager(make_adaptive, make_processor, dialogues, query):
    model = make_adaptive(query)
    visual, maps = torch.randn(5, 24), [torch.randn(5, 24) for _ in range(2)]
    given = visual, [3, 2], [torch.randn(2, 24), torch.randn(1, 24)], maps
    managers = model.model.fusion
    plain = [managers.adapt(index, *given) for index in (1, 2)]
    inputs = make_processor().encode_prompts(dialogues[:1])
    del inputs["input_ids"], inputs["attention_mask"]
    maps = model.get_image_features(**inputs).deepstack_features[1:]
    model.train()
    assert all(torch.equal(a[0], b[0]) for a, b in zip(maps, model.get_image_features(**inputs).deepstack_features[1:]))
    ratios = torch.stack([managers.adapt(index, *given) / output for index, output in zip((1, 2), plain)])
    assert ((ratios > 0.9799) & (ratios < 1.0201)).all()
    assert (ratios[0] - ratios[1]).abs().mean() > 0.005
    assert ratios.std(1).min() > 1e-3
