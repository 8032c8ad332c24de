"""Records that cannot be used, through training: one list before the first step, or skipped and counted."""

import json
import os
import re
import shutil

import pytest

from llava.errors import DataError, LlavaError
from llava.train.recipe.checks import check_data, check_recipe
from llava.train.stage import prepare, run_stage

GOOD = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A red car."}]
BAD = {
    "cut-emoji": ([GOOD[0], {"from": "gpt", "value": "9 \ud83d"}], r"half a character, \ud83d"),
    "gpt-first": (
        [{"from": "gpt", "value": "<image>\nHello"}, {"from": "human", "value": "Bye"}],
        "<image> placeholders",
    ),
    "no-image": ([{"from": "human", "value": "<image>\nWhat?"}, GOOD[1]], "but the sample has no image"),
    "long": ([{"from": "human", "value": "<image>\n" + "what " * 200}, GOOD[1]], "but max_length is 300"),
}


@pytest.fixture
def keys(data_folder, tmp_path):
    rows = [{"id": f"good{number}", "image": f"{number}.png", "conversations": GOOD} for number in range(4)]
    rows += [
        {"id": name, "image": None if name == "no-image" else "0.png", "conversations": turns}
        for name, (turns, _) in BAD.items()
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return {
        "data.mixture": f"{tmp_path}/rows.json",
        "data.template": "qwen_1_5",
        "data.max_length": 300,
        "run.output_dir": f"{tmp_path}/out",
    }


@pytest.mark.parametrize("on_over_long", ["error", "truncate", "shrink_images"])
def test_bad_records_are_listed_before_the_first_step(tiny_recipe, keys, on_over_long):
    with pytest.raises(DataError, match="4 of 8 samples are unusable") as raised:
        prepare(tiny_recipe("1", **keys, **{"data.on_over_long": on_over_long}))
    message = str(raised.value)
    for name, (_, fault) in BAD.items():
        (line,) = [line for line in message.splitlines() if f"sample '{name}'" in line]
        assert fault in line
    assert "--data.on_bad_sample skip" in message


def test_the_check_without_a_model_names_all_that_needs_no_tokenizer(tiny_recipe, keys):
    with pytest.raises(DataError, match="3 of 8 samples are unusable"):
        check_data(tiny_recipe("1", **keys))


@pytest.mark.parametrize("on_over_long", ["error", "truncate", "shrink_images"])
def test_bad_records_are_skipped_and_counted(tiny_recipe, keys, tmp_path, capsys, on_over_long):
    run_stage(tiny_recipe("1", **keys, **{"data.on_bad_sample": "skip", "data.on_over_long": on_over_long}))
    assert json.loads((tmp_path / "out/run.json").read_text())["skipped"] == 4
    out = capsys.readouterr().out
    assert "note: 4 of 8 samples: unusable; first sample 'cut-emoji'" in out
    assert out.endswith("4 bad samples were skipped\n")


@pytest.mark.parametrize("max_length", [2048, 2049, 16384])
@pytest.mark.parametrize("held_out", [False, True])
def test_a_sample_longer_than_the_language_model_is_found_before_the_first_step(
    tiny_recipe, tmp_path, capsys, max_length, held_out
):
    """The language model has 2,048 positions."""
    long = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "what " * 2048}]
    for name, turns in (("long", long), ("short", [long[0], {"from": "gpt", "value": "what"}])):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"id": name, "conversations": turns}]))
    keys = {"data.mixture": f"{tmp_path}/{'short' if held_out else 'long'}.json", "data.max_length": max_length}
    if held_out:
        keys["eval.data"] = f"{tmp_path}/long.json"
    keys["data.template"] = "qwen_1_5"
    with pytest.raises(DataError, match="1 of 1 samples are unusable") as raised:
        prepare(tiny_recipe("1", **keys))
    found = re.search(r"row 1\): found (\d+) tokens but (.*)", str(raised.value))
    limits = {False: "max_length is 2048", True: "the language model has 2048 positions (max_position_embeddings)"}
    assert found[2] == limits[max_length > 2048]
    assert int(found[1]) > 2048
    note = (
        f"note: data.max_length {max_length:,} is more than the language model's 2,048 positions, which limit a sample"
    )
    assert (note in capsys.readouterr().out) == (max_length > 2048)


PATHS = {
    "nul": ("folder\0/0.png", "found a NUL character"),
    "surrogate": ("0\ud83d.png", "half a character"),
    "too-long": ("x" * 255 + ".png", "cannot be read: File name too long"),
    "behind-a-file": ("0.png/0.png", "cannot be read: Not a directory"),
    "folder": ("folder", "is a folder"),
    "loop": ("loop.png", "cannot be read: Too many levels of symbolic links"),
    "pipe": ("pipe.png", "cannot be read: it is no regular file"),
    "closed": ("closed.png", "cannot be read: Permission denied"),
    "gone": ("~/0.png", "does not exist"),
}


