"""The kept cache against computing everything anew: the same keys, values and answers, from fewer tokens."""

import pytest
import torch

from llava.data.schema import Dialogue, Turn
from llava.engine.engine import Engine
from llava.engine.kept_cache import KeptCache
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.configs.tgif import TgifConfig
from llava.fusion.managers import AdaptiveManager

LONGEST = 4


def managers_of(query: str | None, question: str = "turn") -> ManagerConfig:
    return ManagerConfig(interval=2, query=query, question=question)


MANAGERS = {
    "none": None,
    "static": managers_of(None),
    "self": managers_of("self"),
    "cross": managers_of("cross"),
    "cross released": managers_of("cross", "released"),
    "tgif": TgifConfig(),
}


@pytest.fixture(scope="module", params=MANAGERS)
def engine(request, make_model, make_processor):
    model = make_model(fusion=MANAGERS[request.param])
    for module in model.modules():
        if isinstance(module, AdaptiveManager):
            torch.nn.init.normal_(module.gate)
    return Engine(model, make_processor())


def dialogue(*texts, images=(), videos=()):
    """Turns of user and model, in turn; a text before them that starts with `system:` is the system message."""
    roles = ["system"] * texts[0].startswith("system:") + ["human", "gpt"] * len(texts)
    return Dialogue([Turn(role, text) for role, text in zip(roles, texts)], list(images), list(videos))


def keys_and_values(kept: KeptCache) -> torch.Tensor:
    return torch.stack([torch.stack([layer.keys, layer.values]) for layer in kept._kept.past.layers])


def answer(engine: Engine, kept: KeptCache, given: Dialogue) -> tuple[str, int]:
    """The answer and how many tokens of the prompt were computed; both are compared with a cache that starts empty."""
    found = "".join(engine.stream(given, max_new_tokens=LONGEST, kept=kept)).strip()
    fresh = KeptCache()
    assert "".join(engine.stream(given, max_new_tokens=LONGEST, kept=fresh)).strip() == found
    torch.testing.assert_close(keys_and_values(kept), keys_and_values(fresh), atol=2e-5, rtol=1e-4)
    assert fresh.usage.prefilled == fresh.usage.prompt == engine.count_tokens(given) == kept.usage.prompt
    assert kept.usage.answer == fresh.usage.answer > 0
    return found, kept.usage.prefilled


def test_every_way_to_go_on_gives_what_a_fresh_start_gives(engine, make_image):
    """Images at later turns, one and several; turns taken back, answers tried again, other words, another system."""
    kept, count = KeptCache(), engine.count_tokens
    rule = engine.model.config.fusion.question_rule
    asks, released = rule is not None, rule == "released"
    a, b, c = (make_image(100 + 20 * seed, 70, seed) for seed in range(3))
    clip = [make_image(60, 40, seed) for seed in range(10, 13)]

    first = "What is in the picture?"
    talk = [first, answer(engine, kept, dialogue(first))[0]]
    assert kept.usage.visual == 0

    shown = dialogue(*talk, "<image>\nA red car?", images=[a])
    reply, prefilled = answer(engine, kept, shown)
    assert reply == engine.generate([shown], max_new_tokens=LONGEST)[0]
    assert prefilled <= count(shown) if released else prefilled <= count(shown) - count(dialogue(first))
    assert kept.usage.visual == engine.processor.image_processor.layout(a.size, False).num_tokens

    assert answer(engine, kept, shown) == (reply, 1), "tried again"
    other = dialogue(*talk, "<image>\nA red bus, or what?", images=[a])
    prefilled = answer(engine, kept, other)[1]
    assert prefilled > kept.usage.visual if asks and not released else prefilled < 40, "other words behind the image"
    answer(engine, kept, shown)

    talk += [shown.turns[-1].text, reply]
    text = dialogue(*talk, "And?", images=[a])
    assert answer(engine, kept, text)[1] < 40, "a turn of text"
    assert answer(engine, kept, shown)[1] == 1, "the turn taken back"

    several = dialogue(*talk, "<image>\nWhich?", images=[a, b])
    reply, prefilled = answer(engine, kept, several)
    assert prefilled > kept.usage.visual, "a second image changes how the first is cut into crops"
    talk += [several.turns[-1].text, reply]
    third = dialogue(*talk, "<image> <video>\nAnd these?", images=[a, b, c], videos=[clip])
    reply, prefilled = answer(engine, kept, third)
    layout, video_layout = engine.processor.image_processor.layout, engine.processor.image_processor.video_layout
    new = layout(c.size, True).num_tokens + video_layout(3).num_tokens
    assert prefilled == count(third) if released else new < prefilled < new + 60

    other = dialogue(*talk, "<image> <video>\nAnd these?", images=[a, b, a], videos=[clip])
    assert answer(engine, kept, other)[1] > new, "another image of the same size"
    assert answer(engine, kept, dialogue("system: Be brief.", first))[1] > 15, "another system message"


