"""ManagerTower, BridgeTower and METER: three values of config.bridge.

input_ids (B, L)                                    pixel_values (B, 3, S, S)
    │ text_tower            RoBERTa, all layers         │ image_tower           CLIP's ViT, all layers
    │ the last N_text layers                            │ the last N_image layers, each through the final LayerNorm
    │ text_projection, to width D                       │ image_projection
    │ + type of text, + embedding of the layer          │ + type of the (first, second) image, + of the layer
    │                                                   │
 text experts (N_text, B, L, D)                      image experts (N_image, B, P, D)
    │                                                   │
    │       ┌── cross-modal layer l = 1..L_C ───────────────────────────────────────┐
    ├──────>│ text_bridge ─> x ──> text block <── y ─┐  ┌─ x ──> image block <── y <── image_bridge │<──────┤
    │       └──────────── C^T_l, C^V_l go into the bridges of layer l + 1 ──────────┘
    │                                                   │
 text_features (B, L, D)                             image_features (B, P, D)
    │ text_pooler: tanh(linear of the first token)      │ image_pooler
    └────────────────────── pooled (B, 2D) ─────────────┘ ──> heads of the task

A bridge makes what enters a block: a manager of the paper's section III weighs the experts and the previous layer's
states (llava/two_tower/managers.py), BridgeTower's adds the previous states to one expert, METER's hands on what the
layer before made and has one expert, the last layer, which may be a gated sum of all (bridges.py).

Embeddings of layers are ManagerTower's alone. Retrieval's ITC compares the towers' own first tokens, without any of
the above, so that the towers of n images and m texts run n + m times; encode_text, encode_image and fuse are apart.

Shapes: B examples, L text tokens, P image tokens (class token and patches), D hidden_size, W_T and W_V the towers'
widths, N experts, L_C cross-modal layers.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from llava.fusion.base import SelfInitialised
from llava.two_tower.bridges import LayerGate
from llava.two_tower.configuration import TwoTowerConfig
from llava.two_tower.cross_modal import CrossModalEncoder
from llava.two_tower.heads import ContrastiveHead, make_heads
from llava.two_tower.objectives import OBJECTIVES, Items, divided
from llava.two_tower.towers import KeptStates, image_states, make_image_tower, make_text_tower, text_states

LayersOf = Callable[..., list[torch.Tensor]]  # a tower's last layers, of its inputs


@dataclass
class Encoded:
    """What a tower made of B texts or images.

    states: (N, B, L or P, D), the experts. cls: (B, W), the tower's own last first token, for ITC.
    """

    states: torch.Tensor
    cls: torch.Tensor

    def rows(self, index: torch.Tensor) -> "Encoded":
        """Of these examples, (b,) each from 0 to B - 1."""
        return Encoded(self.states.index_select(1, index), self.cls.index_select(0, index))


@dataclass
class TwoTowerOutput(ModelOutput):
    """text_features: (B, L, D). image_features: (B, P, D). pooled: (B, 2D), of text and image."""

    text_features: torch.Tensor | None = None
    image_features: torch.Tensor | None = None
    pooled: torch.Tensor | None = None


@dataclass
class TaskOutput(ModelOutput):
    """What forward returns.

    loss: of all objectives, summed; None where the batch has no labels. losses: of each, by name. logits: of a
    classification (B, labels), of ITM (pairs, 2) otherwise.
    """

    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None


class TwoTowerPreTrainedModel(PreTrainedModel):
    """What transformers has to know of the model."""

    config: TwoTowerConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["CrossModalLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Linear layers and embeddings N(0, initializer_range); some of ours know how they begin."""
        super()._init_weights(module)
        if isinstance(module, SelfInitialised):
            module.initialise()


