"""Where a picture is cut, against the crops that the model gets."""

import json

import numpy as np
import pytest
from PIL import Image

from llava.data.image_processor import LlavaOVManagerImageProcessor
from llava.eval.tiling import cuts, stored_tiling


@pytest.mark.parametrize("size", [(200, 100), (100, 230), (333, 222), (1000, 120), (57, 61)])
def test_cuts_lie_between_what_neighbouring_tiles_show(make_processor, tmp_path, size):
    """A picture whose red tells the column and whose green tells the row: the tiles' edges read them."""
    processor = make_processor()
    processor.save_pretrained(tmp_path)
    pictures: LlavaOVManagerImageProcessor = processor.image_processor
    ramps = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    pixels = np.stack([*ramps, np.full_like(ramps[0], 255)], axis=-1).round().astype(np.uint8)
    columns, rows = pictures.layout(size, False).grid
    tiles = pictures.crops(Image.fromarray(pixels), False)[1:].reshape(rows, columns, 3, pictures.size, pictures.size)
    upright, lying = cuts(stored_tiling(tmp_path), size, several_images=False)
    assert (len(upright), len(lying)) == (columns - 1, rows - 1)

    def middle(before, behind, channel, length):
        """What the pixels on both sides of an edge tell, of those that show the picture (blue) and no padding."""
        shown = (before[2] > 250) & (behind[2] > 250)
        return (before[channel][shown].mean() + behind[channel][shown].mean()) / 2 / 255 * (length - 1) + 0.5

    for number, x in enumerate(upright):
        seen = middle(tiles[0, number, :, :, -1], tiles[0, number + 1, :, :, 0], 0, size[0])
        assert x == pytest.approx(seen, abs=0.01 * size[0])
    for number, y in enumerate(lying):
        seen = middle(tiles[number, 0, :, -1], tiles[number + 1, 0, :, 0], 1, size[1])
        assert y == pytest.approx(seen, abs=0.01 * size[1])


def test_one_crop_has_no_cuts(make_processor, tmp_path):
    make_processor().save_pretrained(tmp_path)
    stored = stored_tiling(tmp_path)
    assert stored["tile"] == 56
    assert any(cuts(stored, (200, 100), several_images=False))
    assert cuts(stored, (200, 100), several_images=True) == ((), ())
    assert cuts({**stored, "mode": "pad"}, (200, 100), several_images=False) == ((), ())


def test_a_folder_that_is_gone_or_of_an_older_version(tmp_path):
    assert stored_tiling(tmp_path) is None
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "LlavaOVManagerProcessor"}))
    assert stored_tiling(tmp_path) is None
    older = {"size": 56, "tiling": {"mode": "square"}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(older))
    assert stored_tiling(tmp_path) == {"mode": "square", "tile": 56}
