"""How much memory a GPU will need, estimated from sizes alone, and how long the run will take.

Activations are rough: they follow the tensors that autograd keeps of the layers of towers and language models. Neither
the allocator's fragmentation nor CUDA's own 0.5 to 1 GB are in the sum.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedConfig

from llava.anyres import ImageLayout, image_layout
from llava.mllm import LlavaOVManagerConfig
from llava.mllm.head import CHUNK
from llava.mllm.kinds import NORMS_QUERIES_AND_KEYS, head_width, leading_tokens, mlp_sizes
from llava.sizes import UNITS, duration, in_bytes, unit_of
from llava.text_table import text_table
from llava.train.estimate.sharding import FP32, STATES, Estimate, Strategy, estimate, strategies
from llava.train.family import StageRecipe
from llava.train.loop.components import ADAPTERS, Component
from llava.train.recipe.schema import Recipe, named_components


@dataclass(frozen=True)
class Work:
    """What a process has in memory at once: samples of a micro-batch, with tokens, crops, supervised tokens of each.

    Numbers, or arrays of them for many micro-batches.
    """

    samples: int
    tokens: int | np.ndarray
    crops: int | np.ndarray
    supervised: int | np.ndarray

    @classmethod
    def of(cls, recipe: Recipe, image: ImageLayout) -> "Work":
        """The recipe's typical sample, all of its text supervised."""
        data = recipe.data
        tokens = min(image.num_tokens + data.expected_text_tokens, data.max_length)
        return cls(recipe.optim.batch_size, tokens, image.num_crops, data.expected_text_tokens)


def expected_image(recipe: Recipe, config: LlavaOVManagerConfig) -> ImageLayout:
    """How the recipe's typical image is cut."""
    return image_layout(
        *recipe.data.expected_image,
        config.tiling,
        tile=config.vision_config.image_size,
        side=config.patches_per_side,
        several_images=False,
    )


Activations = Callable[[Work], float | np.ndarray]  # their bytes


def activation_bytes(
    config: LlavaOVManagerConfig, work: Work, trained: Sequence[str], width: int, checkpointed: Collection[str]
) -> float:
    """What autograd keeps of one micro-batch, roughly; a frozen tower keeps nothing but the states that are used.

    trained: names of the components that train; checkpointed: of those that the backward pass computes again. While it
    does, one layer of them is held whole.
    """
    vision, text = config.vision_config, config.text_config
    tokens, patches = work.samples * work.tokens, work.samples * work.crops * config.patches_per_side**2
    fusion = config.fusion.implementation().cost(config.fusion, config.sizes)
    states, maps = len(config.fusion.tower_layers(vision.num_hidden_layers)), 1 + fusion.maps

    # Whatever trains lies in front of the language model or in it: gradients pass all of its layers.
    layer = tokens * _text_layer(text, "language_model" in trained, width)
    if "language_model" in checkpointed:
        kept = text.num_hidden_layers * tokens * text.hidden_size + layer
    else:
        kept = text.num_hidden_layers * layer
    in_tower = patches + work.samples * work.crops * leading_tokens(vision)
    layer = in_tower * _tower_layer(vision)
    if "vision_tower" in trained:
        layers = vision.num_hidden_layers
        kept += layers * in_tower * vision.hidden_size + layer if "vision_tower" in checkpointed else layers * layer
    else:
        kept += states * patches * vision.hidden_size
    in_front = {"vision_tower", "projector", *(["fusion"] if fusion.before_projector else [])}
    if in_front & set(trained):
        # Behind the first matrix, the activation, the second; checkpointed, all three of one map and the last of all.
        extra = work.samples * work.crops * config.tiling.extra_tokens
        projected = maps * patches + extra
        inside = patches + extra if "projector" in checkpointed else projected
        width_in = config.fusion.visual_width(config.sizes)
        kept += patches * width_in if width_in != vision.hidden_size else 0  # states beside each other are a copy
        kept += projected * text.hidden_size + 2 * inside * config.fusion.hidden_width(config.sizes)
    if {"vision_tower", "fusion"} & set(trained):
        kept += work.samples * work.crops * fusion.kept
    # A map of tiles that is shrunk leaves fewer visual tokens than its crops have patches.
    kept += np.minimum(tokens, patches) * fusion.kept_of_token
    # Of a chunk the logits in the precision, then in fp32 with their logarithms, then their gradient; and the gradient
    # of the head, which is there before the backward pass begins.
    supervised = work.samples * work.supervised
    head = np.minimum(supervised, CHUNK) * text.vocab_size * (width + 3 * FP32)
    if "language_model" in trained:
        head += text.vocab_size * text.hidden_size * np.where(supervised <= CHUNK, width, FP32)
    return width * kept + head


