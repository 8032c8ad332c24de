"""Images and videos to what the vision tower is given."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from llava.anyres import ImageLayout, TilingConfig, VideoLayout, image_layout, video_layout
from llava.data.given import is_image, rgb_groups, rgb_image
from llava.data.given_video import rgb_frames
from llava.data.images import RESAMPLING, crop_image, normalize
from llava.data.options import AS_UINT8, FIXED, NORMALIZED, PixelOptions, checked_tensors, pixel_options
from llava.errors import DataError, LlavaError
from llava.layout_counts import count_layouts


class LlavaOVManagerImageProcessor(BaseImageProcessor):
    """Cuts images into crops, takes a video's frames as one crop each, and normalises them unless uint8 is asked for.

    Args:
        size: pixels per side of a crop. patch_size: pixels per side of a patch of the tower.
        tiling: TilingConfig or its dict. image_mean, image_std: per channel, on values from 0 to 1.
    """

    model_input_names = ["pixel_values", "image_sizes", "batch_num_images"]
    video_input_names = ["pixel_values_videos", "video_num_frames", "batch_num_videos"]

    def __init__(
        self,
        size: int = 384,
        patch_size: int = 14,
        tiling: TilingConfig | dict[str, Any] | None = None,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        **kwargs: Any,
    ):
        options = set(PixelOptions.__dataclass_fields__) | set(FIXED)
        if pixel_options({name: value for name, value in kwargs.items() if name in options}) != NORMALIZED:
            raise LlavaError("do_rescale, do_normalize and input_data_format are given with the images, not before")
        super().__init__(**kwargs)
        self.size = size
        self.patch_size = patch_size
        self.tiling = tiling if isinstance(tiling, TilingConfig) else TilingConfig(**(tiling or {}))
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def to_dict(self) -> dict:
        """transformers' own, with the tiling by its fields."""
        return {**super().to_dict(), "tiling": self.tiling.to_dict()}

    def layout(self, image_size: tuple[int, int], several_images: bool) -> ImageLayout:
        """The layout of an image of (width, height) pixels."""
        return image_layout(
            *image_size,
            self.tiling,
            tile=self.size,
            side=self.size // self.patch_size,
            several_images=several_images,
        )

    def count_layouts(self, sizes: np.ndarray, several_images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Crops and tokens of the layouts of many images: (width, height) of each (N, 2), see layout."""
        side = self.size // self.patch_size
        return count_layouts(sizes, several_images, self.tiling, tile=self.size, side=side)

    def video_layout(self, num_frames: int) -> VideoLayout:
        """The layout of a video of which `num_frames` frames are shown."""
        return video_layout(num_frames, self.tiling, side=self.size // self.patch_size)

    def crops(self, image: Image.Image, several_images: bool) -> np.ndarray:
        """Crops of one image, uint8 (crops, 3, size, size). image: see rgb_image."""
        image = rgb_image(image)
        layout = self.layout(image.size, several_images)
        pad_color = tuple(int(mean * 255) for mean in self.image_mean)
        return crop_image(image, layout, self.tiling, self.size, several_images, pad_color)

    def frames(self, video: Sequence) -> np.ndarray:
        """Frames of one video, resized to a crop each, uint8 (frames, 3, size, size). video: see rgb_frames."""
        resized = [np.asarray(frame.resize((self.size,) * 2, RESAMPLING)) for frame in rgb_frames(video)]
        return np.stack(resized).transpose(0, 3, 1, 2)

    def __call__(  # type: ignore[override]  # as_uint8 is ours; transformers' own come by their names
        self, images: Any, as_uint8: bool = False, return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """Crops of images, each what rgb_image takes: one, a list of samples of one each, or a list per sample.

        as_uint8: leave it to the model to normalise the crops, which are then a quarter of the bytes; the same as
        do_rescale=False with do_normalize=False. kwargs: see PixelOptions. return_tensors: `pt`, `np`, or None for
        lists. Returns pixel_values, image_sizes (height, width) and batch_num_images.
        Raises DataError, naming the image; LlavaError for keywords.
        """
        options = AS_UINT8 if as_uint8 and not kwargs else pixel_options(kwargs)
        if is_image(images):
            images = [images]
        if not isinstance(images, list | tuple | np.ndarray | torch.Tensor) or not len(images):
            raise DataError(f"found no images, but {images!r:.60}")
        groups = [[entry] if is_image(entry) else list(entry) for entry in images]
        groups = rgb_groups(groups, "image", partial(rgb_image, channels=options.input_data_format))
        return BatchFeature(as_tensors(self.encode_images(groups, options), checked_tensors(return_tensors)))

    preprocess = __call__

    def encode_images(
        self, images: Sequence[Sequence[Image.Image]], options: PixelOptions = NORMALIZED, each: Callable = map
    ) -> dict:
        """images: one list of RGB images per sample. each: as `map`, by which they are cut.

        Returns tensors pixel_values, image_sizes, batch_num_images.
        """
        flat = [image for group in images for image in group]
        several = [len(group) > 1 for group in images for _ in group]
        return {
            "pixel_values": self._pixels(list(each(self.crops, flat, several)), options),
            "image_sizes": torch.tensor([(image.height, image.width) for image in flat]),
            "batch_num_images": torch.tensor([len(group) for group in images]),
        }

    def encode_videos(
        self,
        videos: Sequence[Sequence[Sequence]],
        options: PixelOptions = NORMALIZED,
        as_uint8: bool = False,
        each: Callable = map,
    ) -> dict:
        """videos: one list of videos per sample, each what rgb_frames takes. as_uint8: see __call__; each: as `map`.

        Returns tensors pixel_values_videos, video_num_frames, batch_num_videos.
        """
        options = AS_UINT8 if as_uint8 else options
        flat = list(each(self.frames, [video for group in videos for video in group]))
        return {
            "pixel_values_videos": self._pixels(flat, options),
            "video_num_frames": torch.tensor([len(frames) for frames in flat]),
            "batch_num_videos": torch.tensor([len(group) for group in videos]),
        }

    def _pixels(self, crops: list[np.ndarray], options: PixelOptions) -> torch.Tensor:
        pixels = np.concatenate(crops)
        if options.do_normalize:
            pixels = normalize(pixels, self.image_mean, self.image_std)
        elif options.do_rescale:
            pixels = normalize(pixels, (0.0,) * 3, (1.0,) * 3)
        return torch.from_numpy(pixels)


def as_tensors(batch: dict[str, torch.Tensor], kind: str | None) -> dict:
    """kind: `pt`, `np`, or None for lists, of pixels one array (3, size, size) per crop."""
    if kind == "pt":
        return batch
    arrays = {key: value.numpy() for key, value in batch.items()}
    return arrays if kind == "np" else {k: list(v) if v.ndim == 4 else v.tolist() for k, v in arrays.items()}
