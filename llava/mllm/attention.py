"""Which attention implementation to run, and how samples that share a row are kept apart.

Samples are packed as transformers packs them: one row, no attention mask, positions that begin anew with each sample.
From the positions transformers makes masks for sdpa and eager attention, (L, L) for a row of L tokens: a sample's
queries are multiplied with all keys of the row, most of it for nothing. `sdpa_by_sample` is sdpa that takes one sample
after the other instead. It needs no mask, so that torch's fastest kernels can run, and costs what the samples would
cost alone. Flash attention is told where the samples begin, also of a row that is one sample: it would look for more
in the positions, in every layer, and each time wait for the GPU.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available
from transformers.utils.generic import is_flash_attention_requested

from llava.constants import FLASH_ATTENTION, INSTALL_FLASH
from llava.errors import LlavaError

SDPA_BY_SAMPLE = "sdpa_by_sample"
FLASH_CAPABILITY = (8, 0)  # flash-attn 2 has no kernels for older GPUs


def best_attention(on_gpu: bool, half_precision: bool) -> str:
    """flash_attention_2 where it can run, else sdpa."""
    return FLASH_ATTENTION if lacks_for_flash(on_gpu, half_precision) is None else "sdpa"


def lacks_for_flash(on_gpu: bool, half_precision: bool) -> str | None:
    """What flash attention 2 needs and does not find, None where it can run. half_precision: numbers of 16 bits."""
    if not on_gpu:
        return "a GPU"
    if not half_precision:
        return "bfloat16 or float16"
    if not is_flash_attn_2_available():
        return f"the package flash_attn: {INSTALL_FLASH}"
    if torch.cuda.get_device_capability() < FLASH_CAPABILITY:
        return f"a GPU of capability {FLASH_CAPABILITY[0]} or more"
    return None


def check_can_run(attention: str, on_gpu: bool, half_precision: bool) -> None:
    """Raises LlavaError for flash attention where it cannot run; transformers would tell at the first kernel or not."""
    lacks = lacks_for_flash(on_gpu, half_precision) if attention == FLASH_ATTENTION else None
    if lacks is not None:
        raise LlavaError(f"{attention} needs {lacks}; sdpa does not")


def packed_lengths(
    position_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | dict[str, torch.Tensor] | None,
    past_key_values: Cache | None,
    sequence_lengths: list[int] | None = None,
) -> torch.Tensor | None:
    """Lengths (S,) of the samples that share one row, int64 on the CPU; None where the input is not packed.

    position_ids: (1, L), each sample's from 0 on. By transformers' rule a packed row has no attention mask and no
    cache; where both are given, or there are several rows, positions are just positions. sequence_lengths: the lengths,
    where they are known; else the positions are waited for.
    """
    if position_ids is None or len(position_ids) > 1 or attention_mask is not None or past_key_values is not None:
        return None
    if sequence_lengths is None:
        starts = (position_ids[0].cpu().diff() != 1).nonzero()[:, 0] + 1
        sequence_lengths = pad(starts, (1, 0)).diff(append=starts.new_tensor([position_ids.shape[1]])).tolist()
    return torch.tensor(sequence_lengths) if len(sequence_lengths) > 1 else None


def apart(lengths: torch.Tensor | None, config: PreTrainedConfig, device: torch.device) -> dict[str, Any]:
    """What tells the attention function of `config` where packed samples begin; empty where a mask must tell it.

    lengths: see packed_lengths.
    """
    if lengths is None:
        return {}
    if config._attn_implementation == SDPA_BY_SAMPLE:
        return {"sample_lengths": lengths}
    if not is_flash_attention_requested(config):
        return {}
    bounds = _bounds(lengths, device)
    longest = int(lengths.max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def whole_row(
    states: torch.Tensor, masks: Mapping[str, Any], past_key_values: Cache | None, config: PreTrainedConfig
) -> dict[str, Any]:
    """What tells flash attention that a row is one sequence; empty where that is not so, or attention is another.

    states: (B, L, D), what attends. masks: by the kind of layer. past_key_values: what is attended to before them.
    """
    rows, queries = states.shape[:2]
    if not is_flash_attention_requested(config) or rows > 1 or queries == 1:  # one query looks for nothing
        return {}
    if set(config.layer_types) != {"full_attention"} or masks["full_attention"] is not None:
        return {}
    keys = queries
    if past_key_values is not None:
        if not isinstance(past_key_values, DynamicCache):
            return {}
        keys += past_key_values.get_seq_length()
    keywords: dict[str, Any] = {}
    for side, length in (("q", queries), ("k", keys)):
        keywords |= {
            f"cu_seq_lens_{side}": _bounds(torch.tensor([length]), states.device),
            f"max_length_{side}": length,
        }
    return keywords


def _bounds(lengths: torch.Tensor, device: torch.device) -> torch.Tensor:
    return pad(lengths.cumsum(0), (1, 0)).int().to(device, non_blocking=True)


def sdpa_by_sample(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    sample_lengths: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa, sample by sample where a row is packed: query (1, heads, L, width), sample_lengths (S,)."""
    if sample_lengths is None or attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return _one_by_one(module, query, key, value, sample_lengths, **kwargs), None


@torch.compiler.disable  # it would be compiled anew for each combination of lengths
def _one_by_one(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sample_lengths: torch.Tensor,
    **kwargs: Any,
) -> torch.Tensor:
    samples = zip(*(states.split(sample_lengths.tolist(), dim=2) for states in (query, key, value)))
    return torch.cat([sdpa_attention_forward(module, q, k, v, None, **kwargs)[0] for q, k, v in samples], dim=1)


AttentionInterface.register(SDPA_BY_SAMPLE, sdpa_by_sample)
AttentionMaskInterface.register(SDPA_BY_SAMPLE, sdpa_mask)
