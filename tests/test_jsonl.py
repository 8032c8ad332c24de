"""Files of JSON lines, whole or cut off anywhere."""

import json
import signal
import subprocess
import sys

import pytest

from llava.jsonl import append_line, cut_off_half_line, json_line, whole_lines

ROWS = [{"key": "a", "text": "é \u2028 \n"}, [1, None], "half \udc80"]


def test_what_is_appended_is_read(tmp_path):
    file = tmp_path / "log.jsonl"
    for row in ROWS:
        append_line(file, row)
    assert [json.loads(line) for line in whole_lines(file)] == ROWS
    assert "é" in file.read_text(encoding="utf-8"), "characters are written as they are"


@pytest.mark.parametrize("length", range(len("".join(map(json_line, ROWS[:2])).encode()) + 1))
def test_a_file_that_was_cut_off_anywhere_goes_on(tmp_path, length):
    content = "".join(map(json_line, ROWS[:2])).encode()
    first = content.index(b"\n") + 1
    whole = [] if length < first else ROWS[:1] if length < len(content) else ROWS[:2]
    file = tmp_path / "log.jsonl"
    file.write_bytes(content[:length])
    assert [json.loads(line) for line in whole_lines(file)] == whole
    cut_off_half_line(file)
    append_line(file, "more")
    assert [json.loads(line) for line in whole_lines(file)] == [*whole, "more"]


def test_a_missing_file_stays_missing_and_is_not_read(tmp_path):
    cut_off_half_line(tmp_path / "none.jsonl")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        whole_lines(tmp_path / "none.jsonl")


def test_every_line_survives_a_kill_right_behind_it(tmp_path):
    file = tmp_path / "log.jsonl"
    code = (
        "import os, signal, sys; from pathlib import Path; from llava.jsonl import append_line\n"
        "for number in range(3): append_line(Path(sys.argv[1]), number)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(map(json.loads, whole_lines(file))) == [0, 1, 2]
