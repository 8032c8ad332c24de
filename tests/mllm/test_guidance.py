"""A fusion whose visual input depends on the question: which question every image gets, and by which ways it comes."""

from dataclasses import dataclass, field

import pytest
import torch

from llava.anyres import TilingConfig
from llava.data.collator import Collator
from llava.data.schema import Dialogue, Sample, Turn
from llava.engine.engine import Engine
from llava.engine.kept_cache import KeptCache
from llava.errors import LlavaError
from llava.fusion.base import Fusion, Questions
from llava.fusion.config import FusionConfig
from llava.mllm.guidance import questions_for_features
from llava.mllm.questions import question_finder
from tests.conftest import GRID


class Shifted(Fusion):
    """V_L with the question's mean added to its first channels, and ten to the rest where there is none."""

    seen: list

    def guided_visual_input(self, states, questions):
        """(C, T, width)"""
        self.seen.append(questions)
        rest = 10.0 * ~questions.present[:, None].expand(-1, 32 - 24)
        return states[4] + torch.cat([questions.means, rest], -1)[:, None]


@dataclass(frozen=True)
class ShiftedConfig(FusionConfig):
    """Shifted's."""

    method: str = field(init=False, default="shifted")
    question_rule = "turn"
    guided = True

    @staticmethod
    def implementation():
        """Shifted."""
        return Shifted


@pytest.fixture
def model(make_model):
    model = make_model(TilingConfig(), ShiftedConfig())
    model.model.fusion.seen = []
    return model


@pytest.fixture
def processor(make_processor):
    return make_processor(TilingConfig())


@pytest.fixture
def dialogues(make_image):
    """With the questions about their images, in pieces around places: of the image's turn, whatever comes later."""
    images = [make_image(40 + 30 * index, 56, index) for index in range(7)]
    later = (Turn("human", "<image>\nHi"), Turn("gpt", "Yes."), Turn("human", "A car?\n<image>"))
    then_asked = (Turn("human", "<image>"), Turn("gpt", "A red car."), Turn("human", "What is it?"))
    return [
        ((Turn("human", "<image>\nWhat is in the picture?"),), images[:1], [["\nWhat is in the picture?"]]),
        ((Turn("human", "What is it?"),), [], []),
        ((Turn("human", "Look: <image> <image>\nWhich?"),), images[1:3], [["Look: ", " ", "\nWhich?"]] * 2),
        (later, images[3:5], [["\nHi"], ["A car?\n"]]),
        (then_asked, images[5:6], [[]]),
        ((Turn("human", "<image>"),), images[6:], [[]]),
    ]


def expected_of(model, processor, questions: list[list[str]]) -> torch.Tensor:
    """(N, D): the means, from the texts."""
    means = torch.zeros(len(questions), 24)
    for number, pieces in enumerate(questions):
        ids = [token for piece in pieces for token in processor.tokenizer(piece)["input_ids"]]
        for token in ids:
            means[number] += model.get_input_embeddings().weight[token].detach() / len(ids)
    return means


def check_seen(model, processor, expected: list[list[str]]) -> None:
    """The questions that the last visual input was guided by."""
    questions = model.model.fusion.seen.pop()
    torch.testing.assert_close(questions.means, expected_of(model, processor, expected))
    assert questions.present.tolist() == [bool(pieces) for pieces in expected]


def test_every_image_of_a_left_padded_batch_gets_its_turns_question(model, processor, dialogues):
    with torch.no_grad():
        model(**processor.encode_prompts([(turns, images) for turns, images, _ in dialogues]))
    check_seen(model, processor, [pieces for _, _, questions in dialogues for pieces in questions])


def test_it_is_given_to_every_crop(make_model, make_processor, make_image):
    model, processor = make_model(GRID, ShiftedConfig()), make_processor(GRID)
    model.model.fusion.seen = []
    images = [make_image(150, 97), make_image(40, 90)]
    prompts = [((Turn("human", f"<image>\n{text}"),), [image]) for text, image in zip(("Hi", "A car?"), images)]
    crops = [processor.image_processor.layout(image.size, False).num_crops for image in images]
    assert min(crops) > 1
    with torch.no_grad():
        model(**processor.encode_prompts(prompts))
    check_seen(model, processor, [["\nHi"]] * crops[0] + [["\nA car?"]] * crops[1])


