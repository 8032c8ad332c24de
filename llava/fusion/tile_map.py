"""The tiles of an image as one map, for the sequence and for methods of fusion.

Shapes: C crops, T tokens per crop, D width; H rows and W columns of a map.
"""

import torch
from torch.nn.functional import interpolate

from llava.anyres import ImageLayout


def joined(tiles_CTD: torch.Tensor, layout: ImageLayout) -> torch.Tensor:
    """Tiles side by side, then what the layout's window leaves of them: (H, W, D)."""
    columns, rows = layout.grid
    side = round(tiles_CTD.shape[1] ** 0.5)
    tiles = tiles_CTD.unflatten(1, (side, side)).unflatten(0, (rows, columns))
    map_HWD = tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)
    top, left, height, width = layout.window
    return map_HWD[top : top + height, left : left + width]


def resized(map_HWD: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The map at another size, (rows, columns, D): bilinear, no antialiasing."""
    map_DHW = interpolate(map_HWD.permute(2, 0, 1)[None], size=(rows, columns), mode="bilinear")[0]
    return map_DHW.permute(1, 2, 0)
