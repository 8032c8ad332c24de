"""`llava chat` as a user meets it: in a terminal, from an argument, from a pipe."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import termios

import pexpect
import pytest
import torch

from llava.chat.display import Display
from llava.cli import main
from llava.data.schema import Dialogue, Turn
from llava.engine.engine import Engine
from llava.mllm import LlavaOVManagerForConditionalGeneration

COMMAND = [sys.executable, "-m", "llava.cli", "chat", "--device", "cpu"]


@pytest.fixture
def expected(engine, make_image):
    """A function: turns and images to the engine's own answer."""

    def answer(*turns, images=()):
        turns = [Turn("gpt" if index % 2 else "human", text) for index, text in enumerate(turns)]
        return engine.generate([Dialogue(turns, list(images))], max_new_tokens=8)[0]

    return answer


@pytest.fixture
def run(tiny_model_dir, capsys):
    """A function: arguments to (status, stdout, stderr) of one question, answered in this process."""

    def answer(*arguments) -> tuple[int, str, str]:
        model = ("--model", tiny_model_dir, "--device", "cpu", "--max_new_tokens", 8)
        status = main(["chat", *map(str, (*model, *arguments))])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return answer


def test_a_question_as_argument_prints_the_answer_alone(run, page, expected, make_image):
    status, out, err = run("--image", page, "What is in the picture?")
    assert (status, err) == (0, "")
    assert out.strip() == expected("What is in the picture?", images=[make_image(120, 90)])
    assert out.endswith("\n")


