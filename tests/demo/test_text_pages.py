import json
import re
from collections import Counter
from itertools import pairwise
from pydoc_data.topics import topics as help_pages

import numpy as np
import pytest

from llava.anyres import TilingConfig
from llava.cli import main
from llava.data.inspect import inspect_samples
from llava.data.mixture import load_mixture
from llava.demo.pages import rng_for
from llava.demo.prose import SHORTEST_TOPIC, TEST_EVERY, bare, sentences, topics
from llava.demo.text_pages import KINDS, MARGIN, Layout, ask, compose, draw, text_pages
from llava.errors import LlavaError

LAYOUT = Layout(tile=56, sizes=(9, 11))
SIZES = ["--captions", "5", "--pages", "30", "--test_pages", "6", "--tile", "56", "--font_sizes", "9", "11"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """`llava demo text_pages` at a small size."""
    folder = tmp_path_factory.mktemp("demo") / "data"
    assert main(["demo", "text_pages", str(folder), *SIZES]) == 0
    return folder


def test_every_mixture_is_whole(data):
    for stage, rows in (("stage1", 5), ("stage1_5", 12), ("stage2", 18)):
        samples = load_mixture(data / f"{stage}.yaml", seed=0).samples
        assert len(samples) == rows
        inspection = inspect_samples(samples, data, template="plain" if stage == "stage1" else "qwen_1_5")
        assert inspection.faults == []
        sizes = {size for of_sample in inspection.image_sizes for size in of_sample}
        assert sizes == {(56, 56) if stage == "stage1" else (112, 112)}
    assert {len(sample.images) for sample in samples} == {0, 1}


def test_the_same_seed_makes_the_same_files(data, tmp_path):
    again = tmp_path / "again"
    main(["demo", "text_pages", str(again), *SIZES])
    files = [path.relative_to(data) for path in data.rglob("*") if path.is_file()]
    assert len(files) > 40
    for file in files:
        assert (again / file).read_bytes() == (data / file).read_bytes(), file


def test_the_test_set_is_a_task_of_ours(data):
    """Rows, kinds and metrics fit together: what the pages ask is what the task scores."""
    import yaml
    from datasets import Dataset
    from pyarrow import parquet

    from llava.eval.fields import FIELDS, check_documents
    from llava.eval.task import TASKS

    rows = parquet.read_table(data / "test" / "test.parquet").to_pylist()
    assert [row["kind"] for row in rows] == [kind for other in (*KINDS[1:], KINDS[1]) for kind in ("after", other)]
    check_documents("text_pages", "DATA", Dataset.from_list(rows), None, True)
    assert set(FIELDS["text_pages"][1]) == {"answers", "kind"}
    text = (TASKS / "text_pages.yaml").read_text().replace("!function ", "")
    metrics = [entry["metric"] for entry in yaml.safe_load(text)["metric_list"]]
    assert metrics == ["anls", "exact_match", *(f"exact_match_{kind}" for kind in KINDS)]
    example = json.loads((data / "example.json").read_text())
    assert example == {"question": rows[0]["question"], "answers": rows[0]["answers"]}


def test_no_sentence_of_a_test_topic_is_trained_on():
    """Also where a training topic quotes it, as "compound" quotes "while"."""
    names = sorted(help_pages)[::TEST_EVERY]
    of_test = {sentence for name in names for sentence in sentences(help_pages[name])}
    trained = {sentence for topic in topics(test=False) for sentence in topic}
    assert not of_test & trained
    assert {sentence for topic in topics(test=True) for sentence in topic} <= of_test
    quoted = {sentence for name in set(help_pages) - set(names) for sentence in sentences(help_pages[name])} & of_test
    assert len(quoted) > 20, "else there was nothing to keep out"
    words = {part: sum(len(sentence) for topic in topics(part) for sentence in topic) for part in (False, True)}
    assert words[False] > 15_000
    assert words[True] > 4_000
    assert all(sum(map(len, topic)) >= SHORTEST_TOPIC for part in (False, True) for topic in topics(part))


def test_sentences_are_plain_prose():
    page = """The "del" statement
*******************

Deletion is *recursively* defined, very similar to assignment. It calls __delattr__.

   del_stmt ::= "del" target_list

   >>> del x

Rather than spelling it out in full details
(see section Names), here are some hints."""
    assert [" ".join(words) for words in sentences(page)] == [
        "Deletion is recursively defined, very similar to assignment.",
        "Rather than spelling it out in full details (see section Names), here are some hints.",
    ]
    assert [bare(word) for word in ("Names),", "(see", "bool()", "3.8:", "user's")] == [
        *("Names", "see", "bool", "3.8", "user's"),
    ]


@pytest.mark.parametrize("test", [False, True])
def test_answers_are_what_stands_on_the_page(test):
    asked = Counter()
    for index in range(30):
        rng = rng_for(0, "test", index)
        page = compose(rng, LAYOUT, test)
        words = " ".join(word.strip("().,;:?!") for line in page.lines for word in line).split()
        for kind in KINDS:
            question = ask(rng, page, kind)
            quoted = re.findall(r'"(.*)"', question.text)
            number = [int(text) for text in re.findall(r"line (\d+)", question.text)]
            right = {
                "after": lambda: words[[word.lower() for word in words].index(quoted[0].lower()) + 1],  # noqa: B023
                "first": lambda: page.lines[number[0] - 1][0].strip("().,;:?!"),  # noqa: B023
                "last": lambda: page.lines[number[0] - 1][-1].strip("().,;:?!"),  # noqa: B023
                "heading": lambda: page.heading,  # noqa: B023
                "number": lambda: page.number,  # noqa: B023
                "lines": lambda: str(len(page.lines)),  # noqa: B023
            }[kind]()
            assert question.answer == right
            asked[kind, bool(quoted), bool(number)] += 1
    assert len(asked) == len(KINDS)


def test_every_word_is_drawn_where_it_is_said_to_stand():
    """Each word's box has ink, the margins have none, and lines stand below each other."""
    for index in range(80):
        rng = rng_for(0, "stage2", index)
        page = compose(rng, LAYOUT, test=False)
        pixels = np.asarray(draw(rng, page)).astype(int)
        inked = pixels.max() - pixels > 60
        for placed in page.placed:
            left, bottom = round(placed.x), round(placed.y)
            assert inked[bottom - placed.size : bottom + 1, left : left + placed.size].any(), placed
        assert not inked[:, : MARGIN - 2].any()
        assert not inked[:, -MARGIN + 2 :].any()
        assert [placed.word for placed in page.placed] == [*page.heading.split(), page.number, *page.words]
        rows = [placed.y for placed in page.placed[3:]]
        assert rows == sorted(rows)
        assert len(set(rows)) == len(page.lines) >= 3


def test_half_of_the_training_pages_are_no_prose_and_all_test_pages_are():
    def in_order(stream, test):
        pages = [compose(rng_for(0, stream, index), LAYOUT, test) for index in range(40)]
        pairs = {pair for topic in topics(test) for pair in _pairs([word for words in topic for word in words])}
        return [set(_pairs(page.words)) <= pairs for page in pages]

    assert 10 <= sum(in_order("stage2", test=False)) <= 30
    assert sum(in_order("test", test=True)) >= 38  # a page may go round a topic's end


def _pairs(words):
    return list(pairwise(words))


def test_a_page_is_cut_into_its_tiles_and_no_more(make_processor):
    """What is drawn is what the tower sees: a tile is a quarter of the page, pixel for pixel."""
    page, _ = text_pages(LAYOUT).sample(rng_for(0, "stage2", 1), "stage2")
    processor = make_processor(TilingConfig.from_llava("anyres_max_9", "spatial_unpad", "(1x1),...,(6x6)", 56))
    crops = processor.image_processor([page.convert("RGB")])["pixel_values"]
    assert len(crops) == 1 + 4
    drawn = np.asarray(page)[:56, 56:].astype(np.float32) / 127.5 - 1
    assert np.abs(np.asarray(crops[2])[0] - drawn).max() < 0.01


def test_a_layout_without_room_is_told():
    with pytest.raises(LlavaError, match="a font of 30 pixels leaves room for 0 lines on a page of 112 pixels; 3 are"):
        Layout(tile=56, sizes=(20, 30))
    with pytest.raises(LlavaError, match="font sizes must rise from at least 1, found 12 to 11"):
        Layout(sizes=(12, 11))


def test_fonts_that_are_not_installed_are_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("llava.demo.wheels.find_spec", lambda name: None)
    from llava.demo import fonts

    fonts.faces.cache_clear()
    assert main(["demo", "text_pages", str(tmp_path / "data"), *SIZES, "--fonts", "all"]) == 2
    fonts.faces.cache_clear()
    told = capsys.readouterr().err
    assert told == (
        "error: the package matplotlib, which holds mpl-data/fonts/ttf/DejaVuSans.ttf, is not installed; make "
        "demo-real installs it\n"
    )
    assert not (tmp_path / "data").exists()
