"""Every number of a recipe has a range; one beyond it is one line that names the key and what was found."""

import math
from typing import get_args

import pytest

from llava.errors import LlavaError
from llava.fusion.methods import METHODS
from llava.train.recipe.checks import check_recipe
from llava.train.recipe.schema import all_recipe_keys, recipe_keys

KEYS = all_recipe_keys()
BOUNDS = {key: field.bounds for key, field in KEYS.items() if field.bounds is not None}
# Judged beside other keys, and layers, which are judged when the model is known.
JUDGED_TOGETHER = {"data.video_fps", "data.frames_upbound"}
LAYERS = {f"fusion.{name}" for name in ("vision_start", "vision_end", "injection_start", "injection_end")}
NEEDED = {  # keys without which a number has no effect or does not fit, which would be another fault
    "eval": {"eval.data": "captions.json"},
    "fusion.pool": {"tiling.aspect_ratio": "square"},
    "optim.global_batch_size": {"optim.batch_size": 1},
    "lora": {"components.language_model.lora": True, "components.language_model.trained": True},
}


def is_number(kind, of: tuple = (int, float)) -> bool:
    return kind in of or any(member in of for member in get_args(kind) if member is not type(None))


NUMBERS = {key: found.type for key, found in KEYS.items() if is_number(found.type)}
BEYOND = {key: ["-1", "1" + "0" * 30] for key, kind in NUMBERS.items() if not is_number(kind, (float,))}
BEYOND |= {key: ["-1", "-1e-9", "nan", "inf", "-inf", ".nan", "1e400"] for key in set(NUMBERS) - set(BEYOND)}


def faults_of(tiny_recipe, key: str, value) -> list[str]:
    needed = NEEDED.get(key, NEEDED.get(key.partition(".")[0], {}))
    methods = [method for method in METHODS if key in recipe_keys(method)]
    if "manager" not in methods:  # the arm's own
        needed = needed | {"fusion.method": methods[0]}
    try:
        check_recipe(tiny_recipe("2", **{"model.start_from": "x", **needed, key: value}), 1, dry_run=True)
    except LlavaError as error:
        first, *rest = str(error).splitlines()
        return rest or [first]
    return []


def test_every_number_is_judged():
    assert set(NUMBERS) == {*BOUNDS, *JUDGED_TOGETHER, *LAYERS, "data.expected_image"}


@pytest.mark.parametrize("key", sorted({*BOUNDS, *JUDGED_TOGETHER} - {"data.frames_upbound"}))
def test_what_cannot_be_is_one_line(tiny_recipe, key):
    for value in BEYOND[key]:
        faults = faults_of(tiny_recipe, key, value)
        assert len(faults) == 1, (key, value, faults)
        assert len(faults[0]) < 200
        words = key.rpartition(".")[2].replace("video_", "").replace("global_batch_size", "batch_size").split("_")
        assert all(word in faults[0] for word in words), faults
        number = float(value.removeprefix("."))
        found = faults[0].replace(",", "").partition("found ")[2]
        assert str(number) in found or value in found or math.isnan(number), faults


@pytest.mark.parametrize("key", sorted(BOUNDS))
def test_the_ends_of_a_range(tiny_recipe, key):
    low, high, above, below, _ = BOUNDS[key]
    assert (len(faults_of(tiny_recipe, key, low)) == 1) == above
    if math.isfinite(high):
        assert (len(faults_of(tiny_recipe, key, high)) == 1) == below
        assert len(faults_of(tiny_recipe, key, high + 1)) == 1


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("optim.epochs", "0", "optim.epochs must be above 0 and at most 1000000; found 0.0"),
        ("optim.epochs", "-0.5", "optim.epochs must be above 0 and at most 1000000; found -0.5"),
        ("optim.epochs", "nan", "optim.epochs must be above 0 and at most 1000000; found nan"),
        ("optim.epochs", "inf", "optim.epochs must be above 0 and at most 1000000; found inf"),
        ("run.save_minutes", "inf", "run.save_minutes must be finite; found inf (none is never)"),
        ("run.seed", "2147483648", "run.seed must be at most 2147483647; found 2147483648"),
        ("data.expected_image", "[0, 5]", "data.expected_image must be [width, height], both at least 1; found [0, 5]"),
        ("data.expected_image", "[5]", "data.expected_image must be [width, height], both at least 1; found [5]"),
        ("data.frames_upbound", "-1", "video frames_upbound must be at least 0 (no bound), found -1"),
    ],
)
def test_a_fault_in_full(tiny_recipe, key, value, fault):
    assert faults_of(tiny_recipe, key, value) == [fault]


@pytest.mark.parametrize("key", ["optim.lr", "run.seed", "run.save_minutes"])
@pytest.mark.parametrize("value", ["1" * 400, "1" * 5000, "9" * 4000 + ".5"])
def test_numbers_too_long_to_read(tiny_recipe, key, value):
    with pytest.raises(LlavaError, match=rf"{key} ") as caught:
        check_recipe(tiny_recipe("2", **{"model.start_from": "x", key: value}), 1, dry_run=True)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
