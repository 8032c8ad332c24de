"""Cross-Layer Injection (arXiv 2601.10710), reconstructed: its gate's equation is not public.

    V'_k = P(V_k) + B_k A_k V_k                                   P the model's projector, B_k = 0 at the start
    u_k  = softmax(q_k V'_k^T / sqrt(H)) V'_k                     over the tokens of one image
    g_k  = sigmoid(c + MLP[u_k ; mean of h]) - sigmoid(c)         MLP = Linear, GELU, Linear, the last 0 at the start
    h    <- h + sum_k g_k V'_k                                    at visual positions, before chosen layers

From the paper: V'_k; that a gate is made of an attention's summary of V' and of the hidden states there; that it
decides for each pair of layers. Guessed: that q_k is learned for each place and state and V' are keys and values as
they are; that h enters as its mean over the image's own tokens (over the whole sequence it would know the answer in
training, as it does not when one is asked for); that g_k is one number of an image; c = -2; that the gated V'_k are
summed; which layers of both. A sigmoid is never 0: it is measured from where it stands at the start, so that the model
begins as `none` exactly, and a gate can close below that by sigmoid(c) = 0.12. A newline carries the plain newline
vector, as in the managers' maps.

Shapes: C crops, T tokens per crop, D width of the tower's states, H of the language model's, V visual tokens, K states,
I images.
"""

from functools import partial

import torch
from torch import nn
from transformers import initialization as init

from llava.fusion.base import (
    HIDDEN,
    PACKED,
    STATES,
    WEIGHTS,
    Context,
    Crops,
    Delta,
    Fusion,
    FusionCost,
    Linear,
    Packable,
    Product,
    SelfInitialised,
    ZeroLinear,
    like_weight,
)
from llava.fusion.config import Sizes
from llava.fusion.configs.cli_reconstruction import CliReconstructionConfig
from llava.fusion.layers import named

SHUT = -2.0  # c


class Correction(nn.Module):
    """B_k A_k of one state; A_k is drawn as torch draws linear layers."""

    def __init__(self, vision_width: int, rank: int, text_width: int):
        super().__init__()
        self.down = Linear(vision_width, rank, bias=False)
        self.up = ZeroLinear(rank, text_width, bias=False)

    def forward(self, state_CTD: torch.Tensor) -> torch.Tensor:
        """(C, T, D) to (C, T, H)."""
        state_CTD = like_weight(state_CTD, self.down.weight)
        return self.up(self.down(state_CTD))