def encoded(processor, make_image, texts: list[str], answer: str) -> list[dict]:
    """Training samples, each with the same answer."""
    items = []
    for number, text in enumerate(texts):
        images = [make_image(60 + number, 97, number)] * text.count("<image>")
        clips = [[make_image(64, 48, frame) for frame in range(2)]] * text.count("<video>")
        turns = (Turn("human", text), Turn("gpt", answer))
        sample = Sample("", turns, ("",) * len(images), "", ("",) * len(clips))
        rules = {"template": "qwen_1_5", "label_rule": "answers", "max_length": 1024}
        items.append(processor.encode_sample(sample, images, clips, **rules))
    return items


TEXTS = ["<image>\nWhat?", "What is 01?", "<video> <image>\nWhich?", "<image>"]
QUESTIONS = [["\nWhat?"], [" ", "\nWhich?"], [], *[[" ", "\nWhich?"]] * 2]  # the video's two frames behind the images


@pytest.mark.parametrize("said", [True, False], ids=["said", "found"])
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("answer", ["A red car.", "0"])
def test_no_answer_is_part_of_it_in_training(model, processor, make_image, packing, said, answer):
    items = encoded(processor, make_image, TEXTS, answer)
    batch = Collator(0, packing, question_finder(model.config) if said else None)(items)
    model.train()(**batch, skip_logits=True).loss.backward()
    check_seen(model, processor, QUESTIONS)


