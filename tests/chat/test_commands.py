"""Commands and questions without a terminal: what they say, and what the conversation is afterwards."""

import pytest

from llava.chat.commands import COMMANDS, help_text, obey
from llava.data.schema import Dialogue, Turn
from llava.errors import LlavaError


@pytest.fixture
def chat(make_chat):
    return make_chat()


@pytest.fixture
def say(chat, capsys):
    """A function: a line to (what stdout, what stderr shows)."""

    def send(line: str) -> tuple[str, str]:
        obey(chat, line)
        shown = capsys.readouterr()
        return shown.out.strip(), shown.err.strip()

    return send


@pytest.fixture
def expected(engine):
    """A function: turns and images to the engine's own answer, without anything kept."""

    def answer(*texts, images=(), system=None):
        turns = [Turn("system", system)] if system else []
        turns += [Turn("gpt" if index % 2 else "human", text) for index, text in enumerate(texts)]
        return engine.generate([Dialogue(turns, list(images))], max_new_tokens=6)[0]

    return answer


def refused(chat, line: str) -> str:
    with pytest.raises(LlavaError) as caught:
        obey(chat, line)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_help_names_every_command():
    assert len(COMMANDS) == 14
    for name in COMMANDS:
        assert f"\n  {name}" in help_text()
    assert max(map(len, help_text().splitlines())) <= 88


def test_undo_retry_and_reset(say, chat, page, make_image, expected):
    image = make_image(120, 90)
    first = say("Hello")[0]
    assert say(f"/image {page}") == ("", f"{page}: 120x90, goes with the next question")
    second = say("What is it?")[0]
    shown = ("Hello", first, "<image>\nWhat is it?")
    assert second == expected(*shown, images=[image])
    again, note = say("/retry")
    assert (again, len(chat.session.exchanges)) == (second, 2)
    assert note.startswith("temperature is 0")
    assert chat.session.usage.prefilled == 1
    assert say("/undo")[1] == f"taken back: What is it?, {page}"
    assert say("What is it?")[0] == expected("Hello", first, "What is it?")
    say(f"/image '{page}'")
    assert say("/undo")[1] == f"not shown: {page}"
    assert len(chat.session.exchanges) == 2
    assert say("/reset")[1] == "the conversation starts anew"
    assert say("Hello")[0] == first
    say("/undo")
    for command in ("/undo", "/retry"):
        assert refused(chat, command) == "the conversation has no turn yet"