class Gate(SelfInitialised):
    """What is injected before one layer of the language model. Its MLP has a quarter of the language model's width."""

    def __init__(self, num_states: int, width: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_states, width) / width**0.5)
        self.linear_1 = Linear(2 * width, width // 4)
        self.act = nn.GELU()
        self.linear_2 = ZeroLinear(width // 4, 1)

    def initialise(self) -> None:
        """Queries N(0, 1/H): attention begins as nearly a mean."""
        init.normal_(self.queries, std=self.queries.shape[-1] ** -0.5)

    def forward(self, visual_VH: torch.Tensor, maps: list[torch.Tensor], lengths: list[int]) -> torch.Tensor:
        """What is added at the V tokens of all images of a batch, (V, H).

        visual_VH: their hidden states. maps: V'_k, packed, K of (V, H). lengths: tokens of each image.
        """
        means_IH = torch.stack([image.sum(0) / max(len(image), 1) for image in visual_VH.split(lengths)])
        summaries = [
            self._summaries(map_VH, query_H, lengths) for map_VH, query_H in zip(maps, self.queries, strict=True)
        ]
        means_IKH = means_IH[:, None].expand(-1, len(maps), -1)
        given_IKG = torch.cat([torch.stack(summaries, 1), means_IKH], -1)
        opened_IK = self.linear_2(self.act(self.linear_1(given_IKG)))[..., 0]
        # The same function of the same shape, so that they cancel to the last bit.
        gates_IK = (opened_IK + SHUT).sigmoid() - (torch.zeros_like(opened_IK) + SHUT).sigmoid()
        gates_VK = torch.cat([gates.expand(length, -1) for gates, length in zip(gates_IK, lengths, strict=True)])
        delta_VH = torch.zeros_like(visual_VH)
        for number, map_VH in enumerate(maps):
            delta_VH = delta_VH + gates_VK[:, number, None] * map_VH
        return delta_VH

    def _summaries(self, map_VH: torch.Tensor, query_H: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """u_k of every image, (I, H); zero of one without tokens."""
        scores_VE = map_VH @ query_H[:, None] * query_H.shape[0] ** -0.5
        images = zip(scores_VE.split(lengths), map_VH.split(lengths), strict=True)
        return torch.cat([scores.softmax(0).T @ image for scores, image in images])


class CliReconstruction(Fusion[CliReconstructionConfig, int]):
    """A correction for each state, and a gate for each layer of the language model that is injected before."""

    def __init__(self, config: CliReconstructionConfig, sizes: Sizes):
        super().__init__(config, sizes)
        self.vision_layers, self.injection_layers = named(config.vision_layers), named(config.injection_layers)
        self.corrections = nn.ModuleList(
            Correction(sizes.vision_width, config.rank, sizes.text_width) for _ in self.vision_layers
        )
        self.gates = nn.ModuleList(Gate(len(self.vision_layers), sizes.text_width) for _ in self.injection_layers)

    @classmethod
    def cost(cls, config: CliReconstructionConfig, sizes: Sizes) -> FusionCost:
        """Projections and corrections of a crop; attention and sums of a token, and the MLP of an image."""
        states, gates = len(named(config.vision_layers)), len(named(config.injection_layers))
        tokens, width = states * sizes.crop_tokens, sizes.text_width
        attention, mlp = 2 * gates * states * width, 2 * gates * states * (width // 4)
        return FusionCost(
            maps=len(config.tower_layers(sizes.vision_layers)) - 1,
            kept=tokens * (config.rank + width),
            first_layer=named(config.injection_layers)[0],
            products=(
                Product(2 * tokens * sizes.vision_width * config.rank, (WEIGHTS, STATES)),
                Product(2 * tokens * config.rank * width, (WEIGHTS, WEIGHTS | STATES)),
                Product(attention, (WEIGHTS, PACKED), "visual_token"),  # scores
                Product(attention, (PACKED, PACKED), "visual_token"),
                Product(mlp * (2 * width + 1), (WEIGHTS, HIDDEN), "shown"),
            ),
            sums=(Product(attention, (HIDDEN, PACKED), "visual_token"),),
        )

    @property
    def packed_keys(self) -> tuple[int, ...]:
        """The states, whose V' is packed."""
        return self.vision_layers

    def to_pack(self, crops: Crops) -> dict[int, Packable]:
        """V' of all crops; at newlines the newline."""
        newlines, packables = crops.newline.expand(crops.num_samples, -1), {}
        for correction, layer in zip(self.corrections, self.vision_layers, strict=True):
            state = crops.states[layer]
            projected = crops.visual if layer == self.visual_layer else crops.project(state)
            corrected = projected + correction(state).to(projected.device)  # as accelerate has them on several
            packables[layer] = Packable(corrected, newlines)
        return packables

    def deltas(self, packed: dict[int, torch.Tensor], context: Context) -> dict[int, Delta]:
        """Each gate's, made of the hidden states before its layer."""
        maps = [packed[layer] for layer in self.vision_layers]

        def added(number: int, hidden_states: torch.Tensor) -> torch.Tensor:
            visual_VH = hidden_states.index_select(0, context.positions.to(hidden_states.device)).to(maps[0])
            return self.gates[number](visual_VH, maps, context.lengths)

        return {layer: partial(added, number) for number, layer in enumerate(self.injection_layers)}
