"""What a sample costs, in floating-point operations, from the model's sizes alone.

A multiplication and an addition count as two. Embeddings, norms and activation functions are left out (well under 1%),
and so is whatever gradient checkpointing computes twice. What fusion costs, its method says: Fusion.cost. Products of
matrices are exact, and weighted sums of layers are counted, too; a backward pass costs what has a gradient there.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from llava.mllm.configuration import LlavaOVManagerConfig
from llava.mllm.kinds import head_width, leading_tokens, mlp_sizes


@dataclass(frozen=True)
class Cost:
    """Operations per unit of work.

    crop: tower, projector (every map that is needed) and fusion. token: the language model's matrices. token_pair:
    its attention, per squared token of a sequence; the causal half alone is counted. supervised: the head.
    The others are what fusion computes inside the language model, 0 for most methods: visual_token, visual_pair: per
    visual token and per squared visual token of an image. shown: per image and video. question_token, question_pair:
    per token of the question about one, which is its own tokens where nothing is asked, and per visual token and token
    of its question.
    """

    crop: int
    token: int
    token_pair: int
    supervised: int
    visual_token: int = 0
    visual_pair: int = 0
    shown: int = 0
    question_token: int = 0
    question_pair: int = 0

    def __call__(
        self,
        crops: Any,
        tokens: Any,
        supervised: Any,
        token_pairs: Any = None,
        visual_tokens: Any = None,
        visual_pairs: Any = None,
        shown: Any = None,
        question_tokens: Any = None,
        question_pairs: Any = None,
    ) -> Any:
        """Operations of one sample, given numbers; of each of many, given arrays.

        token_pairs: the squared tokens; they must be given where `tokens` is a sum over sequences. visual_tokens: those
        among `tokens`. visual_pairs, question_tokens, question_pairs: of each image or video its squared tokens, those
        of its question, and the product of both numbers, added up. shown: how many images and videos. Each of these may
        be left out where it costs nothing. Raises ValueError where it may not.
        """
        pairs = tokens**2 if token_pairs is None else token_pairs
        cost = self.crop * crops + self.token * tokens + self.token_pair * pairs + self.supervised * supervised
        inside = {
            "visual_tokens": (self.visual_token, visual_tokens),
            "visual_pairs": (self.visual_pair, visual_pairs),
            "shown": (self.shown, shown),
            "question_tokens": (self.question_token, question_tokens),
            "question_pairs": (self.question_pair, question_pairs),
        }
        needed = {name: (of_one, number) for name, (of_one, number) in inside.items() if of_one}
        if missing := [name for name, (_, number) in needed.items() if number is None]:
            raise ValueError(f"this fusion computes inside the language model: {', '.join(missing)} must be given")
        return cost + sum(of_one * number for of_one, number in needed.values())


def forward_cost(config: LlavaOVManagerConfig) -> Cost:
    """Operations of a forward pass."""
    return training_cost(config, ())


def training_cost(config: LlavaOVManagerConfig, trained: Collection[str]) -> Cost:
    """Operations of a forward and a backward pass.

    trained: names of the components that train, see llava.train.loop.components. A product of weights and activations
    costs one more in the backward pass where the weights train, and one where something in front of it does. Where
    fusion trains alone, that goes back to the first layer of the language model that it reaches.
    """
    tower, projector, fusion, text = (
        name in trained for name in ("vision_tower", "projector", "fusion", "language_model")
    )
    anything = bool(trained)
    patches, layers = _tower(config)
    method = config.fusion.implementation().cost(config.fusion, config.sizes)
    first, second = _projector(config, 1 + method.maps)
    behind_fusion = (fusion and method.before_projector) or (text and config.fusion.guided)
    text_layers = config.text_config.num_hidden_layers
    behind = text_layers - (method.first_layer if set(trained) == {"fusion"} else 0) if anything else 0
    units: Counter[str] = Counter()
    for product in (*method.products, *method.sums):
        units[product.unit] += product.trained(trained)
    return Cost(
        crop=patches * (1 + tower)
        + layers * (1 + 2 * tower)
        + first * (1 + projector + (tower or behind_fusion))
        + second * (1 + projector + (projector or tower or behind_fusion))
        + units["crop"],
        token=_text_layer(config) * (text_layers * (1 + text) + behind),
        token_pair=_text_attention(config) * (text_layers + 2 * behind),
        supervised=2 * config.text_config.hidden_size * config.text_config.vocab_size * (1 + text + anything),
        visual_token=units["visual_token"],
        visual_pair=units["visual_pair"],
        shown=units["shown"],
        question_token=units["question_token"],
        question_pair=units["question_pair"],
    )


def _tower(config: LlavaOVManagerConfig) -> tuple[int, int]:
    """Of one crop: the embedding of patches, and all layers (matrices of attention and MLP, attention itself)."""
    vision, patches = config.vision_config, config.patches_per_side**2
    width = vision.hidden_size
    embedding = 2 * vision.num_channels * vision.patch_size**2 * width
    in_mlp, mlp_width = mlp_sizes(vision)
    matrices = 2 * (4 * width**2 + in_mlp * width * mlp_width)
    tokens = leading_tokens(vision) + patches
    return patches * embedding, tokens * vision.num_hidden_layers * (matrices + 4 * tokens * width)


def _projector(config: LlavaOVManagerConfig, maps: int) -> tuple[int, int]:
    """Of one crop: the first and the second matrix, over the visual input and whatever else passes them."""
    tokens, sizes = maps * config.patches_per_side**2 + config.tiling.extra_tokens, config.sizes
    width = config.fusion.hidden_width(sizes)
    return 2 * tokens * config.fusion.visual_width(sizes) * width, 2 * tokens * width * sizes.text_width


def _text_layer(config: LlavaOVManagerConfig) -> int:
    """Of one token in one layer: query, key, value and output matrices and three of the MLP."""
    text = config.text_config
    queries, keys = (head_width(text) * heads for heads in (text.num_attention_heads, text.num_key_value_heads))
    return 2 * text.hidden_size * (2 * queries + 2 * keys + 3 * text.intermediate_size)


def _text_attention(config: LlavaOVManagerConfig) -> int:
    """Of one token pair in one layer: scores and weighted values, 4 operations a channel; causality leaves half."""
    return 2 * head_width(config.text_config) * config.text_config.num_attention_heads
