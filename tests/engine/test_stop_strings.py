"""Texts that end an answer: what is generated ends with them, and answers are those that are cut afterwards."""

import pytest
import torch

from llava.data.schema import Dialogue, Turn
from llava.engine.engine import Engine
from llava.engine.stop_strings import cut

LENGTH = 24


@pytest.fixture(scope="module")
def engine(make_model, make_processor):
    model = make_model()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # else every answer repeats one letter
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    engine = Engine(model, make_processor())
    engine.model.generation_config.eos_token_id = None
    return engine


@pytest.fixture(scope="module")
def dialogues(make_image):
    return [
        Dialogue([Turn("human", "What is in the picture?")], [make_image(100, 70)]),
        Dialogue([Turn("human", "Hello")]),
        Dialogue([Turn("human", "A red car?")]),
    ]


@pytest.fixture
def steps(engine):
    """One entry for each pass of the language model."""
    passes = []
    hook = engine.model.model.language_model.register_forward_pre_hook(lambda *_: passes.append(1))
    yield passes
    hook.remove()


def raw(engine, dialogues, **options) -> list[str]:
    """Answers as they are decoded, with blanks at both ends."""
    inputs = engine.prepare(dialogues)
    ids = engine.model.generate(**inputs, max_new_tokens=LENGTH, **options)[:, inputs["input_ids"].shape[1] :]
    return engine.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)


def test_an_answer_ends_with_its_text_and_is_the_one_cut_afterwards(engine, dialogues, steps):
    whole = raw(engine, dialogues)
    assert len(set(whole)) == 3
    compared = 0
    for answer in whole:
        for begin in range(0, len(answer) - 3, 9):
            for length in (1, 3):
                stop = [answer[begin : begin + length], "never written"]
                steps.clear()
                assert engine.generate(dialogues, max_new_tokens=LENGTH, stop=stop) == [
                    cut(text, stop).strip() for text in whole
                ]
                compared += 1
                if all(stop[0] in text for text in whole):
                    assert len(steps) < LENGTH
    assert compared > 8


def test_one_answer_takes_no_more_passes_than_it_needs(engine, dialogues, steps):
    (whole,) = raw(engine, dialogues[:1])
    steps.clear()
    engine.generate(dialogues[:1], max_new_tokens=LENGTH, stop=[whole[:1]])
    assert len(steps) == 1
    steps.clear()
    engine.generate(dialogues[:1], max_new_tokens=LENGTH, stop=[whole[-1:] + "never written"])
    assert len(steps) == LENGTH


def test_a_text_that_begins_in_the_prompt_ends_nothing(engine, dialogues):
    """The prompt ends with a newline; transformers' stop_strings would take that and the first character."""
    (whole,) = raw(engine, dialogues[1:2])
    stop = ["\n" + whole[0]]
    assert stop[0] not in whole
    assert engine.generate(dialogues[1:2], max_new_tokens=LENGTH, stop=stop) == [whole.strip()]


def test_beams_are_cut_afterwards(engine, dialogues):
    (whole,) = raw(engine, dialogues[:1], num_beams=2)
    stop = [whole[4:6]]
    assert engine.generate(dialogues[:1], max_new_tokens=LENGTH, num_beams=2, stop=stop) == [cut(whole, stop).strip()]
