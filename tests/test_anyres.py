import ast
import json

import pytest

from llava.anyres import TilingConfig, best_resolution, fit_inside, image_layout, parse_pinpoints
from llava.errors import LlavaError
from tests.paths import GOLDEN_DIR

GEOMETRY = json.loads((GOLDEN_DIR / "anyres_geometry.json").read_text())
SIZES = [(group, size) for group in GEOMETRY["sets"] for size in group["sizes"]]


def golden_tiling(group: dict) -> TilingConfig:
    pinpoints = group["image_grid_pinpoints"]
    pinpoints = pinpoints if "x" in pinpoints else ast.literal_eval(pinpoints)
    return TilingConfig.from_llava(group["image_aspect_ratio"], group["mm_patch_merge_type"], pinpoints, tile=384)


def test_the_golden_list_is_complete():
    assert len(SIZES) == 80


@pytest.mark.parametrize(
    ("group", "size"), SIZES, ids=lambda value: f"{value['width']}x{value['height']}" if "width" in value else ""
)
def test_geometry_equals_the_released_code(group, size):
    tiling = golden_tiling(group)
    pixels = (size["width"], size["height"])
    layout = image_layout(*pixels, tiling, tile=384, side=27, several_images=False)
    best = best_resolution(pixels, tiling.pinpoints)
    assert list(best) == size["best_resolution"]
    assert layout.grid == (size["grid_w"], size["grid_h"])
    assert fit_inside(pixels, best) == (size["new_w"], size["new_h"], size["paste_x"], size["paste_y"])
    assert layout.num_crops == size["num_tiles"]
    assert layout.window == (size["unpad_row0"], size["unpad_col0"], size["unpad_h"], size["unpad_w"])
    assert (layout.rows, layout.columns) == (size["rows"], size["cols"])
    assert layout.shrunk == size["interpolated"]
    assert layout.num_tokens == size["num_visual_tokens"]


def test_peak_of_anyres_max_9_is_the_known_one():
    tiling = TilingConfig.from_llava("anyres_max_9", "spatial_unpad", "(1x1),...,(6x6)", 384)
    assert image_layout(944, 1153, tiling, tile=384, side=27, several_images=False).num_tokens == 8765


@pytest.mark.parametrize("mode", ["square", "pad", "anyres_max_9"])
def test_several_images_are_one_crop_each(mode):
    tiling = TilingConfig.from_llava(mode, "spatial_unpad", "(1x1),...,(6x6)", 384)
    layout = image_layout(2000, 1000, tiling, tile=384, side=27, several_images=True)
    assert (layout.num_crops, layout.num_tokens) == (1, 729)


def test_newline_after_one_crop_is_a_setting():
    tiling = TilingConfig(mode="square", newline_after_one_crop=True)
    assert image_layout(10, 10, tiling, tile=384, side=27, several_images=False).num_tokens == 730


def test_a_long_strip_is_never_shrunk_to_nothing():
    tiling = TilingConfig.from_llava("anyres_max_1", "spatial_unpad", "(1x1),...,(6x6)", 42)
    layout = image_layout(1000, 60, tiling, tile=42, side=3, several_images=False)
    assert layout.window[2:] == (1, 18)
    assert (layout.rows, layout.columns) == (1, 12)


def test_a_strip_can_lose_all_its_rows():
    """As in the released code: an even patch map and a very long image leave no row."""
    tiling = TilingConfig.from_llava("anyres_max_9", "spatial_unpad", "(1x1),...,(6x6)", 56)
    layout = image_layout(600, 20, tiling, tile=56, side=4, several_images=False)
    assert (layout.num_tokens, layout.rows) == (16, 0)


def test_pinpoint_range_lists_all_grids_width_first():
    assert parse_pinpoints("(1x1),...,(2x3)", 10) == ((10, 10), (10, 20), (10, 30), (20, 10), (20, 20), (20, 30))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "anyres"}, "needs at least one pinpoint"),
        ({"mode": "tiles"}, "unknown tiling mode 'tiles'"),
        ({"merge": "stacked"}, "unknown tiling merge 'stacked'"),
        ({"max_tiles": 0}, "max_tiles must be at least 1, found 0"),
        ({"pinpoints": ((0, 56),)}, "must be positive"),
    ],
)
def test_contradictions_are_named(arguments, message):
    with pytest.raises(LlavaError, match=message):
        TilingConfig(**arguments)


@pytest.mark.parametrize("name", ["anyres_max", "pad_max_3", "any"])
def test_unknown_aspect_ratio_is_refused(name):
    with pytest.raises(LlavaError, match="unknown image_aspect_ratio"):
        TilingConfig.from_llava(name, "flat", None, 384)
