"""TGIF, text-guided inter-layer fusion (arXiv 2601.03100): the question weighs the states of all layers.

    w = softmax(W2 ReLU(W1 q))                    q: mean input embedding of the question, W1 to 512, W2 to L
    visual input = LN(V_L + sum_l w_l V_l)        l = 1 .. L

Their q is the mean over the whole sequence: of the answer, too, in training, and of a made-up token for the image. Here
it is that of the question alone, the human text of the turn that holds the image, in training and at test. An image
without a question has q = 0, for which the biases choose. Their baseline is the last state but one, ours the last that
is used, as everywhere in this model. With the initialisation `zero`, which is not theirs, the visual input is
V_L + LN(..), the norm's weight and bias being zero at the start.

Shapes: C crops, T tokens per crop, D width of the tower's states, H of the language model's, L layers of the tower.
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
from llava.fusion.configs.tgif import TgifConfig
from llava.fusion.weighted_sum import weighted_sum

ROUTER_WIDTH = 512


class Router(nn.Module):
    """w of a question: Linear, ReLU, Linear, softmax."""

    def __init__(self, text_width: int, num_layers: int):
        super().__init__()
        self.linear_1 = Linear(text_width, ROUTER_WIDTH)
        self.act = nn.ReLU()
        self.linear_2 = Linear(ROUTER_WIDTH, num_layers)

    def forward(self, question_CH: torch.Tensor) -> torch.Tensor:
        """(C, H) to (C, L)."""
        question_CH = like_weight(question_CH, self.linear_1.weight)
        return self.linear_2(self.act(self.linear_1(question_CH))).softmax(-1)


class SumNorm(SelfInitialised, nn.LayerNorm):
    """The norm of the sum; a model that begins as the one without fusion begins with a norm of zero."""

    def __init__(self, width: int, zero: bool):
        super().__init__(width)
        self.zero = zero

    def initialise(self) -> None:
        """Ones, or zeros; and zeros."""
        init.constant_(self.weight, float(not self.zero))
        init.zeros_(self.bias)

    def forward(self, total_CTD: torch.Tensor) -> torch.Tensor:
        """(C, T, D)."""
        return super().forward(like_weight(total_CTD, self.weight))


class Tgif(Fusion[TgifConfig, str]):
    """The router, the sum and its norm."""

    def __init__(self, config: TgifConfig, sizes: Sizes):
        super().__init__(config, sizes)
        self.router = Router(sizes.text_width, sizes.vision_layers)
        self.norm = SumNorm(sizes.vision_width, config.initialisation == "zero")

    @classmethod
    def cost(cls, config: TgifConfig, sizes: Sizes) -> FusionCost:
        """The router's two products and the sum; kept are, in float32, the sum and its norm."""
        question = frozenset({"language_model"})
        operations = 2 * sizes.vision_layers * sizes.vision_width * sizes.crop_tokens
        return FusionCost(
            products=(
                Product(2 * sizes.text_width * ROUTER_WIDTH, (WEIGHTS, question)),
                Product(2 * ROUTER_WIDTH * sizes.vision_layers, (WEIGHTS, WEIGHTS | question)),
            ),
            sums=(Product(operations, (WEIGHTS | question, STATES)),),
            kept=4 * sizes.vision_width * sizes.crop_tokens,
            before_projector=True,
        )

    def guided_visual_input(self, states: dict[int, torch.Tensor], questions: Questions) -> torch.Tensor:
        """(C, T, D), in the precision of the norm."""
        last_CTD = states[self.visual_layer]
        weights_CL = self.router(questions.means).to(last_CTD.device)  # pieces of the model may be on several
        total_CTD = weighted_sum([states[layer] for layer in range(1, self.visual_layer + 1)], weights_CL)
        if self.config.initialisation == "zero":
            return last_CTD + self.norm(last_CTD + total_CTD).to(last_CTD.device)
        return self.norm(last_CTD + total_CTD)
