"""Tiling geometry: how an image is cut into crops and how many visual tokens it becomes.

Everything here maps integers to integers and needs neither torch nor pixels, so that the processor (which writes the
placeholders) and the model (which fills them) ask the same functions. Divisions are IEEE doubles in the order in which
the released model does them, because its truncations depend on that order for a few sizes; the results are the same on
every machine.

Sizes are (width, height) in pixels unless a name says otherwise. "Side" is the number of patches per side of a crop.
"""

import math
import re
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Literal

from llava.bounds import check_choice
from llava.constants import Merge
from llava.errors import LlavaError

Mode = Literal["square", "pad", "anyres"]
UnpadRounding = Literal["truncate", "round"]
InSequence = Literal["all", "main"]
OF_FUSION = ("extra_tokens", "in_sequence")  # fields of a tiling that a model's fusion decides
SHRINK_THRESHOLD = 1.1  # the map is resized only when its side exceeds the budget by more than a tenth


@dataclass(frozen=True)
class TilingConfig:
    """How an image becomes crops and how the crops' features are merged into one sequence.

    mode: `square` resizes the image to one crop, `pad` pads it to a square first, `anyres` adds a grid of tiles.
    merge: `flat` concatenates crops; `spatial` joins the tiles to one map, row by row; `spatial_unpad` also removes the
        padding and ends each row with a newline vector.
    max_tiles: the N of `anyres_max_N`; larger maps are shrunk to about N crops' worth of tokens. None: never.
    pinpoints: the (width, height) pairs, in pixels, that an anyres image may be fitted into.
    newline_after_one_crop: append one newline to an image of a single crop (transformers does, the released model not).
    unpad_rounding: how the image's share of the padded map becomes whole patches: `truncate` (the released model) or
        `round` to 7 decimals first (transformers); they differ for about one size in 70,000.
    extra_tokens: behind a crop's own, as many as the model's fusion adds; only where an image is one crop.
    in_sequence: the crops whose tokens the sequence has: `all`, or `main`, the whole image's, where the model's fusion
        takes in the tiles by another way.

    Raises LlavaError when the fields contradict each other.
    """

    mode: Mode = "square"
    merge: Merge = "flat"
    max_tiles: int | None = None
    pinpoints: tuple[tuple[int, int], ...] = ()
    newline_after_one_crop: bool = False
    unpad_rounding: UnpadRounding = "truncate"
    extra_tokens: int = 0
    in_sequence: InSequence = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "pinpoints", tuple((int(w), int(h)) for w, h in self.pinpoints))
        check_choice("tiling mode", self.mode, Mode)
        check_choice("tiling merge", self.merge, Merge)
        check_choice("tiling unpad_rounding", self.unpad_rounding, UnpadRounding)
        check_choice("tiling in_sequence", self.in_sequence, InSequence)
        if self.mode == "anyres" and not self.pinpoints:
            raise LlavaError("tiling mode 'anyres' needs at least one pinpoint (width, height)")
        if any(side < 1 for pinpoint in self.pinpoints for side in pinpoint):
            raise LlavaError(f"tiling pinpoints must be positive, found {list(self.pinpoints)}")
        if self.max_tiles is not None and self.max_tiles < 1:
            raise LlavaError(f"tiling max_tiles must be at least 1, found {self.max_tiles}")
        if self.mode == "anyres" and self.extra_tokens:
            raise LlavaError("fusion that adds tokens to a crop has no place on a map of tiles: tiling mode anyres")

    def crop_tokens(self, side: int) -> int:
        """Tokens of a crop of side * side patches."""
        return side * side + self.extra_tokens

    @classmethod
    def from_llava(
        cls, image_aspect_ratio: str, mm_patch_merge_type: str, image_grid_pinpoints: Any, tile: int
    ) -> "TilingConfig":
        """Reads LLaVA's three settings, e.g. ("anyres_max_9", "spatial_unpad", "(1x1),...,(6x6)").

        image_grid_pinpoints: a list of (width, height) pairs, the range notation, or None. `tile`: pixels per side.
        """
        matched = re.fullmatch(r"(square|pad|anyres)(?:_max_(\d+))?", image_aspect_ratio)
        if matched is None or (matched[2] and matched[1] != "anyres"):
            raise LlavaError(
                f"unknown image_aspect_ratio {image_aspect_ratio!r}; choose square, pad, anyres or anyres_max_N"
            )
        return cls(
            mode=matched[1],
            merge=mm_patch_merge_type,
            max_tiles=int(matched[2]) if matched[2] else None,
            pinpoints=parse_pinpoints(image_grid_pinpoints, tile),
        )

    def to_dict(self) -> dict:
        """The fields as JSON values; those that a model's fusion decides only where it decides otherwise than most."""
        values = {**asdict(self), "pinpoints": [list(pinpoint) for pinpoint in self.pinpoints]}
        defaults = {one.name: one.default for one in fields(self) if one.name in OF_FUSION}
        return {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}


