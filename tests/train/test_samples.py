"""Records that cannot be used, through training: one list before the first step, or skipped and counted."""

import json
import shutil

import pytest

from llava.errors import DataError, LlavaError
from llava.train.checks import check_data, check_recipe
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
