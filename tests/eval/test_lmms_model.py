"""The model behind the harness's requests: every kind of document, batched or alone, stored, resumed, damaged."""

import json
import threading
from io import BytesIO
from zlib import crc32

import pytest
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from loguru import logger
from PIL import Image

from llava.data.schema import Turn
from llava.engine.engine import Engine
from llava.errors import LlavaError
from llava.eval import lmms_model
from llava.eval.lmms_model import LlavaOVManager, SimpleLlavaOVManager
from llava.eval.plugin import MODEL_ID
from tests.clips import write_clip

GREEDY = {"max_new_tokens": 12, "do_sample": False}


def message(role: str, *parts) -> dict:
    """parts: texts, images, and paths of videos as ("video", path)."""

    def content(part):
        if isinstance(part, str):
            return {"type": "text", "text": part}
        return {"type": "video", "url": part[1]} if isinstance(part, tuple) else {"type": "image", "url": part}

    return {"role": role, "content": [content(part) for part in parts]}


@pytest.fixture(scope="module")
def kinds(make_image, tmp_path_factory):
    """{kind: (messages of the chat type, context and visuals of the simple type)}; both ask the same."""
    clips = [
        str(write_clip(tmp_path_factory.mktemp("clips") / f"{number}.mp4", 10 + 10 * number)) for number in range(2)
    ]
    car, page = make_image(60, 50, 1), make_image(330, 200, 2)
    several = [make_image(70, 40, 3), make_image(40, 90, 4), make_image(56, 56, 5)]
    turns = ["<image>\nHello", "A red car.", "What is in the picture?"]
    return {
        "text": ([message("user", "What is 6 x 7?")], "What is 6 x 7?", []),
        "one crop": ([message("user", car, "What?")], "What?", [car]),
        "many tiles": ([message("user", page, "What is in the picture?")], "What is in the picture?", [page]),
        "several": ([message("user", *several, "Compare?")], "Compare?", several),
        "placed": (
            [message("user", "Is ", several[0], " or ", several[1], " red?")],
            "Is <image> or <image> red?",
            several[:2],
        ),
        "video": ([message("user", ("video", clips[0]), "What moves?")], "What moves?", [clips[0]]),
        "longer video": ([message("user", ("video", clips[1]), "What?")], "What?", [clips[1]]),
        "turns": (
            [message("user", car, "Hello"), message("assistant", turns[1]), message("user", turns[2])],
            json.dumps([{"value": text} for text in turns]),
            [car],
        ),
    }


@pytest.fixture(scope="module")
def documents(kinds):
    """16 documents, two of each kind, the second with another text."""
    assert len(kinds) == 8
    documents = []
    for ending in ("?", "? In a word."):
        for messages, context, visuals in kinds.values():
            *head, last = messages
            *parts, text = last["content"]
            asked = [*head, {**last, "content": [*parts, {**text, "text": text["text"].replace("?", ending)}]}]
            documents.append({"messages": asked, "context": context.replace("?", ending), "visuals": visuals})
    return documents


@pytest.fixture(scope="module")
def make_adapter(tiny_model_dir):
    """A function: chat type or simple, with changes to the arguments, over the given documents of a task `kinds`."""

    def make(documents, simple=False, **changes):
        settings = {"pretrained": str(tiny_model_dir), "device": "cpu", "max_num_frames": 4} | changes
        model = get_model(MODEL_ID, force_simple=simple)(**settings)
        model.task_dict = {"kinds": {"test": documents}}
        return model

    return make


def requests_of(model, gen_kwargs=GREEDY, doc_ids=None):
    documents = model.task_dict["kinds"]["test"]
    requests = []
    for doc_id in range(len(documents)) if doc_ids is None else doc_ids:
        if model.is_simple:
            arguments = (documents[doc_id]["context"], gen_kwargs, lambda doc: doc["visuals"], doc_id, "kinds", "test")
        else:
            arguments = ("", lambda doc: doc["messages"], gen_kwargs, doc_id, "kinds", "test")
        metadata = {"task": "kinds", "doc_id": doc_id, "repeats": 1}
        requests.append(Instance("generate_until", arguments, 0, metadata))
    return requests


def answers_of(model, *args, **kwargs):
    return model.generate_until(requests_of(model, *args, **kwargs))


@pytest.fixture
def asked(monkeypatch):
    """What the engine was asked: one list of dialogues per batch."""
    batches, generate = [], Engine.generate
    monkeypatch.setattr(
        Engine,
        "generate",
        lambda self, dialogues, **s: (batches.append(list(dialogues)), generate(self, dialogues, **s))[1],
    )
    return batches


