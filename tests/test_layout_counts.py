"""The crops and tokens of many images at once are those that image_layout gives one by one."""

from dataclasses import replace

import numpy as np
import pytest

from llava.anyres import TilingConfig, image_layout
from llava.layout_counts import count_layouts

TILE, SIDE = 384, 27
PINPOINTS = {
    "stage 2": "(1x1),...,(6x6)",
    "stage 1.5": [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]],
}
ROUNDED = {  # where the two roundings differ
    "stage 2": [(784, 1323), (820, 738), (423, 47)],
    "stage 1.5": [(99, 187), (105, 105), (49, 49)],
}
BUDGETS = ("anyres_max_9", "anyres")


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    """Sizes of 2,000 images, as long as they come, and whether each stands beside others."""
    random = np.random.default_rng(0)
    sizes = np.exp(random.uniform(0, np.log(6000), (2000, 2))).astype(np.int64)
    several = random.random(2000) < 0.1
    differing = np.concatenate([*ROUNDED.values()])
    sizes[: len(differing)], several[: len(differing)] = differing, False
    return sizes, several


def one_by_one(sizes: np.ndarray, several: np.ndarray, tiling: TilingConfig) -> tuple[list[int], list[int]]:
    layouts = [
        image_layout(*size, tiling, tile=TILE, side=SIDE, several_images=more)
        for size, more in zip(sizes.tolist(), several.tolist())
    ]
    return [layout.num_crops for layout in layouts], [layout.num_tokens for layout in layouts]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("pinpoints", PINPOINTS)
def test_two_thousand_sizes(images, pinpoints, budget):
    sizes, several = images
    tiling = TilingConfig.from_llava(budget, "spatial_unpad", PINPOINTS[pinpoints], TILE)
    tokens_by_rounding = []
    for rounding in ("truncate", "round"):
        rounded = replace(tiling, unpad_rounding=rounding, newline_after_one_crop=rounding == "round")
        crops, tokens = count_layouts(sizes, several, rounded, tile=TILE, side=SIDE)
        assert (crops.tolist(), tokens.tolist()) == one_by_one(sizes, several, rounded)
        assert len(set(zip(crops.tolist(), tokens.tolist()))) > 50
        tokens_by_rounding.append(tokens)
    differ = set(map(tuple, sizes[np.not_equal(*tokens_by_rounding) & ~several].tolist()))
    assert differ >= set(ROUNDED[pinpoints])


@pytest.mark.parametrize("merge", ["flat", "spatial"])
def test_maps_that_keep_their_padding(images, merge):
    sizes, several = images
    tiling = TilingConfig.from_llava("anyres_max_9", merge, PINPOINTS["stage 2"], TILE)
    crops, tokens = count_layouts(sizes, several, tiling, tile=TILE, side=SIDE)
    assert (crops.tolist(), tokens.tolist()) == one_by_one(sizes, several, tiling)
