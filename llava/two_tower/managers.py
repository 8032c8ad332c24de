"""Managers: what a cross-modal layer gets of a tower's layers (the paper's section III; spec of each in its class).

    M = sum_i softmax_i(s / tau)_i * X_i + W_C * c          X_i = LN_i(expert i),  c = LN(C_{l-1})

They differ in the scores s: learned (SAM, SAUM), or made from a query for every token (AAUM, Concat-Attention,
Cross-Attention). SAM has cross-modal states among what the softmax weighs. In training, scores have Gaussian noise.

Shapes: N experts (a tower's last layers, after projection), B examples, L tokens of the manager's modality, K tokens of
the other, D the hidden size. Scores are (N, B or 1, L or 1, D or 1): a weight is one number, or one a dimension.
"""

import torch
from torch import nn
from transformers import initialization as init

from llava.fusion.base import SelfInitialised
from llava.two_tower.configuration import TwoTowerConfig


def draw_noise(states_NBLD: torch.Tensor) -> torch.Tensor:
    """Gaussian noise of standard deviation 1/N (equation 7), for every expert, token and dimension its own."""
    return torch.randn_like(states_NBLD) / len(states_NBLD)


class Manager(SelfInitialised):
    """What managers have in common. A subclass says what is mixed by which scores.

    num_previous: how many of the previous cross-modal layers' states it takes; 0 of the first layer.
    """

    def __init__(self, config: TwoTowerConfig, num_experts: int, num_previous: int):
        super().__init__()
        self.noisy = config.noise
        self.norms = nn.ModuleList(nn.LayerNorm(config.hidden_size) for _ in range(num_experts))
        self.previous_norms = nn.ModuleList(nn.LayerNorm(config.hidden_size) for _ in range(num_previous))
        self.temperature = nn.Parameter(torch.ones(1))

    def initialise(self) -> None:
        """A temperature of one; LayerNorms and linear layers begin as all others do."""
        init.ones_(self.temperature)

    def normed(self, experts_NBLD: torch.Tensor) -> torch.Tensor:
        """X, (N, B, L, D)."""
        return torch.stack([norm(states) for norm, states in zip(self.norms, experts_NBLD, strict=True)])

    def normed_previous(self, previous: list[torch.Tensor]) -> list[torch.Tensor]:
        """The last of the previous states that it takes, normed, each (B, L, D)."""
        return [norm(states) for norm, states in zip(self.previous_norms, previous[-len(self.previous_norms) :])]

    def mixed(self, scores: torch.Tensor, states_NBLD: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
        """(B, L, D): the sum of states weighed by the softmax of scores over N."""
        if self.training and self.noisy:
            scores = scores + draw_noise(states_NBLD)
        return ((scores / temperature).softmax(0) * states_NBLD).sum(0)

    def forward(
        self,
        experts_NBLD: torch.Tensor,
        previous: list[torch.Tensor],
        other: list[torch.Tensor],
        other_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """The input of a cross-modal layer, (B, L, D).

        previous: of C_1 to C_{l-1} of the own modality, (B, L, D) each, at least the last config.num_previous; empty in
        layer 1. other: of the other modality, (B, K, D) each. other_mask: (B, 1, 1, K), what of the other can be
        attended to; None for all.
        """
        raise NotImplementedError


def learned(config: TwoTowerConfig, count: int) -> nn.Parameter:
    """(count, 1, 1, 1 or D), by config.weight."""
    return nn.Parameter(torch.empty(count, 1, 1, config.hidden_size if config.weight == "vector" else 1))


class SAM(Manager):
    """Static sum over all N + l-1 previous states, unimodal and cross-modal, by one softmax (equation 4)."""

    def __init__(self, config: TwoTowerConfig, num_experts: int, num_previous: int):
        super().__init__(config, num_experts, num_previous)
        self.scores = learned(config, num_experts + num_previous)

    def initialise(self) -> None:
        """Equal scores."""
        super().initialise()
        init.constant_(self.scores, 1 / len(self.scores))

    def forward(self, experts_NBLD: torch.Tensor, previous: list[torch.Tensor], *_: object) -> torch.Tensor:
        """See Manager; the other modality is of no use to it."""
        states = self.normed(experts_NBLD)
        if previous:
            states = torch.cat([states, torch.stack(self.normed_previous(previous))])
        return self.mixed(self.scores, states, self.temperature)


class SplitSAM(Manager):
    """SAM with a softmax over the experts and one over cross-modal states, each of a temperature (section III-A)."""

    def __init__(self, config: TwoTowerConfig, num_experts: int, num_previous: int):
        super().__init__(config, num_experts, num_previous)
        self.scores = learned(config, num_experts)
        if num_previous:
            self.previous_scores = learned(config, num_previous)
            self.previous_temperature = nn.Parameter(torch.ones(1))

    def initialise(self) -> None:
        """Equal scores within each of the two."""
        super().initialise()
        init.constant_(self.scores, 1 / len(self.scores))
        if len(self.previous_norms):
            init.constant_(self.previous_scores, 1 / len(self.previous_scores))
            init.ones_(self.previous_temperature)

    def forward(self, experts_NBLD: torch.Tensor, previous: list[torch.Tensor], *_: object) -> torch.Tensor:
        """See Manager; the other modality is of no use to it."""
        unimodal = self.mixed(self.scores, self.normed(experts_NBLD), self.temperature)
        if not previous:
            return unimodal
        states = torch.stack(self.normed_previous(previous))
        return unimodal + self.mixed(self.previous_scores, states, self.previous_temperature)


class UnimodalManager(Manager):
    """A softmax over the experts alone, and the last cross-modal states by a weight of their own, W_C.

    A subclass gives the scores.
    """

    def __init__(self, config: TwoTowerConfig, num_experts: int, num_previous: int):
        super().__init__(config, num_experts, min(num_previous, 1))
        if num_previous:
            self.previous_weight = learned(config, 1)

    def initialise(self) -> None:
        """W_C is one, and not normalised."""
        super().initialise()
        if len(self.previous_norms):
            init.ones_(self.previous_weight)

    def scored(
        self,
        experts_NBLD: torch.Tensor,
        own_BLD: torch.Tensor | None,
        other: list[torch.Tensor],
        other_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """The scores. experts_NBLD, own_BLD: normed; own_BLD: None in layer 1. other, other_mask: see Manager."""
        raise NotImplementedError

    def forward(
        self,
        experts_NBLD: torch.Tensor,
        previous: list[torch.Tensor],
        other: list[torch.Tensor],
        other_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """See Manager."""
        experts_NBLD = self.normed(experts_NBLD)
        own_BLD = self.normed_previous(previous)[-1] if previous else None
        scores = self.scored(experts_NBLD, own_BLD, other, other_mask)
        unimodal = self.mixed(scores, experts_NBLD, self.temperature)
        return unimodal if own_BLD is None else unimodal + self.previous_weight[0] * own_BLD


class SAUM(UnimodalManager):
    """Learned scores, the same for every token (equation 5). Every kind's manager of layer 1, which has no query."""

    def __init__(self, config: TwoTowerConfig, num_experts: int, num_previous: int):
        super().__init__(config, num_experts, num_previous)
        self.scores = learned(config, num_experts)

    def initialise(self) -> None:
        """Equal scores."""
        super().initialise()
        init.constant_(self.scores, 1 / len(self.scores))

    def scored(self, *_: object) -> torch.Tensor:
        """As learned."""
        return self.scores


class FusedQuery(nn.Module):
    """A = softmax((c W_q)(q W_k)^T / sqrt(D)) q, with q = LN(C_{l-1}) of the other modality: one head, no values."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query_proj = nn.Linear(width, width)
        self.key_proj = nn.Linear(width, width)

    def forward(self, own_BLD: torch.Tensor, other_BKD: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[A ; c], (B, L, 2D)."""
        other_BKD = self.norm(other_BKD)
        query, key = self.query_proj(own_BLD), self.key_proj(other_BKD)
        mask = None if mask is None else mask[:, 0]
        attended = nn.functional.scaled_dot_product_attention(query, key, other_BKD, attn_mask=mask)
        return torch.cat([attended, own_BLD], dim=-1)


class AdaptiveManager(UnimodalManager):
    """Scores made from a query for every token: the own modality's states c, or fused [A ; c] with the other's.

    A subclass says how, by scores_of. The reference masks no padding in A: config.mask_padding False.
    """

    def __init__(self, config: TwoTowerConfig, num_experts: int, num_previous: int):
        super().__init__(config, num_experts, num_previous)
        self.masks_padding = config.mask_padding
        self.fused_query = FusedQuery(config.hidden_size) if config.query == "fused" else None
        self.query_width = config.hidden_size * (2 if config.query == "fused" else 1)

    def scored(
        self,
        experts_NBLD: torch.Tensor,
        own_BLD: torch.Tensor | None,
        other: list[torch.Tensor],
        other_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """See UnimodalManager."""
        if own_BLD is None:
            raise ValueError("an adaptive manager needs cross-modal states; layer 1 has a SAUM")
        query = own_BLD
        if self.fused_query is not None:
            query = self.fused_query(own_BLD, other[-1], other_mask if self.masks_padding else None)
        return self.scores_of(experts_NBLD, query)

    def scores_of(self, experts_NBLD: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """The scores. experts_NBLD: normed. query: (B, L, D or 2D)."""
        raise NotImplementedError


class AAUM(AdaptiveManager):
    """s = query W_M + b_M, one score an expert (equations 6 and 7).

    As the released code, not as equation 7: W_M has a bias, and the fused query is a concatenation, so W_M is 2D x N.
    """

    def __init__(self, config: TwoTowerConfig, num_experts: int, num_previous: int):
        super().__init__(config, num_experts, num_previous)
        self.controller = nn.Linear(self.query_width, num_experts)

    def scores_of(self, experts_NBLD: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """(N, B, L, 1)."""
        return self.controller(query).movedim(-1, 0)[..., None]


class ConcatAttention(AdaptiveManager):
    """s_i = [X_i ; query] W, one score a dimension (Table I's N x L x D; the form is our reading, it has no code).

    W is held in two blocks of rows, so that the query's part is computed once for all experts. That part is the same
    for all of them, so the softmax takes it away again: in this form the query decides nothing.
    """

    def __init__(self, config: TwoTowerConfig, num_experts: int, num_previous: int):
        super().__init__(config, num_experts, num_previous)
        self.expert_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.score_proj = nn.Linear(self.query_width, config.hidden_size, bias=False)

    def scores_of(self, experts_NBLD: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """(N, B, L, D)."""
        return self.expert_proj(experts_NBLD) + self.score_proj(query)


class CrossAttention(AdaptiveManager):
    """s_i = (query W_q) . (X_i W_k) / sqrt(D), one score an expert (Table I's N x L; our reading, it has no code)."""

    def __init__(self, config: TwoTowerConfig, num_experts: int, num_previous: int):
        super().__init__(config, num_experts, num_previous)
        self.score_query = nn.Linear(self.query_width, config.hidden_size, bias=False)
        self.score_key = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def scores_of(self, experts_NBLD: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """(N, B, L, 1)."""
        projected = self.score_query(query)
        return (projected * self.score_key(experts_NBLD)).sum(-1, keepdim=True) * projected.shape[-1] ** -0.5


KINDS: dict[str, type[Manager]] = {
    "sam": SAM,
    "sam_split": SplitSAM,
    "saum": SAUM,
    "aaum": AAUM,
    "concat_attention": ConcatAttention,
    "cross_attention": CrossAttention,
}


def make_manager(config: TwoTowerConfig, num_experts: int, layer: int) -> Manager:
    """The manager before cross-modal layer `layer`, counted from 1."""
    kind = KINDS[config.manager_kind]
    if layer == 1 and issubclass(kind, AdaptiveManager):
        kind = SAUM
    return kind(config, num_experts, layer - 1)
