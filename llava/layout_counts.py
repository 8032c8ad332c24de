"""The crops and tokens of many images at once, as arrays: anyres.py's layouts of millions of images in seconds."""

import numpy as np

from llava.anyres import SHRINK_THRESHOLD, TilingConfig, whole_patches


def count_layouts(
    sizes: np.ndarray, several_images: np.ndarray, tiling: TilingConfig, *, tile: int, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Crops and tokens of the layouts of many images, as image_layout gives them one by one.

    sizes: (width, height) of each (N, 2). several_images: (N,), see image_layout; so are tile and side.
    """
    one_crop = np.ones(len(sizes), dtype=np.int64)
    tokens = one_crop * (tiling.crop_tokens(side) + tiling.newline_after_one_crop)
    if tiling.mode != "anyres":
        return one_crop, tokens
    tiled = np.flatnonzero(~several_images)
    width_and_height = sizes[tiled].astype(np.int64) @ np.array([1 << 32, 1])  # one number, which sorts much faster
    different, which = np.unique(width_and_height, return_inverse=True)
    different = np.stack([different >> 32, different & (1 << 32) - 1], axis=1)
    crops_of_size, tokens_of_size = _count_tiled(different, tiling, tile, side)
    one_crop[tiled] = crops_of_size[which]
    if tiling.in_sequence == "all":
        tokens[tiled] = tokens_of_size[which]
    return one_crop, tokens


def _count_tiled(sizes: np.ndarray, tiling: TilingConfig, tile: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """As count_layouts, of images that are tiled; the same divisions in the same order."""
    best = _best_resolutions(sizes, np.array(tiling.pinpoints, dtype=np.int64))
    columns, rows = best[:, 0] // tile, best[:, 1] // tile
    map_rows, map_columns = rows * side, columns * side
    newlines = 0
    if tiling.merge == "spatial_unpad":
        newlines = 1
        map_rows, map_columns = _unpadded(sizes, map_rows, map_columns, tiling.unpad_rounding)
        if tiling.max_tiles is not None:
            times = np.sqrt(map_rows * map_columns / (tiling.max_tiles * side**2))
            large = times > SHRINK_THRESHOLD
            times = np.where(large, times, 1.0)
            map_rows = np.where(large, np.maximum((map_rows // times).astype(np.int64), 1), map_rows)
            map_columns = np.where(large, np.maximum((map_columns // times).astype(np.int64), 1), map_columns)
    return 1 + columns * rows, side * side + map_rows * (map_columns + newlines)


def _best_resolutions(sizes: np.ndarray, pinpoints: np.ndarray) -> np.ndarray:
    """best_resolution of each size (N, 2)."""
    width, height = sizes[:, 0], sizes[:, 1]
    best = np.zeros_like(sizes)
    most_kept, most_spare = np.full((2, len(sizes)), np.iinfo(np.int64).min)
    for pinpoint in pinpoints:
        scale = np.minimum(pinpoint[0] / width, pinpoint[1] / height)
        kept = np.minimum((width * scale).astype(np.int64) * (height * scale).astype(np.int64), width * height)
        spare = kept - pinpoint[0] * pinpoint[1]
        better = (kept > most_kept) | ((kept == most_kept) & (spare > most_spare))
        most_kept, most_spare = np.where(better, kept, most_kept), np.where(better, spare, most_spare)
        best[better] = pinpoint
    return best


def _unpadded(sizes: np.ndarray, rows: np.ndarray, columns: np.ndarray, rounding: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of each size's unpad_window."""
    width, height = sizes[:, 0], sizes[:, 1]
    is_wide = width / height > columns / rows
    extent = np.where(is_wide, height * (columns / width), width * (rows / height))
    whole = extent.astype(np.int64)
    for number in np.flatnonzero(extent - whole > 1 - 1e-6) if rounding == "round" else ():
        whole[number] = whole_patches(float(extent[number]), rounding)
    full = np.where(is_wide, rows, columns)
    left = np.maximum(full - 2 * ((full - whole) // 2), 0)
    return np.where(is_wide, left, rows), np.where(is_wide, columns, left)