def _text_layer(text: PreTrainedConfig, trained: bool, width: int) -> int:
    """Values that a layer keeps for a token: of norms (each in fp32 and scaled), attention and the MLP.

    Inputs of its matrices are kept only when these train.
    """
    hidden = text.hidden_size
    queries, keys = (head_width(text) * heads for heads in (text.num_attention_heads, text.num_key_value_heads))
    normed = 2 * hidden + (queries + keys if text.model_type in NORMS_QUERIES_AND_KEYS else 0)
    norms = (FP32 // width + 1) * normed
    attention, mlp = 2 * queries + 2 * keys, 3 * text.intermediate_size
    inputs = 2 * hidden + queries + text.intermediate_size if trained else 0
    return norms + attention + mlp + inputs


def _tower_layer(vision: PreTrainedConfig) -> int:
    """Values that a trained layer keeps for a token: norms, attention, inputs of the matrices, the MLP.

    CLIP's activation is a product, DINOv2's SwiGLU one of two matrices; DINOv2 scales what attention and MLP add.
    """
    matrices, inside = mlp_sizes(vision)
    activations = 4 if matrices == 3 else 3 if vision.hidden_act == "quick_gelu" else 2
    scaled = 2 if "layerscale_value" in vision.to_dict() else 0
    return (9 + scaled) * vision.hidden_size + activations * inside


def precision_width(recipe: StageRecipe) -> int:
    """Bytes of a number; `auto` is bf16 on the GPUs that this is for."""
    return FP32 if recipe.run.precision == "fp32" else 2


def recipe_activations(recipe: Recipe, components: Sequence[Component], config: LlavaOVManagerConfig) -> Activations:
    """A function of work to the bytes of its activations, as the recipe trains."""
    trained = [component.name.removesuffix(ADAPTERS) for component in components if component.trained]
    checkpointed = named_components(recipe.run.gradient_checkpointing)
    return lambda work: activation_bytes(config, work, trained, precision_width(recipe), checkpointed)


def describe_memory(
    recipe: Recipe, components: Sequence[Component], config: LlavaOVManagerConfig, image: ImageLayout, processes: int
) -> str:
    """The estimated memory of each process, as text: what is assumed, and the table. image: of a typical sample."""
    work, checkpointed = Work.of(recipe, image), named_components(recipe.run.gradient_checkpointing)
    at_once = (
        f"{work.samples} x {work.tokens:,} tokens and {work.samples} x {work.crops} crops at once, "
        f"checkpointed: {', '.join(checkpointed) or 'nothing'}"
    )
    activations = float(recipe_activations(recipe, components, config)(work))
    width, first_alone = config.text_config.hidden_size, recipe.lora.base == "full"
    return memory_text(recipe, components, processes, width, activations, at_once=at_once, first_alone=first_alone)


def memory_text(
    recipe: StageRecipe,
    components: Sequence[Component],
    processes: int,
    hidden_size: int,
    activations: float,
    *,
    at_once: str,
    first_alone: bool,
) -> str:
    """What is assumed, what the host needs, and the table.

    Args:
        recipe: of the stage.
        components: what trains of the model.
        processes: of the run.
        hidden_size: by which DeepSpeed sizes its buffers.
        activations: their bytes.
        at_once: of what, in words.
        first_alone: whether the first process alone loads the weights.
    """
    width = precision_width(recipe)
    shown, used = strategies(recipe.run.deepspeed, hidden_size)
    estimates = [estimate(strategy, components, processes, width, activations) for strategy in shown]
    assumed = f"{'bf16' if width < FP32 else 'fp32'}, {processes} processes, {at_once}; * is this recipe's"
    whole = FP32 * sum(component.num_parameters for component in components)
    who = "the first process alone holds" if first_alone else "every process holds"
    loading = f"host        while the model is loaded {who} it in float32 there: {in_bytes(whole)}"
    return f"memory      estimated for {assumed}\n{loading}\n\n{memory_table(estimates, used)}"


def memory_table(estimates: Sequence[Estimate], used: Strategy) -> str:
    """GB per GPU (MB of a small model): a row for each component, then the same states by kind, activations, the sum.

    What would round to 0.00 of that unit has its own. The strategy of the recipe is marked with a star.
    """
    unit = unit_of(max(estimate.total for estimate in estimates))

    def cell(number: float) -> str:
        if number == 0:
            return "0"
        text = f"{number / UNITS[unit]:.2f}"
        return text if float(text) else in_bytes(number)

    def title(strategy: Strategy) -> str:
        return f"{strategy.name} *" if strategy == used else strategy.name

    rows = [(f"{unit} per GPU", *(title(estimate.strategy) for estimate in estimates))]
    for name in estimates[0].states:
        rows.append((f"states of {name}", *(cell(sum(estimate.states[name].values())) for estimate in estimates)))
    for kind in STATES:
        rows.append((f"  their {kind}", *(cell(sum(p[kind] for p in e.states.values())) for e in estimates)))
    rows.append(("buffers", *(cell(estimate.buffers) for estimate in estimates)))
    rows.append(("activations, roughly", *(cell(estimate.activations) for estimate in estimates)))
    rows.append(("sum", *(cell(estimate.total) for estimate in estimates)))
    if any(estimate.host for estimate in estimates):
        rows.append(("on the host, a process", *(cell(estimate.host) for estimate in estimates)))
    return text_table(rows, right=[False, True])


def time_line(tokens: int, tokens_per_second: float | None) -> str:
    """How long `tokens` take at the speed of all processes together, or how to learn it."""
    if tokens_per_second is None:
        return "unknown; give --tokens_per_second N, of all processes together, as a run prints it behind its tokens"
    return f"about {duration(tokens / tokens_per_second)} at {tokens_per_second:,.0f} tokens a second"
