import json
import os
import re
import signal
import subprocess
import sys

import pytest
from PIL import Image

from llava.cli import main
from llava.data.image_folder import why_outside
from llava.data.inspect import KINDS
from llava.data.notes import NOTES
from llava.errors import LlavaError
from llava.prepare_data import check
from llava.prepare_data.check import CheckOptions, check_mixture

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A red car."}]


def row(name: str, image="good.png", turns=TURNS) -> dict:
    return {"id": name, "image": image, "conversations": turns}


def write_data(folder, *files: list, **keys) -> str:
    """Data files a.json, b.json, ... and the mixture of them."""
    entries = []
    for name, rows in zip("abc", files):
        (folder / f"{name}.json").write_text(json.dumps(rows))
        entries.append({"json_path": f"{name}.json", **keys})
    (folder / "mixture.yaml").write_text(json.dumps({"datasets": entries}))
    return str(folder / "mixture.yaml")


@pytest.fixture
def images(tmp_path, make_image):
    """An image folder inside tmp_path: whole, cut, damaged in the middle, and one that lies outside."""
    folder = tmp_path / "images"
    folder.mkdir()
    make_image(100, 70).save(folder / "good.png")
    content = (folder / "good.png").read_bytes()
    (folder / "cut.png").write_bytes(content[:-300])
    damaged = bytearray(content)
    damaged[len(content) // 2 : len(content) // 2 + 50] = bytes(50)
    (folder / "damaged.png").write_bytes(damaged)
    Image.new("1", (400, 400)).save(folder / "huge.png")
    make_image().save(tmp_path / "secret.png")
    (folder / "leak.png").symlink_to(tmp_path / "secret.png")
    (folder / "inside.png").symlink_to(folder / "good.png")
    (folder / "away").symlink_to(tmp_path)
    return folder


FAULTY = [
    (row("places", ["good.png", "good.png"]), "placeholder", "found 1 <image> placeholders but 2 images"),
    (row("mute", turns=[TURNS[0], {"from": "gpt", "value": " \n"}]), "no_answer", "no answer to learn from"),
    (row("climbs", "../secret.png"), "outside", "../secret.png climbs out of the image folder"),
    (row("absolute", "/etc/passwd"), "outside", "/etc/passwd is absolute"),
    (row("linked", "leak.png"), "outside", "secret.png, outside the image folder"),
    (row("link folder", "away/secret.png"), "outside", "secret.png, outside the image folder"),
    (row("gone", "gone.png"), "missing", "gone.png does not exist"),
    (row("cut", "cut.png"), "undecodable", "cut.png cannot be decoded"),
    (row("huge", "huge.png"), "bomb", "160000 pixels) exceeds limit of 100000 pixels"),
    (row("begun", None, [TURNS[1]]), "template", "no human turn"),
    ({"id": 7, "image": 3}, "record", "'image' must be a path"),
    ("text", "record", "must be an object, found str"),
    (row("long", turns=[TURNS[0], {"from": "gpt", "value": "zq7 " * 400}]), "over_long", "max_length is 1000"),
]


def test_every_kind_of_fault_is_found_counted_and_kept(tmp_path, images, tiny_model_dir, monkeypatch, capsys):
    assert {kind for _, kind, _ in FAULTY} == set(KINDS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    good = [row("first"), row("inside", "inside.png"), row("round", "away/images/good.png")]
    good.append(row("text", None, [{"from": "human", "value": "What?"}, TURNS[1]]))
    mixture = write_data(tmp_path, [*good, *(record for record, _, _ in FAULTY), row("first")], good)
    command = ["data", "check", mixture, "--image_folder", str(images), "--out", str(tmp_path / "report")]
    assert main([*command, "--model", str(tiny_model_dir), "--max_length", "1000"]) == 1
    found = [json.loads(line) for line in (tmp_path / "report/bad.jsonl").read_text().splitlines()]
    assert [(fault["row"], fault["kind"]) for fault in found] == [
        (number, kind) for number, (_, kind, _) in enumerate(FAULTY, start=len(good) + 1)
    ]
    for fault, (record, _, message) in zip(found, FAULTY):
        assert message in fault["message"]
        assert fault["file"] == str(tmp_path / "a.json")
        assert fault["id"] == (str(record["id"]) if isinstance(record, dict) else None)
    first, second = json.loads((tmp_path / "report/report.json").read_text())
    note = {"file": str(tmp_path / "a.json"), "row": len(good) + len(FAULTY) + 1, "id": "first"}
    note |= {"kind": "duplicate_id", "message": "row 1 has the id 'first' too"}
    assert [json.loads(line) for line in (tmp_path / "report/notes.jsonl").read_text().splitlines()] == [note]
    assert (first["rows"], first["taken"], first["bad"]) == (note["row"],) * 2 + (len(FAULTY),)
    assert {kind: first[kind] for kind in NOTES} == {kind: kind == "duplicate_id" for kind in NOTES}
    assert {kind: first[kind] for kind in KINDS} == {
        kind: sum(kind == other for _, other, _ in FAULTY) for kind in KINDS
    }
    assert (second["rows"], second["bad"]) == (len(good), 0)
    output = capsys.readouterr().out
    total = next(line for line in output.splitlines() if line.endswith("total"))
    assert total.split()[:3] == [str(2 * len(good) + len(FAULTY) + 1)] * 2 + [str(len(FAULTY))]
    assert f"{len(FAULTY)} of {2 * len(good) + len(FAULTY) + 1} samples are unusable" in output
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["bad.jsonl", "notes.jsonl", "report.json"]


def test_the_number_of_tokens_is_the_encoded_sample_s(tmp_path, images, tiny_model_dir, make_processor):
    from llava.data.schema import parse_sample

    record = row("one")
    encoded = make_processor().encode_sample(
        parse_sample(record, "x"),
        [Image.open(images / "good.png").convert("RGB")],
        template="qwen_1_5",
        label_rule="answers",
        max_length=10_000,
    )
    length, faults = len(encoded["input_ids"]), []
    options = {"image_folder": str(images), "model": str(tiny_model_dir)}
    mixture = write_data(tmp_path, [record])
    check_mixture(mixture, CheckOptions(**options, max_length=length), faults.append)
    assert faults == []
    check_mixture(mixture, CheckOptions(**options, max_length=length - 1), faults.append)
    assert [fault.message for fault in faults] == [f"found {length} tokens but max_length is {length - 1}"]


def test_what_is_longer_than_the_language_model_is_a_fault(tmp_path, images, tiny_model_dir):
    """tiny_model_dir's has 2,048 positions, as training with that model finds."""
    faults, mixture = [], write_data(tmp_path, [row("long", turns=[TURNS[0], {"from": "gpt", "value": "zq7 " * 2000}])])
    options = {"image_folder": str(images), "model": str(tiny_model_dir)}
    check_mixture(mixture, CheckOptions(**options, max_length=16384), faults.append)
    (message,) = [fault.message for fault in faults]
    assert message.endswith("tokens but the language model has 2048 positions (max_position_embeddings)")


def test_a_full_decode_finds_what_the_header_hides(tmp_path, images, capsys):
    mixture = write_data(tmp_path, [row("a", "damaged.png"), row("b")])
    command = ["data", "check", mixture, "--image_folder", str(images)]
    assert main(command) == 0
    assert main([*command, "--decode"]) == 1
    captured = capsys.readouterr()
    assert "row 1 (id a) undecodable: image" in captured.err
    assert "1 of 2 samples are unusable" in captured.out


def test_videos_are_checked_as_images_are(tmp_path, make_clip, capsys):
    make_clip(8)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:500])
    rows = [{"id": name, "video": f"{name}.mp4", "conversations": TURNS} for name in ("clip", "cut", "gone")]
    assert main(["data", "check", write_data(tmp_path, rows), "--image_folder", str(tmp_path), "--decode"]) == 1
    error = capsys.readouterr().err
    assert "row 2 (id cut) undecodable" in error
    assert "row 3 (id gone) missing" in error
    assert error.count("fault:") == 2


