"""The page and the PNGs: what they hold, and that nothing of a document or an answer is more than text."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from llava.cli import main
from llava.eval.cases.picture import GREEN, RED, show_images
from tests.eval.cases.conftest import GRID, HOSTILE, SCORES, SQUARE, WRONG
from tests.eval.report.run_folders import save_digit_pages


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text of those with a class."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str | None] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag in ("bdi", "p", "li", "dd", "figcaption"):
            self.texts.setdefault(attributes.get("class") or tag, []).append("")
            self.open.append(attributes.get("class") or tag)

    def handle_endtag(self, tag):
        if tag in ("bdi", "p", "li", "dd", "figcaption"):
            self.open.pop()

    def handle_data(self, data):
        for name in self.open:
            self.texts[name][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def parsed(page):
    return Page((page / "index.html").read_text())


def test_three_documents_differ_and_the_answers_are_told(parsed, page):
    assert [article["data-task"] for article in parsed.all("article")] == ["docvqa_val"] * 3
    assert sorted(path.name for path in page.iterdir()) == [
        *(f"docvqa_val-{number:05d}.png" for number in range(3)), "index.html",
    ]  # fmt: skip
    answers = [attributes for attributes in parsed.all("dd") if "data-verdict" in attributes]
    verdicts = [(answer["data-run"], answer["data-verdict"], answer["class"]) for answer in answers]
    right, wrong = ["right"] * 2, ["wrong"] * 2
    assert verdicts == [
        ("grid", *right), ("manager", *wrong), ("grid", *wrong), ("manager", *right), ("grid", *right),
        ("manager", *wrong),
    ]  # fmt: skip
    assert parsed.texts["answer"] == ["12", WRONG[0], HOSTILE, "A & B", "<i>here</i>", "(no answer)"]
    assert [text for text in parsed.texts["bdi"]] == ["12", "A & B", "<i>here</i>"]


def test_texts_of_documents_are_texts(parsed):
    """Markup in a question, an answer or a kind makes no element, and no attribute ends early."""
    assert parsed.texts["question"][1] == f"Who? {HOSTILE}"
    assert [len(parsed.all(tag)) for tag in ("script", "i", "b")] == [1, 0, 0]
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in parsed.all("img"))
    assert 'layout "<b>' in parsed.texts["li"]
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]


def test_nothing_is_fetched(parsed):
    """All that could name another place is data, and a policy forbids the rest."""
    places = [value for _, attributes in parsed.elements for key, value in attributes.items() if key in ("src", "href")]
    assert len(places) == 1 + len(parsed.all("img"))
    assert all(place.startswith("data:") for place in places)
    (policy,) = [meta["content"] for meta in parsed.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")


def test_control_characters_are_seen_and_long_texts_cut(runs, tmp_path):
    assert main(["eval", "cases", *map(str, runs), "--where", "grid wrong", "--out", str(tmp_path / "page")]) == 0
    assert main(["eval", "cases", str(runs[0]), "--where", "grid right", "--out", str(tmp_path / "right")]) == 0
    answers = Page((tmp_path / "page" / "index.html").read_text()).texts["answer"]
    assert answers[-1] == f"{'x' * 2000} ... (3,000 characters)"
    assert WRONG[3] == "\u202e1999"  # turns the direction of what follows
    assert "\u202e" not in (tmp_path / "right" / "index.html").read_text()


def test_more_cases_than_the_limit_are_told(runs, tmp_path, capsys):
    out = tmp_path / "page"
    assert main(["eval", "cases", *map(str, runs), "--out", str(out), "--limit", "2"]) == 0
    sentence = "DocVQA: 3 documents fit; the first 2 are shown (--limit)."
    assert capsys.readouterr().out.splitlines() == [sentence, str(out / "index.html")]
    page = Page((out / "index.html").read_text())
    assert len(page.all("article")) == 2
    assert sentence in page.texts["p"]


def test_white_lines_stand_where_the_runs_model_cuts(parsed, page):
    """Document 0 is two tiles beside each other, document 1 two above each other; the other run has one crop."""
    assert parsed.texts["figcaption"] == [
        "2 tiles: grid; one crop: manager", "2 tiles: grid; one crop: manager", "4 tiles: grid; one crop: manager",
    ]  # fmt: skip
    sources = [image["src"].partition(",")[2] for image in parsed.all("img")]
    first, second, _ = [np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))) for source in sources]
    assert first.shape == (168, 336, 3)  # three times as large: the longer side would be less than 400
    assert first[:, 168].min() > 235
    assert second[168].min() > 235
    assert np.median(first[:, 168 - 30]) < 235
    assert not (first[84] > 235).all(axis=-1).all()
    with Image.open(page / "docvqa_val-00000.png") as png:
        assert (np.asarray(png)[40:180, 20 + 168] == 255).all()
        assert {GREEN, RED} <= {colour for _, colour in png.getcolors(2**24)}


def test_runs_with_other_tiles_have_pictures_of_their_own():
    image = Image.new("RGB", (112, 56))
    other = {**GRID, "pinpoints": [[56, 56], [112, 112]]}
    shown = show_images([image], {"one": GRID, "two": other, "three": SQUARE, "four": None, "five": GRID})
    assert [one.caption for one in shown] == ["2 tiles: one, five", "4 tiles: two; one crop: three"]
    assert [one.caption for one in show_images([image], {"three": SQUARE})] == ["one crop: three"]
    assert [one.caption for one in show_images([image], {"four": None})] == [""]
    several = show_images([image, image], {"one": GRID, "three": SQUARE})
    assert [one.caption for one in several] == ["image 1 of 2", "image 2 of 2"]


def test_a_task_whose_documents_are_gone_is_left_out(save_run, tmp_path, capsys):
    both = [save_run(tmp_path / name, scores, tiling=GRID) for name, scores in SCORES.items()]
    for run, right in zip(both, (1.0, 0.0), strict=True):
        save_digit_pages(run, right, data="elsewhere", tiling=GRID)
    assert main(["eval", "cases", *map(str, both), "--out", str(tmp_path / "page")]) == 0
    note = "left out: task digit_pages: its documents are not in elsewhere any more; --data ROOT names where they lie"
    assert capsys.readouterr().out.splitlines()[:2] == ["DocVQA: 3 documents.", f"note: {note}"]
    page = Page((tmp_path / "page" / "index.html").read_text())
    assert note in page.texts["p"]
    assert {article["data-task"] for article in page.all("article")} == {"docvqa_val"}


def test_runs_that_stored_less(save_run, tmp_path, capsys):
    """Neither fields nor tiling, and a model that is gone: the documents tell the fields, lines are told to lack."""
    old = [save_run(tmp_path / name, scores, fields=False, tiling=None) for name, scores in SCORES.items()]
    assert main(["eval", "cases", *map(str, old), "--out", str(tmp_path / "page")]) == 0
    page = Page((tmp_path / "page" / "index.html").read_text())
    note = "the tiles of grid, manager are not drawn: the run did not store them, its model is gone"
    assert f"note: {note}" in capsys.readouterr().out
    assert note in page.texts["p"]
    assert page.texts["question"][0] == "What is the total?"
    assert len(page.all("img")) == 3


def test_pairs_of_two_towers_have_no_page(tmp_path, capsys):
    for name, right in {"one": 1.0, "two": 0.0}.items():
        save_digit_pages(tmp_path / name, right, protocol="two-tower")
    assert main(["eval", "cases", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "page")]) == 2
    message = "error: task digit_pages: pairs of a two-tower model are not read again; what is stored of them is all\n"
    assert capsys.readouterr().err == message


def test_names_of_runs_are_texts_too(save_run, tmp_path):
    folders = [save_run(tmp_path / '"><b>grid', SCORES["grid"]), save_run(tmp_path / "it's & it", SCORES["manager"])]
    assert main(["eval", "cases", *map(str, folders), "--out", str(tmp_path / "page")]) == 0
    html = (tmp_path / "page" / "index.html").read_text()
    page = Page(html)
    assert not page.all("b")
    assert [select["data-run"] for select in page.all("select") if "data-run" in select] == ['"><b>grid', "it's & it"]
    assert re.search(r"<h1>&#34;&gt;&lt;b&gt;grid / it&#39;s &amp; it</h1>", html)
