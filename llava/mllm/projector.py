"""From the tower's width to the language model's: the projector and the newline vector."""

import torch
from torch import nn
from transformers import initialization as init

from llava.fusion.base import Linear, SelfInitialised, init_as_linear, like_weight


class FirstLinear(Linear):
    """A linear layer that begins as one of its first `drawn_width` channels alone: the others have no weight yet."""

    def __init__(self, in_features: int, out_features: int, drawn_width: int):
        super().__init__(in_features, out_features)
        self.drawn_width = drawn_width

    def initialise(self) -> None:
        """As torch's nn.Linear of `drawn_width` channels."""
        init_as_linear(self, self.drawn_width)
        others = self.in_features - self.drawn_width
        init.copy_(self.weight, nn.functional.pad(self.weight[:, : self.drawn_width], (0, others)))


class MultiModalProjector(nn.Module):
    """Linear, GELU, Linear (`mlp2x_gelu`); the visual input and every map that a method gives it pass through.

    The layers begin as torch's nn.Linear does (as LLaVA's projector), whatever the model's initializer_range.

    Args:
        vision_width: Of what it is given.
        text_width: Of what it returns.
        drawn_width: How many of the first channels it begins with; the others begin without weight. None for all.
        hidden_width: Between the two layers; None for the width that it returns.
    """

    def __init__(
        self, vision_width: int, text_width: int, drawn_width: int | None = None, hidden_width: int | None = None
    ):
        super().__init__()
        between = text_width if hidden_width is None else hidden_width
        self.linear_1 = FirstLinear(vision_width, between, drawn_width or vision_width)
        self.act = nn.GELU()
        self.linear_2 = Linear(between, text_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., vision_width) to (..., text_width)."""
        return self.linear_2(self.act(self.linear_1(like_weight(features, self.linear_1.weight))))


class ImageNewline(SelfInitialised):
    """The learned vector that ends a row of the image map.

    A module of its own, so that ZeRO-3 and FSDP gather the vector wherever it is used, also outside a model's forward.
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width) / width**0.5)

    def initialise(self) -> None:
        """N(0, 1/D)."""
        init.normal_(self.weight, std=self.weight.shape[-1] ** -0.5)

    def forward(self) -> torch.Tensor:
        """The vector, (text_width,)."""
        return self.weight.clone()
