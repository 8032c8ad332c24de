"""LLaVA-OV-Manager.

pixel_values (crops, 3, S, S)          of images, then frames of videos
    │ vision_tower                     states of the needed layers only
    ├── fusion.visual_input ── projector ──────┐        the last state, of most methods
    └── fusion.to_pack ───────┐                │        managers: one shared projector, K sums per crop
                           packing          packing     tiles joined, unpadded, shrunk; frames pooled; newlines added
                              │                │
input_ids ── embeddings ──────│── at <image>, <video>
                       fusion.deltas ── before chosen layers ──> language_model ──> lm_head ──> loss

Where a fusion is guided, the question about each image goes into its visual input: the mean of the text's embeddings,
which are then made before the tower runs.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import modeling_utils
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from llava.constants import IGNORE_INDEX
from llava.fusion.base import Context, Delta
from llava.mllm.configuration import LlavaOVManagerConfig
from llava.mllm.decoder import DECODERS
from llava.mllm.features import VisualFeatures, VisualFeaturesMixin
from llava.mllm.former_names import load_former_names
from llava.mllm.generation import MultimodalGenerationMixin
from llava.mllm.guidance import batch_context, guiding_questions
from llava.mllm.head import LanguageHead
from llava.mllm.places import check_lengths, recognised_ids
from llava.mllm.pretrained import LlavaOVManagerPreTrainedModel

load_former_names(LlavaOVManagerConfig.model_type)


class LlavaOVManagerModel(VisualFeaturesMixin, LlavaOVManagerPreTrainedModel):
    """Tower, projector, fusion and language model, without the head."""

    config: LlavaOVManagerConfig

    def __init__(self, config: LlavaOVManagerConfig):
        super().__init__(config)
        self.build_vision_side(config)
        self.language_model = DECODERS[config.text_config.model_type](config.text_config)
        self.post_init()

    def _visual_deltas(self, visuals: list[VisualFeatures], context: Context) -> Mapping[int, Delta]:
        """{layer of the language model: what is added before it}, see Fusion.deltas."""
        packed = {
            key: torch.cat([tokens for visual in visuals for tokens in visual.deepstack_features[index]])
            for index, key in enumerate(self.fusion.packed_keys)
        }
        return self.fusion.deltas(packed, context)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        batch_num_images: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_num_frames: torch.Tensor | None = None,
        batch_num_videos: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, VisualFeatures] | None = None,
        sequence_lengths: list[int] | None = None,
        visual_positions: torch.Tensor | None = None,
        question_positions: torch.Tensor | None = None,
        question_lengths: list[int] | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Arguments as in LlavaOVManagerForConditionalGeneration.forward; returns the last hidden state (B, L, D)."""
        given = self._visual_inputs(
            pixel_values, image_sizes, batch_num_images, pixel_values_videos, video_num_frames, batch_num_videos
        )
        encoded = {} if given else {kind: one for kind, one in (mm_encoder_outputs or {}).items() if one is not None}
        text = next(one for one in (input_ids, inputs_embeds) if one is not None)
        if sequence_lengths is not None:
            check_lengths(sequence_lengths, *text.shape[:2])
        lengths = {kind: [layout.num_tokens for layout in one.layouts] for kind, one in given.items()}
        lengths |= {kind: [len(tokens) for tokens in one.pooler_output] for kind, one in encoded.items()}
        if not lengths and self._runs_blank_crop(past_key_values):
            lengths = {"image": [0]}
        context: Context | None = None
        if lengths:
            embed, config = self.get_input_embeddings(), self.config
            context = batch_context(
                config,
                input_ids if input_ids is not None else recognised_ids(text, embed, config),
                lengths,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                sequence_lengths=sequence_lengths,
                visual_positions=visual_positions,
                question_positions=question_positions,
                question_lengths=question_lengths,
            )
        if context is not None and not encoded:
            questions = None
            if self.config.fusion.guided:
                if inputs_embeds is None:
                    inputs_embeds = self.get_input_embeddings()(input_ids)
                questions = guiding_questions(self.config, inputs_embeds, context)
            encoded = self._encode_inputs(given, questions, text.device)
        # Behind the vision side: the backward pass, which goes the other way round, has the gradients of a large
        # embedding matrix tied to a head three times, so at a time when the tower's gradients are not there yet.
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        deltas: Mapping[int, Delta] = {}
        if context is not None:
            tokens = torch.cat([tokens for one in encoded.values() for tokens in one.pooler_output]).to(inputs_embeds)
            at = context.positions.to(inputs_embeds.device)
            inputs_embeds = inputs_embeds.flatten(0, 1).index_copy(0, at, tokens).view_as(inputs_embeds)
            deltas = self._visual_deltas(list(encoded.values()), context)
        return self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            sequence_lengths=sequence_lengths,
            visual_positions=context.positions if context is not None else visual_positions,
            visual_deltas=deltas,
            **kwargs,
        )


