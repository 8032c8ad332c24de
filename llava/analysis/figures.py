"""The figures: what each shows, what it is computed from, and how it is read. Imports nothing heavy.

Numbers are those of the paper (arXiv 2506.11515); docs/analysis.md defines each of them.
"""

from dataclasses import dataclass

from llava.arguments import unknown
from llava.errors import LlavaError


@dataclass(frozen=True)
class Figure:
    """One figure.

    title: beside its number. probe: what records it, see record.py. x, y: the axes. reading: how to read it, in a
    sentence. lacking: why a model has none of it, behind the model's name. of_two_towers: whether two-tower models may
    have it.
    """

    title: str
    probe: str
    x: str
    y: str
    reading: str
    lacking: str = ""
    of_two_towers: bool = True

    def file(self, name: str) -> str:
        """Of the picture. name: the figure's."""
        return f"figure_{name.zfill(2)}.png" if name.isdecimal() else f"{name}.png"


LAYER = "layer of the language model, from 1"
EXPERT = "state of the tower"
FIGURES = {
    "3": Figure(
        "similarity of what consecutive managers aggregate",
        "injections",
        "manager, against the one before it",
        "cosine",
        "Near 1, two managers in a row hand over the same; the lower, the more each layer gets something of its own.",
        "has no two managers or additions in a row, which figure 3 compares",
    ),
    "6": Figure(
        "aggregation weights while the data are seen",
        "weights",
        EXPERT,
        "weight",
        "Each panel is a manager: how much of each state it takes, an adaptive one on average over tokens and samples.",
        "has no managers, and figure 6 shows their weights",
    ),
    "7": Figure(
        "learned aggregation weights of static managers",
        "weights",
        EXPERT,
        "weight",
        "Lines that lie on each other are managers that learned the same mixture of states; a peak is a state that is "
        "taken most.",
        "has no static managers, and figure 7 shows their weights",
    ),
    "19": Figure(
        "similarity of consecutive layers' outputs",
        "hidden",
        LAYER,
        "cosine with the layer before",
        "A dip is a layer that changes the tokens most; dotted lines are the layers before which something is added.",
        "has no language model, whose layers figure 19 shows",
        of_two_towers=False,
    ),
    "20": Figure(
        "attention entropy",
        "attention",
        LAYER,
        "entropy, nats",
        "Higher is attention that spreads over more visual tokens, 0 is attention to a single one.",
        "has no language model, whose attention figure 20 shows",
        of_two_towers=False,
    ),
    "21": Figure(
        "diversity of attention heads",
        "attention",
        LAYER,
        "KL divergence between heads, nats",
        "Higher is heads that look at different visual tokens, 0 is heads that all look alike.",
        "has no language model, whose attention figure 21 shows",
        of_two_towers=False,
    ),
    "distance": Figure(
        "mean attention distance of the tower",
        "distance",
        "layer of the tower, from 1",
        "distance, pixels",
        "A dot is a head, the line their mean: low is attention to near patches, high is attention across the crop; of "
        "patches alone, without class token and registers.",
        "has no tower whose attention is seen",
    ),
    "movement": Figure(
        "how far each injection moves the visual tokens",
        "injections",
        LAYER,
        "|delta| / |h|",
        "0.1 is an addition a tenth as long as the state that it is added to; 0 is a method that does nothing there.",
        "adds nothing inside the language model, and movement shows such additions",
        of_two_towers=False,
    ),
}


def figures_named(words: str | None) -> list[str]:
    """The names of a list with commas, in the order of FIGURES; all for None. Raises LlavaError for an unknown one."""
    if words is None:
        return list(FIGURES)
    names = [word.strip() for word in words.split(",")]
    for name in names:
        if name not in FIGURES:
            raise LlavaError(f"--figures: {unknown('figure', name, list(FIGURES))}")
    return [name for name in FIGURES if name in names]
