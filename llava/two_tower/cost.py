"""What a pair costs a two-tower model, in floating-point operations, from its sizes alone.

A multiplication and an addition count as two. Embeddings, norms, softmaxes and activation functions are left out.
Shapes: L text tokens, P image tokens, N experts of a tower, D the hidden size, W a tower's width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava.constants import MASKED_WORDS
from llava.two_tower.configuration import STATIC_KINDS, TwoTowerConfig
from llava.two_tower.tasks import TASKS


@dataclass(frozen=True)
class Passes:
    """How often a task runs the parts for one pair in a step."""

    texts: int
    images: float
    fusions: int


PASSES = {
    "pretrain": Passes(texts=2, images=1.5, fusions=2),  # masked words; whole ones, half of them with a false image
    "vqav2": Passes(1, 1, 1),
    "snli_ve": Passes(1, 1, 1),
    "nlvr2": Passes(1, 2, 2),
    "retrieval": Passes(1, 1, 3),  # of all ranks' negatives the towers run once more where there are several ranks
}


def image_tokens(config: TwoTowerConfig) -> int:
    """P: the class token and one a patch."""
    return 1 + (config.vision_config.image_size // config.vision_config.patch_size) ** 2


def forward_costs(config: TwoTowerConfig, text_length: int, masked: int | None = None) -> dict[str, int]:
    """Operations of one pair's forward passes in a step, by component, see llava/two_tower/parts.py.

    masked: words to be found, of a task that has such; by default MASKED_WORDS of the text's.
    """
    passes, text, vision = PASSES[config.task], config.text_config, config.vision_config
    length, patches = text_length, image_tokens(config)
    width, vocabulary = config.hidden_size, text.vocab_size
    pixels = 3 * vision.patch_size**2
    kept = {"text": config.num_kept("text"), "image": config.num_kept("image")}
    fused = sum(
        config.cross_modal_layers * (_block(config, tokens, other)) + _bridges(config, tokens, other, kept[name])
        for name, tokens, other in (("text", length, patches), ("image", patches, length))
    )
    projected = (
        2
        * width
        * (
            passes.texts * kept["text"] * length * text.hidden_size
            + passes.images * kept["image"] * patches * vision.hidden_size
        )
    )
    if config.gated_fusion:  # a gate of every layer but the last
        projected += passes.texts * (text.num_hidden_layers - 1) * 2 * length * text.hidden_size**2
        projected += passes.images * (vision.num_hidden_layers - 1) * 2 * patches * vision.hidden_size**2
    task = TASKS[config.task]
    pooled = 2 * width
    inside = pooled * config.head_width
    heads = {
        "mlm": (round(MASKED_WORDS * length) if masked is None else masked) * 2 * width * (width + vocabulary),
        "itm": 2 * pooled * 2,
        "itc": 2 * config.itc_width * (text.hidden_size + vision.hidden_size),
        "classifier": 2 * inside * (pooled * task.num_images + config.num_classes),
    }
    costs = {
        "text_tower": passes.texts * text.num_hidden_layers * _layer(text, length),
        "image_tower": passes.images
        * (vision.num_hidden_layers * _layer(vision, patches) + 2 * patches * pixels * vision.hidden_size),
        "cross_modal": projected + passes.fusions * (fused + 4 * width**2),
        "heads": sum(heads[name] for name in task.heads),
    }
    return {name: int(cost) for name, cost in costs.items()}


def training_cost(
    config: TwoTowerConfig, text_length: int, trained: Mapping[str, bool], masked: int | None = None
) -> int:
    """Operations of one pair's forward and backward passes in a step.

    masked: see forward_costs. trained: of each component, whether it learns. The backward pass costs a part once more
    for its weights, if these learn, and once for what is in front of it, if something there does.
    """
    costs = forward_costs(config, text_length, masked)
    towers = trained.get("text_tower", False) or trained.get("image_tower", False)
    in_front = {"cross_modal": towers, "heads": towers or trained.get("cross_modal", False)}
    return sum(
        cost * (1 + bool(trained.get(name)) + (in_front[name] if name in in_front else bool(trained.get(name))))
        for name, cost in costs.items()
    )


def _layer(tower: Any, tokens: int) -> int:
    """Of a tower's layer: four attention and two MLP matrices, and attention itself."""
    width = tower.hidden_size
    return tokens * (2 * (4 * width**2 + 2 * width * inner_width(tower)) + 4 * tokens * width)


def inner_width(tower: Any) -> int:
    """Of a tower's MLP; DINOv2's configuration has its ratio to the width."""
    if hasattr(tower, "intermediate_size"):
        return tower.intermediate_size
    return int(tower.hidden_size * tower.mlp_ratio)


def _block(config: TwoTowerConfig, tokens: int, other: int) -> int:
    """Of a cross-modal block: self-attention, cross-attention and MLP."""
    width = config.hidden_size
    matrices = tokens * 2 * (6 * width**2 + 2 * width * config.intermediate_size) + other * 2 * 2 * width**2
    return matrices + 4 * width * tokens * (tokens + other)


def _bridges(config: TwoTowerConfig, tokens: int, other: int, experts: int) -> int:
    """Of all bridges of one modality in front of its blocks; the sums of experts, and what chooses their weights."""
    width, layers = config.hidden_size, config.cross_modal_layers
    if config.bridge != "manager":
        return 0
    sums = layers * 2 * tokens * experts * width
    if config.manager_kind in STATIC_KINDS:
        return sums
    fused = config.query == "fused"
    query_width = width * (2 if fused else 1)
    queries = 2 * (tokens + other) * width**2 + 4 * tokens * other * width if fused else 0
    chosen = {
        "aaum": 2 * tokens * query_width * experts,
        "concat_attention": 2 * tokens * (query_width + experts * width) * width,
        "cross_attention": 2 * tokens * (query_width * width + experts * width * (width + 1)),
    }[config.manager_kind]
    return sums + (layers - 1) * (queries + chosen)
