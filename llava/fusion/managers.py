"""Visual managers: they aggregate a vision tower's layers and hand the sum to chosen layers of the language model.

    hidden[visual] += sum_i W_i * (map_i + e_i)        before each injection layer, W_i in R^D, zero at initialisation

(Equations 12 to 14 of arXiv 2506.11515; the layer embedding e_i is in the released code only.) This is the static
manager, SAUM. A sum over layers commutes with unpadding, resizing and packing, so it is taken per crop, before packing.
An adaptive manager, AAUM, weighs the maps for every token, at its place in the language model; maps are packed for it.
visual_managers.py has all managers of a model.

Shapes: C crops, T tokens per crop, D width of the language model, N selected vision layers, S samples, K managers, V
visual tokens. A map is one vision layer after the shared projector, (C, T, D).
"""

import torch
from torch import nn
from transformers import initialization as init

from llava.fusion.base import SelfInitialised


class StaticManager(SelfInitialised):
    """One SAUM: a learned sum over maps, the same for every token."""

    def __init__(self, num_maps: int, width: int):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(num_maps, width))

    def initialise(self) -> None:
        """Zero: the model begins as the one without managers."""
        init.zeros_(self.scores)

    def forward(
        self,
        layer_embedding_ND: torch.Tensor,
        newline_D: torch.Tensor,
        jitter_SND: torch.Tensor | None,
        sample_of_crop_C: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What becomes of its maps, which come one at a time and for all managers; see VisualManagers.forward.

        Returns the scores per crop (C or 1, N, D), the sums before the first map (C or 1, 1, D) and, per sample, what a
        newline position receives (S or 1, D).

        jitter_SND: factors on the scores per sample, or None for none. sample_of_crop_C: the sample that each crop
        belongs to.
        """
        count = self.scores.shape[0]
        if jitter_SND is None:
            scores_SND = scores_CND = self.scores[None].clone()  # ZeRO-3 takes the weights away after this call
        else:
            scores_SND = (self.scores * jitter_SND[:, :count]).to(newline_D)
            scores_CND = scores_SND[sample_of_crop_C]
        # sum_i W_i e_i is one vector per sample, cheaper than an addition to every map
        embedding_CTD = (scores_CND * layer_embedding_ND).sum(1)[:, None]
        # Newlines carry the plain newline vector in every layer's map, without layer embedding.
        return scores_CND, embedding_CTD, scores_SND.sum(1) * newline_D


class AdaptiveManager(SelfInitialised):
    """One AAUM: a sum over maps whose weights every token chooses for itself, without softmax.

    delta = sum_i score_i * gate_i * (map_i + e_i),    score = controller(query),    gate = 0 at initialisation
    """

    def __init__(self, num_maps: int, width: int, query: str):
        super().__init__()
        self.query = query
        self.controller = nn.Linear(width if query == "self" else 2 * width, num_maps, bias=False)
        self.gate = nn.Parameter(torch.zeros(num_maps, width))
        if query == "cross":
            self.query_proj = nn.Linear(width, width)
            self.key_proj = nn.Linear(width, width)

    def initialise(self) -> None:
        """A gate of zero: the model begins as the one without managers."""
        init.zeros_(self.gate)

    def forward(
        self,
        visual_VD: torch.Tensor,
        lengths: list[int],
        questions: list[torch.Tensor],
        maps: list[torch.Tensor],
        jitter_NVD: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What is added at the V tokens of all images of a batch, (V, D).

        visual_VD: their hidden states. lengths: tokens of each image. questions: per image (Q, D), the hidden states of
        its question, at least one; not used with the query `self`. maps: N tensors (V, D), packed. jitter_NVD: factors
        on the weights, or None for none.
        Every weight is used once, however many images there are: ZeRO-3 gathers it each time, on all ranks alike. And
        every tensor given is used: ZeRO-3 releases the weights when all of them have their gradients.
        """
        scores_VN = self.controller(self._query_states(visual_VD, lengths, questions))
        delta_VD = torch.zeros_like(visual_VD)
        for index, map_VD in enumerate(maps):
            weights_VD = scores_VN[:, index, None] * self.gate[index]
            if jitter_NVD is not None:
                weights_VD = (weights_VD * jitter_NVD[index]).to(visual_VD)
            delta_VD = torch.addcmul(delta_VD, weights_VD, map_VD)
        return delta_VD

    def _query_states(self, visual_VD: torch.Tensor, lengths: list[int], questions: list[torch.Tensor]) -> torch.Tensor:
        if self.query == "self":
            return visual_VD
        images = visual_VD.split(lengths)
        if self.query == "last":
            queries = [question[-1:].expand_as(image) for question, image in zip(questions, images)]
        elif self.query == "average":
            queries = [question.mean(0).expand_as(image) for question, image in zip(questions, images)]
        else:
            queries = self._attended(visual_VD, lengths, questions)
        return torch.cat([torch.cat(queries), visual_VD], dim=-1)

    def _attended(
        self, visual_VD: torch.Tensor, lengths: list[int], questions: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Per image (V, D): every token's softmax over the question, of its states as they are."""
        queries = self.query_proj(visual_VD).split(lengths)
        keys = self.key_proj(torch.cat(questions)).split([len(question) for question in questions])
        scale = visual_VD.shape[-1] ** -0.5
        return [(q @ k.T * scale).softmax(-1) @ question for q, k, question in zip(queries, keys, questions)]