def test_a_question_from_a_pipe_without_a_terminal(tiny_model_dir, page, expected, make_image):
    environment = {name: value for name, value in os.environ.items() if name not in ("TERM", "COLORTERM", "HOME")}
    arguments = ["--max_new_tokens", "8", "--model", str(tiny_model_dir), "--image", str(page), "--json"]
    done = subprocess.run(
        [*COMMAND, *arguments], input="What is in\nthe picture?\n", capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["answer"] == expected("What is in\nthe picture?", images=[make_image(120, 90)])


def test_json_tells_all_there_is_to_know(run, engine, page, expected, make_image, tmp_path):
    transparent = tmp_path / "b.png"
    make_image(50, 60).convert("RGBA").save(transparent)
    status, out, err = run(
        "--image", page, "--image", transparent, "--json", "--show-managers", "--log", tmp_path / "log.jsonl", "Which?"
    )
    assert (status, err, out.count("\n")) == (0, "", 1)
    found = json.loads(out)
    images = [make_image(120, 90), make_image(50, 60)]
    assert found["answer"] == expected("Which?", images=images)
    assert [(image["path"], image["width"], image["height"]) for image in found["images"]] == [
        (str(page), 120, 90),
        (str(transparent), 50, 60),
    ]
    tokens = found["tokens"]
    assert sum(image["tokens"] for image in found["images"]) == tokens["visual"]
    assert tokens["prompt"] == tokens["prefilled"] == engine.count_tokens(Dialogue([Turn("human", "Which?")], images))
    assert 0 < found["timings"]["first_token"] <= found["timings"]["total"]
    assert found["device"] == "cpu, float32, sdpa"
    assert [manager["layer"] for manager in found["managers"]] == [0, 2, 4]

    status, out, err = run("--load", tmp_path / "log.jsonl", "--log", tmp_path / "log.jsonl", "--json", "And?")
    follow_up = json.loads(out)
    assert follow_up["answer"] == expected("<image> <image>\nWhich?", found["answer"], "And?", images=images)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 5


def test_what_was_done_to_an_image_is_said_and_the_managers_are_shown(run, tmp_path, make_image):
    make_image().convert("CMYK").save(tmp_path / "a.jpg")
    status, out, err = run("--image", tmp_path / "a.jpg", "--show_managers", "What?")
    assert status == 0
    assert err.startswith(f"{tmp_path}/a.jpg: 100x70, CMYK colors are converted to RGB\nmanagers: mean |W|")
    assert "managers" not in out


def test_wrong_input_gets_one_line_and_no_answer(tiny_model_dir, tmp_path, page, capsys, monkeypatch):
    text_model = tmp_path / "text"
    text_model.mkdir()
    (text_model / "config.json").write_text('{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}')
    no_image = tmp_path / "notes.txt"
    no_image.write_text("not pixels")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    model = ("--model", tiny_model_dir)
    for arguments, message in [
        (("--model", tmp_path / "nowhere", "Hi"), "no such model folder"),
        (("--model", text_model, "Hi"), "a text-only model of type 'qwen2'"),
        ((*model, "--image", tmp_path / "nowhere.png", "Hi"), "nowhere.png does not exist"),
        ((*model, "--image", no_image, "Hi"), "notes.txt is not an image"),
        ((*model, " "), "no question"),
        (model, "no question"),
        ((*model, "--max_new_tokens", "0", "Hi"), "--max_new_tokens must be at least 1, found 0"),
        ((*model, "--temperature", "-1", "Hi"), "--temperature must be 0 or a positive number, found -1.0"),
        ((*model, "--top_p", "0", "Hi"), "--top_p must be above 0 and at most 1, found 0.0"),
        ((*model, "--video", tmp_path / "nowhere.mp4", "Hi"), "nowhere.mp4 does not exist"),
        ((*model, "--frames_upbound", "-1", "Hi"), "video frames_upbound must be at least 0"),
        ((*model, "--load", tmp_path / "nowhere.jsonl", "Hi"), "nowhere.jsonl does not exist"),
        ((*model, "--log", no_image, "Hi"), "notes.txt exists"),
        ((*model, "--system", "<image>", "Hi"), "the system message must not hold <image>"),
        ((*model, "--json"), "no question"),
        ((*model, "--device", "abacus", "Hi"), "device 'abacus' cannot be used"),
        ((*model, "--image", page, "<image> and <image>"), "found 2 <image> in the question but 1 new images"),
    ]:
        assert main(["chat", *map(str, arguments)]) == 2, message
        shown = capsys.readouterr()
        assert message in shown.err
        assert (shown.out, shown.err.count("\n")) == ("", 1)


def test_closed_and_full_files_and_bytes_that_are_no_text_get_one_line(run, tiny_model_dir, capsys, monkeypatch):
    ask = ["chat", "--model", str(tiny_model_dir)]
    monkeypatch.setattr(sys, "stdin", None)  # as it is where it was closed
    assert main(ask) == 2
    assert "no question" in capsys.readouterr().err
    assert main([*ask, b"\xff".decode("utf-8", "surrogateescape")]) == 2
    assert capsys.readouterr() == ("", "error: the question is no text: it is not UTF-8\n")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main([*ask, "Hi"]) == 2
    assert capsys.readouterr().err == "error: the answer cannot be written: No space left on device\n"


def test_letters_that_the_locale_does_not_know(run, expected, tiny_model_dir, monkeypatch):
    unread = "Was ist größer?".encode().decode("ascii", "surrogateescape")
    assert run(unread)[1].strip() == expected("Was ist größer?")

    def written(*arguments) -> bytes:
        out = io.TextIOWrapper(io.BytesIO(), "latin-1")
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["chat", "--model", str(tiny_model_dir), "--max_new_tokens", "1", *arguments]) == 0
        return out.buffer.getvalue()

    assert json.loads(written("--json", "größer \u6f22"))["question"] == "größer \u6f22"
    monkeypatch.setattr(Engine, "stream", lambda *args, **options: (piece for piece in ["größer als \u6f22"]))
    assert written("Hi") == b"gr\xf6\xdfer als ?\n"


@pytest.fixture
def endless_model_dir(tiny_model_dir, tiny_tokenizer, tmp_path):
    """A checkpoint that answers in two words and never ends: their rows of the head are opposite, all others zero."""
    model = LlavaOVManagerForConditionalGeneration.from_pretrained(tiny_model_dir)
    words = [token for word, token in tiny_tokenizer.get_vocab().items() if word.startswith("Ġ") and len(word) > 2][:2]
    head = torch.zeros_like(model.lm_head.weight)
    head[words[0]], head[words[1]] = 1.0, -1.0
    model.lm_head.weight = torch.nn.Parameter(head)
    model.config.text_config.tie_word_embeddings = model.config.tie_word_embeddings = False
    folder = shutil.copytree(tiny_model_dir, tmp_path / "endless")
    model.save_pretrained(folder)
    return folder


