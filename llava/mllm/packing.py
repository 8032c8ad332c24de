"""From crops to a sequence: tiles joined, padding removed, maps shrunk to the budget, frames pooled, newlines added.

Shapes: C crops of one image (crop 0 = the whole image, then tiles row by row) or frames of one video, T tokens per
crop, D width.
"""

import torch
from torch.nn.functional import interpolate

from llava.anyres import ImageLayout, VideoLayout
from llava.fusion.tile_map import joined, resized


def pack(
    crops_CTD: torch.Tensor, newline_D: torch.Tensor, layout: ImageLayout | VideoLayout, merge: str
) -> torch.Tensor:
    """The visual tokens of one image or video, (layout.num_tokens, D). merge: see TilingConfig; videos have one way."""
    if isinstance(layout, VideoLayout):
        return pack_video(crops_CTD, newline_D, layout)
    return pack_image(crops_CTD, newline_D, layout, merge)


def pack_video(frames_CTD: torch.Tensor, newline_D: torch.Tensor, layout: VideoLayout) -> torch.Tensor:
    """The visual tokens of one video, (layout.num_tokens, D): frames pooled 2x2 (bilinear), then one newline."""
    maps_CDHW = frames_CTD.transpose(1, 2).unflatten(2, (layout.side, layout.side))
    pooled = interpolate(maps_CDHW, size=(layout.pooled_side, layout.pooled_side), mode="bilinear")
    return torch.cat([pooled.flatten(2).transpose(1, 2).flatten(0, 1), newline_D[None]])


def pack_image(crops_CTD: torch.Tensor, newline_D: torch.Tensor, layout: ImageLayout, merge: str) -> torch.Tensor:
    """The visual tokens of one image, (layout.num_tokens, D)."""
    base_TD = crops_CTD[0]
    if not layout.rows:
        return torch.cat([base_TD, newline_D[None]]) if layout.one_crop_newline else base_TD
    if merge == "flat":
        return crops_CTD.flatten(0, 1)
    map_HWD = joined(crops_CTD[1:], layout)
    if layout.shrunk:
        map_HWD = resized(map_HWD, layout.rows, layout.columns)
    if layout.row_newline:
        map_HWD = torch.cat([map_HWD, newline_D.expand(map_HWD.shape[0], 1, -1)], dim=1)
    return torch.cat([base_TD, map_HWD.flatten(0, 1)])


def pack_mask(layout: ImageLayout | VideoLayout, scope: str, device: torch.device) -> torch.Tensor:
    """(layout.num_tokens, 1) booleans: the tokens that the scope `main` or `grid` reaches.

    `grid` is what an image has behind its whole-image crop; a single crop and a video have none.
    """
    main_tokens = layout.base_tokens if isinstance(layout, ImageLayout) and layout.num_crops > 1 else layout.num_tokens
    is_main = torch.arange(layout.num_tokens, device=device)[:, None] < main_tokens
    return is_main if scope == "main" else ~is_main
