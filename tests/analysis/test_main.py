"""`llava analyze` from its words to arrays, curves and pictures, stopped in the midst, and with wrong words."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from llava.analysis.curves import Analysed, Curve
from llava.analysis.figures import FIGURES
from llava.analysis.plots import GREY, draw
from llava.analysis.progress import Progress
from llava.analysis.record import Recorder
from llava.analysis.run import model_names
from llava.cli import main
from llava.engine.engine import Engine
from llava.errors import LlavaError
from llava.mllm import LlavaOVManagerForConditionalGeneration


@pytest.fixture
def analyze(samples_file, tmp_path):
    """A function: models and further words to (status, the output folder)."""

    def call(*models: Path, out: str = "out", data=samples_file, words: tuple[str, ...] = ()):
        folder = tmp_path / out
        line = ["analyze", *map(str, models), "--data", str(data), "--out", str(folder), "--device", "cpu"]
        return main([*line, "--image_folder", str(samples_file.parent), *words]), folder

    return call


def test_two_models_of_a_file(analyze, tiny_model_dir, plain_model_dir, capsys):
    status, out = analyze(tiny_model_dir, plain_model_dir, words=("--batch_size", "2"))
    assert status == 0
    names = model_names([tiny_model_dir, plain_model_dir])
    content, printed = json.loads((out / "curves.json").read_text()), capsys.readouterr().out
    assert content["figures"].keys() == FIGURES.keys()
    for name, figure in FIGURES.items():
        with Image.open(out / figure.file(name)) as picture:
            assert min(picture.size) > 400, name
        assert figure.reading in printed
        with_none = [curve["model"] for curve in content["figures"][name]["curves"]]
        lacks = name in ("3", "6", "7", "movement")
        assert (names[1] in with_none, f"note: {names[1]} {figure.lacking}" in printed) == (not lacks, lacks), name
    facts = content["models"]
    assert [facts[name]["injection_layers"] for name in names] == [[1, 3, 5], []]
    assert [facts[name]["samples"] for name in names] == [4, 4], "the sample without an image is passed over"

    arrays = np.load(out / f"{names[0]}.npz")
    assert [name.split()[1].strip("'") for name in arrays["samples"]] == ["0", "2", "3", "4"]
    assert arrays["cosine_visual"].shape == (4, 6)
    assert arrays["attention_textual"].shape == (4, 6, 3)
    (curve,) = [
        curve
        for curve in content["figures"]["20"]["curves"]
        if (curve["model"], curve["part"]) == (names[0], "textual, raw")
    ]
    values = arrays["attention_textual"][:, :, 1]
    assert curve["x"] == [1, 2, 3, 4, 5, 6]
    assert curve["samples"] == [4] * 6
    assert curve["mean"] == pytest.approx(values.mean(0).tolist(), rel=1e-6)
    deviations = [math.sqrt(sum((value - values[:, n].mean()) ** 2 for value in values[:, n]) / 3) for n in range(6)]
    assert curve["error"] == pytest.approx([one / 2 for one in deviations], rel=1e-4)


def test_the_arrays_are_those_of_each_conversation_alone(analyze, tiny_model_dir, samples_file, make_image):
    _, out = analyze(tiny_model_dir, words=("--batch_size", "4", "--figures", "19,6"))
    arrays = np.load(out / f"{tiny_model_dir.name}.npz")
    engine = Engine.from_pretrained(tiny_model_dir, "cpu", attn_implementation="eager")
    text = "system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image> <image>\nWhat?<|im_end|>\n"
    text = f"<|im_start|>{text}<|im_start|>assistant\nA red car.<|im_end|>\n"
    images = [make_image(120, 90, 2), make_image(120, 80, 2)]
    encoded = engine.processor(images=images, text=text.replace("<image> <image>", "<image><image>"))
    (alone,) = Recorder(engine.model, ["hidden"]).record({**encoded, "batch_num_images": [2]})
    assert arrays["cosine_visual"][1] == pytest.approx(alone["cosine_visual"], abs=1e-5)
    assert arrays["cosine_textual"][1] == pytest.approx(alone["cosine_textual"], abs=1e-5)


def test_a_stopped_analysis_goes_on_where_it_was(analyze, tiny_model_dir, monkeypatch, capsys):
    record, calls = Recorder.record, []

    def stopping(recorder, inputs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(inputs)
        return record(recorder, inputs)

    few = ("--figures", "19,distance")
    _, whole = analyze(tiny_model_dir, out="whole", words=few)
    monkeypatch.setattr(Recorder, "record", stopping)
    assert analyze(tiny_model_dir, words=few)[0] == 130
    (file,) = (Path(whole).parent / "out" / "progress").iterdir()
    with file.open("a") as stream:
        stream.write('{"sample": "half a li')
    monkeypatch.setattr(Recorder, "record", lambda recorder, inputs: calls.append(inputs) or record(recorder, inputs))
    status, out = analyze(tiny_model_dir, words=few)
    assert (status, len(calls)) == (0, 4), "two before, two after"
    together, apart = (np.load(folder / f"{tiny_model_dir.name}.npz") for folder in (whole, out))
    assert all(np.array_equal(together[name], apart[name], equal_nan=True) for name in together.files[1:])
    monkeypatch.setattr(Engine, "from_pretrained", None)  # what is done needs no model
    assert analyze(tiny_model_dir, words=(*few, "--limit", "2"))[0] == 0
    assert len(np.load(out / f"{tiny_model_dir.name}.npz")["samples"]) == 2


def test_a_folder_keeps_to_its_data_and_its_models(
    analyze, tiny_model_dir, plain_model_dir, samples_file, tmp_path, capsys
):
    """Else its pictures would be of two."""

    def refused(*models, **named) -> str:
        capsys.readouterr()
        assert analyze(*models, words=words, **named)[0] == 2
        return capsys.readouterr().err.splitlines()[-1]

    words, file = ("--figures", "19"), tmp_path / "samples.json"
    file.write_text(samples_file.read_text())
    assert analyze(tiny_model_dir, data=file, words=words)[0] == 0
    assert analyze(plain_model_dir, data=file, words=(*words, "--limit", "1"))[0] == 0, "one more model, fewer samples"
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert refused(plain_model_dir, tiny_model_dir) == (
        f'error: {tmp_path}/out shows other data: files ["{file}"], this is ["{samples_file}"]; name another --out'
    )
    file.write_text(file.read_text() + "\n")
    assert refused(plain_model_dir, data=file).endswith(
        f"shows other data: {file} has changed since; name another --out"
    )
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before
    same_name = tmp_path / "elsewhere" / tiny_model_dir.name
    shutil.copytree(plain_model_dir, same_name)
    assert analyze(tiny_model_dir, out="second", words=words)[0] == 0
    line = refused(same_name, out="second")
    assert f"second shows a model {same_name.name} with the weights " in line
    assert line.endswith("; name another --out")
    curves = tmp_path / "second" / "curves.json"
    curves.write_text('{"format": "llava analyze 1"}')
    assert refused(tiny_model_dir, out="second") == (
        f"error: {curves} has the format 'llava analyze 1', ours is 'llava analyze 2'; name another --out"
    )
    curves.write_text("{}")
    assert "curves.json: damaged (KeyError: 'format'); name another --out" in refused(tiny_model_dir, out="second")


def test_documents_that_were_changed_in_place_are_other_data(tiny_model_dir, digit_pages, tmp_path, capsys):
    words = [
        "analyze",
        str(tiny_model_dir),
        "--data",
        "digit_pages",
        "--data_root",
        str(digit_pages),
        "--figures",
        "19",
    ]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    table = parquet.read_table(digit_pages / "test.parquet")
    parquet.write_table(table.slice(1), digit_pages / "test.parquet")
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "out shows other data: documents " in capsys.readouterr().err.splitlines()[-1]


def test_lines_of_many_models_are_told_apart():
    """Colours, markers and dashes of each, and of managers before each of 24 layers; injection layers are dotted."""
    models = [Analysed(f"m{place}", "", "", {"injection_layers": [1, 2 + place]}, {}) for place in range(24)]
    curves = [Curve(model.name, "visual", [1, 2], [0.0, 1.0], [None, None], [1, 1]) for model in models]
    (axes,) = draw("19", curves, models, "renormalised").axes
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines[:24]}
    assert len(looks) == 24
    dotted = {line.get_xdata()[0]: line.get_color() for line in axes.lines[24:]}
    assert dotted == {1: GREY} | {2 + place: axes.lines[place].get_color() for place in range(24)}
    (axes,) = draw("19", curves[:1], models[:1], "renormalised").axes
    assert {line.get_color() for line in axes.lines[1:]} == {GREY}
    weights = [Curve("m0", "visual mean", [1, 2], [0.5, 0.5], [None, None], [1, 1], layer) for layer in range(24)]
    (axes,) = draw("7", weights, models, "renormalised").axes
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines}) == 24


def test_documents_of_a_task(tiny_model_dir, digit_pages, tmp_path, capsys):
    words = ["--data", "digit_pages", "--data_root", str(digit_pages), "--limit", "3", "--figures", "20,distance"]
    assert main(["analyze", str(tiny_model_dir), *words, "--attention", "raw", "--out", str(tmp_path / "out")]) == 0
    arrays = np.load(tmp_path / "out" / f"{tiny_model_dir.name}.npz")
    assert arrays["samples"].tolist() == [f"digit_pages document {index}" for index in range(3)]
    assert arrays["distance"].shape == (3, 4, 2)
    assert ((arrays["distance"] > 0) & (arrays["distance"] < 56 * 2**0.5)).all()
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["distance.png", "figure_20.png"]


def test_wrong_input_is_one_line(analyze, tiny_model_dir, plain_model_dir, samples_file, tmp_path, capsys):
    text = samples_file.with_name("text.json")
    for message, models, words in (
        ("--figures: unknown figure '4'; choose of 3, 6, 7, 19,", [tiny_model_dir], ["--figures", "4"]),
        ("--limit must be at least 1, found 0", [tiny_model_dir], ["--limit", "0"]),
        ("--device spread: analyses run on one device", [tiny_model_dir], ["--device", "spread"]),
        ("no_model: no such model folder", [tmp_path / "no_model"], []),
        ("one model is named twice", [tiny_model_dir, tiny_model_dir], []),
        (f"{plain_model_dir}: has no managers, and figure 6 shows", [plain_model_dir], ["--figures", "6"]),
        (f"{text}: none of its 1 samples shows an image or a video", [tiny_model_dir], ["--data", str(text)]),
        ("absent.json", [tiny_model_dir], ["--data", f"{tmp_path}/absent.json"]),
        ("absent: neither a file (", [tiny_model_dir], ["--data", f"{tmp_path}/absent"]),
        ("unknown task 'digit_page'; did you mean digit_pages?", [tiny_model_dir], ["--data", "digit_page"]),
        ("task digit_pages: is on no hub; name its data set", [tiny_model_dir], ["--data", "digit_pages"]),
    ):
        capsys.readouterr()
        assert analyze(*models, words=tuple(words))[0] == 2, message
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: "), error
        assert message in error, error


def test_a_missing_image_is_named_and_loses_nothing(tiny_model_dir, samples_file, tmp_path, capsys):
    records = json.loads(samples_file.read_text())
    records[3]["image"] = ["gone.png"]
    (tmp_path / "samples.json").write_text(json.dumps(records))
    words = ["--data", f"{tmp_path}/samples.json", "--image_folder", str(samples_file.parent), "--out", f"{tmp_path}/o"]
    assert main(["analyze", str(tiny_model_dir), "--figures", "19", *words]) == 2
    assert "sample '3'" in capsys.readouterr().err.splitlines()[-1]
    (file,) = (tmp_path / "o" / "progress").iterdir()
    assert len(file.read_text().splitlines()) == 2 + 2
    (tmp_path / "samples.json").write_text(samples_file.read_text())
    assert main(["analyze", str(tiny_model_dir), "--figures", "19", *words]) == 0, "nothing was drawn of the others"


def test_models_are_told_apart_by_what_differs_in_their_paths():
    assert model_names([Path("a/run/stage2"), Path("b/run/stage2")]) == ["a", "b"]
    assert model_names([Path("x/grid"), Path("x/grid_manager")]) == ["grid", "grid_manager"]
    assert model_names([Path("x/one/stage2"), Path("x/two")]) == ["one-stage2", "two"]
    assert model_names([Path("x/grid")]) == ["grid"]


def test_progress_of_other_settings_and_a_damaged_line(tmp_path):
    one = Progress(tmp_path, "model", {"a": 1})
    one.add("first", {"x": np.array([0.1, np.nan], np.float32)})
    one.add("second", None)
    again = Progress(tmp_path, "model", {"a": 1}).samples
    assert np.array_equal(again["first"]["x"], np.array([0.1, np.nan], np.float32), equal_nan=True)
    assert again["second"] is None
    assert Progress(tmp_path, "model", {"a": 2}).samples == {}
    with one.file.open("a") as stream:
        stream.write("{\n")
    with pytest.raises(LlavaError, match=r"jsonl line 4: damaged .*remove the file"):
        Progress(tmp_path, "model", {"a": 1})


def test_attention_within_a_window_is_refused(make_model):
    model: LlavaOVManagerForConditionalGeneration = make_model()
    model.config.text_config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(LlavaError, match="attention is analysed of whole sequences"):
        Recorder(model, ["attention"])
    Recorder(model, ["hidden"])