def spawn(arguments, state, **environment) -> pexpect.spawn:
    """A chat in a pseudo-terminal that is asked for nothing it does not know: where its cursor is."""
    environment = {**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(state), **environment}
    return pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], *map(str, arguments)],
        env=environment,
        encoding="utf-8",
        timeout=120,
        dimensions=(40, 200),
    )


class Terminal:
    """Lines sent to a chat in a pseudo-terminal, and what it shows."""

    def __init__(self, child: pexpect.spawn):
        self.child = child

    def shown(self) -> str:
        """What comes up to the next prompt, without what moves the cursor and colors the text."""
        self.child.expect(r"\x1b\[\?2004h.*?>")  # bracketed paste begins with the prompt
        return re.sub(r"\x1b\[[?>\d;]*[A-Za-z]|\r|\x08", "", self.child.before)

    def say(self, keys: str) -> str:
        self.child.send(keys + "\r")
        self.child.expect(r"\x1b\[\?2004l")  # the line is taken
        return self.shown()


def test_a_conversation_in_a_terminal(endless_model_dir, page, tmp_path, make_image):
    """One process, since it takes seconds to start: every command meets the others, as in a real conversation."""
    (page.parent / "clip.txt").touch()
    arguments = ["--max_new_tokens", "1900", "--model", endless_model_dir, "--show-managers"]
    child = spawn(arguments, tmp_path / "state", TERM="xterm-256color", COLORTERM="truecolor")
    terminal = Terminal(child)
    assert f"{endless_model_dir}: cpu, float32, sdpa. /help lists the commands." in terminal.shown()

    child.sendintr()  # at the prompt: a new prompt
    terminal.shown()
    child.send("Hello\r")
    child.expect(r"\w+ \w+ \w+")  # the answer has begun
    child.sendintr()
    child.expect_exact("stopped\r\n")
    terminal.shown()

    assert "max_new_tokens=4 " in terminal.say("/set max_new_tokens=4")
    completed = terminal.say(f"/im\t{page.parent}/a\t")  # the command's name, and the only image there
    assert f"{page}: 120x90, goes with the next question" in completed
    assert completed.count("▀") == 37 * 14, "a picture of it"
    answer = terminal.say("What is it?")
    assert re.search(r"(\w+ ){3}\w+\s", answer)
    assert "managers: mean |W| by vision layer" in answer
    assert re.search(r"V4 +\S+ +0\.\d{4}", answer)
    assert "were computed, 0 were kept" not in terminal.say("/tokens")

    for line, message in {
        "/image nowhere.png": "error: image nowhere.png does not exist",
        f"/image {page.parent}": f"error: image {page.parent} is a folder",
        "http://127.0.0.1:1/a.png what?": "error: http://127.0.0.1:1/a.png cannot be reached: ",
        "/imagine": "error: unknown command /imagine; /help lists them",
        "/paste": "clipboard",
    }.items():
        assert message in terminal.say(line)
    assert f"taken back: What is it?, {page}" in terminal.say("/undo")
    terminal.say("\x1b[200~" + f"'{page}' Dropped?" + "\x1b[201~")  # pasted
    terminal.say("\x1b[A")  # the line before, again
    assert f"taken back: '{page}' Dropped?" not in (last := terminal.say("/undo"))
    assert f"taken back: Dropped?, {page}" in last
    assert "saved" in terminal.say(f"/save {tmp_path}/talk.json")
    events = json.loads((tmp_path / "talk.json").read_text())["events"]
    assert [event["question"] for event in events] == ["Hello", "Dropped?"]
    assert events[0]["stopped"]
    assert "Dropped?" in terminal.say(f"/load {tmp_path}/talk.json")
    history = tmp_path / "state/llava-ov-manager/chat_history"
    assert "+What is it?\n" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0
    child.send("half a line")
    child.sendintr()
    terminal.shown()
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_terminal_that_can_nothing(tiny_model_dir, page, expected, run, make_image, tmp_path):
    """No TERM, no place for the history; a conversation goes on from a log, and ends with /exit."""
    (tmp_path / "state").touch()
    before = run("--log", tmp_path / "talk.jsonl", "Hello")[1].strip()
    arguments = ["--max_new_tokens", "8", "--model", tiny_model_dir, "--load", tmp_path / "talk.jsonl"]
    child = spawn(arguments, tmp_path / "state", TERM="")
    child.expect_exact("> Hello\r\n")
    child.expect_exact("the history is not kept")
    assert child.before.strip() == before
    child.expect_exact("> ")

    def say(line: str) -> str:
        child.sendline(line)
        child.expect_exact(line)
        child.expect(r"\r\n> ")
        return child.before.strip()

    assert say(f"/image '{page}'") == f"{page}: 120x90, goes with the next question"
    first = say("What is in the picture?")
    assert first == expected("Hello", before, "<image>\nWhat is in the picture?", images=[make_image(120, 90)])
    assert "/reset" in say("/help")
    child.sendline("/exit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_an_interrupt_ends_a_single_question_with_status_130(run, monkeypatch):
    def stream(*args, **options):
        yield "half an"
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "stream", stream)
    assert run("Hello") == (130, "half an\n", "")
    assert run("--json", "Hello") == (130, "", "")


