"""Files in a line, as terminals, shells, systems and people write them: what is taken, what stays, what is told."""

import os
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

from llava.chat.inline import one_source, sources_of, split_media
from llava.chat.paths import locate

NNBSP, NBSP = "\u202f", "\xa0"
SHOT = f"Screenshot 2026-05-12 at 4.42.48{NNBSP}PM.png"
SNIMEK = f"Snímek obrazovky v{NBSP}13.05.05.png"
COMPOSED, DECOMPOSED = "caf\xe9.png", "cafe\u0301.png"
IMAGES = [
    *("plain.png", "photo.PNG", "photo.jpe", "photo.jfif", "photo.ico", "photo.tga", "photo.heic", "photo.jpg_large"),
    *("a&b.png", "a(1).png", "a,b.png", "#1.png", "100%.png", "it's.png", "with ~.png", "[x].png", "my pics a.png"),
    *("IMG.JPG.", "no_suffix", "data", "two  blanks.png", 'say "hi".png', "-dash.png", "@2x.png", "v1.2 final.png"),
    *(
        "$cost.png",
        "a;b.png",
        "naïve Ω.png",
        SHOT,
        SNIMEK,
        COMPOSED,
        DECOMPOSED,
        "a+b=c.png",
        "photo",
        "!.png",
        "b.png",
    ),
    *("pics/x.png", "pics/more pics/y z.png", "back\\slash.png", "only nfc é.png", "clip.mp4", "!.png", "b.png"),
]
OTHERS = ["README", "notes.txt", "doc.pdf", "photo.svg"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every name of IMAGES as an image, of OTHERS as a text."""
    folder = tmp_path_factory.mktemp("inline")
    for name in IMAGES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(folder / name, "PNG")
    for name in OTHERS:
        (folder / name).write_text("no pixels")
    return folder


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PICS", str(folder / "pics"))


# {d}: the folder. What is taken, by its name in the folder; the question that is left.
TAKEN = [
    ("plain.png", ["plain.png"], ""),
    ("plain.png what is this?", ["plain.png"], "what is this?"),
    ("What is in plain.png?", ["plain.png"], "What is in ?"),
    ("look at plain.png, please.", ["plain.png"], "look at , please."),
    ("look at plain.png. Then rest", ["plain.png"], "look at . Then rest"),
    ("plain.png's colour", ["plain.png"], "'s colour"),
    ("./plain.png what?", ["plain.png"], "what?"),
    ("{d}/plain.png what?", ["plain.png"], "what?"),
    ("~/plain.png what?", ["plain.png"], "what?"),
    ("$PICS/x.png what?", ["pics/x.png"], "what?"),
    ("pics/../plain.png what?", ["plain.png"], "what?"),
    ("photo.PNG what?", ["photo.PNG"], "what?"),
    ("photo.jpe what?", ["photo.jpe"], "what?"),
    ("photo.jfif what?", ["photo.jfif"], "what?"),
    ("photo.ico what?", ["photo.ico"], "what?"),
    ("photo.heic what?", ["photo.heic"], "what?"),
    ("photo.jpg_large what?", ["photo.jpg_large"], "what?"),
    ("my pics a.png what?", ["my pics a.png"], "what?"),
    ("what is in my pics a.png please", ["my pics a.png"], "what is in please"),
    ("{d}/my pics a.png what?", ["my pics a.png"], "what?"),
    (r"my\ pics\ a.png what?", ["my pics a.png"], "what?"),
    ("'my pics a.png' what?", ["my pics a.png"], "what?"),
    ('"my pics a.png", what?', ["my pics a.png"], ", what?"),
    ("my' pics 'a.png what?", ["my pics a.png"], "what?"),
    ('my" pics "a.png what?', ["my pics a.png"], "what?"),
    ("\u201cmy pics a.png\u201d what?", ["my pics a.png"], "what?"),
    ("pics/more pics/y z.png what?", ["pics/more pics/y z.png"], "what?"),
    ("two  blanks.png what?", ["two  blanks.png"], "what?"),
    ("v1.2 final.png what?", ["v1.2 final.png"], "what?"),
    (r"'it'\''s.png' what?", ["it's.png"], "what?"),
    (r"it\'s.png what?", ["it's.png"], "what?"),
    ('"it\'s.png" what?', ["it's.png"], "what?"),
    ("it's.png what?", ["it's.png"], "what?"),
    ("it's plain.png, isn't it", ["plain.png"], "it's , isn't it"),
    (r'"say \"hi\".png" what?', ['say "hi".png'], "what?"),
    ("'say \"hi\".png' what?", ['say "hi".png'], "what?"),
    (r"a\&b.png a\(1\).png a\;b.png what?", ["a&b.png", "a(1).png", "a;b.png"], "what?"),
    ("a&b.png a(1).png a;b.png what?", ["a&b.png", "a(1).png", "a;b.png"], "what?"),
    ("#1.png 100%.png !.png $cost.png what?", ["#1.png", "100%.png", "!.png", "$cost.png"], "what?"),
    ("a+b=c.png -dash.png what?", ["a+b=c.png", "-dash.png"], "what?"),
    ("with ~.png what?", ["with ~.png"], "what?"),
    ("a,b.png what?", ["a,b.png"], "what?"),
    ("b.png,plain.png what?", ["b.png", "plain.png"], ", what?"),
    ("b.png, plain.png", ["b.png", "plain.png"], ""),
    ("compare b.png and plain.png", ["b.png", "plain.png"], "compare and"),
    ("'{d}/b.png' '{d}/my pics a.png' differ?", ["b.png", "my pics a.png"], "differ?"),
    ("{d}/b.png {d}/plain.png differ?", ["b.png", "plain.png"], "differ?"),
    ("b.png\nplain.png\nwhat?", ["b.png", "plain.png"], "what?"),
    ("[x].png what?", ["[x].png"], "what?"),
    ("[plain.png] what?", ["plain.png"], "what?"),
    ("[{d}/no_suffix] what?", ["no_suffix"], "what?"),
    ("see (plain.png) here", ["plain.png"], "see here"),
    ("<plain.png> `b.png` what?", ["plain.png", "b.png"], "what?"),
    ("![a page](pics/x.png) what?", ["pics/x.png"], "what?"),
    ("@plain.png what?", ["plain.png"], "what?"),
    ("@no_suffix what?", ["no_suffix"], "what?"),
    ('@"my pics a.png" what?', ["my pics a.png"], "what?"),
    ("@2x.png what?", ["@2x.png"], "what?"),
    ("./no_suffix what?", ["no_suffix"], "what?"),
    ("'no_suffix' what?", ["no_suffix"], "what?"),
    ("IMG.JPG. what?", ["IMG.JPG."], "what?"),
    (f"{SHOT} what?", [SHOT], "what?"),
    (f"{SHOT.replace(NNBSP, ' ')} what?", [SHOT], "what?"),
    ("{d}/" + SHOT.replace(" ", "\\ ") + " what?", [SHOT], "what?"),
    (f"'{SNIMEK}' what?", [SNIMEK], "what?"),
    (f"{SNIMEK.replace(NBSP, ' ')} what?", [SNIMEK], "what?"),
    (f"{COMPOSED} what?", [COMPOSED], "what?"),
    (f"{DECOMPOSED} what?", [DECOMPOSED], "what?"),
    ("only nfc e\u0301.png what?", ["only nfc é.png"], "what?"),
    ("naïve Ω.png what?", ["naïve Ω.png"], "what?"),
    ("这张图片plain.png是什么", ["plain.png"], "这张图片是什么"),
    ("file://{d}/plain.png what?", ["plain.png"], "what?"),
    ("file:{d}/plain.png what?", ["plain.png"], "what?"),
    ("file://localhost{d}/my%20pics%20a.png what?", ["my pics a.png"], "what?"),
    ("file://{d}/my pics a.png what?", ["my pics a.png"], "what?"),
    ("file://{d}/100%25.png what?", ["100%.png"], "what?"),
    ("file://{d}/%231.png what?", ["#1.png"], "what?"),
    ("file://{d}/" + quote(COMPOSED) + " what?", [COMPOSED], "what?"),
    ("{d}/my%20pics%20a.png what?", ["my pics a.png"], "what?"),
    (r"pics\x.png what?", ["pics/x.png"], "what?"),
    (r".\pics\more pics\y z.png what?", ["pics/more pics/y z.png"], "what?"),
    (r'"pics\more pics\y z.png" what?', ["pics/more pics/y z.png"], "what?"),
    (r"back\slash.png what?", ["back\\slash.png"], "what?"),
    ("clip.mp4 what happens?", ["clip.mp4"], "what happens?"),
]


@pytest.mark.parametrize(("line", "names", "question"), TAKEN)
def test_an_existing_file_is_meant(folder, line, names, question):
    split = split_media(line.replace("{d}", str(folder)))
    assert [str(locate(source).relative_to(folder)) for _, source in split.media] == names
    assert (split.question, split.notes) == (question, [])
    assert {kind for kind, _ in split.media} == ({"video"} if "clip.mp4" in names else {"image"})


# Text that stays as it is, and what is told: None for nothing.
TEXT = [
    ("What does README say about data?", None),
    ("Is photo or data a word? no_suffix", None),
    ("What is 3/4 of and/or TCP/IP?", None),
    ("e.g. node.js, .png files, a.b", None),
    ("two  blanks\n  and a line", None),
    ("What does https://example.com/page say?", None),
    ("mail me@plain.net", None),
    ("plain.png.bak, xplain.png.old", None),
    ("doc.pdf says?", "doc.pdf (no image or video that is read here)"),
    ("what is in photo.svg?", "photo.svg (no image or video that is read here)"),
    ("{d}/notes.txt says?", "{d}/notes.txt (no image or video that is read here)"),
    ("'README' says?", "README (no image or video that is read here)"),
    ("@README says?", "README (no image or video that is read here)"),
    ("{d}/pics has?", "{d}/pics (a folder)"),
    ("Compare c.jpg, c.webp: which?", "c.jpg, c.webp (does not exist)"),
    ("'no such.png' what?", "no such.png (does not exist)"),
    (r"no\ such.png what?", "no such.png (does not exist)"),
    ("[nowhere.heic] what?", "nowhere.heic (does not exist)"),
    ("@pics/none.png what?", "pics/none.png (does not exist)"),
    ("xplain.png what?", "xplain.png (does not exist)"),
    (r"C:\Users\me\new.png what?", r"C:\Users\me\new.png (does not exist)"),
    ("see /etc/nowhere/x for it", "/etc/nowhere/x (does not exist)"),
    ("data:image/png;base64,iVBORw0KGgoAAAANSUhEUg what?", "data:image/png;base6... (not read)"),
]


@pytest.mark.parametrize(("line", "note"), TEXT)
def test_other_text_stays_and_what_looks_like_a_file_is_told(folder, line, note):
    line = line.replace("{d}", str(folder))
    split = split_media(line)
    assert (split.question, split.media, split.says_nothing) == (line, [], False)
    assert split.notes == ([] if note is None else [f"not shown: {note}".replace("{d}", str(folder))])


def test_the_tables_are_long_enough():
    assert len(TAKEN) + len(TEXT) >= 100


def test_a_line_of_nothing_but_what_cannot_be_shown():
    for line in ("doc.pdf", "nowhere.png", "doc.pdf, c.png"):
        assert split_media(line).says_nothing
    assert not split_media("plain.png doc.pdf").says_nothing or split_media("plain.png doc.pdf").media


def test_urls_are_taken_from_the_user_alone():
    line = "(https://x.org/b.jpg?w=3), http://x.org/a.PNG and plain.png what?"
    urls = ["https://x.org/b.jpg?w=3", "http://x.org/a.PNG"]
    assert [source for _, source in split_media(line).media] == [*urls, "plain.png"]
    piped = split_media(line, urls=False)
    assert piped.media == [("image", "plain.png")]
    assert piped.notes == [f"not shown: {', '.join(urls)} (not fetched)"]
    assert all(url in piped.question for url in urls)


def test_an_argument_names_what_a_line_would_name(folder):
    for text, name in {
        "no_suffix": "no_suffix",
        "my pics a.png": "my pics a.png",
        "'my pics a.png'": "my pics a.png",
        r"it\'s.png": "it's.png",
        r"'it'\''s.png'": "it's.png",
        "@plain.png": "plain.png",
        "[plain.png]": "plain.png",
        SHOT.replace(NNBSP, " "): SHOT,
        r"pics\x.png": "pics/x.png",
        f" {folder}/photo ": "photo",
    }.items():
        assert str(locate(one_source(text)).relative_to(folder)) == name
    assert one_source("no such b.png") == "no such b.png"
    assert sources_of("b.png 'my pics a.png' nowhere.png") == ["b.png", "my pics a.png", "nowhere.png"]
    assert sources_of("nowhere to be.png") == ["nowhere to be.png"]


def test_a_file_url_of_a_drive_is_looked_for_where_linux_has_it(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/mnt/c/my pics/a.png")
    for source in (r"C:\my pics\a.png", "c:/my pics/a.png", "file:///C:/my%20pics/a.png"):
        assert str(locate(source)) == "/mnt/c/my pics/a.png"


def test_long_text_is_read_in_time():
    begin = time.process_time()
    for text in ("the quick brown a/b fox, ", "it's 'a \"", "a.b c.d, ", "/a.b ", "a\\ b", "x"):
        split_media(text * (20_000 // len(text)))
    assert time.process_time() - begin < 20
    assert os.getcwd() not in split_media("x" * 5000).question
