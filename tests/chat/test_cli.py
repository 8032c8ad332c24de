"""`llava chat` as a user meets it: in a terminal, from an argument, from a pipe."""

import io
import os
import re
import shutil
import subprocess
import sys

import pexpect
import pytest
import torch

from llava.chat.engine import Engine
from llava.cli import main
from llava.data.schema import Dialogue, Turn
from llava.mllm import LlavaOVManagerForConditionalGeneration

COMMAND = [sys.executable, "-m", "llava.cli", "chat", "--device", "cpu", "--max_new_tokens", "8"]


@pytest.fixture(scope="module")
def image_file(tmp_path_factory, make_image):
    path = tmp_path_factory.mktemp("images") / "a page.png"
    make_image(120, 90).save(path)
    return path


@pytest.fixture(scope="module")
def expected(tiny_model_dir, make_image):
    """A function: question and images to the engine's own answer."""
    engine = Engine.from_pretrained(tiny_model_dir, device="cpu")

    def answer(*turns, images=()):
        turns = [Turn("gpt" if index % 2 else "human", text) for index, text in enumerate(turns)]
        return engine.generate([Dialogue(turns, list(images))], max_new_tokens=8)[0]

    return answer


def run(*arguments, stdin=subprocess.DEVNULL, **options):
    return subprocess.run([*COMMAND, *map(str, arguments)], stdin=stdin, capture_output=True, text=True, **options)


def test_a_question_as_argument_prints_the_answer_alone(tiny_model_dir, image_file, expected, make_image):
    done = run("--model", tiny_model_dir, "--image", image_file, "What is in the picture?")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected("What is in the picture?", images=[make_image(120, 90)])
    assert done.stdout.endswith("\n")
    assert done.stderr == ""


def test_a_question_from_a_pipe(tiny_model_dir, expected):
    done = run("--model", tiny_model_dir, stdin=None, input="What is in the picture?\n")
    assert (done.returncode, done.stdout.strip()) == (0, expected("What is in the picture?"))


def test_wrong_input_gets_one_line_and_no_answer(tiny_model_dir, tmp_path, image_file, capsys, monkeypatch):
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
        ((*model, "--temperature", "-1", "Hi"), "--temperature must not be negative, found -1.0"),
        ((*model, "--device", "abacus", "Hi"), "device 'abacus' cannot be used"),
        ((*model, "--image", image_file, "<image> and <image>"), "found 2 <image> in the question but 1 new images"),
    ]:
        assert main(["chat", *map(str, arguments)]) == 2, message
        shown = capsys.readouterr()
        assert message in shown.err
        assert (shown.out, shown.err.count("\n")) == ("", 1)


@pytest.fixture
def terminal(tiny_model_dir):
    """A chat in a pseudo-terminal, at its first prompt."""
    environment = {**os.environ, "TERM": "dumb", "INPUTRC": "/dev/null"}
    child = pexpect.spawn(
        COMMAND[0], [*COMMAND[1:], "--model", str(tiny_model_dir)], env=environment, encoding="utf-8", timeout=60
    )
    child.setwinsize(40, 400)
    child.expect(r"cpu, float32, sdpa\. /help lists the commands\.\r\n")
    child.expect_exact("> ")
    yield child
    child.close(force=True)


def say(terminal, line):
    """Sends a line and returns what is shown up to the next prompt."""
    terminal.sendline(line)
    terminal.expect_exact(line)
    terminal.expect(r"\r\n> ")
    shown = re.sub(r"\x1b\[\?2004[hl]\r?", "", terminal.before)
    return shown.strip()


def test_a_conversation_keeps_its_turns_and_images(terminal, image_file, expected, make_image):
    image = make_image(120, 90)
    assert say(terminal, f"/image '{image_file}'") == f"{image_file}: 120x90, goes with the next question"
    first = say(terminal, "What is in the picture?")
    question = "<image>\nWhat is in the picture?"
    assert first == expected(question, images=[image])
    second = say(terminal, "A red car?")
    assert second == expected(question, first, "A red car?", images=[image])
    assert say(terminal, "/reset") == "the conversation starts anew"
    assert say(terminal, "A red car?") == expected("A red car?")
    assert second != expected("A red car?"), "the second answer should have depended on the first turn"


def test_mistakes_get_one_line_and_the_chat_goes_on(terminal, tmp_path, expected):
    notes = tmp_path / "notes.txt"
    notes.write_text("not pixels")
    assert say(terminal, "/image nowhere.png") == "error: image nowhere.png does not exist"
    assert say(terminal, f"/image {notes}") == f"error: {notes} is not an image that Pillow can read"
    assert say(terminal, "/image") == "error: /image needs a path"
    assert say(terminal, "/imagine") == "error: unknown command /imagine; /help lists them"
    assert "/reset" in say(terminal, "/help")
    assert say(terminal, "Hello") == expected("Hello")


def test_exit_and_end_of_input_leave_with_status_0(terminal):
    terminal.sendline("/exit")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


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


def test_ctrl_c_stops_the_answer_and_ctrl_d_the_program(endless_model_dir):
    arguments = [*COMMAND[1:-1], "1900", "--model", str(endless_model_dir)]
    child = pexpect.spawn(COMMAND[0], arguments, encoding="utf-8", timeout=60)
    child.expect_exact("> ")
    child.sendintr()  # at the prompt: a new prompt
    child.expect_exact("> ")
    child.sendline("Hello")
    child.expect_exact("Hello\r\n")
    child.expect(r"\w+ \w+ \w+")  # the answer has begun
    child.sendintr()
    child.expect_exact("stopped\r\n")
    child.expect_exact("> ")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_ctrl_c_ends_a_single_question_with_status_130(endless_model_dir):
    arguments = [*COMMAND[1:-1], "1900", "--model", str(endless_model_dir), "Hello"]
    child = pexpect.spawn(COMMAND[0], arguments, encoding="utf-8", timeout=60)
    child.expect(r"\w+ \w+ \w+")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