def test_the_gradient_reaches_the_embeddings(model, processor, make_image):
    """As that of the shift, which is the mean of four embeddings, to each of the four."""
    items = encoded(processor, make_image, ["<image>\nA car?"], "0")
    batch, ids = Collator(0)(items), processor.tokenizer("\nA car?")["input_ids"]
    embed, found = model.get_input_embeddings(), []
    for frozen in (False, True):
        model.zero_grad()
        fusion = model.model.fusion
        with pytest.MonkeyPatch.context() as patch:
            guided = type(fusion).guided_visual_input

            def without_gradient(self, states, questions, guided=guided):
                return guided(self, states, Questions(questions.means.detach(), questions.present))

            if frozen:
                patch.setattr(type(fusion), "guided_visual_input", without_gradient)
            model(**batch, skip_logits=True).loss.backward()
        found.append(embed.weight.grad.clone())
    through_question = found[0] - found[1]
    others = [token for token in range(320) if token not in ids]
    assert through_question[others].abs().max() == 0
    assert through_question[ids].abs().min(-1).values.max() > 0
    each = through_question[ids[0]] / ids.count(ids[0])
    for token in ids:
        torch.testing.assert_close(through_question[token] / ids.count(token), each, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("said", [True, False], ids=["said", "found"])
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_a_micro_batch_without_images_asks_an_empty_question(model, processor, make_image, packing, said):
    """It has a gradient, of zero: what is computed of it is used on all ranks."""
    items = encoded(processor, make_image, ["What is 01?", "A car?"], "0")
    batch = Collator(0, packing, question_finder(model.config) if said else None)(items)
    found = []
    for without_images in ("nothing", "all"):
        model.zero_grad()
        model.train().model.without_images = without_images
        loss = model(**batch, skip_logits=True).loss
        loss.backward()
        found.append((loss, model.get_input_embeddings().weight.grad.clone()))
    (questions,) = model.model.fusion.seen
    assert questions.means.requires_grad
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    check_seen(model, processor, [[]])


GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


def without_cache(model, inputs) -> torch.Tensor:
    """Four greedy tokens (B, 4), everything computed anew for each."""
    given, new = dict(inputs), []
    for _ in range(4):
        with torch.no_grad():
            logits = model(**given, use_cache=False).logits[:, -1]
        logits[:, model.config.text_config.eos_token_id] = -torch.inf
        new.append(logits.argmax(-1)[:, None])
        given["input_ids"] = torch.cat([given["input_ids"], new[-1]], 1)
        given["attention_mask"] = torch.nn.functional.pad(given["attention_mask"], (0, 1), value=1)
    return torch.cat(new, 1)


def test_generate_encodes_images_with_their_questions(model, processor, dialogues):
    inputs = processor.encode_prompts([(turns, images) for turns, images, _ in dialogues])
    expected = without_cache(model, inputs)
    model.model.fusion.seen.clear()
    for options in ({}, {"cache_implementation": "static", "disable_compile": True}):
        assert torch.equal(model.generate(**inputs, **GREEDY, **options)[:, -4:], expected)
        check_seen(model, processor, [pieces for _, _, questions in dialogues for pieces in questions])
        assert model.model.fusion.seen == []
    ids = inputs.pop("input_ids")
    from_embeddings = model.generate(inputs_embeds=model.get_input_embeddings()(ids), **inputs, **GREEDY)
    assert torch.equal(from_embeddings, expected)
    check_seen(model, processor, [pieces for _, _, questions in dialogues for pieces in questions])


def test_beams_equal_those_of_each_prompt(model, processor, dialogues):
    options = GREEDY | {"num_beams": 2}
    prompts = [(turns, images) for turns, images, _ in dialogues[:3]]
    together = model.generate(**processor.encode_prompts(prompts), **options)[:, -4:]
    for row, prompt in enumerate(prompts):
        assert torch.equal(model.generate(**processor.encode_prompts([prompt]), **options)[0, -4:], together[row])


def test_features_alone_need_the_questions(model, processor, make_image):
    prompt = ((Turn("human", "<image> <image>\nWhich?"),), [make_image(60, 40), make_image(40, 90, 1)])
    inputs = dict(processor.encode_prompts([prompt]))
    visual = {key: inputs[key] for key in ("pixel_values", "image_sizes", "batch_num_images")}
    with pytest.raises(LlavaError, match=r"the fusion \(shifted\) is guided by the question .*: give image_questions"):
        model.get_image_features(**visual)
    with pytest.raises(LlavaError, match="give image_questions, video_questions, which"):
        model.get_video_features(torch.zeros(2, 3, 56, 56), torch.tensor([2]))
    questions = questions_for_features(model.config, model.get_input_embeddings(), inputs["input_ids"], inputs)
    assert set(questions) == {"image_questions"}
    one = questions["image_questions"].of(torch.tensor([0]))
    with pytest.raises(LlavaError, match="found 1 questions but 2 images and videos"):
        model.get_image_features(**visual, image_questions=one)
    with torch.no_grad():
        features = model.get_image_features(**visual, **questions)
        text = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        found = model(**text, mm_encoder_outputs={"image": features}).logits
        assert torch.equal(found, model(**inputs).logits)


def test_a_prompt_in_chunks_is_refused(model, processor, dialogues):
    with pytest.raises(LlavaError, match=r"the fusion \(shifted\) needs the whole prompt"):
        model.generate(**processor.encode_prompts([dialogues[0][:2]]), **GREEDY, prefill_chunk_size=7)


def test_a_kept_image_keeps_the_question_of_its_turn(model, processor, make_image):
    """A later turn asks something else and brings an image of its own; the first turn asked otherwise is read anew."""
    engine, kept, images = Engine(model, processor), KeptCache(), [make_image(60, 40), make_image(40, 90, 1)]
    first, second = ("\nA car?",), ("\nAnd this?",)
    shown = Dialogue([Turn("human", f"<image>{first[0]}")], images[:1], [])
    reply = "".join(engine.stream(shown, max_new_tokens=4, kept=kept))
    check_seen(model, processor, [[*first]])
    talk = [*shown.turns, Turn("gpt", reply)]

    other_question = Dialogue([*talk, Turn("human", "What is it?")], images[:1], [])
    "".join(engine.stream(other_question, max_new_tokens=4, kept=kept))
    assert model.model.fusion.seen == [], "the image is not encoded again"
    assert kept.usage.prefilled < 30

    clip = [make_image(60, 40, seed) for seed in range(2)]
    with_video = Dialogue([*talk, Turn("human", f"<video>{second[0]}")], images[:1], [clip])
    "".join(engine.stream(with_video, max_new_tokens=4, kept=kept))
    check_seen(model, processor, [[*second]] * 2)

    asked_otherwise = Dialogue([Turn("human", "<image>\nHi")], images[:1], [])
    answers = ["".join(engine.stream(asked_otherwise, max_new_tokens=4, kept=one)) for one in (kept, KeptCache())]
    assert answers[0] == answers[1]
    check_seen(model, processor, [["\nHi"]])
    check_seen(model, processor, [["\nHi"]])
