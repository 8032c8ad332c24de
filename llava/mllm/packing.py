"""From crops to a sequence: joins an image's tiles, removes padding, shrinks to the budget, adds newlines.

Shapes: C crops of one image (crop 0 = the whole image, then tiles row by row), T tokens per crop, D width.
"""

import torch
from torch.nn.functional import interpolate

from llava.anyres import ImageLayout


def pack_image(crops_CTD: torch.Tensor, newline_D: torch.Tensor, layout: ImageLayout, merge: str) -> torch.Tensor:
    """The visual tokens of one image, (layout.num_tokens, D)."""
    base_TD = crops_CTD[0]
    if layout.num_crops == 1:
        return torch.cat([base_TD, newline_D[None]]) if layout.one_crop_newline else base_TD
    if merge == "flat":
        return crops_CTD.flatten(0, 1)
    map_HWD = _fit(_join(crops_CTD[1:], layout.grid), layout)
    if layout.row_newline:
        map_HWD = torch.cat([map_HWD, newline_D.expand(map_HWD.shape[0], 1, -1)], dim=1)
    return torch.cat([base_TD, map_HWD.flatten(0, 1)])


def pack_mask(layout: ImageLayout, scope: str, device: torch.device) -> torch.Tensor:
    """(layout.num_tokens, 1) booleans: the tokens that a manager of this scope reaches."""
    is_main = torch.arange(layout.num_tokens, device=device)[:, None] < layout.base_tokens
    return is_main if scope == "main" else ~is_main


def _join(tiles_CTD: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Tiles side by side: (rows * side, columns * side, D)."""
    columns, rows = grid
    side = round(tiles_CTD.shape[1] ** 0.5)
    tiles = tiles_CTD.unflatten(1, (side, side)).unflatten(0, (rows, columns))
    return tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)


def _fit(map_HWD: torch.Tensor, layout: ImageLayout) -> torch.Tensor:
    """Removes the padding, then shrinks (bilinear, no antialiasing) if the layout says so."""
    top, left, rows, columns = layout.window
    map_HWD = map_HWD[top : top + rows, left : left + columns]
    if not layout.shrunk:
        return map_HWD
    resized = interpolate(map_HWD.permute(2, 0, 1)[None], size=(layout.rows, layout.columns), mode="bilinear")
    return resized[0].permute(1, 2, 0)
