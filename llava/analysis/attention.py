"""Statistics of attention, computed in blocks of queries while sdpa computes the output: no row of weights is kept.

    p_h(k)   the weight that head h of a query gives key k, of the visual keys that the query may see
    entropy  -sum_k p log p                                                of one head (Figure 20)
    KL       mean over heads a != b of sum_k p_a (log(p_a + eps) - log(p_b + eps))        (Figure 21)

p is renormalised: its sum over the visual keys is 1. The raw part, of which the sum is m < 1, has the entropy
m * entropy - m log m. With P = sum_a p_a and S = sum_a log(p_a + eps) of H heads, all H (H - 1) ordered pairs are

    KL = (H sum_a sum_k p_a log(p_a + eps) - sum_k P S) / (H (H - 1))

Shapes: B samples, H heads, G heads of keys of width d, L tokens, Q queries, n of them in a block, V visual keys.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llava.analysis.places import Part, Row

WATCHED = "sdpa_watched"  # the name of the attention function
EPS = 1e-12  # added to weights before the logarithm of KL
BLOCK = {"cpu": 2**20, "cuda": 2**23}  # weights of a block, of all heads: what the caches of each hold best
STATISTICS = ("entropy", "entropy_raw", "kl")

# Is given query (B, H, L, d), key (B, G, L, d) and the factor on their products.
Watcher = Callable[[torch.Tensor, torch.Tensor, float], None]
_watchers: dict[nn.Module, Watcher] = {}


def watched_sdpa(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa, once the module's watcher has seen queries and keys."""
    _watchers[module](query, key, scaling)
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


AttentionInterface.register(WATCHED, watched_sdpa)
AttentionMaskInterface.register(WATCHED, sdpa_mask)


@contextmanager
def watched(watchers: Mapping[nn.Module, Watcher]) -> Iterator[None]:
    """A context in which these attention modules, all that share their configurations, tell their watchers."""
    configs = {id(module.config): module.config for module in watchers}
    before = {key: config._attn_implementation for key, config in configs.items()}
    _watchers.update(watchers)
    try:
        for config in configs.values():
            config._attn_implementation = WATCHED
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
        for module in watchers:
            del _watchers[module]


def visual_attention(
    query_HLd: torch.Tensor, key_GLd: torch.Tensor, scaling: float, row: Row, part: Part
) -> torch.Tensor:
    """Means over heads and queries of STATISTICS, (3,) in float64; not a number of a part without queries.

    Of one sample in one layer, the tokens of `part` asking the visual tokens of `row`.
    """
    device, heads = query_HLd.device, query_HLd.shape[0]
    visual_GVd = key_GLd[:, row.visual.to(device)].float()
    text_GTd = key_GLd[:, row.text.to(device)].float()
    queries = part.queries.to(device)
    seen_Q, beside_Q = (torch.tensor(counts, device=device)[:, None] for counts in (part.seen, part.beside))
    total = torch.zeros(3, dtype=torch.float64, device=device)
    step = max(1, BLOCK.get(device.type, BLOCK["cpu"]) // (heads * max(1, len(row.visual))))
    for first in range(0, len(queries), step):
        block = slice(first, first + step)
        last = min(first + step, len(queries)) - 1
        query_Hnd = query_HLd[:, queries[block]].float() * scaling
        total += _block_sums(  # which alone holds the scores, and frees them
            _scores(query_Hnd, visual_GVd, part.seen[first], part.seen[last], seen_Q[block]),
            _scores(query_Hnd, text_GTd, part.beside[first], part.beside[last], beside_Q[block]),
        )
    return total / len(queries)


def _scores(
    query_Hnd: torch.Tensor, key_GKd: torch.Tensor, least: int, most: int, seen_n1: torch.Tensor
) -> torch.Tensor:
    """(H, n, most) of a block of queries that see the first `least` to `most` keys, -inf where one does not."""
    heads, queries, width = query_Hnd.shape
    grouped = query_Hnd.reshape(len(key_GKd), -1, width)
    scores = (grouped @ key_GKd[:, :most].transpose(1, 2)).view(heads, queries, most)
    if least < most:
        scores[..., least:].masked_fill_(torch.arange(least, most, device=scores.device) >= seen_n1, -torch.inf)
    return scores


def _block_sums(scores_HnV: torch.Tensor, beside_HnT: torch.Tensor) -> torch.Tensor:
    """Sums of STATISTICS over the n queries, means over the heads. beside: the same queries' scores of other keys."""
    heads = len(scores_HnV)
    weights = scores_HnV.softmax(-1)
    log_sum_Hn = scores_HnV.amax(-1) - weights.amax(-1).log()
    del scores_HnV
    logs = torch.add(weights, EPS).log_()
    crossed = torch.linalg.vecdot(weights.sum(0), logs.sum(0)).sum(dtype=torch.float64)
    entropy_Hn = -torch.linalg.vecdot(weights, logs)  # EPS changes it by less than V * EPS
    mass_Hn = torch.sigmoid(log_sum_Hn - beside_HnT.logsumexp(-1))
    raw_Hn = mass_Hn * entropy_Hn - torch.xlogy(mass_Hn, mass_Hn)
    entropy, raw = entropy_Hn.sum(dtype=torch.float64), raw_Hn.sum(dtype=torch.float64)
    pairs = heads * (heads - 1)
    kl = (-heads * entropy - crossed) / pairs if pairs else torch.full_like(entropy, torch.nan)
    return torch.stack([entropy / heads, raw / heads, kl])


def attention_distance(
    query_CHTd: torch.Tensor, key_CHTd: torch.Tensor, scaling: float, distances_TT: torch.Tensor
) -> torch.Tensor:
    """(C, H), the mean over a crop's queries of sum_k p(k) * distance (arXiv 2010.11929, appendix).

    distances_TT: of patches; where there are more tokens, these stand in front of the patches and are left out.
    """
    patches = len(distances_TT)
    query_CHTd, key_CHTd = (states[:, :, -patches:].float() for states in (query_CHTd, key_CHTd))
    crops, heads = query_CHTd.shape[:2]
    total = torch.zeros(crops, heads, dtype=torch.float64, device=query_CHTd.device)
    step = max(1, BLOCK.get(query_CHTd.device.type, BLOCK["cpu"]) // (heads * patches))
    for crop in range(crops):
        for first in range(0, patches, step):
            block = slice(first, first + step)
            weights_HnT = (query_CHTd[crop, :, block] * scaling @ key_CHTd[crop].transpose(1, 2)).softmax(-1)
            total[crop] += torch.linalg.vecdot(weights_HnT.flatten(1), distances_TT[block].flatten()).double()
    return total / patches


def patch_distances(side: int, patch: int, device: torch.device) -> torch.Tensor:
    """(side * side, side * side), pixels between the middles of a crop's patches of `patch` pixels, row by row."""
    axis = torch.arange(side, device=device, dtype=torch.float32)
    places = torch.cartesian_prod(axis, axis) * patch
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