@pytest.mark.parametrize("simple", [False, True])
def test_sixteen_at_once_answer_as_each_alone(make_adapter, documents, asked, simple):
    """In float32: the same greedy answers, and the same logits of the first token."""
    alone, together = make_adapter(documents, simple), make_adapter(documents, simple, batch_size=16)
    assert isinstance(alone, SimpleLlavaOVManager if simple else LlavaOVManager)
    assert alone.is_simple is simple
    answers = answers_of(alone)
    assert answers_of(together) == answers
    assert len(set(answers)) > 8, "random weights should answer different prompts differently"
    assert [len(batch) for batch in asked] == [1] * 16 + [16]
    sixteen, engine = asked[-1], together.engine
    with torch.inference_mode():
        logits = engine.model(**engine.prepare(sixteen)).logits[:, -1]
        for number, dialogue in enumerate(sixteen):
            single = engine.model(**engine.prepare([dialogue])).logits[0, -1]
            torch.testing.assert_close(logits[number], single, rtol=1e-4, atol=1e-5)
    shown = {(len(dialogue.images), len(dialogue.videos), len(dialogue.turns)) for dialogue in sixteen}
    assert shown == {(0, 0, 1), (1, 0, 1), (2, 0, 1), (3, 0, 1), (0, 1, 1), (1, 0, 3)}


def test_chat_and_simple_type_ask_the_same_where_texts_say_the_same(make_adapter, documents, asked):
    for simple in (False, True):
        answers_of(make_adapter(documents, simple))
    prompts = [[turn for (dialogue,) in half for turn in dialogue.turns] for half in (asked[:16], asked[16:])]
    assert prompts[0] == prompts[1]
    assert Turn("human", "<image> <image> <image>\nCompare?") in prompts[0]


def test_the_most_costly_come_first(make_adapter, documents, asked):
    answers_of(make_adapter(documents, batch_size=2))
    sizes = [{dialogue.images[0].size if dialogue.images else None for dialogue in batch} for batch in asked]
    assert len(sizes) == 8
    assert sizes[0] == {(330, 200)}, "26 crops each"
    assert sizes[-1] == {None}
    assert not any(dialogue.videos for dialogue in asked[-1]), "text alone"


