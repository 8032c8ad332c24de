"""The language model: Qwen2 or Qwen3 with visual deltas added before chosen layers."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers import DynamicCache, Qwen2Model
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from llava.fusion.base import Delta
from llava.mllm.attention import apart, packed_lengths, whole_row


class ManagedDecoder(nn.Module):
    """What makes a model of transformers' class one whose forward adds what fusion prepared; stands in front of it.

    Without deltas it is that class: their forward passes are alike but for what a layer is.
    """

    config: Any
    embed_tokens: Any
    layers: nn.ModuleList
    norm: Any
    rotary_emb: Any

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor] | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        sequence_lengths: list[int] | None = None,
        visual_positions: torch.Tensor | None = None,
        visual_deltas: Mapping[int, Delta] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As that of transformers' class, with what is added at visual tokens.

        position_ids: also of samples that share a row, see packed_lengths; no cache is made of such a row.
        sequence_lengths: tokens of each sample, where rows that need no mask are padded, or samples share a row.
        visual_positions: (V,) int64, positions of the visual tokens in the flattened (batch * sequence) order.
        visual_deltas: {layer: (V, D)}, added to the visual tokens' hidden states before that layer; or a function that
            makes (V, D) of all hidden states at that point, (batch * sequence, D).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        sample_lengths = packed_lengths(position_ids, attention_mask, past_key_values, sequence_lengths)
        if use_cache and past_key_values is None and sample_lengths is None:
            past_key_values = DynamicCache(config=self.config)
        # Positions tell masks of samples that share a row, which takes a wait; not where it is known that none do.
        mask_positions = position_ids if sequence_lengths is None or sample_lengths is not None else None
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen)[None]
        told_apart = apart(sample_lengths, self.config, inputs_embeds.device)
        masks = self._attention_masks(attention_mask, inputs_embeds, past_key_values, mask_positions, bool(told_apart))
        kwargs = (told_apart or whole_row(inputs_embeds, masks, past_key_values, self.config)) | kwargs
        position_embeddings = self.rotary_emb(inputs_embeds, position_ids)
        layer_types = cast(list[str], self.config.layer_types)  # the configuration fills them in
        visual_deltas = visual_deltas or {}

        hidden_states = inputs_embeds
        for index, layer in enumerate(self.layers):
            if index in visual_deltas:
                delta = visual_deltas[index]
                delta = delta(hidden_states.flatten(0, 1)) if callable(delta) else delta
                hidden_states = add_at(hidden_states, cast(torch.Tensor, visual_positions), delta)
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[layer_types[index]],
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    def _attention_masks(
        self,
        attention_mask: torch.Tensor | dict[str, torch.Tensor] | None,
        inputs_embeds: torch.Tensor,
        past_key_values: Cache | None,
        position_ids: torch.Tensor | None,
        told_apart: bool,
    ) -> dict[str, Any]:
        if isinstance(attention_mask, dict):  # prepared by generate
            return attention_mask
        builders = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        unmasked = {"full_attention": None} if told_apart else {}
        return unmasked | {
            kind: builders[kind](
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )
            for kind in set(self.config.layer_types or ()) - set(unmasked)
        }


class ManagedQwen2Model(ManagedDecoder, Qwen2Model):
    """Qwen2 and Qwen2.5."""


class ManagedQwen3Model(ManagedDecoder, Qwen3Model):
    """Qwen3, whose layers have a norm on queries and keys, and heads of a width of their own."""


DECODERS: dict[str, type[ManagedDecoder]] = {"qwen2": ManagedQwen2Model, "qwen3": ManagedQwen3Model}


def add_at(hidden_states: torch.Tensor, positions: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """hidden_states (B, L, D) with delta (V, D) added at flat positions (V,); returns a new tensor."""
    positions = positions.to(hidden_states.device)
    return hidden_states.flatten(0, 1).index_add(0, positions, delta.to(hidden_states)).view_as(hidden_states)
