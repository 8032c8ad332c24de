"""The model as vLLM runs it.

pixels ── VisionSide ── (T, (1 + K) * D) of a picture ── vLLM's cache, cut where a prompt is ─┐
                                                                                              │ embed_input_ids
prompt ── embeddings, replaced at visual tokens by the first D ── ManagedForCausalLM ── logits
                                     the other K * D ── `added` ──────┘ before their layers

So what a static fusion adds travels with the tokens that it belongs to: through chunks of a prompt, batches of requests
and prefixes that are computed once. Of several ranks (tensor parallel) each has the whole vision side, and its part of
the language model.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsMultiModal, SupportsPP
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors

from llava.anyres import image_layout
from llava.data.image_processor import LlavaOVManagerImageProcessor
from llava.fusion.base import Questions
from llava.mllm.questions import mean_embeddings
from llava.mllm.visual_input import VisualInput, normalized, video_layouts
from llava.vllm_plugin.checks import check_ranks, check_static
from llava.vllm_plugin.decoder import ManagedForCausalLM, receiving
from llava.vllm_plugin.processing import DummyInputs, MultiModalProcessor, ProcessingInfo
from llava.vllm_plugin.vision import VisionSide


@MULTIMODAL_REGISTRY.register_processor(MultiModalProcessor, info=ProcessingInfo, dummy_inputs=DummyInputs)
class LlavaOVManagerForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsPP):
    """See above; its fusion is static, else LlavaError."""

    packed_modules_mapping = ManagedForCausalLM.packed_modules_mapping
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.language_model.": "language_model.model.",
            "lm_head.": "language_model.lm_head.",
            "model.managers.": "vision_side.fusion.",  # its former name
            "model.": "vision_side.",
        }
    )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str:
        """What stands for a picture in a prompt that is written by hand."""
        return f"<{modality}>"

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        check_static(config.fusion)
        check_ranks(config.text_config.to_dict(), vllm_config.parallel_config.tensor_parallel_size)
        self.config = config
        if config.image_mean is None or config.image_std is None:
            pictures = LlavaOVManagerImageProcessor.from_pretrained(vllm_config.model_config.model)
            config.image_mean, config.image_std = pictures.image_mean, pictures.image_std
        placeholders = [config.image_token_id, config.video_token_id]
        self.configure_mm_token_handling(vocab_size=config.text_config.vocab_size, mm_token_ids=placeholders)
        with self._mark_tower_model(vllm_config, {"image", "video"}):
            self.vision_side = VisionSide(config)
        with self._mark_language_model(vllm_config):
            self.language_model = ManagedForCausalLM(
                vllm_config=vllm_config.with_hf_config(receiving(config.text_config, self.vision_side.layers)),
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors
        # What a step adds, zero but at its visual tokens. Always the same memory, which a CUDA graph knows.
        width = len(self.vision_side.layers) * config.text_config.hidden_size
        tokens = vllm_config.scheduler_config.max_num_batched_tokens
        self.register_buffer("added", torch.zeros(tokens, width) if width else None, persistent=False)
        self.filled = 0

    def embed_multimodal(self, **kwargs: Any) -> MultiModalEmbeddings:
        """Of each image, then each video, its tokens and what layers receive there, (T, (1 + K) * D)."""
        result: list[torch.Tensor] = []
        config, tile, side = self.config, self.config.vision_config.image_size, self.config.patches_per_side
        for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            pixels = kwargs.get(name)
            if pixels is None:
                continue
            crops = pixels if torch.is_tensor(pixels) else torch.cat(list(pixels))
            if kind == "image":
                sizes, several = _listed(kwargs["image_sizes"]), _listed(kwargs["several_images"])
                layouts: list[Any] = [
                    image_layout(width, height, config.tiling, tile=tile, side=side, several_images=bool(is_several))
                    for (height, width), is_several in zip(sizes, several, strict=True)
                ]
            else:
                layouts = list(video_layouts(config, _listed(kwargs["video_num_frames"])))
            crops = normalized(crops.flatten(0, -4), config)
            given = VisualInput(crops, layouts, list(range(len(layouts))))
            result += self.vision_side(given, self._questions(kwargs.get(f"{kind}_questions")))
        return result

    def _questions(self, ids: Any) -> Questions | None:
        """Means of the questions' embeddings, of a fusion that they guide. ids: of each question, (tokens,)."""
        if not self.config.fusion.guided:
            return None
        device = next(self.parameters()).device
        flat = [one.flatten().to(device) for one in ids]
        embedded = self.language_model.embed_input_ids(torch.cat(flat))[None]
        places = torch.arange(embedded.shape[1], device=device).split([len(one) for one in flat])
        return mean_embeddings(embedded, places)

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: MultiModalEmbeddings | None = None,
        *,
        is_multimodal: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(N,) to (N, D); keeps what the layers receive for the forward pass that follows."""
        if self.added is not None and self.filled:
            self.added[: self.filled].zero_()
            self.filled = 0
        embeds = self.language_model.embed_input_ids(input_ids)
        if multimodal_embeddings is None or is_multimodal is None or not len(multimodal_embeddings):
            return embeds
        width, at = embeds.shape[-1], is_multimodal.to(embeds.device)
        columns = torch.cat([one.to(embeds) for one in multimodal_embeddings])
        embeds[at] = columns[:, :width]
        if self.added is not None:
            self.filled = len(embeds)
            self.added[: self.filled][at] = columns[:, width:].to(self.added)
        return embeds

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor | IntermediateTensors:
        """The hidden states (N, D)."""
        added = None
        if intermediate_tensors is not None:
            inputs_embeds = None
        elif self.added is not None and get_pp_group().is_first_rank:
            added = self.added[: positions.shape[-1]]
        return self.language_model(input_ids, positions, intermediate_tensors, inputs_embeds, added)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """(N, vocabulary)."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Of a checkpoint folder of this package, of any age."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)


def _listed(values: Any) -> list[Any]:
    return values.tolist() if torch.is_tensor(values) else [one.tolist() for one in values]