@pytest.mark.parametrize("strategy", ["all", "first:30%", "end:7", "random:50%"])
def test_processes_find_what_one_finds(tmp_path, images, monkeypatch, strategy):
    monkeypatch.setattr(check, "BATCH", 5)
    names = ["good.png", "gone.png", "cut.png", "inside.png"]
    rows = [row(str(i % 17), names[i % 4]) for i in range(43)]
    mixture = write_data(tmp_path, rows, rows[:3], sampling_strategy=strategy if ":" not in strategy else "all")
    (tmp_path / "mixture.yaml").write_text(
        json.dumps({"datasets": [{"json_path": "a.json", "sampling_strategy": strategy}, {"json_path": "b.json"}]})
    )
    found = {}
    for workers in (1, 2):
        faults = []
        reports = check_mixture(mixture, CheckOptions(str(images)), faults.append, workers=workers)
        found[workers] = faults, [report.to_dict() for report in reports]
    assert found[1] == found[2]
    in_first = [fault.row for fault in faults if fault.file.endswith("a.json")]
    assert in_first == sorted(in_first)
    assert len(in_first) > 1


KILLED = """
import os, signal, sys
from llava.cli import main
from llava.prepare_data import check
seen = []
inspect = check.inspect_sample
def inspect_and_die(sample, *arguments, **options):
    seen.append(sample.id)
    if len(seen) > int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return inspect(sample, *arguments, **options)
check.inspect_sample, check.BATCH = inspect_and_die, 4
status = main(sys.argv[2:])
print(len(seen), file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture
def run_until(tmp_path, images):
    """A function: starts the check of tmp_path's mixture in a process that dies at the (n + 1)-th sample."""

    def run(samples: int, out: str = "report"):
        command = ["data", "check", str(tmp_path / "mixture.yaml"), "--image_folder", str(images), "--workers", "1"]
        return subprocess.run(
            [sys.executable, "-c", KILLED, str(samples), *command, "--out", str(tmp_path / out)],
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_killed_check_goes_on(tmp_path, run_until):
    rows = [row(str(i % 20), "gone.png" if i % 3 else "good.png") for i in range(22)]
    write_data(tmp_path, rows, rows[:6])
    assert run_until(10).returncode == -signal.SIGKILL  # in the third batch of four
    assert not (tmp_path / "report/bad.jsonl").exists()
    with open(tmp_path / "report/progress/000.jsonl", "a") as stream:
        stream.write('[[9, "8", "miss')  # a line that was being written when the power went
    assert run_until(14).returncode == -signal.SIGKILL  # 8 known, 14 of a.json's rest: a.json is complete
    done = run_until(100)
    assert done.returncode == 1, done.stderr
    assert done.stderr.split()[-1] == "6"  # b.json alone was left
    whole = run_until(100, "whole")
    assert whole.stderr.split()[-1] == "28"
    for name in ("bad.jsonl", "notes.jsonl", "report.json"):
        assert (tmp_path / "report" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert len((tmp_path / "whole/bad.jsonl").read_text().splitlines()) == 14 + 4
    assert len((tmp_path / "whole/notes.jsonl").read_text().splitlines()) == 2


def test_a_damaged_line_of_an_unfinished_check_is_named(tmp_path, run_until):
    write_data(tmp_path, [row(str(i)) for i in range(12)])
    assert run_until(9).returncode == -signal.SIGKILL
    progress = tmp_path / "report/progress/000.jsonl"
    key, _, *rest = progress.read_text().splitlines(keepends=True)
    progress.write_text("".join([key, "[[\n", *rest]))
    done = run_until(100)
    assert done.returncode == 2
    assert re.match(rf"error: {progress}: line 2 is damaged \(.*\); delete the file\n", done.stderr)


def test_a_changed_file_is_checked_anew(tmp_path, run_until):
    write_data(tmp_path, [row(str(i)) for i in range(12)])
    assert run_until(9).returncode == -signal.SIGKILL
    write_data(tmp_path, [row(str(i)) for i in range(11)])
    done = run_until(100)
    assert (done.returncode, done.stderr.split()[-1]) == (0, "11")


def test_a_number_of_rows_that_is_not_expected_is_told(tmp_path, images, capsys):
    command = ["data", "check", write_data(tmp_path, [row("a"), row("b")], expected_rows=3)]
    assert main([*command, "--image_folder", str(images)]) == 0
    assert f"warning: {tmp_path / 'a.json'} has 2 rows, expected 3" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_does_not_hide_the_others(tmp_path, images, capsys):
    mixture = write_data(tmp_path, [row("a")], [row("b", "gone.png")])
    (tmp_path / "a.json").write_text('[{"id": "a"},\n{"id": ')
    assert main(["data", "check", mixture, "--image_folder", str(images)]) == 1
    captured = capsys.readouterr()
    assert f"fault: data file {tmp_path / 'a.json'} line 2 is not JSON" in captured.err
    assert "1 of 2 data files cannot be read\n1 of 1 samples are unusable" in captured.out
    assert "b.json row 1 (id b) missing" in captured.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image_folder", "nowhere"], "--image_folder nowhere is not a folder"),
        (["--workers", "0"], "--workers must be at least 1, found 0"),
        (["--model", "nowhere"], "nowhere: no such model folder"),
    ],
)
def test_wrong_options_are_one_line_and_status_2(tmp_path, capsys, options, message):
    assert main(["data", "check", write_data(tmp_path, [row("a")]), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_an_empty_mixture_is_an_error(tmp_path, images):
    mixture = write_data(tmp_path, [row("a")], sampling_strategy="end:0")
    with pytest.raises(LlavaError, match="its 1 data files give 0 samples"):
        check_mixture(mixture, CheckOptions(str(images)), print)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a/b.png", None),
        ("a/../b.png", None),
        ("..b.png", None),
        ("a/../../b.png", "climbs out"),
        ("..", "climbs out"),
        ("/b.png", "is absolute"),
    ],
)
def test_paths_that_leave_a_folder(tmp_path, path, reason):
    found = why_outside(path, tmp_path)
    assert found is None if reason is None else reason in found


def test_an_image_folder_that_is_a_link_is_no_way_out(tmp_path, images):
    (tmp_path / "link").symlink_to(images)
    assert why_outside("good.png", tmp_path / "link") is None
    assert why_outside("leak.png", tmp_path / "link").endswith("outside the image folder")
    assert why_outside("good.png", os.path.relpath(images)) is None
