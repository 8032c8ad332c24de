"""The page in a real headless browser: filters, keys, a phone, darkness, and answers that are shown and not run.

Where there is no browser these tests are skipped, and test_page.py has read the page with a parser.
"""

import time

import pytest

from tests.browser import needs_browser, open_browser
from tests.eval.cases.conftest import HOSTILE

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture
def open_page(browser, page):
    """A function: width, height and colour scheme to the page, which must ask for nothing and say nothing."""
    contexts, said = [], []

    def open_page(width=1280, height=900, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        context.set_default_timeout(20_000)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: said.append(dialog.message))
        tab.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
        tab.goto((page / "index.html").as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def shown(tab) -> list[str]:
    """The headings of the cases that are to be seen."""
    return [text.removeprefix("DocVQA document ") for text in tab.locator("article:visible h2").all_inner_texts()]


def shown_at_last(tab, expected: list[str]) -> list[str]:
    """The headings, once they are those expected: a form that is reset tells the page a moment later."""
    end = time.monotonic() + 20
    while shown(tab) != expected and time.monotonic() < end:
        tab.wait_for_timeout(20)
    return shown(tab)


def test_markup_in_answers_and_questions_is_shown_and_not_run(open_page):
    tab = open_page()
    assert tab.title() == "grid / manager"
    assert tab.locator("article").nth(1).locator(".answer").first.inner_text() == HOSTILE
    assert tab.locator(".question").nth(1).inner_text() == f"Who? {HOSTILE}"
    assert tab.locator("main script, main b, main i").count() == 0
    sizes = tab.eval_on_selector_all("img", "images => images.map((image) => [image.complete, image.naturalWidth])")
    assert sizes == [[True, 336], [True, 168], [True, 400]]


def test_filters(open_page):
    tab = open_page()
    assert shown(tab) == ["0", "1", "2"]
    count = tab.locator("#count")
    tab.get_by_label("manager", exact=True).select_option("right")
    assert (shown(tab), count.inner_text()) == (["1"], "1 of 3 shown")
    tab.get_by_label("grid", exact=True).select_option("right")
    assert (shown(tab), count.inner_text()) == ([], "0 of 3 shown")
    assert tab.get_by_text("No case fits these filters.").is_visible()
    tab.get_by_role("button", name="Show all").click()
    assert shown_at_last(tab, ["0", "1", "2"]) == ["0", "1", "2"]
    kind = tab.get_by_label("Kind of question")
    kind.select_option(label='layout "<b>')
    assert shown(tab) == ["1"]
    kind.select_option(label="(none)")
    assert shown(tab) == ["2"]
    kind.select_option(label="form")
    assert shown(tab) == ["0", "1"]
    tab.get_by_label("Text").fill("TOTAL")
    assert shown(tab) == ["0"]
    tab.get_by_role("button", name="Show all").click()
    assert shown_at_last(tab, ["0", "1", "2"]) == ["0", "1", "2"]
    tab.get_by_label("Task").select_option(label="DocVQA")
    assert shown(tab) == ["0", "1", "2"]


def test_keys_alone_are_enough(open_page):
    tab = open_page()

    def here():
        return tab.evaluate("document.activeElement.id")

    seen = []
    for key in ("j", "j", "j", "j", "k"):
        tab.keyboard.press(key)
        seen.append(here())
    assert seen == ["case-1", "case-2", "case-3", "case-3", "case-2"]
    form, case = (tab.locator(place).bounding_box() for place in ("#filters", "#case-2"))
    assert form["y"] + form["height"] < case["y"] < form["y"] + form["height"] + 30  # not below what stays in sight
    tab.keyboard.press("/")
    assert here() == "text"
    tab.keyboard.type("jk/")
    assert (here(), tab.get_by_label("Text").input_value(), shown(tab)) == ("text", "jk/", [])
    tab.keyboard.press("Escape")
    assert here() == ""
    tab.get_by_label("Text").fill("")
    tab.get_by_label("Task").focus()
    tab.keyboard.press("Tab")
    assert here() == "kind"
    tab.keyboard.press("ArrowDown")
    assert shown(tab) == ["2"]


def test_a_phone_shows_all_in_one_column(open_page):
    tab = open_page(360, 740)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    for article in tab.locator("article").all():
        pictures, texts = article.locator(".pictures").bounding_box(), article.locator(".texts").bounding_box()
        assert texts["y"] >= pictures["y"] + pictures["height"]
        assert article.locator("img").first.bounding_box()["width"] <= 360
    wide = open_page().locator("article").first
    assert wide.locator(".texts").bounding_box()["x"] > wide.locator(".pictures").bounding_box()["x"] + 100


COLOURS = """(selector) => {
  const style = getComputedStyle(document.querySelector(selector));
  return [style.color, style.backgroundColor].map((text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number));
}"""


def luminance(colour: list[float]) -> float:
    """Of WCAG 2: relative luminance of an sRGB colour."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in (c / 255 for c in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_right_is_green_and_wrong_is_red_by_day_and_by_night(open_page, scheme):
    """And all can be read: a contrast of 4.5 at least."""
    tab = open_page(scheme=scheme)
    paper = luminance(tab.evaluate(COLOURS, "body")[1])
    assert paper > 0.9 if scheme == "light" else paper < 0.1
    for selector in ("body", ".answers .right", ".answers .wrong"):
        ink, ground = tab.evaluate(COLOURS, selector)
        bright, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, selector
    (red, green, _), _ = tab.evaluate(COLOURS, ".answers .right")
    assert green > red
    (red, green, _), _ = tab.evaluate(COLOURS, ".answers .wrong")
    assert red > green
