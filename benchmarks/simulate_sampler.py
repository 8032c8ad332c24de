"""How long ranks wait for each other, with the reference's grouping of samples and with ours.

    python benchmarks/simulate_sampler.py

Nothing is trained: a stage-2 epoch is drawn, ordered in both ways and priced with the model's own cost (0.5B, arm
grid_manager). Under ZeRO-2 and ZeRO-3 every micro-step ends in a collective, so that it lasts as long as its slowest
rank; what the others have left is waiting. Samples of a batch are padded to the longest, and padding is work.
"""

import argparse
import random
from dataclasses import dataclass

import numpy as np

from llava.anyres import image_layout
from llava.data.sampler import epoch_order
from llava.mllm.cost import Cost, training_cost
from llava.mllm.parts import PREFIXES
from llava.train.mllm.build import config_from_sizes
from llava.train.recipe.load import load_recipe

# Stage 2 as a mixture of kinds: share, (width, height) of a typical image, median words of its text. The shares are
# LLaVA-OneVision's of its single-image data (general 36, document/chart/screen 21, math 20, OCR 9, language 14%).
MIXTURE = [
    (0.36, (640, 480), 60),  # photos
    (0.09, (1700, 2200), 60),  # scanned pages
    (0.12, (850, 600), 60),  # charts and screens
    (0.20, (384, 384), 80),  # figures of mathematics
    (0.09, (1000, 1000), 30),  # text in pictures
    (0.14, None, 250),  # text only
]
SIZE_SPREAD, WORDS_SPREAD = 0.2, 0.8  # deviations of the logarithm of width, of height and of words
TOKENS_PER_WORD, TEMPLATE_TOKENS = 1.3, 30
ANSWER_SHARE = 0.5  # of the words
REFERENCE_IMAGE_WORDS = 128  # what an image counts in the reference's lengths, whatever its size


@dataclass
class Samples:
    """One value per sample. words: as the reference counts them, images included."""

    words: np.ndarray
    crops: np.ndarray
    tokens: np.ndarray
    supervised: np.ndarray

    @property
    def is_multimodal(self) -> np.ndarray:
        return self.crops > 0


def draw_samples(number: int, config, seed: int = 0) -> Samples:
    """`number` samples of MIXTURE."""
    generator = np.random.default_rng(seed)
    kinds = generator.choice(len(MIXTURE), number, p=[share for share, _, _ in MIXTURE])
    words = np.array([words for _, _, words in MIXTURE])[kinds] * generator.lognormal(0, WORDS_SPREAD, number)
    spreads = generator.lognormal(0, SIZE_SPREAD, (number, 2))
    crops, visual = np.zeros((2, number))
    for index, kind in enumerate(kinds):
        if MIXTURE[kind][1] is not None:
            width, height = (round(side * spread) for side, spread in zip(MIXTURE[kind][1], spreads[index]))
            layout = image_layout(
                width,
                height,
                config.tiling,
                tile=config.vision_config.image_size,
                side=config.patches_per_side,
                several_images=False,
            )
            crops[index], visual[index] = layout.num_crops, layout.num_tokens
    text = TOKENS_PER_WORD * words
    return Samples(
        words=np.floor(words + REFERENCE_IMAGE_WORDS * (crops > 0)),
        crops=crops,
        tokens=np.floor(visual + text + TEMPLATE_TOKENS),
        supervised=np.floor(ANSWER_SHARE * text),
    )


def reference_order(lengths, is_multimodal, *, batch_size: int, world_size: int, accumulation: int, seed: int) -> list:
    """group_by_modality_length: within a megabatch, longest first, each sample to the lightest batch that has room."""
    generator = random.Random(seed)
    batches = world_size * accumulation
    megabatches, rest = [], []
    for modality in (True, False):
        indices = np.flatnonzero(is_multimodal == modality).tolist()
        generator.shuffle(indices)
        cuts = [indices[begin : begin + batches * batch_size] for begin in range(0, len(indices), batches * batch_size)]
        rest += cuts.pop() if cuts and len(cuts[-1]) < batches * batch_size else []
        megabatches += cuts
    generator.shuffle(megabatches)
    order = []
    for megabatch in megabatches:
        members, sums = [[] for _ in range(batches)], np.zeros(batches)
        for index in sorted(megabatch, key=lambda index: -lengths[index]):
            lightest = int(sums.argmin())
            members[lightest].append(index)
            sums[lightest] = np.inf if len(members[lightest]) == batch_size else sums[lightest] + lengths[index]
        order += [index for batch in members for index in batch]
    return order + rest


@dataclass(frozen=True)
class Outcome:
    """waiting: share of the ranks' time. padding: share of the positions. time: of the epoch, in operations a rank."""

    waiting: float
    padding: float
    time: float


def play(
    order: list[int], samples: Samples, cost: Cost, batch_size: int, world_size: int, packing: bool = False
) -> Outcome:
    """Runs an epoch micro-step by micro-step; what does not fill the last one is left out."""
    step = batch_size * world_size
    batches = np.array(order[: len(order) // step * step]).reshape(-1, world_size, batch_size)
    tokens = samples.tokens[batches]
    taken = tokens if packing else np.broadcast_to(tokens.max(axis=2, keepdims=True), tokens.shape)
    work = cost(
        samples.crops[batches].sum(axis=2),
        taken.sum(axis=2),
        samples.supervised[batches].sum(axis=2),
        token_pairs=(taken**2).sum(axis=2),
    )
    time = work.max(axis=1).sum()
    padding = 1 - tokens.sum() / taken.sum()
    return Outcome(waiting=1 - work.sum() / (world_size * time), padding=padding, time=time)


def simulate(number: int, batch_size: int, world_size: int, accumulation: int, seed: int = 0) -> dict[str, Outcome]:
    """The outcome of each way to order the same samples, the reference's first."""
    config = config_from_sizes(load_recipe("scripts/train/recipes/mllm/stage2.yaml", "grid_manager"))
    cost = training_cost(config, PREFIXES)
    samples = draw_samples(number, config, seed)
    costs = cost(samples.crops, samples.tokens, samples.supervised)
    sizes = {"batch_size": batch_size, "world_size": world_size, "accumulation": accumulation, "seed": seed}
    orders = {
        "reference": reference_order(samples.words, samples.is_multimodal, **sizes),
        "reference, our costs": reference_order(costs, samples.is_multimodal, **sizes),
        "ours": epoch_order(costs, samples.is_multimodal, epoch=0, **sizes),
    }
    outcomes = {name: play(order, samples, cost, batch_size, world_size) for name, order in orders.items()}
    return outcomes | {"ours, packed": play(orders["ours"], samples, cost, batch_size, world_size, packing=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=500_000)
    parser.add_argument("--world_size", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--accumulation", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outcomes = simulate(options.samples, options.batch_size, options.world_size, options.accumulation, options.seed)
    reference, ours = outcomes["reference"], outcomes["ours"]
    print(f"{options.samples:,} samples, {options.world_size} ranks, {options.batch_size} x {options.accumulation}\n")
    print(f"{'order':<22}{'waiting':>9}{'padding':>9}{'time':>7}")
    for name, outcome in outcomes.items():
        shares = f"{outcome.waiting:>9.1%}{outcome.padding:>9.1%}"
        print(f"{name:<22}{shares}{outcome.time / reference.time:>7.2f}")
    print(f"\nthe reference's share of waiting is {reference.waiting / ours.waiting:.1f} times ours")


if __name__ == "__main__":
    main()