def test_each_image_is_guided_by_the_question_of_its_turn(make_model, make_processor, make_image):
    """What is kept of two turns with an image each is what one forward pass of the whole prompt computes."""
    engine, kept = Engine(make_model(fusion=TgifConfig()), make_processor()), KeptCache()
    torch.nn.init.normal_(engine.model.model.fusion.router.linear_2.weight)  # so that questions matter
    images = [make_image(100, 70, 1), make_image(120, 70, 2)]
    given = dialogue("<image>\nWhat is in the picture?", "A red car.", "<image>\nWhich bus?", images=images)
    list(engine.stream(given, max_new_tokens=1, kept=kept))
    with torch.no_grad():
        inputs = engine.processor.encode_prompts([(given.turns, given.images)])
        past = engine.model(**inputs, use_cache=True).past_key_values
    expected = torch.stack([torch.stack([layer.keys, layer.values]) for layer in past.layers])
    torch.testing.assert_close(keys_and_values(kept), expected, atol=2e-5, rtol=1e-4)


def test_an_answer_cut_short_goes_on_from_what_was_computed(make_model, make_processor, make_image, monkeypatch):
    engine = Engine(make_model(), make_processor())
    monkeypatch.setattr(engine.model.generation_config, "eos_token_id", None)
    kept, question = KeptCache(), dialogue("<image>\nWhat?", images=[make_image()])
    stream = engine.stream(question, max_new_tokens=400, temperature=3.0, kept=kept)
    begun = next(filter(None, stream))
    stream.close()
    assert 0 < kept.usage.answer < 400
    monkeypatch.undo()
    assert answer(engine, kept, dialogue("<image>\nWhat?", begun, "And?", images=question.images))[1] < 40


def test_nothing_is_kept_of_a_generation_that_failed(make_model, make_processor, monkeypatch):
    engine, kept = Engine(make_model(), make_processor()), KeptCache()
    answer(engine, kept, dialogue("What?"))
    forward = engine.model.forward
    monkeypatch.setattr(engine.model, "forward", lambda **inputs: (forward(**inputs), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        list(engine.stream(dialogue("What?"), max_new_tokens=4, kept=kept))
    monkeypatch.undo()
    assert answer(engine, kept, dialogue("What?"))[1] == engine.count_tokens(dialogue("What?"))


def test_a_window_of_attention_keeps_nothing(make_model, make_processor):
    model = make_model(use_sliding_window=True, sliding_window=8, max_window_layers=2)
    assert "sliding_attention" in model.config.text_config.layer_types
    engine, kept, question = Engine(model, make_processor()), KeptCache(), dialogue("What?")
    for _ in range(2):
        assert (
            "".join(engine.stream(question, max_new_tokens=8, kept=kept)).strip()
            == (engine.generate([question], max_new_tokens=8)[0])
        )
        assert kept.usage.prefilled == kept.usage.prompt