def test_stored_answers_are_not_generated_again(make_adapter, documents, asked, tmp_path, monkeypatch):
    """By another number of ranks, from files that end in half a line, with every answer's batch as it was."""
    whole = make_adapter(documents, batch_size=4, answers=tmp_path / "whole")
    answers = answers_of(whole)
    assert whole.facts() == {"device": "cpu", "dtype": "float32"}
    batches = [[dialogue.turns for dialogue in batch] for batch in asked]
    lines = (tmp_path / "whole" / "rank0.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 16

    half = tmp_path / "half"
    half.mkdir()
    (half / "rank0.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:-1])
    (half / "rank5.jsonl").write_bytes(b"".join(lines[6:8]) + lines[8][:30])
    asked.clear()
    resumed = make_adapter(documents, batch_size=4, answers=half)
    assert answers_of(resumed) == answers
    assert [[dialogue.turns for dialogue in batch] for batch in asked] == batches[1:]

    asked.clear()
    monkeypatch.setattr(Engine, "from_pretrained", None)
    everything = make_adapter(documents, batch_size=16, answers=half)
    assert answers_of(everything) == answers
    assert not asked
    stored = sorted(
        json.loads(line)["doc_id"]
        for file in half.iterdir()
        for line in file.read_bytes().splitlines(True)
        if line.endswith(b"\n")
    )
    assert stored == list(range(16)), "no answer is stored twice"


@pytest.mark.parametrize(
    "change",
    [{"weights": "other"}, {"dtype": "float32"}, {"image_noise": True}, {"max_num_frames": 3}, {"simple": True}],
)
def test_answers_to_other_questions_are_not_used(make_adapter, documents, asked, tmp_path, change):
    shown = [documents[4], documents[5]]
    answers_of(make_adapter(shown, answers=tmp_path))
    again = make_adapter([{**document} for document in shown], answers=tmp_path, **change)
    asked.clear()
    answers_of(again)
    assert len(asked) == {"max_num_frames": 1, "simple": 0}.get(*change, 2)


def test_other_settings_are_other_questions(make_adapter, documents, asked, tmp_path):
    model = make_adapter(documents[:1], answers=tmp_path)
    for settings in (GREEDY, GREEDY, GREEDY | {"max_new_tokens": 11}, GREEDY | {"until": "Q:"}):
        answers_of(model, settings)
    assert len(asked) == 3


def test_the_judge_needs_answers_and_no_model(make_adapter, documents, tmp_path):
    answers = answers_of(make_adapter(documents[:3], answers=tmp_path))
    later = make_adapter(documents[:5], answers=tmp_path, pretrained="gone", stored_only=True)
    assert answers_of(later, doc_ids=range(3)) == answers
    assert later.facts() == {"device": "cpu", "dtype": "float32"}
    with pytest.raises(
        LlavaError, match=r"^kinds document 3: no stored answer to what is asked \(2 of 5 documents have no answer"
    ):
        answers_of(later)
    with pytest.raises(LlavaError, match="answers of one model are needed, found 0"):
        make_adapter(documents, answers=tmp_path / "empty", pretrained="gone", stored_only=True)
    with pytest.raises(LlavaError, match="gone: no such model folder"):
        make_adapter(documents, answers=tmp_path, pretrained="gone")


def test_drawn_answers_are_drawn_again_and_repeats_are_drawn_anew(make_adapter, documents, tmp_path, asked):
    drawn = {"max_new_tokens": 12, "temperature": 1.5}
    model = make_adapter(documents, batch_size=4, answers=tmp_path / "a")
    first, second, *others = model.generate_until(requests_of(model, drawn, [0, 1]) * 3)
    assert len({first, *others[::2]}) == len({second, *others[1::2]}) == 3
    assert {len(batch) for batch in asked} == {1}
    alone = make_adapter(documents, answers=tmp_path / "b")
    assert answers_of(alone, drawn, [1]) == [second]


def test_requests_that_only_fill_up_a_rank_are_not_answered(make_adapter, documents, asked):
    model = make_adapter(documents)
    requests = requests_of(model, doc_ids=[1, 1])
    requests[1].metadata["__padding_only__"] = True
    answer, nothing = model.generate_until(requests)
    assert (answer != "", nothing, len(asked)) == (True, "", 1)
    assert model.generate_until([]) == []


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pictures(make_image):
    """{name: (file, what is said of it, or None where it can be read)}"""
    page = make_image(100, 70)
    jpeg = encoded(page, "JPEG")
    bomb = bytearray(encoded(Image.new("L", (1, 1)), "PNG"))
    bomb[16:24] = (20000).to_bytes(4, "big") * 2  # width and height
    bomb[29:33] = crc32(bomb[12:29]).to_bytes(4, "big")
    sixteen = Image.new("I;16", (40, 30), 300)
    gif = [make_image(30, 20, seed).convert("P") for seed in range(3)]
    return {
        "page": (jpeg, None),
        "truncated JPEG": (jpeg[: len(jpeg) // 2], "image file is truncated"),
        "one pixel": (encoded(make_image(1, 1), "PNG"), None),
        "20,000 pixels wide": (encoded(make_image(20000, 3), "PNG"), None),
        "20,000 pixels high": (encoded(make_image(3, 20000), "PNG"), None),
        "bomb": (bytes(bomb), "Image size (400000000 pixels) exceeds limit"),
        "CMYK": (encoded(page.convert("CMYK"), "JPEG"), None),
        "16 bit": (encoded(sixteen, "PNG"), None),
        "transparent": (encoded(page.convert("RGBA"), "PNG"), None),
        "animated": (encoded(gif[0], "GIF", save_all=True, append_images=gif[1:]), None),
        "no image": (b"nothing to see", "not an image that Pillow can read"),
    }


def test_a_damaged_document_is_named_and_all_others_are_answered(make_adapter, pictures, asked, tmp_path):
    """As `datasets` hands them out: decoded when the document is read."""
    import datasets

    rows = [{"image": {"path": None, "bytes": data}} for data, _ in pictures.values()]
    features = datasets.Features({"image": datasets.Image()})
    read = datasets.Dataset.from_list(rows, features=features)

    def run(dataset):
        model = make_adapter(dataset, batch_size=4, answers=tmp_path)
        metadata = {"task": "kinds", "doc_id": 0, "repeats": 1}
        requests = [
            Instance(
                "generate_until",
                ("", lambda doc: [message("user", doc["image"], "What?")], GREEDY, doc_id, "kinds", "test"),
                0,
                metadata,
            )
            for doc_id in range(len(rows))
        ]
        return model.generate_until(requests)

    said, problems = [], [problem for _, problem in pictures.values() if problem]
    sink = logger.add(said.append, format="{message}", level="ERROR")
    with pytest.raises(
        LlavaError, match=r"^kinds document 1: .*truncated .*\(3 of 11 documents have no answer; the ans"
    ):
        run(read)
    logger.remove(sink)
    assert len(said) == len(problems) == 3
    damaged = [doc_id for doc_id, (_, problem) in enumerate(pictures.values()) if problem]
    for line, doc_id, problem in zip(said, damaged, problems):
        assert line.startswith(f"kinds document {doc_id}: {problem}")
        assert line.count("\n") == 1
    stored = tmp_path / "rank0.jsonl"
    assert stored.read_text().count("\n") == 8

    rows = [rows[0] if number in damaged else row for number, row in enumerate(rows)]  # the data set, mended
    answers = run(datasets.Dataset.from_list(rows, features=features))
    assert all(answers)
    assert {answers[number] for number in damaged} == {answers[0]}
    assert stored.read_text().count("\n") == 11


@pytest.mark.parametrize("simple", [False, True])
def test_documents_look_as_in_training(make_adapter, asked, simple):
    """Also where the task's own function calls Pillow's convert: 16 bits are scaled, what is transparent is white."""
    images = [Image.new("I;16", (40, 30), 25700), Image.new("RGBA", (40, 30), (0, 0, 0, 0))]
    model = make_adapter([{"images": images, "image": images[0]}], simple)

    def visuals(doc):
        return [image.convert("RGB") for image in (*doc["images"], doc["image"])]

    arguments = ("What?", GREEDY, visuals) if simple else ("", lambda doc: [message("user", *visuals(doc))], GREEDY)
    model.generate_until(
        [Instance("generate_until", (*arguments, 0, "kinds", "test"), 0, {"task": "kinds", "doc_id": 0, "repeats": 1})]
    )
    ((dialogue,),) = asked
    assert [image.getpixel((5, 5)) for image in dialogue.images] == [(100,) * 3, (255,) * 3, (100,) * 3]
    assert "image" in model.task_dict["kinds"]["test"][0]


def test_a_failure_on_one_rank_is_an_error_on_every_rank(make_adapter, documents, monkeypatch):
    """Else the others would wait for it. What the ranks tell each other is scripted here."""
    model = make_adapter(documents[:2])
    told = []
    monkeypatch.setattr(model, "_world_size", 2)
    monkeypatch.setattr(
        lmms_model, "gather_object", lambda mine: (told.append(mine), [*mine, *([8] if mine == [2] else ["b", "c"])])[1]
    )
    with pytest.raises(LlavaError, match=r"^b \(2 of 10 documents have no answer; all others were answered\)$"):
        answers_of(model)
    assert told == [[], [2]]


def test_a_prompt_that_is_too_long_is_named_and_others_are_answered(make_adapter, documents, tmp_path):
    long = {"messages": [message("user", "word " * 1000)]}
    with pytest.raises(
        LlavaError, match=r"kinds document 1: the prompt has \d+ tokens, but the model reads at most 2048 \(1 of 2 doc"
    ):
        answers_of(make_adapter([documents[0], long], answers=tmp_path))
    (line,) = (tmp_path / "rank0.jsonl").read_text().splitlines()
    assert json.loads(line)["doc_id"] == 0


def test_a_batch_that_does_not_fit_says_so(make_adapter, documents, monkeypatch):
    def full(self, dialogues, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 TiB\nand so on")

    monkeypatch.setattr(Engine, "generate", full)
    with pytest.raises(
        LlavaError, match=r"kinds document \d+: the memory of cpu does not hold a batch of 16; .* smaller b"
    ):
        answers_of(make_adapter(documents, batch_size=16))


@pytest.mark.parametrize(
    ("change", "text"), [({"batch_size": "auto"}, "batch_size must be"), ({"dtype": "int3"}, "unknown dtype 'int3'")]
)
def test_wrong_arguments(make_adapter, change, text):
    with pytest.raises(LlavaError, match=text):
        make_adapter([], **change)


def test_the_next_batch_is_cut_into_crops_while_one_is_answered(make_adapter, documents, monkeypatch):
    prepared, generate, prepare = [threading.Event() for _ in range(4)], Engine.generate, Engine.prepare
    done = []

    def note(self, dialogues):
        assert threading.current_thread() is not threading.main_thread()
        inputs = prepare(self, dialogues)
        prepared[len(done)].set()
        done.append(inputs)
        return inputs

    def wait(self, dialogues, *, inputs, **settings):
        number = next(n for n, those in enumerate(done) if those is inputs)
        assert all(event.wait(60) for event in prepared[: number + 2])
        return generate(self, dialogues, inputs=inputs, **settings)

    expected = answers_of(make_adapter(documents, batch_size=4))
    monkeypatch.setattr(Engine, "prepare", note)
    monkeypatch.setattr(Engine, "generate", wait)
    assert answers_of(make_adapter(documents, batch_size=4)) == expected
    assert len(done) == 4
