"""IGVA, the instruction-guided vision aggregator (arXiv 2501.08443, section 4): the question weighs groups of layers.

    F_k = mean of the states of group k               k = 1 .. K, K = 4 groups of all layers
    x = A s,  f_k = B mean over tokens of F_k         s: mean input embedding of the question
    x <- LN(x + attention(x; f));  x <- LN(x + MLP x)           blocks of them, MLP = Linear, ReLU, Linear
    w = softmax(C x)                                  1 / K in the first stage
    visual input = [V_L ; sum_k w_k F_k]

Their s is made by a text encoder of its own (110 M parameters, frozen), their f_k of the tower's class token. Here s is
the mean of the language model's input embeddings of the question, the human text of the turn that holds the image, and
f_k a mean over the tokens, as SigLIP has no class token. Where there is no question w is 1 / K: so captions, which have
none, are the paper's first stage, in which the aggregator does not take part. Its baseline is the last state but one.

Shapes: C crops, T tokens per crop, D width of the tower's states, H of the language model's, K groups, E width of the
aggregator.
"""

import torch
from torch import nn
from transformers import initialization as init

from llava.fusion.base import (
    STATES,
    WEIGHTS,
    Fusion,
    FusionCost,
    Linear,
    Product,
    Questions,
    SelfInitialised,
    like_weight,
)
from llava.fusion.config import Sizes
from llava.fusion.configs.igva import IgvaConfig
from llava.fusion.layers import named
from llava.fusion.weighted_sum import weighted_sum


class AttentionLinear(SelfInitialised, nn.Linear):
    """One of attention's matrices, square; begins as torch's nn.MultiheadAttention does, with biases of zero.

    shared: whether torch has it in one matrix with two others, which is drawn as one.
    """

    def __init__(self, width: int, shared: bool):
        super().__init__(width, width)
        self.bound = (1.5 / width) ** 0.5 if shared else width**-0.5

    def initialise(self) -> None:
        """Uniform within the bound."""
        init.uniform_(self.weight, -self.bound, self.bound)
        init.zeros_(self.bias)


class Block(nn.Module):
    """Attention of one vector to the groups', and an MLP, each followed by a norm."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (AttentionLinear(width, shared=True) for _ in range(3))
        self.o_proj = AttentionLinear(width, shared=False)
        self.norm_1 = nn.LayerNorm(width)
        self.linear_1 = Linear(width, width)
        self.act = nn.ReLU()
        self.linear_2 = Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)

    def forward(self, asking_CE: torch.Tensor, groups_CKE: torch.Tensor) -> torch.Tensor:
        """(C, E)."""
        query = self.q_proj(asking_CE).unflatten(-1, (self.heads, 1, -1))
        keys = self.k_proj(groups_CKE).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        values = self.v_proj(groups_CKE).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        weights = (query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        attended = self.o_proj((weights.to(values) @ values).flatten(1))
        asking_CE = self.norm_1(asking_CE + attended)
        return self.norm_2(asking_CE + self.linear_2(self.act(self.linear_1(asking_CE))))


class Aggregator(nn.Module):
    """w of a question and the groups' pooled states."""

    def __init__(self, config: IgvaConfig, sizes: Sizes):
        super().__init__()
        self.question_proj = Linear(sizes.text_width, config.width)
        self.group_proj = Linear(sizes.vision_width, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.blocks))
        self.weigh = Linear(config.width, len(named(config.groups)))

    def forward(self, question_CH: torch.Tensor, pooled_CKD: torch.Tensor) -> torch.Tensor:
        """(C, H) and (C, K, D) to (C, K)."""
        question_CH, pooled_CKD = (like_weight(given, self.weigh.weight) for given in (question_CH, pooled_CKD))
        asking_CE, groups_CKE = self.question_proj(question_CH), self.group_proj(pooled_CKD)
        for block in self.blocks:
            asking_CE = block(asking_CE, groups_CKE)
        return self.weigh(asking_CE).softmax(-1)


class Igva(Fusion[IgvaConfig, str]):
    """The aggregator, and the sum that it weighs."""

    def __init__(self, config: IgvaConfig, sizes: Sizes):
        super().__init__(config, sizes)
        self.groups = config.grouped()
        self.aggregator = Aggregator(config, sizes)

    @classmethod
    def cost(cls, config: IgvaConfig, sizes: Sizes) -> FusionCost:
        """The aggregator's products, and the sum of all states; kept is, in float32, what the projector gets."""
        count, width = len(named(config.groups)), config.width
        question = frozenset({"language_model"})
        asking, keys = WEIGHTS | question, WEIGHTS | STATES
        products = [
            Product(2 * sizes.text_width * width, (WEIGHTS, question)),
            Product(2 * count * sizes.vision_width * width, (WEIGHTS, STATES)),
        ]
        for _ in range(config.blocks):
            products += [
                Product(2 * width**2, (WEIGHTS, asking)),  # query
                Product(4 * count * width**2, (WEIGHTS, keys)),  # keys and values
                Product(2 * count * width, (asking, keys)),
                Product(2 * count * width, (asking | keys, keys)),
                Product(6 * width**2, (WEIGHTS, asking | keys)),  # output and MLP
            ]
            asking = asking | keys
        operations = 2 * named(config.groups)[-1] * sizes.vision_width * sizes.crop_tokens
        return FusionCost(
            products=(*products, Product(2 * width * count, (WEIGHTS, asking))),
            sums=(Product(operations, (asking, STATES)),),
            kept=4 * sizes.vision_width * sizes.crop_tokens,
            before_projector=True,
        )

    def guided_visual_input(self, states: dict[int, torch.Tensor], questions: Questions) -> torch.Tensor:
        """(C, T, 2 D)."""
        last_CTD = states[self.visual_layer]
        pooled_CKD = torch.stack(
            [torch.stack([states[layer].float().mean(1) for layer in group]).mean(0) for group in self.groups], 1
        )
        weights_CK = self.aggregator(questions.means, pooled_CKD).to(last_CTD.device)
        present_C = questions.present & (self.config.aggregator == "question")
        weights_CK = torch.where(present_C[:, None], weights_CK, 1 / len(self.groups))
        # A weight of a group's mean is that of each of its states, divided by their number.
        each_CL = torch.cat(
            [
                weights_CK[:, number, None].expand(-1, len(group)) / len(group)
                for number, group in enumerate(self.groups)
            ],
            dim=1,
        )
        return torch.cat(
            [last_CTD, weighted_sum([states[layer] for group in self.groups for layer in group], each_CL)], -1
        )
