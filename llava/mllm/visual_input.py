"""What the vision tower is given: crops, and what each image or video becomes of its crops."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llava.anyres import ImageLayout, VideoLayout, image_layout, video_layout
from llava.errors import LlavaError
from llava.mllm.configuration import LlavaOVManagerConfig


@dataclass
class VisualInput:
    """Images or videos of a batch.

    crops: (crops, 3, S, S), floating and normalised, of all images or videos in order. layouts: one per image or video.
    samples: the sample of the batch that each belongs to.
    """

    crops: torch.Tensor
    layouts: list[ImageLayout | VideoLayout]
    samples: list[int]

    def __add__(self, other: "VisualInput") -> "VisualInput":
        return VisualInput(
            torch.cat([self.crops, other.crops]), self.layouts + other.layouts, self.samples + other.samples
        )


def image_input(
    config: LlavaOVManagerConfig,
    pixel_values: torch.Tensor,
    image_sizes: torch.Tensor | list[list[int]] | None,
    batch_num_images: torch.Tensor | list[int] | None,
) -> VisualInput:
    """Images; arguments as in LlavaOVManagerModel.get_image_features. Tensors on a GPU are waited for, lists not.

    Raises LlavaError when the number of images or crops is not what the other arguments call for, and as normalized.
    """
    if image_sizes is None:
        raise LlavaError("pixel_values need image_sizes")
    sizes = _listed(image_sizes)
    counts = _listed(batch_num_images) if batch_num_images is not None else [1] * len(sizes)
    layouts = image_layouts(config, sizes, counts)
    return _checked(normalized(pixel_values, config), layouts, counts, len(sizes), "image")


def image_layouts(
    config: LlavaOVManagerConfig,
    image_sizes: torch.Tensor | list[list[int]],
    batch_num_images: torch.Tensor | list[int] | None,
) -> list[ImageLayout]:
    """Of images; arguments as in LlavaOVManagerModel.get_image_features."""
    sizes = _listed(image_sizes)
    counts = _listed(batch_num_images) if batch_num_images is not None else [1] * len(sizes)
    return [
        image_layout(
            width,
            height,
            config.tiling,
            tile=config.vision_config.image_size,
            side=config.patches_per_side,
            several_images=several_images,
        )
        for (height, width), several_images in zip(sizes, (count > 1 for count in counts for _ in range(count)))
    ]


def video_input(
    config: LlavaOVManagerConfig,
    pixel_values_videos: torch.Tensor,
    video_num_frames: torch.Tensor | list[int] | None,
    batch_num_videos: torch.Tensor | list[int] | None,
) -> VisualInput:
    """Videos; arguments as in LlavaOVManagerModel.get_video_features, errors as in image_input."""
    if video_num_frames is None:
        raise LlavaError("pixel_values_videos need video_num_frames")
    layouts = video_layouts(config, video_num_frames)
    counts = _listed(batch_num_videos) if batch_num_videos is not None else [1] * len(layouts)
    return _checked(normalized(pixel_values_videos, config), layouts, counts, len(layouts), "video")


def video_layouts(config: LlavaOVManagerConfig, video_num_frames: torch.Tensor | list[int]) -> list[VideoLayout]:
    """Of videos; arguments as in LlavaOVManagerModel.get_video_features."""
    return [video_layout(number, config.tiling, side=config.patches_per_side) for number in _listed(video_num_frames)]


def normalized(crops: torch.Tensor, config: LlavaOVManagerConfig) -> torch.Tensor:
    """uint8 crops (crops, 3, S, S) as float32 (x / 255 - mean) / std, where they are; floating ones as they are.

    The bits are those of llava.data.images.normalize. Raises LlavaError for other types of numbers, and for uint8 where
    the configuration does not tell mean and deviation.
    """
    if crops.is_floating_point():
        return crops
    if crops.dtype != torch.uint8:
        raise LlavaError(f"pixels must be normalised floating numbers, or uint8; found {crops.dtype}")
    if config.image_mean is None or config.image_std is None:
        raise LlavaError(
            "the model's configuration has no image_mean and image_std, by which to normalise uint8 pixels"
        )
    # A GPU divides by a number by multiplying with its inverse, which rounds otherwise; by a tensor it divides.
    statistics = torch.tensor([[255.0] * 3, config.image_mean, config.image_std])
    full, mean, std = statistics.to(crops.device, non_blocking=True)[..., None, None]
    # Laid out as floating crops are: of a transposed tensor a linear layer may round otherwise.
    return crops.to(torch.float32, memory_format=torch.contiguous_format).div_(full).sub_(mean).div_(std)


def _listed(numbers: torch.Tensor | list[Any]) -> list[Any]:
    return numbers.tolist() if isinstance(numbers, torch.Tensor) else numbers


def _checked(
    crops: torch.Tensor,
    layouts: Sequence[ImageLayout | VideoLayout],
    counts: list[int],
    given: int,
    modality: str,
) -> VisualInput:
    if sum(counts) != given:
        raise LlavaError(f"found {given} {modality}s, but batch_num_{modality}s adds up to {sum(counts)}")
    wanted = sum(layout.num_crops for layout in layouts)
    if wanted != len(crops):
        pieces = "crops" if modality == "image" else "frames"
        raise LlavaError(f"found {len(crops)} {pieces}, but {given} {modality}s call for {wanted}")
    return VisualInput(crops, list(layouts), [sample for sample, count in enumerate(counts) for _ in range(count)])
