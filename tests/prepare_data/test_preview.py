"""The preview in text and as a picture, against what is written here by hand and read off the processor's inputs."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from llava.anyres import TilingConfig
from llava.cli import main
from llava.data.image_processor import LlavaOVManagerImageProcessor
from llava.data.images import RESAMPLING
from llava.data.processor import LlavaOVManagerProcessor
from llava.data.schema import Sample, Turn
from llava.prepare_data.preview import load_processor, preview_encoded, preview_sample, render_text
from llava.prepare_data.preview_picture import BADGE, BORDER, MARGIN, PAPER, WIDTH, draw_preview
from tests.conftest import GRID

ANSWERS = ["A red car.\nNo more.", "Yes."]
TURNS = (
    Turn("human", "<image>\nWhat?"),
    Turn("gpt", ANSWERS[0]),
    Turn("human", "Sure?"),
    Turn("gpt", ANSWERS[1]),
)
HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
PROMPT = (
    f"{HEAD}<|im_start|>user\n<image x70>\nWhat?<|im_end|>\n<|im_start|>assistant\n{ANSWERS[0]}<|im_end|>\n"
    f"<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n{ANSWERS[1]}<|im_end|>\n"
)
# An image of 112 x 70 stands centred on 2 x 2 tiles of 56, between 21 black rows above and below. These are
# 8 x 8 patches; the image covers 5 rows of them, so unpadding takes (8 - 5) // 2 = 1 from both ends: 6 x 8 stay,
# 3 x 4 of each tile.
IMAGE_LINES = """image 1: page.png, 112 x 70 pixels, 70 tokens
  crop 0, the whole image: 16
  crops 1 to 4, 2 x 2 tiles: 8 x 8 patches, kept 6 x 8
    patches kept in crops 1 to 2: 12 12
    patches kept in crops 3 to 4: 12 12
    6 rows x 8 columns + 6 newlines = 54"""
RELEASED = [
    *("<|im_start|>", "\n", "<|im_end|>\n<|im_start|>", "\n", "\n"),
    f"<|im_end|>\n<|im_start|>assistant\n{ANSWERS[0]}<|im_end|>\n<|im_start|>",
    *("\n", f"<|im_end|>\n<|im_start|>assistant\n{ANSWERS[1]}<|im_end|>\n"),
]
TILINGS = [
    GRID,
    TilingConfig("anyres", "spatial_unpad", 1, GRID.pinpoints),  # shrinks
    TilingConfig("anyres", "spatial", pinpoints=GRID.pinpoints),
    TilingConfig("anyres", "flat", pinpoints=GRID.pinpoints),
    TilingConfig("pad", newline_after_one_crop=True),
    TilingConfig("square"),
]


@pytest.fixture
def folder(tmp_path, make_image):
    """page.png, data.json with one sample without and one with it, and a mixture of the last."""
    make_image(112, 70).save(tmp_path / "page.png")
    turns = [{"from": turn.role, "value": turn.text} for turn in TURNS]
    text_only = {"id": "hello", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
    records = [text_only, {"id": "page/7", "image": "page.png", "conversations": turns}]
    (tmp_path / "data.json").write_text(json.dumps(records))
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "mixture.yaml").write_text("datasets: [{json_path: data.json, sampling_strategy: 'end:1'}]")
    return tmp_path


@pytest.fixture
def run(folder, tiny_model_dir):
    """A function: options to the exit status of `llava data preview`."""

    def preview(data="data.json", *options):
        arguments = ["--model", tiny_model_dir, "--data", folder / data, "--image_folder", folder, *options]
        return main(["data", "preview", *map(str, arguments)])

    return preview


def sample_of(*images: str, question="<image>\nWhat?", answer="A red car.", videos=()) -> Sample:
    turns = (Turn("human", question), Turn("gpt", answer))
    return Sample("page/7", turns, images, "data.json row 3", tuple(videos))


def encode(processor, sample, images=(), videos=()) -> dict:
    encoding = {"template": "qwen_1_5", "label_rule": "answers", "max_length": 10**6}
    return processor.encode_sample(sample, list(images), list(videos), **encoding)


def supervised(text: str) -> list[str]:
    """The marked parts of a preview, their newlines as they were; its legend names the marks once more."""
    prompt = text[: text.rindex("supervised: between")]
    return [part.replace("\\n\n", "\n") for part in re.findall(r"⟦(.*?)⟧", prompt, re.DOTALL)]


def places(picture: Image.Image, patch: np.ndarray) -> list[tuple[int, int]]:
    """(x, y) of every place where the pixels of `patch` stand in the picture."""
    pixels = np.asarray(picture)
    height, width = patch.shape[:2]
    ys, xs = np.nonzero((pixels == patch[0, 0]).all(-1))
    return [(x, y) for x, y in zip(xs, ys) if np.array_equal(pixels[y : y + height, x : x + width], patch)]


def test_the_whole_text(run, folder, tiny_model_dir, capsys):
    assert run("data.json", "--index", 1) == 0
    found = capsys.readouterr().out
    tokenizer = AutoProcessor.from_pretrained(tiny_model_dir).tokenizer
    text_tokens = len(tokenizer(PROMPT.replace("<image x70>", ""))["input_ids"])
    answer_tokens = sum(len(tokenizer(answer + "<|im_end|>")["input_ids"]) for answer in ANSWERS)
    marked = PROMPT.replace(ANSWERS[1] + "<|im_end|>", f"⟦{ANSWERS[1]}<|im_end|>⟧").replace(
        ANSWERS[0] + "<|im_end|>", "⟦A red car.\\n\nNo more.<|im_end|>⟧"
    )
    assert found == (
        f"sample 'page/7' ({folder / 'data.json'} row 2)\n{IMAGE_LINES}\n\n{marked}\n"
        f"{text_tokens + 70} tokens, {answer_tokens} of them supervised, 70 visual; 5 crops\n"
        "supervised: between ⟦ and ⟧, newlines there written \\n\n"
    )


@pytest.mark.parametrize(
    ("label_rule", "expected"),
    [("answers", [answer + "<|im_end|>" for answer in ANSWERS]), ("released", RELEASED)],
)
def test_the_marked_text_is_the_supervised_text(run, capsys, label_rule, expected):
    assert run("data.json", "--index", 1, "--label_rule", label_rule) == 0
    assert supervised(capsys.readouterr().out) == expected


def test_the_template_of_stage_one(make_processor, folder):
    preview = preview_sample(
        sample_of("page.png", question="<image>\nCaption it."),
        make_processor(),
        image_folder=folder,
        template="plain",
        label_rule="answers",
    )
    assert render_text(preview, color=False).split("\n\n")[1] == "<image x70>⟦A red car.\\n\n⟧"


def test_colours_mark_the_same_text(make_processor, folder):
    sample = Sample("page/7", TURNS, ("page.png",), "data.json row 3")
    options = {"image_folder": folder, "template": "qwen_1_5", "label_rule": "released"}
    text = render_text(preview_sample(sample, make_processor(), **options), color=True)
    green = "".join(re.findall(r"\x1b\[30;42m([^\x1b]*)\x1b\[0m", text))
    assert green == "".join(RELEASED).replace("\n", "\\n")
    assert re.findall(r"\x1b\[36m([^\x1b]*)\x1b\[0m", text) == ["<image x70>"]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert f"\n\n{PROMPT}\n" in plain.replace("\\n\n", "\n")


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("size", [(112, 70), (500, 30), (20, 600), (640, 480), (56, 56), (1, 1)])
def test_counts_equal_the_processor_s(make_processor, make_image, tiling, size):
    processor, sample, image = make_processor(tiling), sample_of("page.png"), make_image(*size)
    encoded = encode(processor, sample, [image])
    preview = preview_encoded(sample, encoded, processor)
    text = render_text(preview, color=False)
    visual = encoded["input_ids"].count(processor.image_token_id)
    crops, tokens = len(encoded["pixel_values"]), len(encoded["input_ids"])
    answer = sum(label != -100 for label in encoded["labels"])
    assert f"<image x{visual}>" in text
    assert f"{size[0]} x {size[1]} pixels, {visual} tokens" in text
    assert f"{tokens} tokens, {answer} of them supervised, {visual} visual; {crops} crops" in text
    base, newline = re.search(r"crop 0, the whole image: (\d+)( \+ 1 newline)?\n", text).groups()
    grid = [int(total) for total in re.findall(r"columns.* = (\d+)$", text, re.MULTILINE)]
    assert int(base) + bool(newline) + sum(grid) == visual
    assert len(preview.images[0].crops) == crops
    if crops > 1:
        begins = [int(number) for number in re.findall(r"patches kept in crops (\d+) to", text)]
        kept = [line.split() for line in re.findall(r"patches kept in .*: (.*)", text)]
        assert begins[0] == 1
        assert sum(map(len, kept)) == crops - 1
        rows, columns = map(int, re.search(r"kept (\d+) x (\d+)", text).groups())
        assert sum(int(count) for counts in kept for count in counts) == rows * columns
        newlines = re.search(r"\+ (\d+) newlines", text)
        shrunk = "shrunk" in text
        assert shrunk or rows * columns + (int(newlines[1]) if newlines else 0) == grid[0]


def test_the_shrunk_map_is_told(make_processor, make_image):
    """12 x 12 patches of 3 x 3 tiles are 9 times the budget of one crop: a third is left of each side."""
    processor, sample = make_processor(TILINGS[1]), sample_of("page.png")
    encoded = encode(processor, sample, [make_image(168, 168)])
    text = render_text(preview_encoded(sample, encoded, processor), color=False)
    assert "3 x 3 tiles: 12 x 12 patches, kept 12 x 12, shrunk to 4 x 4" in text
    assert "4 rows x 4 columns + 4 newlines = 20" in text


def test_the_picture_shows_the_crops_in_their_places(run, folder, capsys):
    out = folder / "preview.png"
    assert run("data.json", "--index", 1, "--out", out) == 0
    assert capsys.readouterr().out.endswith(f"picture: {out}\n")
    picture, image = Image.open(out), Image.open(folder / "page.png")
    assert picture.mode == "RGB"
    assert picture.width == WIDTH
    pixels = np.asarray(image)
    small = np.asarray(image.resize((56, 56), RESAMPLING))
    # Parts of the crops right of and below their labels, with the place of each part in its crop.
    parts = [
        (small[20:, 20:], 20, 20),
        (pixels[:35, 40:56], 40, 21),
        (pixels[:35, 96:], 40, 21),
        (pixels[52:, :56], 0, 17),
        (pixels[52:, 56:], 0, 17),
    ]
    corners = []
    for part, x, y in parts:
        (place,) = places(picture, part)
        corners.append((place[0] - x, place[1] - y))
    (x0, y0), (x1, y1) = corners[:2]
    step = corners[2][0] - x1
    assert x1 >= x0 + 56 + 2
    assert y0 == y1
    assert step >= 56 + 2
    assert corners[2:] == [(x1 + step, y1), (x1, y1 + step), (x1 + step, y1 + step)]
    for x, y in corners:
        assert picture.getpixel((x, y)) == BADGE
        frame = [(x - 1, y - 1), (x + 56, y - 1), (x - 1, y + 56), (x + 56, y + 56), (x + 30, y + 56)]
        assert {picture.getpixel(point) for point in frame} == {BORDER}
        assert picture.getpixel((x - 2, y + 30)) == PAPER


def test_removed_padding_is_shaded_and_kept_padding_is_not(make_processor, make_image, folder):
    """Of the 21 black rows above the image, unpadding removes one row of patches, 14 pixels."""
    processor, sample = make_processor(), sample_of("page.png")
    image = make_image(112, 70)
    picture = draw_preview(preview_encoded(sample, encode(processor, sample, [image]), processor))
    ((x, y),) = places(picture, np.asarray(image)[:35, 40:56])
    column = [picture.getpixel((x, y - 21 + row)) for row in range(21)]
    assert column[14:] == [(0, 0, 0)] * 7
    assert len(set(column[:14])) == 1
    red, green, blue = column[0]
    assert red > 100
    assert green < red // 3
    assert blue < red
    ((x, y),) = places(picture, np.asarray(image)[52:70, 40:56])
    column = [picture.getpixel((x, y + 18 + row)) for row in range(21)]
    assert column[:7] == [(0, 0, 0)] * 7
    assert set(column[7:]) == {(red, green, blue)}


def test_supervised_text_is_highlighted_in_the_picture(make_processor):
    """A longer answer makes more green, a longer question does not."""
    processor = make_processor()

    def green(**texts) -> int:
        sample = sample_of(**{"question": "What?", **texts})
        picture = draw_preview(preview_encoded(sample, encode(processor, sample), processor))
        red, green, blue = np.asarray(picture).astype(int).transpose(2, 0, 1)
        return int(((green > red + 30) & (green > blue + 30)).sum())

    shown = green()
    assert shown > 1000
    assert green(question="What? " * 50) == shown
    assert green(answer="A red car. " * 10) > 5 * shown


def test_long_and_odd_text_stays_on_the_picture(make_processor):
    question = "x" * 1000 + " é汉字\t\x1b[31m\x07 " * 50
    processor, sample = make_processor(), sample_of(question=question, answer="y z" * 900)
    preview = preview_encoded(sample, encode(processor, sample), processor)
    assert "\x1b" not in render_text(preview, color=False)
    assert "é汉字\t\\x1b[31m\\x07" in render_text(preview, color=False)
    pixels = np.asarray(draw_preview(preview))
    assert (pixels[:, WIDTH - MARGIN + 1 :] == 255).all()
    assert (pixels[:, : MARGIN - 2] == 255).all()  # letters may lean over by a pixel
    assert (pixels[-MARGIN:] == 255).all()


def test_crops_of_real_size_are_scaled_to_the_picture(tiny_tokenizer, make_image):
    tiling = TilingConfig.from_llava("anyres_max_9", "spatial_unpad", "(1x1),...,(6x6)", 384)
    processor = LlavaOVManagerProcessor(LlavaOVManagerImageProcessor(384, 14, tiling), tiny_tokenizer)
    sample = sample_of("page.png")
    preview = preview_encoded(sample, encode(processor, sample, [make_image(1000, 1000)]), processor)
    picture = draw_preview(preview)
    assert "<image x7371>" in render_text(preview, color=False)  # 729 + 81 x 81 + 81
    assert picture.width == WIDTH
    assert 900 < picture.height < 1500


def test_several_images_and_videos(make_processor, make_image):
    """Images follow each other without text between; each keeps its own count. A frame of 4 x 4 patches gives 2 x 2."""
    processor = make_processor()
    images = [make_image(90, 30, seed=1), make_image(60, 60, seed=2)]
    frames = [make_image(56, 56, seed=seed) for seed in (3, 4, 5)]
    sample = sample_of("a.png", "b.png", question="<image><image><video><video>\nWhat?", videos=["c.mp4", "d.mp4"])
    encoded = encode(processor, sample, images, [frames[:2], frames[2:]])
    preview = preview_encoded(sample, encoded, processor)
    text = render_text(preview, color=False)
    assert "<image x16><image x16><video x9><video x5>\nWhat?" in text
    assert "image 2: b.png, 60 x 60 pixels, 16 tokens\n  crop 1, the whole image: 16\n" in text
    assert "video 1: c.mp4, 2 frames x 2 rows x 2 columns + 1 newline = 9 tokens" in text
    assert "video 2: d.mp4, 1 frames x 2 rows x 2 columns + 1 newline = 5 tokens" in text
    assert "46 visual; 5 crops" in text
    assert [len(video.frames) for video in preview.videos] == [2, 1]
    picture = draw_preview(preview)
    corners = [places(picture, np.asarray(frame)[20:, :]) for frame in frames]
    assert [len(found) for found in corners] == [1, 1, 1]
    xs, ys = zip(*(found[0] for found in corners))
    assert xs[1] - xs[0] == xs[2] - xs[1] > 56
    assert len(set(ys)) == 1


@pytest.mark.parametrize(("data", "index"), [("data.json", 1), ("data.jsonl", 1), ("mixture.yaml", 0)])
def test_data_files_and_mixtures(run, capsys, data, index):
    assert run(data, "--index", index) == 0
    assert "sample 'page/7'" in (out := capsys.readouterr().out)
    assert "data.json" in out.splitlines()[0]
    assert IMAGE_LINES in out


def test_a_video_of_a_data_file(run, folder, make_clip, capsys):
    """40 grey frames in 5 seconds: every eighth, or three from first to last, whose times the question then tells."""
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Ho"}]
    (folder / "video.json").write_text(json.dumps([{"video": make_clip().name, "conversations": turns}]))
    assert run("video.json", "--index", 0, "--out", folder / "video.png") == 0
    out = capsys.readouterr().out
    assert "video 1: clip.mp4, 5 frames x 2 rows x 2 columns + 1 newline = 21 tokens" in out
    assert "user\n<video x21>\nWhat?<|im_end|>" in out
    pixels = np.asarray(Image.open(folder / "video.png"))
    for level in (20, 60, 100, 140, 180):
        grey = (np.abs(pixels.astype(int) - level) < 3).all(-1)
        assert grey.sum() > 40 * 56, level
    timed = ["--time_instruction", "--frames_upbound", 3, "--force_sample"]
    assert run("video.json", "--index", 0, *timed) == 0
    out = capsys.readouterr().out
    assert "<video x13>\nThis is a video of 5.00 seconds, seen as 3 frames at 0.00, 2.38, 4.88 seconds.\nWhat?" in out
    assert run("video.json", "--index", 0, "--video_fps", 4) == 0
    assert "<video x81>" in capsys.readouterr().out


def test_a_sample_without_images(run, folder, capsys):
    assert run("data.json", "--index", 0, "--out", folder / "text.png") == 0
    out = capsys.readouterr().out
    assert supervised(out) == ["Ho<|im_end|>"]
    assert f"{HEAD}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Ho<|im_end|>⟧" in out
    assert "0 visual; 0 crops" in out
    assert Image.open(folder / "text.png").width == WIDTH


@pytest.mark.parametrize(
    ("question", "answer", "options", "note"),
    [
        (
            "What?",
            "what " * 2100,
            [],
            r"training refuses it: found \d{4} tokens but the language model has 2048 positions",
        ),
        (
            "What?",
            "what " * 300,
            ["--max_length", 250],
            r"training refuses it: found \d+ tokens but max_length is 250$",
        ),
        ("What?", "what " * 300, ["--max_length", 2000], None),
        (
            "what " * 300,
            "It.",
            ["--max_length", 250, "--on_over_long", "truncate"],
            r"training refuses it: found \d+ tokens but max_length is 250, and a cut there would leave no answer$",
        ),
        (
            "What?",
            "what " * 300,
            ["--max_length", 500, "--on_over_long", "truncate"],
            r"in training found \d+ tokens but max_length is 500: shortened to 500$",
        ),
    ],
)
def test_a_sample_that_is_too_long_is_told(run, folder, capsys, question, answer, options, note):
    """The preview shows it whole."""
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    (folder / "long.json").write_text(json.dumps([{"id": "long", "image": "page.png", "conversations": turns}]))
    assert run("long.json", "--index", 0, *options) == 0
    printed = capsys.readouterr()
    assert printed.out.count("what ") >= 299
    assert printed.err == "" if note is None else re.match(f"note: {note}", printed.err.rstrip("\n"))


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("data.json", ["--index", 2], "index 2 is out of range: .*data.json has 2 samples, counted from 0"),
        ("data.json", ["--index", -1], "index -1 is out of range: .*data.json has 2 samples"),
        ("mixture.yaml", ["--index", 1], "index 1 is out of range: .*mixture.yaml has 1 samples"),
        ("missing.json", ["--index", 0], "missing.json cannot be read"),
        ("data.json", ["--index", 1, "--image_folder", "nowhere"], "sample 'page/7' .*page.png does not exist"),
        ("data.json", ["--index", 0, "--template", "plain"], "sample 'hello' .*the template 'plain' needs"),
        ("data.json", ["--index", 0, "--model", "nowhere"], "nowhere: no such model folder"),
        ("data.json", ["--index", 0, "--model", "."], r"\.: its processor cannot be loaded: \S"),
        ("data.json", ["--index", 0, "--out", "a.jpg"], "--out a.jpg: .* PNG"),
        ("data.json", ["--index", 0, "--out", "nowhere/a.png"], "--out nowhere/a.png cannot be written: No such file"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(run, folder, capsys, monkeypatch, data, options, message):
    monkeypatch.chdir(folder)
    assert run(data, *options) == 2
    error = capsys.readouterr().err
    assert re.match(f"error: .*{message}", error)
    assert error.count("\n") == 1


def test_only_the_processor_is_read(tiny_model_dir, tmp_path):
    for file in tiny_model_dir.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert load_processor(tmp_path).image_processor.tiling == GRID


def test_help_is_light():
    script = (
        "import sys; from llava.prepare_data.main import main\n"
        "try: main(['preview', '--help'])\n"
        "except SystemExit: print('imported', {'torch', 'transformers', 'numpy', 'PIL', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "--label_rule" in done.stdout
    assert done.stdout.endswith("imported set()\n")
