"""What a script for transformers' LlavaOnevision does, done with our model by changing the model's name.

Each snippet has the form that transformers' documentation shows, and is run on two folders of the same weights: ours,
and the one that `llava convert export --format llava_onevision` makes of it, through plain transformers.
"""

import base64
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.request import urlopen

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    LlavaOnevisionProcessor,
    ProcessorMixin,
    pipeline,
)

import llava.mllm  # noqa: F401  registers the Auto classes
from llava.cli import main
from llava.data.processor import LlavaOVManagerProcessor
from llava.data.schema import Sample, Turn
from llava.errors import LlavaError
from tests.conftest import GRID

SAME = replace(GRID, newline_after_one_crop=True, unpad_rounding="round")  # transformers computes the same
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
ASKED = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
OURS, THEIRS = "llava_ov_manager", "llava_onevision"


class WithoutVideos(LlavaOnevisionProcessor):
    """transformers' processor but for videos, which there need torchvision."""

    def __init__(self, image_processor, tokenizer, **settings):
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=tokenizer.chat_template)
        self.num_image_tokens, self.vision_feature_select_strategy = settings["num_image_tokens"], "full"
        self.vision_aspect_ratio = "anyres_max_9"
        self.image_token, self.video_token = "<image>", "<video>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_model, make_processor):
    folder = tmp_path_factory.mktemp("scripts")
    make_model(SAME, None).save_pretrained(folder / OURS)
    make_processor(SAME).save_pretrained(folder / OURS)
    arguments = ["--out", str(folder / THEIRS), "--format", "llava_onevision"]
    assert main(["convert", "export", str(folder / OURS), *arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def load_processor(folders, make_processor):
    """A function: model_id to what AutoProcessor.from_pretrained gives."""

    def load(model_id):
        if model_id == OURS:
            return AutoProcessor.from_pretrained(folders / model_id)
        parts = (
            AutoImageProcessor.from_pretrained(folders / model_id),
            AutoTokenizer.from_pretrained(folders / model_id),
        )
        return WithoutVideos(*parts, num_image_tokens=16)

    return load


@pytest.fixture(scope="module")
def scripts(folders, load_processor, make_image):
    """What a script has at hand, for each of the two names; a server answers with the files that it asks for."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=folders)

        def log_message(self, *arguments):
            pass

    for name, size in (("stop", (150, 97)), ("cats", (60, 170)), ("snowman", (90, 90))):
        make_image(*size, len(name)).save(folders / f"{name}.png")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {
            model_id: SimpleNamespace(
                processor=load_processor(model_id),
                model=AutoModelForImageTextToText.from_pretrained(folders / model_id, dtype=torch.float32),
                url=f"http://127.0.0.1:{server.server_port}",
                folder=folders,
            )
            for model_id in (OURS, THEIRS)
        }
        server.shutdown()


def user(*parts) -> dict:
    return {"role": "user", "content": list(parts)}


def said(text: str) -> dict:
    return {"type": "text", "text": text}


def formatted(script) -> list:
    conversation = [
        user({"type": "image"}, said("What is in the picture?")),
        {"role": "assistant", "content": [said("A red car.")]},
        user(said("And what else?")),
    ]
    return [script.processor.apply_chat_template(conversation, add_generation_prompt=True)]


def one_image(script) -> list:
    processor, model = script.processor, script.model
    with urlopen(f"{script.url}/stop.png") as answer:
        image = Image.open(answer)
        image.load()
    conversation = [user({"type": "image"}, said("What is in the picture?"))]
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    half = processor(images=image, text=prompt, return_tensors="pt").to(model.device, torch.float16)
    assert (half["pixel_values"].dtype, half["input_ids"].dtype) == (torch.float16, torch.int64)
    inputs = processor(images=image, text=prompt, return_tensors="pt").to(model.device, torch.float32)
    output = model.generate(**inputs, **GREEDY)
    with torch.no_grad():
        loss = model(**inputs, labels=inputs["input_ids"]).loss
    return [output, processor.decode(output[0], skip_special_tokens=True), round(loss.item(), 4)]


def several_images(script) -> list:
    processor, model = script.processor, script.model
    processor.tokenizer.padding_side = "left"
    stop, cats, snowman = (Image.open(script.folder / f"{name}.png") for name in ("stop", "cats", "snowman"))
    first = [
        user({"type": "image"}, said("What is in the picture?")),
        {"role": "assistant", "content": [said("A red car.")]},
        user({"type": "image"}, said("What about this?")),
    ]
    second = [user({"type": "image"}, said("What is in the picture?"))]
    prompts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in (first, second)]
    flat = processor(images=[stop, cats, snowman], text=prompts, padding=True, return_tensors="pt")
    assert model.generate(**flat.to(model.device, torch.float32), **GREEDY).shape == (2, flat["input_ids"].shape[1] + 6)
    # transformers takes each image of a flat list for the only one of its prompt; ours shares them out, as here
    inputs = processor(images=[[stop, cats], [snowman]], text=prompts, padding=True, return_tensors="pt")
    ids = model.generate(**inputs, **GREEDY)
    return [ids, processor.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)]


def in_the_messages(script) -> list:
    """Images by URL, path, PIL and base64, one conversation and a batch of two of different lengths."""
    processor, model = script.processor, script.model
    stop = script.folder / "stop.png"
    shown = [
        {"type": "image", "url": f"{script.url}/stop.png"},
        {"type": "image", "path": str(stop)},
        {"type": "image", "image": Image.open(stop)},
        {"type": "image", "base64": base64.b64encode(stop.read_bytes()).decode()},
    ]
    results = []
    for image in shown:
        inputs = processor.apply_chat_template([user(image, said("What is in the picture?"))], **ASKED)
        results.append(inputs["input_ids"])
        assert torch.equal(inputs["input_ids"], results[0])
    chats = [[user(shown[0], said("What is in the picture?"))], [user(shown[1], shown[2], said("A"))]]
    batch = processor.apply_chat_template(chats, padding=True, padding_side="left", **ASKED).to(model.device)
    results.append(model.generate(**batch, **GREEDY))
    return [*results, sorted({*batch} & {"input_ids", "attention_mask", "pixel_values", "image_sizes"})]


def assistant_masks(script) -> list:
    chats = [
        [
            {"role": "system", "content": [said("You are a helpful assistant.")]},
            user({"type": "image", "path": str(script.folder / "cats.png")}, said("What is in the picture?")),
            {"role": "assistant", "content": [said("A red car. é 0123")]},
            user(said("And?")),
            {"role": "assistant", "content": [said("No more.")]},
        ],
        [user(said("What?")), {"role": "assistant", "content": [said("A car.")]}],
    ]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "return_assistant_tokens_mask": True}
    script.processor.tokenizer.padding_side = "left"
    inputs = script.processor.apply_chat_template(chats, padding=True, **options)
    return [inputs["assistant_masks"], inputs["input_ids"]]


def pipelines(script) -> list:
    pipe = pipeline("image-text-to-text", model=script.model, processor=script.processor)
    url = f"{script.url}/snowman.png"
    chats = [[user({"type": "image", "url": url}, said("What is in the picture?"))] for _ in range(2)]
    settings = {"return_full_text": False, "generate_kwargs": GREEDY}
    answers = pipe(text=chats, **settings)
    text = "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    return [[one[0]["generated_text"] for one in answers], pipe(images=url, text=text, **settings)[0]["generated_text"]]


SNIPPETS = [formatted, one_image, several_images, in_the_messages, assistant_masks, pipelines]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.__name__)
def test_a_documented_snippet_runs_under_both_names(scripts, snippet):
    found, expected = (snippet(scripts[name]) for name in (OURS, THEIRS))
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected):
        if torch.is_tensor(theirs):
            ours, theirs = ours.tolist(), theirs.tolist()
        assert ours == theirs


def test_the_auto_classes_of_onevision_load_it(folders):
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        assert type(auto.from_pretrained(folders / OURS)).__name__ == "LlavaOVManagerForConditionalGeneration"
    assert type(AutoProcessor.from_pretrained(folders / OURS)) is LlavaOVManagerProcessor


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_assistant_s_tokens_are_those_that_training_supervises(make_processor, make_image, side):
    """Of texts with characters of several bytes, special tokens written out, and an image that is repeated before."""
    processor = make_processor()
    turns = (
        Turn("human", "<image>\nWhat is in the picture?"),
        Turn("gpt", "A é<|im_end|> red\U000f0001 car."),
        Turn("human", "Sure?"),
        Turn("gpt", "0123"),
    )
    sample = Sample("one", turns, ("a.png",), "")
    encoding = {"template": "qwen_1_5", "label_rule": "answers", "max_length": 4096}
    expected = processor.encode_sample(sample, [make_image()], **encoding)
    roles = {"human": "user", "gpt": "assistant"}
    parts = [[{"type": "image", "image": make_image()}, said("What is in the picture?")]]
    parts += [[said(turn.text)] for turn in turns[1:]]
    chat = [{"role": roles[turn.role], "content": part} for turn, part in zip(turns, parts)]
    other = [user(said("A")), {"role": "assistant", "content": "B"}]
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True, "padding_side": side}
    found = processor.apply_chat_template([chat, other], **options)
    labels = torch.tensor([label != -100 for label in expected["labels"]])
    length = int(found["attention_mask"][0].sum())
    masked = found["assistant_masks"][0, -length:] if side == "left" else found["assistant_masks"][0, :length]
    assert length == len(expected["input_ids"])
    assert masked.bool().tolist() == labels.tolist()


def test_offsets_name_the_characters_of_each_token(make_processor, make_image):
    """Decoding the characters again gives the token; transformers' own function repeats the placeholders."""
    processor = make_processor()
    chat = [user({"type": "image", "image": make_image()}, said("é <|im_end|> 0123 car")), user(said("A"))]
    text = processor.apply_chat_template(chat)
    found = processor(
        text=[text, "A"],
        images=[make_image()],
        return_offsets_mapping=True,
        return_text_replacement_offsets=True,
    )
    count = int((found["input_ids"][0] == processor.image_token_id).sum())
    texts, replacements = processor.get_text_with_replacements([text, "A"], ["<image>" * count])
    assert found["text_replacement_offsets"] == replacements
    for token, (start, end) in zip(found["input_ids"][0].tolist(), found["offset_mapping"][0].tolist()):
        written = texts[0][start:end].replace("\U000f0001", "")
        assert processor.decode([token]) in (written, "\ufffd"), (start, end)
    lengths = found["attention_mask"].sum(1).tolist()
    assert found["offset_mapping"][1, : lengths[0] - lengths[1]].abs().sum() == 0
    cut = processor(text="0123 0123", truncation=True, max_length=2, return_offsets_mapping=True)
    assert cut["offset_mapping"].shape == (1, 2, 2)


def test_tokens_are_counted_as_they_are_made(make_processor, make_image):
    """For vLLM, by sizes alone: one image and several, of which each is then another number of crops, and videos."""
    processor, draw = make_processor(), np.random.default_rng(0)
    for number in [1] * 30 + [2, 3, 5]:
        images = [make_image(*map(int, draw.integers(1, 700, 2)), seed) for seed in range(number)]
        made = processor(text="<image>" * number, images=images)
        told = processor._get_num_multimodal_tokens([(image.height, image.width) for image in images])
        assert sum(told["num_image_tokens"]) == made["input_ids"].shape[1]
        assert sum(told["num_image_patches"]) == len(made["pixel_values"])
        assert len(told["num_image_tokens"]) == len(told["num_image_patches"]) == number
        assert "num_video_tokens" not in told
    videos = [[make_image(60, 40, seed)] * frames for seed, frames in enumerate((1, 2, 7))]
    told = processor._get_num_multimodal_tokens(video_sizes=[(len(video), 40, 60) for video in videos])
    lengths = [processor(text="<video>", videos=[video])["input_ids"].shape[1] for video in videos]
    assert told["num_video_tokens"] == lengths
    assert "num_image_tokens" not in told
    with pytest.raises(LlavaError, match="does not take 'size'"):
        processor._get_num_multimodal_tokens([(3, 4)], size=3)


def test_a_video_is_a_file_as_in_the_documentation(scripts, make_processor, tmp_path, make_clip):
    """By path, URL and frames; num_frames takes what the older snippet's own lines of numpy and PyAV take."""
    processor, model = scripts[OURS].processor, scripts[OURS].model
    path = make_clip(30, fps=8)
    (scripts[OURS].folder / "clip.mp4").write_bytes(path.read_bytes())
    with av.open(path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    indices = np.arange(0, len(frames), len(frames) / 8).astype(int)
    video = np.stack([frames[index] for index in indices])
    prompt = processor.apply_chat_template([user({"type": "video"}, said("Why?"))], add_generation_prompt=True)
    expected = processor(videos=list(video), text=prompt, return_tensors="pt")
    of_array = processor(videos=np.stack(frames), num_frames=8, text=prompt)
    assert all(torch.equal(of_array[key], expected[key]) for key in expected)
    for part in ({"path": str(path)}, {"url": f"{scripts[OURS].url}/clip.mp4"}, {"video": path}):
        chat = [user({"type": "video", **part}, said("Why?"))]
        found = processor.apply_chat_template(chat, num_frames=8, **ASKED)
        assert torch.equal(found["input_ids"], expected["input_ids"])
        difference = found["pixel_values_videos"] - expected["pixel_values_videos"]
        assert difference.abs().max() < 0.05  # two decoders
    assert torch.equal(model.generate(**found, **GREEDY), model.generate(**expected, **GREEDY))
    for options, count in (({"fps": 2}, 7), ({"do_sample_frames": False}, 30), ({}, 4)):
        assert processor(text=prompt, videos=str(path), **options)["video_num_frames"].tolist() == [count], options


@pytest.mark.parametrize(
    ("videos", "options", "message"),
    [
        ("none.mp4", {}, "video none.mp4 does not exist"),
        ("data:video/mp4;base64,AAAA", {}, "video 1 is a data: URL"),
        ([np.zeros((4, 8, 8, 3), np.uint8)], {"num_frames": 5}, "video 1 has 4 frames, fewer than num_frames=5"),
        ([np.zeros((4, 8, 8, 3), np.uint8)], {"fps": 1}, "whose rate is not known"),
        ("clip.mp4", {"fps": 1, "num_frames": 2}, "exclude each other"),
        ("clip.mp4", {"num_frames": 0}, "a whole number from 1, found 0"),
        ("clip.mp4", {"fps": -1}, "fps must be a positive number, found -1"),
        ("clip.mp4", {"do_sample_frames": True}, "give both or neither"),
        ("http://127.0.0.1:1/a.mp4", {}, r"http://127.0.0.1:1/a.mp4 cannot be fetched"),
    ],
)
def test_a_video_that_cannot_be_taken_is_named(make_processor, videos, options, message):
    with pytest.raises(LlavaError, match=message):
        make_processor()(text="<video>", videos=videos, **options)
