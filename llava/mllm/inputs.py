"""What the vision tower is given: crops, and what each image or video becomes of its crops."""

from dataclasses import dataclass

import torch

from llava.anyres import ImageLayout, VideoLayout, image_layout
from llava.errors import LlavaError
from llava.mllm.configuration import LlavaOVManagerConfig


@dataclass
class VisualInput:
    """Images or videos of a batch.

    crops: (crops, 3, S, S), normalised, of all images or videos in order. layouts: one per image or video. samples: the
    sample of the batch that each belongs to.
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
    image_sizes: torch.Tensor,
    batch_num_images: torch.Tensor | None,
) -> VisualInput:
    """Images; arguments as in LlavaOVManagerModel.get_image_features.

    Raises LlavaError when the number of images or crops is not what the other arguments call for.
    """
    sizes = image_sizes.tolist()
    counts = batch_num_images.tolist() if batch_num_images is not None else [1] * len(sizes)
    layouts = [
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
    return _checked(pixel_values, layouts, counts, len(sizes), "image")


def video_input(
    config: LlavaOVManagerConfig,
    pixel_values_videos: torch.Tensor,
    video_num_frames: torch.Tensor,
    batch_num_videos: torch.Tensor | None,
) -> VisualInput:
    """Videos; arguments as in LlavaOVManagerModel.get_video_features, errors as in image_input."""
    frames = video_num_frames.tolist()
    counts = batch_num_videos.tolist() if batch_num_videos is not None else [1] * len(frames)
    layouts = [VideoLayout(number, config.patches_per_side) for number in frames]
    return _checked(pixel_values_videos, layouts, counts, len(frames), "video")


def _checked(crops, layouts, counts: list[int], given: int, modality: str) -> VisualInput:
    if sum(counts) != given:
        raise LlavaError(f"found {given} {modality}s, but batch_num_{modality}s adds up to {sum(counts)}")
    wanted = sum(layout.num_crops for layout in layouts)
    if wanted != len(crops):
        pieces = "crops" if modality == "image" else "frames"
        raise LlavaError(f"found {len(crops)} {pieces}, but {given} {modality}s call for {wanted}")
    return VisualInput(crops, layouts, [sample for sample, count in enumerate(counts) for _ in range(count)])