def parse_pinpoints(pinpoints: Any, tile: int) -> tuple[tuple[int, int], ...]:
    """(width, height) pairs in pixels from a list of pairs, from "(1x1),...,(6x6)" in tiles, or () from None."""
    if pinpoints is None:
        return ()
    if not isinstance(pinpoints, str):
        return tuple((int(width), int(height)) for width, height in pinpoints)
    if "..." not in pinpoints:
        raise LlavaError(f"image_grid_pinpoints {pinpoints!r} is not of the form '(1x1),...,(6x6)'")
    ends = [(int(w), int(h)) for w, h in re.findall(r"\(\s*(\d+)\s*x\s*(\d+)\s*\)", pinpoints)]
    if len(ends) != 2:
        raise LlavaError(f"image_grid_pinpoints {pinpoints!r} is not of the form '(1x1),...,(6x6)'")
    (first_w, first_h), (last_w, last_h) = ends[0], ends[-1]
    return tuple((w * tile, h * tile) for w in range(first_w, last_w + 1) for h in range(first_h, last_h + 1))


@dataclass(frozen=True)
class ImageLayout:
    """Where the visual tokens of one image come from, in the order of the sequence.

    base_tokens: tokens of crop 0 (the whole image).
    grid: (columns, rows) of tiles after crop 0; (0, 0) for a single crop.
    window: (row0, column0, rows, columns) of the joined patch map that survives unpadding.
    rows, columns: size of the map in the sequence, after shrinking to the token budget; (0, 0) where none is in it.
    row_newline: each map row ends with a newline vector. one_crop_newline: one newline follows the single crop.
    """

    base_tokens: int
    grid: tuple[int, int] = (0, 0)
    window: tuple[int, int, int, int] = (0, 0, 0, 0)
    rows: int = 0
    columns: int = 0
    row_newline: bool = False
    one_crop_newline: bool = False

    @property
    def num_crops(self) -> int:
        """The tiles and the image as a whole."""
        return 1 + self.grid[0] * self.grid[1]

    @property
    def shrunk(self) -> bool:
        """Whether the map of the tiles was resized to fewer tokens."""
        return self.rows > 0 and (self.rows, self.columns) != self.window[2:]

    @property
    def num_tokens(self) -> int:
        """All visual tokens of the image, newlines included."""
        return self.base_tokens + self.rows * (self.columns + self.row_newline) + self.one_crop_newline


@dataclass(frozen=True)
class VideoLayout:
    """Where the visual tokens of one video come from: every frame is one crop, pooled, and one newline ends the video.

    side: patches per side of a frame. pooled_side: tokens per side after 2x2 pooling; the last one of an odd side is
    kept.
    """

    num_frames: int
    side: int

    @property
    def pooled_side(self) -> int:
        """Tokens along a side of a frame, behind 2 x 2 pooling."""
        return (self.side + 1) // 2

    @property
    def num_crops(self) -> int:
        """One a frame."""
        return self.num_frames

    @property
    def num_tokens(self) -> int:
        """All visual tokens of the video, with the newline behind it."""
        return self.num_frames * self.pooled_side**2 + 1


