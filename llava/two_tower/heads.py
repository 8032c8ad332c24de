"""What a task has on top of the model. A row of llava/two_tower/tasks.py names its heads.

Shapes: B examples, L text tokens, D the hidden size, 2D the width of the pooled pair.
"""

import torch
from torch import nn
from transformers import initialization as init

from llava.fusion.base import SelfInitialised
from llava.two_tower.configuration import TwoTowerConfig
from llava.two_tower.tasks import TASKS

TEMPERATURES = (0.001, 0.5)  # of ITC, the least and the largest


class MaskedLanguageHead(nn.Module):
    """Words at masked places: dense, GELU, LayerNorm, and a decoder that is not tied to the embeddings."""

    def __init__(self, config: TwoTowerConfig):
        super().__init__()
        width = config.hidden_size
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(width, config.text_config.vocab_size)

    def forward(self, text_features: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., vocabulary)."""
        return self.decoder(self.norm(nn.functional.gelu(self.dense(text_features))))


class MatchingHead(nn.Linear):
    """ITM: (B, 2D) -> (B, 2), whether the image belongs to the text; class 1 is yes."""

    def __init__(self, config: TwoTowerConfig):
        super().__init__(2 * config.hidden_size, 2)


class ContrastiveHead(SelfInitialised):
    """ITC: the towers' own last [CLS] states, before projection and type, in one space, and what divides similarities.

    The reference's heads take hidden_size, so it needs towers of that width; these take each tower's.
    """

    def __init__(self, config: TwoTowerConfig):
        super().__init__()
        self.text = nn.Linear(config.text_config.hidden_size, config.itc_width)
        self.image = nn.Linear(config.vision_config.hidden_size, config.itc_width)
        self.temperature = nn.Parameter(torch.empty(1))
        self.first_temperature = config.itc_temperature

    def initialise(self) -> None:
        """The temperature as configured."""
        init.constant_(self.temperature, self.first_temperature)

    def embed_text(self, cls: torch.Tensor) -> torch.Tensor:
        """(B, W_T) -> (B, itc_width), of length one."""
        return nn.functional.normalize(self.text(cls), dim=-1)

    def embed_image(self, cls: torch.Tensor) -> torch.Tensor:
        """(B, W_V) -> (B, itc_width), of length one."""
        return nn.functional.normalize(self.image(cls), dim=-1)

    def similarity(self, texts: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """(texts, images): their products, divided by the temperature, which is kept within TEMPERATURES.

        A temperature beyond them has the gradient of one within, so that it finds back.
        """
        clamped = self.temperature + (self.temperature.clamp(*TEMPERATURES) - self.temperature).detach()
        return texts @ images.T / clamped


class Classifier(nn.Sequential):
    """Pooled pairs to labels: linear to 2D h, LayerNorm, GELU, linear. NLVR2's takes both images' pooled pairs."""

    def __init__(self, config: TwoTowerConfig):
        task = TASKS[config.task]
        pooled = 2 * config.hidden_size
        super().__init__(
            nn.Dropout(config.head_dropout),
            nn.Linear(pooled * task.num_images, pooled * config.head_width),
            nn.LayerNorm(pooled * config.head_width),
            nn.GELU(),
            nn.Linear(pooled * config.head_width, config.num_classes),
        )


HEADS: dict[str, type[nn.Module]] = {
    "mlm": MaskedLanguageHead,
    "itm": MatchingHead,
    "itc": ContrastiveHead,
    "classifier": Classifier,
}


def make_heads(config: TwoTowerConfig) -> nn.ModuleDict:
    """The heads of config.task, by name."""
    return nn.ModuleDict({name: HEADS[name](config) for name in TASKS[config.task].heads})
