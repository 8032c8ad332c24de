"""For every image, as many placeholders as features: a sweep from 1x1 to 4000x3000."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from llava.anyres import TilingConfig, image_layout, unpad_window
from llava.data.schema import Turn
from llava.mllm.packing import pack_image
from tests.conftest import GRID

STAGE_1_5 = [(384, 768), (768, 384), (768, 768), (1152, 384), (384, 1152)]
EXTREMES = [(1, 1), (1, 3000), (4000, 1), (4000, 3000), (4000, 3), (2, 2999), (600, 20), (56, 56), (384, 384)]
EXTREMES += [(w * 384, h * 384) for w in (1, 2, 6) for h in (1, 3, 6)] + [
    (w * 56, h * 56) for w in (1, 5) for h in (2, 6)
]
# Where truncating and rounding the image's share of the padded map differ: (size, pinpoints, (row0, column0, rows,
# columns) of either). 188 * (54 / 423) is 24 by arithmetic and 23.999999999999996 in doubles.
ROUNDED = [
    ((423, 188), "(1x1),...,(6x6)", (2, 0, 23, 54), (1, 0, 25, 54)),
    ((423, 47), "(1x1),...,(6x6)", (11, 0, 5, 54), (10, 0, 7, 54)),
    ((1107, 820), "(1x1),...,(6x6)", (11, 0, 59, 81), (10, 0, 61, 81)),
    ((49, 49), STAGE_1_5, (14, 0, 26, 27), (13, 0, 28, 27)),
]


def sweep(count: int) -> list[tuple[int, int]]:
    """The extremes, the sizes where rounding matters, and seeded sizes whose sides and ratios are of every order."""
    rng = np.random.default_rng(0)
    drawn = np.exp(rng.uniform(0, np.log([4000, 3000]), (count, 2))).round().astype(int)
    known = EXTREMES + [size for size, *_ in ROUNDED]
    return known + [(int(width), int(height)) for width, height in drawn]


SIZES = sweep(520)


def test_the_sweep_is_what_it_says():
    assert len(set(SIZES)) >= 500
    widths, heights = zip(*SIZES)
    assert (min(widths), min(heights), max(widths), max(heights)) == (1, 1, 4000, 3000)
    shapes = {(width > height, max(width, height) > 50 * min(width, height)) for width, height in SIZES}
    assert len(shapes) == 4


@pytest.mark.parametrize("rounding", ["truncate", "round"])
@pytest.mark.parametrize(
    ("aspect_ratio", "pinpoints"),
    [("anyres_max_9", "(1x1),...,(6x6)"), ("anyres", STAGE_1_5), ("anyres_max_1", "(1x1),...,(6x6)")],
)
def test_counted_tokens_are_the_packed_ones_at_the_real_size(aspect_ratio, pinpoints, rounding):
    tiling = TilingConfig.from_llava(aspect_ratio, "spatial_unpad", pinpoints, 384)
    tiling = replace(tiling, unpad_rounding=rounding)
    for width, height in SIZES:
        layout = image_layout(width, height, tiling, tile=384, side=27, several_images=False)
        packed = pack_image(torch.zeros(layout.num_crops, 729, 1), torch.ones(1), layout, tiling.merge)
        assert len(packed) == layout.num_tokens, (width, height)
        assert packed.sum() == layout.rows, f"one newline ends each row of {width}x{height}"


@pytest.mark.parametrize("merge", ["flat", "spatial"])
def test_counted_tokens_are_the_packed_ones_without_unpadding(merge):
    tiling = TilingConfig.from_llava("anyres", merge, STAGE_1_5, 384)
    for width, height in SIZES:
        layout = image_layout(width, height, tiling, tile=384, side=27, several_images=False)
        packed = pack_image(torch.zeros(layout.num_crops, 729, 1), torch.ones(1), layout, merge)
        assert len(packed) == layout.num_tokens == layout.num_crops * 729, (width, height)


@pytest.mark.parametrize("rounding", ["truncate", "round"])
def test_placeholders_are_the_features_from_image_to_model(make_model, make_processor, rounding, monkeypatch):
    tiling = replace(GRID, unpad_rounding=rounding)
    processor, model = make_processor(tiling), make_model(tiling, fusion=None)
    monkeypatch.setattr(
        model.model.vision_tower, "forward", lambda crops, layers: [torch.zeros(len(crops), 16, 32) for _ in layers]
    )
    question = (Turn("human", "<image>\nWhat?"),)
    for size in SIZES:
        inputs = processor.encode_prompts([(question, [Image.new("RGB", size)], [])])
        placeholders = (inputs["input_ids"] == model.config.image_token_id).sum()
        with torch.no_grad():
            features = model.get_image_features(
                inputs["pixel_values"], inputs["image_sizes"], inputs["batch_num_images"]
            )
        assert placeholders == len(features.pooler_output[0]), size


@pytest.mark.parametrize(("size", "pinpoints", "truncated", "rounded"), ROUNDED)
def test_where_truncating_and_rounding_differ(size, pinpoints, truncated, rounded):
    tiling = TilingConfig.from_llava("anyres_max_9", "spatial_unpad", pinpoints, 384)
    layouts = [
        image_layout(*size, replace(tiling, unpad_rounding=rounding), tile=384, side=27, several_images=False)
        for rounding in ("truncate", "round")
    ]
    assert [layout.window for layout in layouts] == [truncated, rounded]
    assert layouts[0].num_tokens < layouts[1].num_tokens
    # The exact share is a whole number of patches, which the division of doubles misses by its last bit.
    columns, rows = layouts[0].grid[0] * 27, layouts[0].grid[1] * 27
    share = Fraction(size[1] * columns, size[0])
    assert share.denominator == 1
    assert int(size[1] * (columns / size[0])) == share - 1
    for rounding, patches in (("truncate", int(share) - 1), ("round", int(share))):
        margin = (rows - patches) // 2
        assert unpad_window(size, (rows, columns), rounding) == (margin, 0, rows - 2 * margin, columns)