def test_several_images_at_any_turn_and_in_a_line(say, chat, page, tmp_path, make_image, expected, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_image(50, 60, 1).save("b.png")
    a, b = make_image(120, 90), make_image(50, 60, 1)
    first, note = say(f"'{page}' b.png Which?")
    assert note.splitlines() == [f"{page}: 120x90, goes with this question", "b.png: 50x60, goes with this question"]
    assert first == expected("<image> <image>\nWhich?", images=[a, b])
    say("b.png")
    assert say("Is it <image> or not?")[0] == (
        expected("<image> <image>\nWhich?", first, "Is it <image> or not?", images=[a, b, b])
    )
    say(f"/image b.png '{page}'")
    say("/image a page.png")
    assert [medium.source for medium in chat.session.waiting] == ["b.png", str(page), "a page.png"]
    assert refused(chat, "<image> and?") == "found 1 <image> in the question but 3 new images"
    assert len(chat.session.waiting) == 3


def test_a_bad_image_changes_nothing(say, chat, page, tmp_path):
    (tmp_path / "notes.txt").write_text("no pixels")
    say(f"/image {page}")
    before = list(chat.session.waiting)
    assert refused(chat, "/image nowhere.png") == "image nowhere.png does not exist"
    assert "is not an image" in refused(chat, f"/image {tmp_path}/notes.txt")
    assert refused(chat, f"{page.parent}/nowhere.png and?").endswith("nowhere.png does not exist")
    assert refused(chat, "/image") == "/image needs a path"
    assert refused(chat, "/imagine this") == "unknown command /imagine; /help lists them"
    assert (chat.session.waiting, chat.session.exchanges) == (before, [])


def test_a_video(say, chat, make_clip):
    pytest.importorskip("decord")
    clip = make_clip(16, fps=4)
    assert say(f"/video {clip}")[1] == f"{clip}: 64x48, 4 frames of 4.0 seconds, goes with the next question"
    say("What happens?")
    assert chat.session.usage.visual == chat.session.engine.processor.image_processor.video_layout(4).num_tokens


def test_system_and_settings(say, chat, expected):
    say("/system Be brief.")
    assert say("Hello")[0] == expected("Hello", system="Be brief.")
    assert say("/system")[1] == "system message: Be brief."
    assert say("/system default")[1] == "system message: the default"
    assert "must not hold <image>" in refused(chat, "/system look at <image>")
    assert "temperature=0.5" in say("/set temperature=0.5 top_p = 0.9")[1]
    assert (chat.session.settings.temperature, chat.session.settings.top_p) == (0.5, 0.9)
    for wrong, message in {
        "temperature=-1": "temperature must be 0 or a positive number, found -1.0",
        "temperature=hot": "temperature must be a number, found 'hot'; write temperature=0.5",
        "temperature": "temperature must be a number, found nothing; write temperature=0.5",
        "temperature=nan": "temperature must be 0 or a positive number, found nan",
        "max_new_tokens=0": "max_new_tokens must be at least 1, found 0",
        "max_new_tokens=9 warmth=2": "unknown setting 'warmth'; choose "
        "max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed",
        "top_p=1.5": "top_p must be above 0 and at most 1, found 1.5",
    }.items():
        assert refused(chat, f"/set {wrong}") == message
    assert chat.session.settings.max_new_tokens == 6
    assert "max_new_tokens=123456789  the longest" in say("/set max_new_tokens=123456789")[1]
    assert "  top_p=0.9                 share" in say("/set")[1]


def test_what_takes_no_argument_does_nothing_with_one(say, chat):
    say("Hello")
    names = [name for name, command in COMMANDS.items() if not command.arguments]
    assert len(names) == 8
    for name in names:
        assert refused(chat, f"{name} 3") == f"{name} takes nothing behind it, found '3'"
    assert (len(chat.session.exchanges), chat.leaving) == (1, False)


def test_tokens(say, chat, page, engine):
    prompt = engine.count_tokens(Dialogue([Turn("human", "")]))
    assert say("/tokens")[1] == f"the next question comes after {prompt} tokens; the model reads 2048"
    say(f"{page} Hello".replace(str(page), f"'{page}'"))
    usage = chat.session.usage
    assert 0 < usage.visual < usage.prompt == usage.prefilled
    assert say("/tokens")[1].splitlines()[1].startswith(f"the last answer has {usage.answer} tokens; its prompt had")


def test_an_interrupt_keeps_what_came_and_an_early_one_nothing(say, chat, capsys, monkeypatch, page):
    say(f"/image '{page}'")

    def interrupted(pieces):
        def stream(*args, **options):
            yield from pieces
            raise KeyboardInterrupt

        return stream

    monkeypatch.setattr(chat.session.engine, "stream", interrupted([]))
    for line in ("Hello", f"'{page}' Hello"):
        with pytest.raises(KeyboardInterrupt):
            obey(chat, line)
        assert (chat.session.exchanges, len(chat.session.waiting)) == ([], 1)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(chat.session.engine, "stream", interrupted(["half an ", "<image> answer"]))
    with pytest.raises(KeyboardInterrupt):
        obey(chat, "Hello")
    (exchange,) = chat.session.exchanges
    assert (exchange.answer, exchange.stopped, chat.session.waiting) == ("half an  answer", True, [])
    assert capsys.readouterr().out == "half an <image> answer\n"

    def fails(*args, **options):
        raise RuntimeError("out of memory")
        yield

    monkeypatch.setattr(chat.session.engine, "stream", fails)
    with pytest.raises(RuntimeError):
        obey(chat, "/retry")
    assert chat.session.exchanges == [exchange]


def test_a_path_at_the_begin_of_a_line_is_no_command(say, chat, page, tmp_path):
    assert "goes with this question" in say(f"{page} What?")[1]
    assert chat.session.exchanges[-1].question == "What?"
    (tmp_path / "notes.txt").write_text("no pixels")
    note = f"not shown: {tmp_path}/notes.txt (no image or video that is read here)"
    assert say(f"{tmp_path}/notes.txt says?")[1] == note
    assert refused(chat, f"{tmp_path}/notes.txt") == note
    assert refused(chat, f"{tmp_path}/nothing what?") == f"{tmp_path}/nothing is neither a command nor a file"
    assert refused(chat, f"{tmp_path} what?") == f"{tmp_path} is a folder; name the images in it"


def test_statistics_on_request(say, chat):
    assert say("/stats")[1] == "tokens per second are shown after each answer"
    last = say("Hello")[1].splitlines()[-1]
    usage = chat.session.usage
    assert last.startswith(f"{usage.answer} token")
    assert last.endswith(f"{usage.prefilled} of its {usage.prompt} tokens were computed")
    assert say("/stats")[1] == "tokens per second are no longer shown"


def test_a_seed_repeats_a_conversation_and_not_an_answer(say):
    def talk() -> list[str]:
        return [say(line)[0] for line in ("Hello", "Hello", "/retry")]

    say("/set temperature=3 seed=5")
    first = talk()
    say("/reset")
    assert talk() == first
    assert len(set(first)) == 3
    say("/reset")
    say("/set seed=6")
    assert talk() != first
