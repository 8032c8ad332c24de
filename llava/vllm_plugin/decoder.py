"""The language model: vLLM's Qwen2 or Qwen3, to whose hidden states fusion's features are added before chosen layers.

Shapes: N tokens of a step, of whatever requests; D width; K layers that receive something.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from itertools import islice
from typing import Any

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer, Qwen2Model
from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer
from vllm.model_executor.models.utils import AutoWeightsLoader, PPMissingLayer, WeightsMapper, maybe_prefix
from vllm.sequence import IntermediateTensors

LAYERS = {"qwen2": Qwen2DecoderLayer, "qwen3": Qwen3DecoderLayer}
ADDED = "added"  # its name between the ranks of a pipeline


def receiving(text_config: Any, layers: Sequence[int]) -> Any:
    """The language model's configuration, which also tells the layers before which something is added.

    vLLM names what it compiled, and keeps on disk, by the folder's path and this configuration. So a folder whose
    fusion has changed is compiled anew.
    """
    told = copy(text_config)
    told.receiving_layers = list(layers)
    return told


@support_torch_compile(
    dynamic_arg_dims={"input_ids": 0, "positions": 0, "intermediate_tensors": 0, "inputs_embeds": 0, "added": 0}
)
class ManagedModel(Qwen2Model):
    """vLLM's Qwen2Model with what is added in its loop. Its configuration is of `receiving`.

    places: {layer: which of the K it receives}.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        config = vllm_config.model_config.hf_config
        super().__init__(vllm_config=vllm_config, prefix=prefix, decoder_layer_type=LAYERS[config.model_type])
        self.places = {layer: place for place, layer in enumerate(config.receiving_layers)}

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        added: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """added: (N, K * D), zero where nothing is; None where the fusion adds nothing to layers."""
        residual = None
        if get_pp_group().is_first_rank:
            hidden = inputs_embeds if inputs_embeds is not None else self.embed_input_ids(input_ids)
        else:
            assert intermediate_tensors is not None
            hidden, residual = intermediate_tensors["hidden_states"], intermediate_tensors["residual"]
            added = intermediate_tensors[ADDED] if self.places else None
        width = hidden.shape[-1]
        for number, layer in enumerate(islice(self.layers, self.start_layer, self.end_layer), start=self.start_layer):
            if added is not None and number in self.places:
                first = self.places[number] * width
                hidden = hidden + added[:, first : first + width]
            hidden, residual = layer(positions, hidden, residual)
        if not get_pp_group().is_last_rank:
            states = {"hidden_states": hidden, "residual": residual}
            return IntermediateTensors(states | ({ADDED: added} if added is not None else {}))
        hidden, _ = self.norm(hidden, residual)
        return hidden


class ManagedForCausalLM(nn.Module):
    """ManagedModel and its head."""

    hf_to_vllm_mapper: WeightsMapper = Qwen2Model.hf_to_vllm_mapper
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        self.model = ManagedModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head: nn.Module = PPMissingLayer()
        if get_pp_group().is_last_rank:
            head = ParallelLMHead(
                self.config.vocab_size,
                self.config.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=maybe_prefix(prefix, "lm_head"),
            )
            self.lm_head = head.tie_weights(self.model.embed_tokens) if self.config.tie_word_embeddings else head
        self.logits_processor = LogitsProcessor(self.config.vocab_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(N,) to (N, D)."""
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        added: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """See ManagedModel.forward."""
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds, added)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """(N, vocabulary)."""
        return self.logits_processor(self.lm_head, hidden_states)

    def make_empty_intermediate_tensors(
        self, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> IntermediateTensors:
        """What a later rank of a pipeline is given where nothing was computed."""
        empty = self.model.make_empty_intermediate_tensors(batch_size, dtype, device)
        if self.model.places:
            width = len(self.model.places) * self.config.hidden_size
            empty.tensors[ADDED] = torch.zeros((batch_size, width), dtype=dtype, device=device)
        return empty

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """As vLLM's loader calls it."""
        return AutoWeightsLoader(self).load_weights(weights)
