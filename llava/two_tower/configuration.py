"""The one configuration of a two-tower model (ManagerTower, BridgeTower, METER), saved as config.json."""

from typing import Any, get_args

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from llava.errors import LlavaError
from llava.two_tower.choices import Bridge, ManagerKind, Query, Weight
from llava.two_tower.parts import IMAGE_TOWERS, MODEL_TYPE, TEXT_TOWERS
from llava.two_tower.tasks import TASKS

CHOICES = {
    "bridge": get_args(Bridge),
    "manager_kind": get_args(ManagerKind),
    "query": get_args(Query),
    "weight": get_args(Weight),
    "task": tuple(TASKS),
}
STATIC_KINDS = ("sam", "sam_split", "saum")  # of managers, whose weights no query chooses
SUMMING_KINDS = ("sam", "sam_split")  # of managers, which weigh the states of all cross-modal layers before
# ManagerTower's towers: roberta-base, and CLIP's ViT-B/16 at the size of images in pre-training.
ROBERTA = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
CLIP = {"model_type": "clip_vision_model", "image_size": 288, "patch_size": 16, "hidden_act": "quick_gelu"}


class TwoTowerConfig(PreTrainedConfig):
    r"""Two towers, what bridges them, and a task's heads. The defaults are ManagerTower's at base size.

    Args:
        text_config (`RobertaConfig`, another BERT-like one or `dict`): the text tower.
        vision_config (`CLIPVisionConfig`, another ViT-like one or `dict`): the image tower, whose first token is a
            class token.
        bridge (`str`): how the towers' layers reach the cross-modal layers: `manager`, `bridge_tower` (layer by layer)
            or `meter` (the last layer alone).
        manager_kind (`str`): `sam`, `sam_split`, `saum`, `aaum`, `concat_attention` or `cross_attention` (Table I).
        query (`str`): by what adaptive managers choose weights: `own` modality's previous states, or `fused` with the
            other's.
        weight (`str`): a manager's learned weights are a `scalar` or a `vector` of hidden_size per state.
        text_layers, image_layers (`int`): N_text and N_image, how many of each tower's last layers managers get.
        cross_modal_layers (`int`): L_C.
        hidden_size, num_attention_heads, intermediate_size (`int`): of the cross-modal layers.
        hidden_dropout_prob, attention_probs_dropout_prob (`float`): of the cross-modal layers.
        layer_norm_eps (`float`): of the cross-modal layers and of the MLM head; the reference took 1e-12.
        initializer_range (`float`): standard deviation of new linear layers and embeddings.
        noise (`bool`): Gaussian noise on managers' scores in training (equation 7).
        mask_padding (`bool`): the fused query does not attend to padding; False is as the reference.
        gated_fusion (`bool`): METER's gated sum of all layers of a tower, which must be hidden_size wide.
        task (`str`): `pretrain`, `vqav2`, `snli_ve`, `nlvr2` or `retrieval`; a row of llava/two_tower/tasks.py.
        num_answers (`int`): of VQA.
        head_width (`int`): h, by which classification heads are wider than 2D.
        head_dropout (`float`): of what enters a classification head; the reference has it of NLVR2 alone.
        itc_width (`int`): of the space in which images and texts are compared.
        itc_temperature (`float`): the first value of what divides their similarity.

    Raises `LlavaError` for a value that a field does not take, both sides named.
    """

    model_type = MODEL_TYPE
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="roberta"),
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model"),
    }

    text_config: Any = None
    vision_config: Any = None
    bridge: str = "manager"
    manager_kind: str = "aaum"
    query: str = "fused"
    weight: str = "vector"
    text_layers: int = 6
    image_layers: int = 6
    cross_modal_layers: int = 6
    hidden_size: int = 768
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    noise: bool = True
    mask_padding: bool = True
    gated_fusion: bool = False
    task: str = "pretrain"
    num_answers: int = 3129
    head_width: int = 1
    head_dropout: float = 0.0
    itc_width: int = 256
    itc_temperature: float = 0.07
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = dict(ROBERTA) if self.text_config is None else self.text_config
        self.vision_config = dict(CLIP) if self.vision_config is None else self.vision_config
        super().__post_init__(**kwargs)
        for field, choices in CHOICES.items():
            if (value := vars(self)[field]) not in choices:
                raise LlavaError(f"{field} must be one of {', '.join(choices)}, found {value!r}")
        for field, types in (("text_config", TEXT_TOWERS), ("vision_config", IMAGE_TOWERS)):
            if (model_type := vars(self)[field].model_type) not in types:
                raise LlavaError(f"{field}: a tower is one of {', '.join(types)}, found {model_type!r}")
        self._check_layers("text", self.text_config)
        self._check_layers("image", self.vision_config)
        if self.hidden_size % self.num_attention_heads:
            raise LlavaError(f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads")
        if self.gated_fusion:
            self._check_gates()

    def _check_layers(self, tower: str, config: PreTrainedConfig) -> None:
        needed, has = self.num_kept(tower), config.num_hidden_layers
        field = "cross_modal_layers" if self.bridge == "bridge_tower" else f"{tower}_layers"
        if not 1 <= needed <= has:
            raise LlavaError(
                f"{field} is {needed}, but a {self.bridge} takes 1 to {has} layers of a {config.model_type} tower that "
                f"has {has}"
            )

    def _check_gates(self) -> None:
        if self.bridge != "meter":
            raise LlavaError(f"gated_fusion is METER's, but bridge is {self.bridge}")
        for tower in (self.text_config, self.vision_config):
            if tower.hidden_size != self.hidden_size:
                raise LlavaError(
                    f"gated_fusion adds states of hidden_size {self.hidden_size}, but the {tower.model_type} tower is "
                    f"{tower.hidden_size} wide"
                )

    def num_kept(self, tower: str) -> int:
        """How many of a tower's last layers the cross-modal layers get. tower: `text` or `image`."""
        managed = {"text": self.text_layers, "image": self.image_layers}[tower]
        return {"manager": managed, "bridge_tower": self.cross_modal_layers, "meter": 1}[self.bridge]

    def num_read(self, tower: str) -> int:
        """How many of a tower's last layers the model reads: of gated METER, which sums them, all."""
        towers = {"text": self.text_config, "image": self.vision_config}
        return towers[tower].num_hidden_layers if self.gated_fusion else self.num_kept(tower)

    @property
    def num_previous(self) -> int:
        """Of how many cross-modal layers before a bridge reads the states: SAM of all, every other of the last."""
        sums = self.bridge == "manager" and self.manager_kind in SUMMING_KINDS
        return self.cross_modal_layers if sums else 1

    @property
    def num_classes(self) -> int:
        """Labels that the task's classification head chooses from; 0 of a task without one."""
        labels = TASKS[self.task].num_labels
        return labels if labels is not None else self.num_answers

    @property
    def num_types(self) -> int:
        """Modality types: of the text and of each image of an example."""
        return 1 + TASKS[self.task].num_images