class LlavaOVManagerForConditionalGeneration(LlavaOVManagerPreTrainedModel, MultimodalGenerationMixin):
    """The whole model: images and text in, next tokens out."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}  # the embeddings that it may be tied to are sharded
    # Neither rounded to float16 nor quantised by bitsandbytes, which leaves alone what is named here: a 500th of the
    # weights at 0.5B, through which all that is seen must pass.
    _keep_in_fp32_modules = ["model.multi_modal_projector", "model.image_newline", "model.fusion"]

    def __init__(self, config: LlavaOVManagerConfig):
        super().__init__(config)
        self.model = LlavaOVManagerModel(config)
        self.lm_head = LanguageHead(config.text_config.hidden_size, config.text_config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head, (vocabulary, text_width)."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Takes the weight of another head: transformers makes a plain linear layer when it resizes the vocabulary."""
        with torch.device("meta"):
            self.lm_head = LanguageHead(new_embeddings.in_features, new_embeddings.out_features)
        self.lm_head.weight = new_embeddings.weight

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_sizes: torch.Tensor,
        batch_num_images: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> VisualFeatures:
        """See LlavaOVManagerModel.get_image_features."""
        return self.model.get_image_features(pixel_values, image_sizes, batch_num_images, **kwargs)

    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor,
        video_num_frames: torch.Tensor,
        batch_num_videos: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> VisualFeatures:
        """See LlavaOVManagerModel.get_video_features."""
        return self.model.get_video_features(pixel_values_videos, video_num_frames, batch_num_videos, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        batch_num_images: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_num_frames: torch.Tensor | None = None,
        batch_num_videos: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, VisualFeatures] | None = None,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        supervised_positions: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool = False,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One pass over text and images.

        input_ids: (B, L), each image and video as many placeholders as it has tokens. attention_mask: (B, L).
        position_ids: (B, L); without attention_mask, samples that share one row each have their own, from 0 on, and
        do not see each other (packing: see llava/mllm/attention.py).
        pixel_values, image_sizes, batch_num_images: see get_image_features. pixel_values_videos, video_num_frames,
        batch_num_videos: see get_video_features. Or mm_encoder_outputs={"image": ..., "video": ...}: their results.
        What a Collator says of its batch, and what is looked for where it is not given, which waits for the device:
        sequence_lengths, visual_positions (V,), question_positions (Q,), question_lengths, supervised_positions (n,).
        labels: (B, L), position i holds the token at i; or shift_labels: (B, L), position i holds the token at i + 1.
        logits_to_keep: positions to compute logits for, as in transformers.
        skip_logits: with labels, returns the loss without logits, of which then only a part is there at a time, and
        those of supervised positions alone.
        num_items_in_batch (keyword): divides the summed loss, for equal weight of tokens over accumulation and ranks.

        Returns loss, logits (B, L, V) and past_key_values.
        """
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            batch_num_images=batch_num_images,
            pixel_values_videos=pixel_values_videos,
            video_num_frames=video_num_frames,
            batch_num_videos=batch_num_videos,
            mm_encoder_outputs=mm_encoder_outputs,
            use_cache=use_cache,
            **kwargs,
        )
        if labels is not None and shift_labels is None:
            shift_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        logits = loss = None
        if skip_logits and shift_labels is not None:
            shift_labels = shift_labels.flatten()
            if supervised_positions is None:
                supervised_positions = (shift_labels != IGNORE_INDEX).nonzero()[:, 0]
            hidden = outputs.last_hidden_state.flatten(0, 1).index_select(0, supervised_positions)
            loss = self.lm_head(hidden, shift_labels.index_select(0, supervised_positions), num_items_in_batch)
        else:
            # By its module: vLLM's plugin imports this file beside a transformers without it, and runs another head.
            hidden = modeling_utils.slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
            logits = self.lm_head(hidden)
            if shift_labels is not None:
                loss = self.loss_function(
                    logits=logits,
                    labels=labels,
                    vocab_size=self.config.text_config.vocab_size,
                    shift_labels=shift_labels,
                    num_items_in_batch=num_items_in_batch,
                )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