def video_layout(num_frames: int, tiling: TilingConfig, *, side: int) -> VideoLayout:
    """The layout of a video; side as in VideoLayout. LlavaError where a crop has tokens that cannot be pooled."""
    if tiling.extra_tokens:
        raise LlavaError("fusion that adds tokens to a crop takes no videos, whose frames are pooled")
    return VideoLayout(num_frames, side)


@lru_cache(maxsize=65536)
def image_layout(
    width: int, height: int, tiling: TilingConfig, *, tile: int, side: int, several_images: bool
) -> ImageLayout:
    """The layout of one image of `width` x `height` pixels.

    tile: pixels per side of a crop. side: patches per side of a crop. several_images: the sample holds more than one
    image, and each then becomes one padded crop whatever the tiling says.
    """
    base_tokens = tiling.crop_tokens(side)
    if tiling.mode != "anyres" or several_images:
        return ImageLayout(base_tokens, one_crop_newline=tiling.newline_after_one_crop)
    best_width, best_height = best_resolution((width, height), tiling.pinpoints)
    columns, rows = best_width // tile, best_height // tile
    joined = (rows * side, columns * side)
    if tiling.in_sequence == "main":
        window = unpad_window((width, height), joined, tiling.unpad_rounding)
        return ImageLayout(base_tokens, (columns, rows), window, one_crop_newline=tiling.newline_after_one_crop)
    if tiling.merge != "spatial_unpad":
        return ImageLayout(base_tokens, (columns, rows), (0, 0, *joined), *joined)
    window = unpad_window((width, height), joined, tiling.unpad_rounding)
    map_rows, map_columns = shrunk_size(window[2:], side, tiling.max_tiles)
    return ImageLayout(base_tokens, (columns, rows), window, map_rows, map_columns, row_newline=True)


def best_resolution(size: tuple[int, int], pinpoints: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The pinpoint that keeps most of the image's pixels; among equals the smallest, then the first."""

    def rank(pinpoint: tuple[int, int]) -> tuple[int, int]:
        scale = min(pinpoint[0] / size[0], pinpoint[1] / size[1])
        fitted = int(size[0] * scale) * int(size[1] * scale)
        kept = min(fitted, size[0] * size[1])
        return kept, kept - pinpoint[0] * pinpoint[1]

    return max(pinpoints, key=rank)


def fit_inside(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """(new_width, new_height, left, top): the image resized with its aspect ratio and centred on `target` pixels."""
    scale_width, scale_height = target[0] / size[0], target[1] / size[1]
    if scale_width < scale_height:
        new_width, new_height = target[0], min(math.ceil(size[1] * scale_width), target[1])
    else:
        new_width, new_height = min(math.ceil(size[0] * scale_height), target[0]), target[1]
    return new_width, new_height, (target[0] - new_width) // 2, (target[1] - new_height) // 2


def unpad_window(size: tuple[int, int], joined: tuple[int, int], rounding: str) -> tuple[int, int, int, int]:
    """(row0, column0, rows, columns): the part of the joined patch map (rows, columns) that shows the image.

    The margin is the same on both sides, so that one patch row of padding may stay; very long images can lose all.
    rounding: an UnpadRounding.
    """
    rows, columns = joined
    if size[0] / size[1] > columns / rows:
        margin = (rows - whole_patches(size[1] * (columns / size[0]), rounding)) // 2
        return margin, 0, max(rows - 2 * margin, 0), columns
    margin = (columns - whole_patches(size[0] * (rows / size[1]), rounding)) // 2
    return 0, margin, rows, max(columns - 2 * margin, 0)


def whole_patches(extent: float, rounding: str) -> int:
    """How many patches an image's share of the map is, see TilingConfig.unpad_rounding."""
    return int(round(extent, 7) if rounding == "round" else extent)


def shrunk_size(size: tuple[int, int], side: int, max_tiles: int | None) -> tuple[int, int]:
    """(rows, columns) of the map after fitting it to the budget of `max_tiles` crops; never shrunk to nothing."""
    rows, columns = size
    if max_tiles is None:
        return rows, columns
    times = math.sqrt(rows * columns / (max_tiles * side**2))
    if times <= SHRINK_THRESHOLD:
        return rows, columns
    return max(int(rows // times), 1), max(int(columns // times), 1)
