"""The bench with SmolLM2 on text pages: what it takes is there, and, with `make test-real`, it runs on a CPU."""

import json

import pytest

from llava.anyres import best_resolution
from llava.bench import text_pages
from llava.bench.data_sets import DATA_SETS
from llava.bench.entry import HELD_OUT, TRAIN
from llava.bench.pages import write_pages
from llava.cli import main
from llava.data.mixture import load_mixture
from llava.demo import smollm2
from llava.demo.fonts import faces
from llava.demo.text_pages import Layout
from llava.demo.text_pages import text_pages as text_pages_of
from llava.errors import LlavaError
from llava.train.recipe.load import load_recipe
from tests.paths import ROOT


@pytest.mark.parametrize(
    ("data", "parts", "tile", "dropped"),
    [
        ("text_pages", "smollm2", 112, 1),
        ("text_pages", "smollm2_dinov2", 112, 0),
        ("text_pages_small", "smollm2", 56, 1),
    ],
)
def test_each_recipe_cuts_a_page_into_its_tiles(data, parts, tile, dropped, monkeypatch):
    """The recipes' tilings are those of the layouts, which the recipes do not know."""
    monkeypatch.chdir(ROOT)
    folders = {"model.vision_tower": "x", "model.language_model": "x", "data.mixture": "x", "run.output_dir": "x"}
    recipe = load_recipe(path=DATA_SETS[data].parts[parts].recipe, arm="grid", keys=folders)
    assert recipe.model.vision_layers_dropped == dropped
    page = (2 * tile, 2 * tile)
    assert best_resolution(page, recipe.tiling.config(tile).pinpoints) == page
    assert tuple(recipe.data.expected_image) == page


def test_the_data_is_one_mixture_to_train_on_one_held_out_and_a_test(tmp_path):
    """Without the fonts of demo-real, which the entries themselves draw with."""
    content = text_pages_of(Layout(tile=56, sizes=(9, 11)))
    write_pages(content, tmp_path, captions=1, samples=12, held_out=3, documents=2)
    samples = {name: load_mixture(tmp_path / name, 0).samples for name in (TRAIN, HELD_OUT)}
    assert [len(of_name) for of_name in samples.values()] == [12, 3]
    assert not {sample.id for sample in samples[TRAIN]} & {sample.id for sample in samples[HELD_OUT]}
    asked = list(DATA_SETS["text_pages"].questions(tmp_path))
    assert [(question.document, question.kind) for question in asked] == [
        *(("0", "after"), ("0", "first"), ("1", "after"), ("1", "last")),
    ]
    assert asked[0].dialogue.images[0].size == (112, 112)


@pytest.mark.real
@pytest.mark.timeout(3600)
def test_a_bench_of_two_rows_trains_smollm2_on_text_pages(tmp_path, monkeypatch, capsys):
    try:
        smollm2.gguf_file(), faces("all")
    except LlavaError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(ROOT)
    options = {"--data": "text_pages_small", "--parts": "smollm2", "--methods": "manager", "--seeds": "1"}
    options |= {
        "--steps": "1",
        "--timed_steps": "5",
        "--rates": "1e-3",
        "--captions": "4",
        "--samples": "12",
        "--held_out": "2",
    }
    options |= {"--documents": "2", "--part_steps": "2", "--jobs": "1", "--out": str(tmp_path / "bench")}
    words = [word for option in options.items() for word in option]
    assert main(["bench", "fusion", *words]) == 0, capsys.readouterr()
    pages = json.loads((tmp_path / "bench" / "results.json").read_text())["data"]["text_pages_small"]
    assert list(pages["rows"]) == ["none", "manager"]
    assert [asked["kind"] for asked in pages["questions"]] == ["after", "first", "after", "last"]
    # Projector from the tower's 96 to SmolLM2's 576, and the newline.
    assert pages["rows"]["none"]["parameters"]["new"] == (96 * 576 + 576) + (576 * 576 + 576) + 576
    assert len(load_mixture(tmp_path / "bench" / "data" / "text_pages_small" / TRAIN, 0).samples) == 12
    assert text_pages.layout(text_pages.SMALL).side == 112
