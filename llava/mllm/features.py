"""From crops to what the decoder receives: tower, projector, managers and packing, run together.

Shapes: C crops, T tokens per crop, D width of the language model, S samples.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava.mllm.packing import pack, pack_mask
from llava.mllm.visual_input import VisualInput, image_input, video_input


@dataclass
class VisualFeatures(BaseModelOutputWithPooling):
    """What images (or videos) become.

    pooler_output: per image, its tokens in the sequence, (tokens, D).
    deepstack_features: per manager and image, what is added at those tokens, (tokens, D), or with adaptive managers the
        first manager's sum and the maps that the others choose from; None without managers.
    Both are the layout that transformers' generate expands over beams and slices into chunks.
    """

    deepstack_features: list[list[torch.Tensor]] | None = None


class VisualFeaturesMixin:
    """LlavaOVManagerModel's way from pixels to features, through its tower, projector, newline and managers.

    without_images: what of these a forward pass without images runs, on next to nothing. Ranks that share parameters or
        gradients must all run the same, and only who sets up the ranks knows what: `nothing` for one process; `trained`
        for replicas that average gradients (DDP, ZeRO-1, ZeRO-2): while training, what has a gradient; `all` where
        parameters are partitioned (ZeRO-3, FSDP) and every use of one takes all ranks, in evaluation too.
    recomputes_projector: whether, while training, the backward pass computes each map's projection again: of a map
        autograd then keeps the map alone and not what is inside the projector, twice as much. Set by who trains.
    """

    without_images: str = "nothing"
    recomputes_projector: bool = False

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_sizes: torch.Tensor,
        batch_num_images: torch.Tensor | None = None,
        **kwargs,
    ) -> VisualFeatures:
        """Encodes, manages and packs images.

        pixel_values: (crops, 3, S, S), normalised, or uint8 which are normalised here; the crops of all images in
        order. image_sizes: (images, 2), pixels as (height, width). batch_num_images: (samples,), how many images each
        sample holds; None: one each.
        Raises LlavaError when the number of crops is not what the sizes call for.
        """
        return self._features(image_input(self.config, pixel_values, image_sizes, batch_num_images))

    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor,
        video_num_frames: torch.Tensor,
        batch_num_videos: torch.Tensor | None = None,
        **kwargs,
    ) -> VisualFeatures:
        """Encodes, manages and packs videos.

        pixel_values_videos: (frames, 3, S, S), normalised or uint8, the frames of all videos in order.
        video_num_frames: (videos,). batch_num_videos: (samples,), how many videos each sample holds; None: one each.
        Raises LlavaError when the numbers do not agree.
        """
        return self._features(video_input(self.config, pixel_values_videos, video_num_frames, batch_num_videos))

    def get_visual_features(self, given: VisualInput) -> VisualFeatures:
        """Encodes, manages and packs what has its layouts already: some of the images of a prompt, say."""
        return self._features(given)

    def _features(self, given: VisualInput) -> VisualFeatures:
        layouts, samples = given.layouts, given.samples
        num_crops = [layout.num_crops for layout in layouts]
        sample_of_crop = torch.tensor(samples).repeat_interleave(torch.tensor(num_crops)).to(given.crops.device)
        visual, sums = self._encode(given.crops.to(self.dtype), sample_of_crop, max(samples) + 1)

        merge = self.config.tiling.merge
        newline = self.image_newline()
        features = [pack(crops, newline, layout, merge) for crops, layout in zip(visual.split(num_crops), layouts)]
        # A newline that no image uses still takes part, with a zero gradient: all ranks must reduce the same parameters
        # in the same order.
        features[0] = torch.cat([features[0], newline[None][:0]])
        deltas = [
            self._pack_deltas(crop_sums.split(num_crops), newline_SD, layouts, samples, self.managers.is_output(index))
            for index, (crop_sums, newline_SD) in enumerate(sums)
        ]
        return VisualFeatures(pooler_output=features, deepstack_features=deltas or None)

    def _encode(self, pixel_values, sample_of_crop, num_samples):
        """The visual input (C, T, D) and, per manager, its sums (C, T, D) with its newline vectors (samples, D)."""
        states = self.vision_tower(pixel_values, self._needed_layers())
        return self._project(states, sample_of_crop, num_samples)

    def _needed_layers(self) -> list[int]:
        """The tower's states that are used: the visual input, then the managed layers that are not the same."""
        last = self.config.vision_config.num_hidden_layers
        managed = self.config.managers.vision_layers if self.managers is not None else ()
        return [last, *(layer for layer in managed if layer != last)]

    def _project(self, states, sample_of_crop, num_samples):
        """As _encode, from the tower's states (C, T, width) of _needed_layers."""
        (visual_input, *states), (last, *others) = states, self._needed_layers()
        visual = self._projected(visual_input)
        if self.managers is None:
            return visual, []
        managed = dict(zip(others, states))
        maps = (
            visual if layer == last else self._projected(managed[layer]) for layer in self.config.managers.vision_layers
        )
        return visual, self.managers(maps, self.image_newline(), sample_of_crop, num_samples)

    def _projected(self, state: torch.Tensor) -> torch.Tensor:
        if self.recomputes_projector and self.training:
            return checkpoint(self.multi_modal_projector, state, use_reentrant=False)
        return self.multi_modal_projector(state)

    def _pack_deltas(self, sums_of_images, newline_SD, layouts, samples, is_output: bool) -> list[torch.Tensor]:
        """Per image, zero outside the managers' scope: what one adds, jittered while training, or a map to adapt."""
        scope = self.config.managers.scope
        deltas = []
        for sums, layout, sample in zip(sums_of_images, layouts, samples):
            delta = pack(sums, newline_SD[sample], layout, self.config.tiling.merge)
            if scope != "all":
                delta = delta * pack_mask(layout, scope, delta.device)
            deltas.append(self.managers.jittered(delta) if is_output else delta)
        deltas[0] = torch.cat([deltas[0], newline_SD[:0]])  # takes part even where no image has a newline, as above
        return deltas

    def _runs_blank_crop(self, past_key_values: Cache | None) -> bool:
        """Whether a forward pass without images must run something of the vision side, see `without_images`."""
        if self.without_images == "trained":
            return self.training and any(_trains(module) for module in self._vision_side())
        decodes = past_key_values is not None and past_key_values.get_seq_length() > 0  # no rank has images then
        return self.without_images == "all" and not decodes

    def _vision_side(self) -> list[nn.Module]:
        parts = (self.vision_tower, self.multi_modal_projector, self.image_newline, self.managers)
        return [part for part in parts if part is not None]

    def _blank_features(self, device: torch.device) -> VisualFeatures:
        """No visual tokens at all, computed from the first token of one blank crop.

        The rank of a micro-batch without images so runs and reduces the same parameters, in the same order, as the
        others. Nothing of the result is kept: every gradient is exactly zero.
        """
        layers, vision = self._needed_layers(), self.config.vision_config
        if self.without_images == "all" or _trains(self.vision_tower):
            pixel_values = torch.zeros(1, 3, *[vision.image_size] * 2, dtype=self.dtype, device=device)
            states = self.vision_tower(pixel_values, layers, max_tokens=1)
        else:
            states = [torch.zeros(1, 1, vision.hidden_size, dtype=self.dtype, device=device) for _ in layers]
        visual, sums = self._project(states, torch.zeros(1, dtype=torch.int64, device=device), 1)
        tokens = torch.cat([visual[0][:0], self.image_newline()[None][:0]])
        deltas = [[torch.cat([crop_sums[0][:0], newline_SD[:0]])] for crop_sums, newline_SD in sums]
        return VisualFeatures(pooler_output=[tokens], deepstack_features=deltas or None)

    def _encode_inputs(
        self, pixel_values, image_sizes, batch_num_images, pixel_values_videos, video_num_frames, batch_num_videos
    ) -> dict[str, VisualFeatures]:
        """Features by modality of raw images, videos or both; both pass the tower together, so that it runs once."""
        images = videos = None
        if pixel_values is not None:
            images = image_input(self.config, pixel_values, image_sizes, batch_num_images)
        if pixel_values_videos is not None:
            videos = video_input(self.config, pixel_values_videos, video_num_frames, batch_num_videos)
        if images is None or videos is None:
            return {"image": self._features(images)} if videos is None else {"video": self._features(videos)}
        both, count = self._features(images + videos), len(images.layouts)
        managed = both.deepstack_features
        return {
            modality: VisualFeatures(
                pooler_output=both.pooler_output[part],
                deepstack_features=[features[part] for features in managed] if managed is not None else None,
            )
            for modality, part in (("image", slice(count)), ("video", slice(count, None)))
        }


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
