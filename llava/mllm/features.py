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
from llava.errors import LlavaError
from llava.fusion.base import Crops, Fusion, Packable, Questions
from llava.mllm.configuration import LlavaOVManagerConfig
from llava.mllm.packing import pack, pack_mask
from llava.mllm.projector import ImageNewline, MultiModalProjector
from llava.mllm.recompute import recompute
from llava.mllm.vision import TOWERS, VisionTower
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
    vision_tower: VisionTower
    multi_modal_projector: MultiModalProjector
    image_newline: ImageNewline
    fusion: Fusion
    without_images: str = "nothing"
    recomputes_projector: bool = False

    def build_vision_side(self, config: LlavaOVManagerConfig) -> None:
        """Makes the tower, the projector, the newline and the fusion, in this order."""
        width, fusion, sizes = config.text_config.hidden_size, config.fusion, config.sizes
        self.vision_tower = TOWERS[config.vision_config.model_type](config.vision_config)
        self.multi_modal_projector = MultiModalProjector(
            fusion.visual_width(sizes), width, fusion.drawn_width(sizes), fusion.hidden_width(sizes)
        )
        self.image_newline = ImageNewline(width)
        self.fusion = fusion.implementation()(fusion, sizes)

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_sizes: torch.Tensor | list[list[int]],
        batch_num_images: torch.Tensor | list[int] | None = None,
        image_questions: Questions | None = None,
        **kwargs: Any,
    ) -> VisualFeatures:
        """Encodes, fuses and packs images.

        pixel_values: (crops, 3, S, S), normalised, or uint8 which are normalised here; the crops of all images in
        order. image_sizes: (images, 2), pixels as (height, width). batch_num_images: (samples,), how many images each
        sample holds; None: one each. Both may be lists: a tensor on a GPU is waited for. image_questions: about each
        image, for a fusion that is guided by them, see llava.mllm.guidance.questions_for_features.
        Raises LlavaError when the number of crops is not what the sizes call for, or questions are missing.
        """
        return self._features(image_input(self.config, pixel_values, image_sizes, batch_num_images), image_questions)

    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor,
        video_num_frames: torch.Tensor | list[int],
        batch_num_videos: torch.Tensor | list[int] | None = None,
        video_questions: Questions | None = None,
        **kwargs: Any,
    ) -> VisualFeatures:
        """Encodes, fuses and packs videos.

        pixel_values_videos: (frames, 3, S, S), normalised or uint8, the frames of all videos in order.
        video_num_frames: (videos,). batch_num_videos: (samples,), how many videos each sample holds; None: one each.
        Both may be lists. video_questions: as image_questions.
        Raises LlavaError when the numbers do not agree, or questions are missing.
        """
        given = video_input(self.config, pixel_values_videos, video_num_frames, batch_num_videos)
        return self._features(given, video_questions)

    def get_visual_features(self, given: VisualInput, questions: Questions | None = None) -> VisualFeatures:
        """Encodes, fuses and packs what has its layouts already: some of the images of a prompt, say."""
        return self._features(given, questions)

    def _features(self, given: VisualInput, questions: Questions | None) -> VisualFeatures:
        layouts, samples = given.layouts, given.samples
        num_crops = [layout.num_crops for layout in layouts]
        of_crops = [sample for sample, number in zip(samples, num_crops) for _ in range(number)]
        sample_of_crop = torch.tensor(of_crops).to(given.crops.device, non_blocking=True)
        states = self.vision_tower(given.crops.to(self.dtype), list(self.fusion.layers))
        about = self._of_crops(questions, layouts)
        visual, packables = self._project(states, sample_of_crop, max(samples) + 1, layouts, about)

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

    def _of_crops(self, questions: Questions | None, layouts: Layouts) -> Questions | None:
        """Of each crop the question about its image; None where the fusion is not guided."""
        if not self.config.fusion.guided:
            return None
        if questions is None:
            raise LlavaError(
                f"the fusion ({self.config.fusion.describe()}) is guided by the question about each image: give "
                "image_questions, video_questions, which llava.mllm.guidance.questions_for_features makes of the prompt"
            )
        if len(questions.means) != len(layouts):
            raise LlavaError(f"found {len(questions.means)} questions but {len(layouts)} images and videos")
        of_crops = torch.tensor([image for image, layout in enumerate(layouts) for _ in range(layout.num_crops)])
        return questions.of(of_crops.to(questions.means.device, non_blocking=True))

    def _project(
        self,
        states: list[torch.Tensor],
        sample_of_crop: torch.Tensor,
        num_samples: int,
        layouts: Layouts,
        questions: Questions | None,
    ) -> tuple[torch.Tensor, list[Packable | list[torch.Tensor]]]:
        """The visual input (C, T, D), and what is packed beside it, see Fusion.to_pack.

        states: the tower's (C, T, width) of the fusion's layers. questions: of the crops, None where none guides it.
        """
        by_layer = dict(zip(self.fusion.layers, states, strict=True))
        if questions is None:
            visual = self._projected(self.fusion.visual_input(by_layer))
        else:
            visual = self._projected(self.fusion.guided_visual_input(by_layer, questions.to(states[0].device)))
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

    def _blank_features(self, device: torch.device, questions: Questions | None) -> VisualFeatures:
        """No visual tokens at all, computed from the first token of one blank crop. questions: the one about it.

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
        sample_of_crop = torch.zeros(1, dtype=torch.int64, device=device)
        visual, packables = self._project(states, sample_of_crop, 1, layouts, self._of_crops(questions, layouts))
        tokens = torch.cat([visual[0][:0], self.image_newline()[None][:0]])
        packed = [
            [item[0][:0] if isinstance(item, list) else torch.cat([item.crops[0][:0], item.newlines[:0]])]
            for item in packables
        ]
        return VisualFeatures(pooler_output=[tokens], deepstack_features=packed or None)

    def _visual_inputs(
        self,
        pixel_values: torch.Tensor | None,
        image_sizes: torch.Tensor | None,
        batch_num_images: torch.Tensor | None,
        pixel_values_videos: torch.Tensor | None,
        video_num_frames: torch.Tensor | None,
        batch_num_videos: torch.Tensor | None,
    ) -> dict[str, VisualInput]:
        """By modality what of raw images and videos there is."""
        given = {}
        if pixel_values is not None:
            given["image"] = image_input(self.config, pixel_values, image_sizes, batch_num_images)
        if pixel_values_videos is not None:
            given["video"] = video_input(self.config, pixel_values_videos, video_num_frames, batch_num_videos)
        return given

    def _encode_inputs(
        self, given: dict[str, VisualInput], questions: Questions | None, device: torch.device
    ) -> dict[str, VisualFeatures]:
        """Features by modality; both pass the tower together, so that it runs once. Of nothing those of a blank crop.

        questions: about all images, then all videos, or the blank crop.
        """
        if not given:
            return {"image": self._blank_features(device, questions)}
        if len(given) == 1:
            return {modality: self._features(of_one, questions) for modality, of_one in given.items()}
        both, count = self._features(given["image"] + given["video"], questions), len(given["image"].layouts)
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