def test_what_is_typed_while_an_answer_streams_is_not_echoed_and_waits(endless_model_dir, tmp_path):
    arguments = ["--max_new_tokens", "1900", "--model", endless_model_dir, "--no_preview"]
    child = spawn(arguments, tmp_path / "state", TERM="xterm-256color")
    terminal = Terminal(child)
    terminal.shown()
    child.send("Hello\r")
    child.expect(r"\w+ \w+ \w+")  # the answer has begun
    assert not termios.tcgetattr(child.child_fd)[3] & termios.ECHO
    child.send("/set max_new_tokens=3\r")
    child.expect(r"max_new_tokens=3 +\w+ longest")  # the answer ended by itself, then the line was taken
    answer, prompt, _ = child.before.partition("\x1b[0m> ")
    assert prompt
    assert "max_new_tokens" not in answer
    child.sendintr()
    terminal.shown()
    child.send("/set max_new_tokens=1900\r")
    child.expect(r"max_new_tokens=1900 +\w+ longest")
    terminal.shown()
    child.send("Again\r")
    child.expect(r"\w+ \w+ \w+")
    child.sendintr()
    child.expect_exact("stopped\r\n")
    assert "^C" not in child.before
    terminal.shown()
    child.sendeof()
    child.expect(pexpect.EOF)
    assert termios.tcgetattr(child.child_fd)[3] & termios.ECHO, "as it was before the chat"
    child.close()


def test_a_question_names_its_images_and_the_flags_reach_the_model(run, tmp_path, page, expected, make_image):
    status, out, err = run(f"'{page}' What is it?")
    assert (status, err) == (0, f"{page}: 120x90, goes with this question\n")
    assert out.strip() == expected("What is it?", images=[make_image(120, 90)])
    drawn = [run("--temperature", 2, "--top-k", 50, "--seed", seed, "Hello")[1] for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert run("--temperature", 2, "--top_k", 1, "Hello")[1].strip() == expected("Hello")
    penalised = json.loads(run("--repetition_penalty", 1.5, "--json", "Hello")[1])
    assert penalised["settings"]["repetition_penalty"] == 1.5
    assert penalised["answer"] != expected("Hello")
    assert penalised["tokens_per_second"] is None or penalised["tokens_per_second"] > 0
    assert run("--top_p", 0.5, "--seed", 1, "Hello")[2] == "temperature is 0: top_p, seed have no effect\n"
    assert re.search(r"\d+ tokens? in [\d.]+ s.* after [\d.]+ s for the prompt", run("--stats", "Hello")[2])


def test_urls_of_a_pipe_are_not_fetched(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffWhat is http://127.0.0.1:1/a.png ?"))
    status, _, err = run()
    assert (status, err) == (0, "not shown: http://127.0.0.1:1/a.png (not fetched)\n")


def test_an_empty_answer_says_so(run, monkeypatch):
    monkeypatch.setattr(Engine, "stream", lambda *args, **options: (piece for piece in ()))
    assert run("Hello") == (0, "\n", "")
    monkeypatch.setattr(Display, "is_watched", True)
    assert run("Hello") == (0, "\n", "(the model gave an empty answer)\n")
