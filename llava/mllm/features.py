"""From crops to what the decoder receives: tower, projector, fusion and packing, run together.

Shapes: C crops, T tokens per crop, D width of the language model, S samples.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava.anyres import ImageLayout, VideoLayout
from llava.fusion.base import Crops, Fusion, Packable
from llava.mllm.configuration import LlavaOVManagerConfig
from llava.mllm.packing import pack, pack_mask
from llava.mllm.projector import ImageNewline, MultiModalProjector
from llava.mllm.recompute import recompute
from llava.mllm.vision import MultiLayerSiglip
from llava.mllm.visual_input import VisualInput, image_input, video_input

Layouts = list[ImageLayout | VideoLayout]


@dataclass
class VisualFeatures(BaseModelOutputWithPooling):
    """What images (or videos) become.

    pooler_output: per image, its tokens in the sequence, (tokens, D), a list where transformers has one tensor.
    deepstack_features: for each of the fusion's packed_keys, per image, what was packed beside them, (tokens, D); None
        where nothing is.
    Both are the layout that transformers' generate expands over beams and slices into chunks.
    """

    pooler_output: Any = None
    deepstack_features: Any = None


class VisualFeaturesMixin:
    """LlavaOVManagerModel's way from pixels to features, through its tower, projector, newline and fusion.

    without_images: what of these a forward pass without images runs, on next to nothing. Ranks that share parameters or
        gradients must all run the same, and only who sets up the ranks knows what: `nothing` for one process; `trained`
        for replicas that average gradients (DDP, ZeRO-1, ZeRO-2): while training, what has a gradient; `all` where
        parameters are partitioned (ZeRO-3, FSDP) and every use of one takes all ranks, in evaluation too.
    recomputes_projector: whether, while training, the backward pass computes each map's projection again: of a map
        autograd then keeps the map alone and not what is inside the projector, twice as much. Set by who trains.
    """

    config: LlavaOVManagerConfig
    dtype: torch.dtype
    training: bool
    vision_tower: MultiLayerSiglip
    multi_modal_projector: MultiModalProjector
    image_newline: ImageNewline
    fusion: Fusion
    without_images: str = "nothing"
    recomputes_projector: bool = False

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_sizes: torch.Tensor | list[list[int]],
        batch_num_images: torch.Tensor | list[int] | None = None,
        **kwargs: Any,
    ) -> VisualFeatures:
        """Encodes, fuses and packs images.

        pixel_values: (crops, 3, S, S), normalised, or uint8 which are normalised here; the crops of all images in
        order. image_sizes: (images, 2), pixels as (height, width). batch_num_images: (samples,), how many images each
        sample holds; None: one each. Both may be lists: a tensor on a GPU is waited for.
        Raises LlavaError when the number of crops is not what the sizes call for.
        """
        return self._features(image_input(self.config, pixel_values, image_sizes, batch_num_images))

    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor,
        video_num_frames: torch.Tensor | list[int],
        batch_num_videos: torch.Tensor | list[int] | None = None,
        **kwargs: Any,
    ) -> VisualFeatures:
        """Encodes, fuses and packs videos.

        pixel_values_videos: (frames, 3, S, S), normalised or uint8, the frames of all videos in order.
        video_num_frames: (videos,). batch_num_videos: (samples,), how many videos each sample holds; None: one each.
        Both may be lists.
        Raises LlavaError when the numbers do not agree.
        """
        return self._features(video_input(self.config, pixel_values_videos, video_num_frames, batch_num_videos))

    def get_visual_features(self, given: VisualInput) -> VisualFeatures:
        """Encodes, fuses and packs what has its layouts already: some of the images of a prompt, say."""
        return self._features(given)

    def _features(self, given: VisualInput) -> VisualFeatures:
        layouts, samples = given.layouts, given.samples
        num_crops = [layout.num_crops for layout in layouts]
        of_crops = [sample for sample, number in zip(samples, num_crops) for _ in range(number)]
        sample_of_crop = torch.tensor(of_crops).to(given.crops.device, non_blocking=True)
        visual, packables = self._encode(given.crops.to(self.dtype), sample_of_crop, max(samples) + 1, layouts)

        merge = self.config.tiling.merge
        newline = self.image_newline().to(visual.device)  # pieces of the model may be on several
        features = [pack(crops, newline, layout, merge) for crops, layout in zip(visual.split(num_crops), layouts)]
        # A newline that no image uses still takes part, with a zero gradient: all ranks must reduce the same parameters
        # in the same order.
        features[0] = torch.cat([features[0], newline[None][:0]])
        packed = [
            item if isinstance(item, list) else self._pack(item, num_crops, layouts, samples) for item in packables
        ]
        return VisualFeatures(pooler_output=features, deepstack_features=packed or None)

    def _encode(
        self, pixel_values: torch.Tensor, sample_of_crop: torch.Tensor, num_samples: int, layouts: Layouts
    ) -> tuple[torch.Tensor, list[Packable | list[torch.Tensor]]]:
        """The visual input (C, T, D), and what is packed beside it, see Fusion.to_pack."""
        states = self.vision_tower(pixel_values, list(self.fusion.layers))
        return self._project(states, sample_of_crop, num_samples, layouts)

    def _project(
        self, states: list[torch.Tensor], sample_of_crop: torch.Tensor, num_samples: int, layouts: Layouts
    ) -> tuple[torch.Tensor, list[Packable | list[torch.Tensor]]]:
        """As _encode, from the tower's states (C, T, width) of the fusion's layers."""
        by_layer = dict(zip(self.fusion.layers, states, strict=True))
        visual = self._projected(self.fusion.visual_input(by_layer))
        if not self.fusion.packed_keys:
            return visual, []
        newline = self.image_newline()
        crops = Crops(by_layer, visual, self._projected, newline, sample_of_crop, num_samples, layouts)
        packables = self.fusion.to_pack(crops)
        return visual, [packables[key] for key in self.fusion.packed_keys]

    def _projected(self, state: torch.Tensor) -> torch.Tensor:
        if self.recomputes_projector and self.training:
            return recompute(self.multi_modal_projector, state)
        return self.multi_modal_projector(state)

    def _pack(
        self, packable: Packable, num_crops: list[int], layouts: Layouts, samples: list[int]
    ) -> list[torch.Tensor]:
        """Per image (tokens, D), zero outside the packable's scope, jittered as it says."""
        packed, newlines = [], packable.newlines.to(packable.crops.device)
        for crops, layout, sample in zip(packable.crops.split(num_crops), layouts, samples):
            tokens = pack(crops, newlines[sample], layout, self.config.tiling.merge)
            if packable.scope != "all":
                tokens = tokens * pack_mask(layout, packable.scope, tokens.device)
            packed.append(packable.jitter(tokens) if packable.jitter is not None else tokens)
        packed[0] = torch.cat([packed[0], newlines[:0]])  # takes part even where no image has a newline
        return packed

    def _runs_blank_crop(self, past_key_values: Cache | None) -> bool:
        """Whether a forward pass without images must run something of the vision side, see `without_images`."""
        if self.without_images == "trained":
            return self.training and any(_trains(module) for module in self._vision_side())
        decodes = past_key_values is not None and past_key_values.get_seq_length() > 0  # no rank has images then
        return self.without_images == "all" and not decodes

    def _vision_side(self) -> list[nn.Module]:
        return [self.vision_tower, self.multi_modal_projector, self.image_newline, self.fusion]

    def _blank_features(self, device: torch.device) -> VisualFeatures:
        """No visual tokens at all, computed from the first token of one blank crop.

        The rank of a micro-batch without images so runs and reduces the same parameters, in the same order, as the
        others. Nothing of the result is kept: every gradient is exactly zero.
        """
        layers, vision = list(self.fusion.layers), self.config.vision_config
        if self.without_images == "all" or _trains(self.vision_tower):
            pixel_values = torch.zeros(1, 3, *[vision.image_size] * 2, dtype=self.dtype, device=device)
            states = self.vision_tower(pixel_values, layers, max_tokens=1)
        else:
            states = [torch.zeros(1, 1, vision.hidden_size, dtype=self.dtype, device=device) for _ in layers]
        layouts: Layouts = [ImageLayout(base_tokens=1)]
        visual, packables = self._project(states, torch.zeros(1, dtype=torch.int64, device=device), 1, layouts)
        tokens = torch.cat([visual[0][:0], self.image_newline()[None][:0]])
        packed = [
            [item[0][:0] if isinstance(item, list) else torch.cat([item.crops[0][:0], item.newlines[:0]])]
            for item in packables
        ]
        return VisualFeatures(pooler_output=[tokens], deepstack_features=packed or None)

    def _encode_inputs(
        self,
        pixel_values: torch.Tensor | None,
        image_sizes: torch.Tensor | None,
        batch_num_images: torch.Tensor | None,
        pixel_values_videos: torch.Tensor | None,
        video_num_frames: torch.Tensor | None,
        batch_num_videos: torch.Tensor | None,
    ) -> dict[str, VisualFeatures]:
        """Features by modality of raw images, videos or both; both pass the tower together, so that it runs once."""
        images = videos = None
        if pixel_values is not None:
            images = image_input(self.config, pixel_values, image_sizes, batch_num_images)
        if pixel_values_videos is not None:
            videos = video_input(self.config, pixel_values_videos, video_num_frames, batch_num_videos)
        if images is None:
            return {"video": self._features(videos)} if videos is not None else {}
        if videos is None:
            return {"image": self._features(images)}
        both, count = self._features(images + videos), len(images.layouts)
        packed = both.deepstack_features
        return {
            modality: VisualFeatures(
                pooler_output=both.pooler_output[part],
                deepstack_features=[features[part] for features in packed] if packed is not None else None,
            )
            for modality, part in (("image", slice(count)), ("video", slice(count, None)))
        }


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