@pytest.mark.parametrize("kind", ["image", "video"])
def test_paths_that_cannot_be_read_are_listed_or_skipped(tiny_recipe, data_folder, tmp_path, monkeypatch, kind):
    images = shutil.copytree(data_folder, tmp_path / "images")
    (images / "folder").mkdir()
    (images / "loop.png").symlink_to("loop.png")
    os.mkfifo(images / "pipe.png")
    (images / "closed.png").touch()
    access = os.access  # root may read everything
    monkeypatch.setattr(os, "access", lambda path, mode: "closed.png" not in str(path) and access(path, mode))
    turns = [{"from": "human", "value": f"<{kind}>\nWhat?"}, GOOD[1]]
    rows = [{"id": name, kind: path, "conversations": turns} for name, (path, _) in PATHS.items()]
    rows += [{"id": f"good{number}", "image": f"{number}.png", "conversations": GOOD} for number in range(4)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    keys = {"data.mixture": f"{tmp_path}/rows.json", "data.image_folder": str(images), "data.template": "qwen_1_5"}
    for find in (check_data, prepare):
        with pytest.raises(DataError, match=f"{len(PATHS)} of {len(rows)} samples are unusable") as raised:
            find(tiny_recipe("1", **keys))
        lines = str(raised.value).splitlines()[1:-1]
        assert [fault in line for line, (_, fault) in zip(lines, PATHS.values(), strict=True)] == [True] * len(PATHS)
    run_stage(tiny_recipe("1", **keys, **{"data.on_bad_sample": "skip", "run.output_dir": f"{tmp_path}/out"}))
    assert json.loads((tmp_path / "out/run.json").read_text())["skipped"] == len(PATHS)


@pytest.mark.parametrize("held_out", [False, True])
def test_paths_out_of_the_image_folder_need_a_key(tiny_recipe, data_folder, tmp_path, held_out):
    """Of what is trained on and of what is held out; each names the sample."""
    rows = [
        {"id": "climbs", "image": "../images/0.png", "conversations": GOOD},
        {"id": "absolute", "image": f"{data_folder}/0.png", "conversations": GOOD},
        {"id": "linked", "image": "there/0.png", "conversations": GOOD},
    ]
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(data_folder / "0.png", images)
    (images / "there").symlink_to(data_folder)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    keys = {"data.template": "qwen_1_5"}
    if held_out:
        keys |= {"eval.data": f"{tmp_path}/rows.json", "eval.image_folder": str(images)}
    else:
        keys |= {"data.mixture": f"{tmp_path}/rows.json", "data.image_folder": str(images)}
    for rule, refused in (("refuse", 3), ("links", 2)):
        for find in (check_data, prepare):
            with pytest.raises(DataError, match=f"^{refused} of 3 samples are unusable") as raised:
                find(tiny_recipe("1", **keys, **{"data.outside_paths": rule}))
            for name, reason in (("climbs", "climbs out of"), ("absolute", "is absolute"), ("linked", "leads to")):
                told = re.search(
                    f"sample '{name}' .*: the path \\S+ {reason}.* \\(see outside_paths\\)", str(raised.value)
                )
                assert bool(told) == (rule == "refuse" or name != "linked")
    for find in (check_data, prepare):
        find(tiny_recipe("1", **keys, **{"data.outside_paths": "any"}))


def test_a_run_that_would_skip_every_sample_is_refused(tiny_recipe, keys, tmp_path):
    """max_length 3 leaves nothing of any."""
    with pytest.raises(DataError, match=r"(?s)8 of 8 samples are unusable.*\nNone is left to train on$"):
        run_stage(tiny_recipe("1", **keys | {"data.on_bad_sample": "skip", "data.max_length": 3}))
    assert not (tmp_path / "out").exists()


def test_what_is_longer_than_the_language_model_is_cut_there_or_skipped(tiny_recipe, tmp_path, capsys):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "what " * 2048}]
    (tmp_path / "long.json").write_text(json.dumps([{"id": "long", "conversations": turns}]))
    keys = {"data.mixture": f"{tmp_path}/long.json", "data.template": "qwen_1_5", "data.max_length": 16384}
    cutting = prepare(tiny_recipe("1", **keys, **{"data.on_over_long": "truncate"})).trainer.train_dataset
    assert len(cutting[0]["input_ids"]) == 2048
    assert cutting[0]["sample"].shortened
    assert "2048 positions (max_position_embeddings): shortened to 2048\n" in capsys.readouterr().out
    short = [turns[0], {"from": "gpt", "value": "what"}]
    rows = [{"id": name, "conversations": found} for name, found in (("long", turns), ("short", short))]
    (tmp_path / "long.json").write_text(json.dumps(rows))
    skipping = prepare(tiny_recipe("1", **keys, **{"data.on_bad_sample": "skip"})).trainer.train_dataset
    assert [skipping[index]["sample"].skipped for index in range(2)] == [True, False]


def test_a_run_that_a_bad_sample_ended_goes_on_with_skip(tiny_recipe, data_folder, tmp_path, capsys):
    """Damage that only decoding finds: the order is the same, and what the unfinished run learned is kept."""
    images = shutil.copytree(data_folder, tmp_path / "images")
    keys = {"data.image_folder": str(images), "run.save_steps": 1, "run.output_dir": f"{tmp_path}/out"}
    recipe = tiny_recipe("1", **keys)
    trainer = prepare(recipe).trainer
    last = [index for index in trainer._get_train_sampler() if index is not None][-1]
    damaged = images / trainer.train_dataset.samples[last].images[0]
    pixels = bytearray(damaged.read_bytes())
    pixels[60:-30] = bytes(len(pixels) - 90)
    damaged.write_bytes(pixels)
    with pytest.raises(
        DataError, match=r"cannot be decoded.*go on with --data.on_bad_sample skip, from .*checkpoint-3"
    ):
        run_stage(recipe)
    skipping = tiny_recipe("1", **keys, **{"data.on_bad_sample": "skip"})
    check_recipe(skipping, 1, dry_run=False)
    with pytest.raises(LlavaError, match=r"data\.template was"):
        check_recipe(tiny_recipe("1", **keys, **{"data.template": "qwen_1_5"}), 1, dry_run=False)
    capsys.readouterr()
    run_stage(skipping)
    assert "goes on after step 3" in capsys.readouterr().out
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert (record["steps"], record["skipped"]) == (4, 1)