class TwoTowerModel(TwoTowerPreTrainedModel):
    """Towers, bridges and cross-modal encoder, without heads."""

    def __init__(self, config: TwoTowerConfig):
        super().__init__(config)
        width, text, vision = config.hidden_size, config.text_config, config.vision_config
        self.text_tower: PreTrainedModel = make_text_tower(text)
        self.image_tower: PreTrainedModel = make_image_tower(vision)
        self.text_gate = LayerGate(text.hidden_size) if config.gated_fusion else None
        self.image_gate = LayerGate(vision.hidden_size) if config.gated_fusion else None
        self.text_projection = nn.Linear(text.hidden_size, width)
        self.image_projection = nn.Linear(vision.hidden_size, width)
        self.type_embedding = nn.Embedding(config.num_types, width)
        has_layers = config.bridge == "manager"
        self.text_layer_embedding = nn.Embedding(text.num_hidden_layers, width) if has_layers else None
        self.image_layer_embedding = nn.Embedding(vision.num_hidden_layers, width) if has_layers else None
        self.cross_modal = CrossModalEncoder(config)
        self.text_pooler = nn.Linear(width, width)
        self.image_pooler = nn.Linear(width, width)
        self._kept: dict[str, LayersOf] = {}
        self.post_init()

    def train(self, mode: bool = True) -> "TwoTowerModel":
        """As of any module, but a tower of which nothing learns stays as it answers, without dropout."""
        super().train(mode)
        for tower in (self.text_tower, self.image_tower):
            if not any(parameter.requires_grad for parameter in tower.parameters()):
                tower.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Of words."""
        return self.text_tower.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Of words."""
        self.text_tower.set_input_embeddings(value)

    def keep_states(self, towers: Collection[str]) -> None:
        """From now on each input goes through these towers once, of which nothing may learn.

        towers: of `text`, which needs config.mask_padding, since states at padding are not kept, and `image`.
        """
        kept: dict[str, LayersOf] = {
            "text": KeptStates(self._text_layers).of_texts,
            "image": KeptStates(self._image_layers).of_images,
        }
        self._kept = {name: kept[name] for name in towers}

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Encoded:
        """Texts by themselves. input_ids, attention_mask: (B, L); the mask is 0 at padding."""
        layers = self._layers("text", input_ids, attention_mask)
        states = self._experts(layers, self.text_gate, self.text_projection, self.text_layer_embedding)
        return Encoded(states + self.type_embedding.weight[0], layers[-1][:, 0])

    def encode_image(self, pixel_values: torch.Tensor, image_type: int = 1) -> Encoded:
        """Images by themselves. pixel_values: (B, 3, S, S). image_type: 2 for the second image of an example."""
        layers = self._layers("image", pixel_values)
        states = self._experts(layers, self.image_gate, self.image_projection, self.image_layer_embedding)
        return Encoded(states + self.type_embedding.weight[image_type], layers[-1][:, 0])

    def _layers(self, tower: str, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """A tower's last layers, (B, L or P, W) each, computed or kept."""
        computed: dict[str, LayersOf] = {"text": self._text_layers, "image": self._image_layers}
        return (computed | self._kept)[tower](*inputs)

    def _text_layers(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[torch.Tensor]:
        return text_states(self.text_tower, input_ids, attention_mask, self.config.num_read("text"))

    def _image_layers(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        return image_states(self.image_tower, pixel_values, self.config.num_read("image"))

    def _experts(
        self,
        layers: list[torch.Tensor],
        gate: nn.Module | None,
        projection: nn.Module,
        layer_embedding: nn.Embedding | None,
    ) -> torch.Tensor:
        """(N, B, L or P, D) of a tower's last layers, (B, L or P, W) each."""
        projected = projection(torch.stack(layers if gate is None else [gate(layers)]))
        if layer_embedding is None:
            return projected
        return projected + layer_embedding.weight[-len(layers) :, None, None]

    def fuse(self, text: Encoded, image: Encoded, attention_mask: torch.Tensor) -> TwoTowerOutput:
        """B texts with B images. attention_mask: of the texts, (B, L)."""
        text_mask = attention_mask.bool()[:, None, None]
        text_features, image_features = self.cross_modal(text.states, image.states, text_mask)
        pooled = [self.text_pooler(text_features[:, 0]).tanh(), self.image_pooler(image_features[:, 0]).tanh()]
        return TwoTowerOutput(text_features, image_features, torch.cat(pooled, dim=-1))

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: torch.Tensor, image_type: int = 1
    ) -> TwoTowerOutput:
        """B pairs; see encode_text, encode_image and fuse."""
        text = self.encode_text(input_ids, attention_mask)
        return self.fuse(text, self.encode_image(pixel_values, image_type), attention_mask)


class TwoTowerForTask(TwoTowerPreTrainedModel):
    """The model with the heads and objectives of config.task."""

    def __init__(self, config: TwoTowerConfig):
        super().__init__(config)
        self.model = TwoTowerModel(config)
        self.heads = make_heads(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Of words."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Of words."""
        self.model.set_input_embeddings(value)

    @property
    def contrastive(self) -> ContrastiveHead:
        """ITC's head, of retrieval."""
        return cast(ContrastiveHead, self.heads["itc"])

    def match(self, text: Encoded, image: Encoded, attention_mask: torch.Tensor) -> torch.Tensor:
        """ITM logits of B texts with B images, (B, 2); class 1 is that they belong together."""
        return self.heads["itm"](self.model.fuse(text, image, attention_mask).pooled)

    def classify(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits of the task's labels, (B, labels). batch: see forward; of NLVR2 with pixel_values_2."""
        mask = batch["attention_mask"]
        text = self.model.encode_text(batch["input_ids"], mask)
        images = [batch["pixel_values"], *([batch["pixel_values_2"]] if "pixel_values_2" in batch else [])]
        pooled = [
            self.model.fuse(text, self.model.encode_image(pixels, number), mask).pooled
            for number, pixels in enumerate(images, start=1)
        ]
        return self.heads["classifier"](torch.cat(pooled, dim=-1))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values: torch.Tensor,
        num_items_in_batch: Items | None = None,
        **fields: Any,
    ) -> TaskOutput:
        """The task's losses and logits.

        input_ids, attention_mask: (B, L). pixel_values: (B, 3, S, S). fields: what the task needs beside them, see
        llava/two_tower/tasks.py; without labels (an evaluation of unlabelled examples) there is no loss.
        num_items_in_batch: {objective: what its sum is divided by, over all ranks and micro-batches of a step}, see
        llava/two_tower/objectives.py; without it the ranks add up their own.
        """
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values, **fields}
        result = OBJECTIVES[self.config.task](self, batch)
        losses = divided(result.parts, num_items_in_batch)
        loss = torch.stack(list(losses.values())).sum() if losses else None
        return TaskOutput(loss, losses or None, result.logits)


if __name__ == "llava.two_tower.modeling":  # not in a copy beside exported weights, which transformers registers
    AutoConfig.register(TwoTowerConfig.model_type, TwoTowerConfig)
    AutoModel.register(TwoTowerConfig, TwoTowerModel)
