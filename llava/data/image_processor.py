"""Images and videos to what the vision tower is given."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from llava.anyres import ImageLayout, TilingConfig, VideoLayout, image_layout
from llava.data.images import RESAMPLING, crop_image, normalize


class LlavaOVManagerImageProcessor(BaseImageProcessor):
    """Cuts images into crops, takes a video's frames as one crop each, and normalises them unless uint8 is asked for.

    Args:
        size: pixels per side of a crop. patch_size: pixels per side of a patch of the tower.
        tiling: TilingConfig or its dict. image_mean, image_std: per channel, on values from 0 to 1.
    """

    model_input_names = ["pixel_values", "image_sizes", "batch_num_images"]
    video_input_names = ["pixel_values_videos", "video_num_frames", "batch_num_videos"]

    def __init__(
        self, size=384, patch_size=14, tiling=None, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5), **kwargs
    ):
        super().__init__(**kwargs)
        self.size = size
        self.patch_size = patch_size
        self.tiling = tiling if isinstance(tiling, TilingConfig) else TilingConfig(**(tiling or {}))
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def to_dict(self) -> dict:
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

    def video_layout(self, num_frames: int) -> VideoLayout:
        """The layout of a video of which `num_frames` frames are shown."""
        return VideoLayout(num_frames, self.size // self.patch_size)

    def crops(self, image: Image.Image, several_images: bool) -> np.ndarray:
        """Crops of one image, uint8 (crops, 3, size, size)."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        layout = self.layout(image.size, several_images)
        pad_color = tuple(int(mean * 255) for mean in self.image_mean)
        return crop_image(image, layout, self.tiling, self.size, several_images, pad_color)

    def frames(self, video: Sequence) -> np.ndarray:
        """Frames of one video, resized to a crop each, uint8 (frames, 3, size, size).

        video: images, or uint8 (frames, height, width, 3).
        """
        images = [frame if isinstance(frame, Image.Image) else Image.fromarray(frame) for frame in video]
        resized = [np.asarray(image.convert("RGB").resize((self.size,) * 2, RESAMPLING)) for image in images]
        return np.stack(resized).transpose(0, 3, 1, 2)

    def encode_videos(self, videos: list[list[Sequence]], as_uint8: bool = False) -> BatchFeature:
        """videos: one list of videos per sample. Returns pixel_values_videos, video_num_frames, batch_num_videos.

        as_uint8: see __call__.
        """
        flat = [self.frames(video) for group in videos for video in group]
        return BatchFeature(
            {
                "pixel_values_videos": self._pixels(flat, as_uint8),
                "video_num_frames": torch.tensor([len(frames) for frames in flat]),
                "batch_num_videos": torch.tensor([len(group) for group in videos]),
            }
        )

    def __call__(self, images: list[list[Image.Image]], as_uint8: bool = False, **kwargs) -> BatchFeature:
        """images: one list of images per sample. Returns tensors pixel_values, image_sizes, batch_num_images.

        as_uint8: leave it to the model to normalise the crops, which are then a quarter of the bytes; else they are
        float32 and normalised.
        """
        flat = [(image, len(group) > 1) for group in images for image in group]
        return BatchFeature(
            {
                "pixel_values": self._pixels([self.crops(*entry) for entry in flat], as_uint8),
                "image_sizes": torch.tensor([(image.height, image.width) for image, _ in flat]),
                "batch_num_images": torch.tensor([len(group) for group in images]),
            }
        )

    def _pixels(self, crops: list[np.ndarray], as_uint8: bool) -> torch.Tensor:
        joined = np.concatenate(crops)
        return torch.from_numpy(joined if as_uint8 else normalize(joined, self.image_mean, self.image_std))
