"""From a request's prompt and pictures to what vLLM schedules: crops, where their tokens stand, and what names them.

Crops are those of our image processor, as uint8. What an image becomes depends on more than itself: on whether its
prompt shows several, and, where the fusion is guided, on the question about it. Both are part of the hash by which vLLM
recognises an image, in its caches of pictures, of features and of prefixes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from vllm.inputs import MultiModalDataDict
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)

from llava.constants import IMAGE_TOKEN, VIDEO_TOKEN
from llava.data.given import rgb_image
from llava.data.given_video import rgb_frames
from llava.data.image_processor import LlavaOVManagerImageProcessor
from llava.data.options import AS_UINT8
from llava.data.processor import LlavaOVManagerProcessor
from llava.data.video import EVERY_SECOND
from llava.errors import DataError
from llava.mllm.configuration import LlavaOVManagerConfig
from llava.vllm_plugin.requests import check_places, most_image_tokens, questions_of_prompt

SEVERAL, QUESTIONS = "several_images", "questions"  # what the processor is told beside the pictures
SCOPES = {"image": "images_kwargs", "video": "videos_kwargs"}  # vLLM hashes a picture with those of its own kind


class ProcessingInfo(BaseProcessingInfo):
    """What the model takes."""

    def get_hf_config(self) -> LlavaOVManagerConfig:
        """Of the model."""
        return self.ctx.get_hf_config(LlavaOVManagerConfig)

    def get_hf_processor(self, **kwargs: object) -> LlavaOVManagerProcessor:
        """Ours, which takes no keywords here."""
        return self.ctx.get_hf_processor(LlavaOVManagerProcessor)

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """None: how pictures are read is the model's matter."""
        return {}

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """As many images and videos as fit; no videos where a crop has tokens more than its own."""
        limits: dict[str, int | None] = {"image": None}
        return limits if self.get_hf_config().tiling.extra_tokens else limits | {"video": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """The most that one image or video has."""
        processor = self.image_processor
        tokens = {"image": most_image_tokens(processor)[0]}
        if "video" in self.supported_mm_limits:
            tokens["video"] = processor.video_layout(EVERY_SECOND.frames_upbound).num_tokens
        return tokens

    @property
    def image_processor(self) -> LlavaOVManagerImageProcessor:
        """Of the model's folder."""
        return self.get_hf_processor().image_processor


class DummyInputs(BaseDummyInputsBuilder[ProcessingInfo]):
    """The largest pictures, by which vLLM measures the memory that it needs."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """A placeholder for each."""
        return IMAGE_TOKEN * mm_counts.get("image", 0) + VIDEO_TOKEN * mm_counts.get("video", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> MultiModalDataDict:
        """A blank image, or video, of the most tokens."""
        _, size = most_image_tokens(self.info.image_processor)
        side = self.info.image_processor.size
        frames = np.zeros((EVERY_SECOND.frames_upbound, side, side, 3), dtype=np.uint8)
        return {
            "image": [Image.new("RGB", size)] * mm_counts.get("image", 0),
            "video": [frames] * mm_counts.get("video", 0),
        }


class MultiModalProcessor(BaseMultiModalProcessor[ProcessingInfo]):
    """Images and videos of requests."""

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        """Crops of images and frames of videos, those alone that are in no cache, and what they are of."""
        processor, batch = self.info.image_processor, dict[str, torch.Tensor | list[torch.Tensor]]()
        images, videos = hf_data.get("images"), hf_data.get("videos")
        by_kind = _by_kind(hf_kwargs)
        if images:
            pictures = [rgb_image(image, f"image {number}") for number, image in enumerate(images, start=1)]
            several = by_kind["image"].get(SEVERAL, len(pictures) > 1)
            crops = [processor.crops(picture, several) for picture in pictures]
            batch |= {
                "pixel_values": torch.from_numpy(np.concatenate(crops)),
                "image_sizes": torch.tensor([(picture.height, picture.width) for picture in pictures]),
                "num_crops": torch.tensor([len(one) for one in crops]),
                SEVERAL: torch.tensor([several] * len(pictures)),
            } | _questions("image", by_kind["image"])
        if videos:
            clips = [rgb_frames(video, f"video {number}") for number, video in enumerate(videos, start=1)]
            for number, clip in enumerate(clips, start=1):
                if len(clip) > EVERY_SECOND.frames_upbound:
                    most = EVERY_SECOND.frames_upbound
                    raise DataError(f"video {number} has {len(clip)} frames, at most {most} are taken")
            encoded = processor.encode_videos([clips], AS_UINT8)
            batch |= {key: encoded[key] for key in ("pixel_values_videos", "video_num_frames")}
            batch |= _questions("video", by_kind["video"])
        return BatchFeature(batch)

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        """Which part of a batch is of which picture."""
        nothing = torch.zeros(0, dtype=torch.int64)
        crops, frames = hf_inputs.get("num_crops", nothing), hf_inputs.get("video_num_frames", nothing)
        flat, batched = MultiModalFieldConfig.flat_from_sizes, MultiModalFieldConfig.batched
        return {
            "pixel_values": flat("image", crops),
            "image_sizes": batched("image", keep_on_cpu=True),
            "num_crops": batched("image", keep_on_cpu=True),
            SEVERAL: batched("image", keep_on_cpu=True),
            "image_questions": batched("image"),
            "pixel_values_videos": flat("video", frames),
            "video_num_frames": batched("video", keep_on_cpu=True),
            "video_questions": batched("video"),
        }

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptUpdate]:
        """Each placeholder becomes as many as its picture has tokens."""
        processor, config = self.info.image_processor, self.info.get_hf_config()

        def image(number: int) -> list[int]:
            item = out_mm_kwargs["image"][number]
            height, width = item["image_sizes"].data.tolist()
            layout = processor.layout((width, height), bool(item[SEVERAL].data))
            return [config.image_token_id] * layout.num_tokens

        def video(number: int) -> list[int]:
            frames = int(out_mm_kwargs["video"][number]["video_num_frames"].data)
            return [config.video_token_id] * processor.video_layout(frames).num_tokens

        return [
            PromptReplacement(modality="image", target=[config.image_token_id], replacement=image),
            PromptReplacement(modality="video", target=[config.video_token_id], replacement=video),
        ]

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """Of each picture with what else decides what becomes of it."""
        return super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=self._keywords(inputs)))

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Mapping[str, list[bool]]) -> Any:
        """What is told of all of a prompt's pictures, of those that are in no cache."""
        return self._keywords(inputs, mm_is_cached)

    def _apply_hf_processor(self, inputs: Any, timing_ctx: Any) -> Any:
        """As vLLM's, where it keeps no cache."""
        return super()._apply_hf_processor(replace(inputs, hf_processor_mm_kwargs=self._keywords(inputs)), timing_ctx)

    def _keywords(self, inputs: Any, mm_is_cached: Mapping[str, list[bool]] | None = None) -> dict[str, Any]:
        """By kind of picture, how the model cuts it, whether the prompt shows several images, and the questions.

        Raises DataError for keywords in the request, and where placeholders and pictures do not match.
        """
        config = self.info.get_hf_config()
        given = {name: value for name, value in inputs.hf_processor_mm_kwargs.items() if name not in SCOPES.values()}
        if given:
            raise DataError(f"mm_processor_kwargs: how pictures are read is the model's matter, found {sorted(given)}")
        counts = inputs.mm_data_items.get_all_counts()
        check_places(inputs.prompt, counts, config)
        tiling = json.dumps(self.info.image_processor.to_dict(), default=str, sort_keys=True)
        keywords: dict[str, dict[str, Any]] = {kind: {"processor": tiling} for kind in SCOPES}
        keywords["image"][SEVERAL] = counts.get("image", 0) > 1
        if config.fusion.guided:
            for kind, questions in questions_of_prompt(inputs.prompt, config).items():
                cached = (mm_is_cached or {}).get(kind, [False] * len(questions))
                keywords[kind][QUESTIONS] = [one for one, is_cached in zip(questions, cached) if not is_cached]
        return {SCOPES[kind]: of_kind for kind, of_kind in keywords.items()}


def _by_kind(keywords: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {kind: keywords.get(scope, {}) for kind, scope in SCOPES.items()}


def _questions(kind: str, keywords: Mapping[str, Any]) -> dict[str, list[torch.Tensor]]:
    """Token ids of the question about each, of a fusion that asks for them."""
    if QUESTIONS not in keywords:
        return {}
    return {f"{kind}_questions": [torch.tensor(ids, dtype=torch.int64) for ids in keywords[QUESTIONS]]}
