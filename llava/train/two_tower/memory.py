"""How much memory a stage of the two towers will need, estimated from sizes: states as for the MLLM, and activations.

Activations follow the tensors that autograd keeps of a BERT-like layer: inputs of matrices, norms, attention. Roughly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llava.constants import MASKED_WORDS
from llava.data.pairs.dataset import PairSampler, Place
from llava.sizes import in_bytes
from llava.train.estimate.memory import memory_text, precision_width
from llava.train.estimate.sharding import FP32
from llava.train.loop.components import Component
from llava.train.two_tower.recipe import TwoTowerRecipe
from llava.two_tower.configuration import TwoTowerConfig
from llava.two_tower.cost import PASSES, image_tokens, inner_width
from llava.two_tower.tasks import TASKS


@dataclass(frozen=True)
class FirstBatch:
    """A micro-batch of an epoch; others differ by the length of their texts alone.

    activations: bytes, roughly, of texts as long as they may be.
    """

    indices: list[Place]
    activations: float
    supervised: int = 0  # each objective has its own number

    def __str__(self) -> str:
        most = in_bytes(self.activations)
        return f"heaviest    micro-batch, as all are: {len(self.indices)} pairs, at most about {most}"


def first_batch(recipe: TwoTowerRecipe, config: TwoTowerConfig, sampler: PairSampler) -> FirstBatch:
    """The first micro-batch of an epoch."""
    places = [place for place, _ in zip(sampler, range(sampler.batch_size))]
    return FirstBatch(places, activation_bytes(recipe, config))


def activation_bytes(recipe: TwoTowerRecipe, config: TwoTowerConfig) -> float:
    """What autograd keeps of one micro-batch, where everything trains."""
    passes, text, vision = PASSES[config.task], config.text_config, config.vision_config
    length, patches, width = recipe.data.text_length, image_tokens(config), config.hidden_size
    again = bool(recipe.run.gradient_checkpointing)
    block = 14 * width + 2 * config.intermediate_size  # of a token: self- and cross-attention, MLP, three norms
    kept = passes.texts * length * _of_layers(text, again) + passes.images * patches * _of_layers(vision, again)
    fused = (2 * width + block / config.cross_modal_layers) if again else block
    experts = config.num_kept("text") * length + config.num_kept("image") * patches
    bridges = 0 if config.bridge != "manager" else 3 * experts * width  # norms of experts, scores, weights
    layers = config.cross_modal_layers * ((length + patches) * fused + (0 if again else bridges))
    kept += passes.fusions * (layers + experts * width)
    logits = MASKED_WORDS * length * text.vocab_size * 3 * FP32 if "mlm" in TASKS[config.task].heads else 0
    return recipe.optim.batch_size * (kept * precision_width(recipe) + logits)


def _of_layers(tower: object, again: bool) -> float:
    """Values that a tower keeps of a token, of all layers."""
    layer = 9 * tower.hidden_size + 2 * inner_width(tower)
    return tower.num_hidden_layers * tower.hidden_size + layer if again else tower.num_hidden_layers * layer


def describe_memory(
    recipe: TwoTowerRecipe, components: Sequence[Component], config: TwoTowerConfig, processes: int
) -> str:
    """The estimated memory of each process, as text: what is assumed, and the table."""
    layers = "computed again" if recipe.run.gradient_checkpointing else "kept"
    at_once = f"{recipe.optim.batch_size} pairs at once, layers {layers}"
    activations, width = activation_bytes(recipe, config), config.hidden_size
    return memory_text(recipe, components, processes, width, activations, at_once=at_once, first_alone=True)
