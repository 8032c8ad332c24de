"""A chart of how much each manager takes from each vision layer, in numbers and as bars of text."""

from dataclasses import dataclass

BAR = 4  # characters
CELL = BAR + 9  # bar, blank, number, two blanks
EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class ManagerWeights:
    """Of one manager. layer: it adds before this layer of the language model. vision_layers: those it takes from.

    sizes: mean |W_i|, one for each vision layer; None for an adaptive manager that has seen no image yet. means: mean
    W_i.
    """

    layer: int
    kind: str
    vision_layers: tuple[int, ...]
    sizes: list[float] | None
    means: list[float] | None


def chart(weights: list[ManagerWeights], width: int, plain: bool = False) -> str:
    """A row for each vision layer, a column for each manager, as many beside each other as `width` characters allow.

    All bars have one scale. plain: bars of ASCII.
    """
    if not weights:
        return "this model has no managers"
    measured = [manager for manager in weights if manager.sizes is not None]
    largest = max((size for manager in measured for size in manager.sizes), default=0.0)
    rows = sorted({layer for manager in weights for layer in manager.vision_layers})
    label = max(len(f"V{layer}") for layer in rows) + 2
    columns = max((width - label) // CELL, 1)
    lines = ["managers: mean |W| by vision layer, before each managed layer of the language model"]
    for first in range(0, len(weights), columns):
        group = weights[first : first + columns]
        lines.append("")
        lines.append(" " * label + "".join(f"{f'layer {manager.layer}':<{CELL}}" for manager in group).rstrip())
        lines.append(" " * label + "".join(f"{manager.kind:<{CELL}}" for manager in group).rstrip())
        for layer in rows:
            cells = [_cell(manager, layer, largest, plain) for manager in group]
            lines.append(f"{f'V{layer}':<{label}}{''.join(cells)}".rstrip())
    if len(measured) < len(weights):
        lines += ["", "?: adaptive, decides when it sees an image"]
    return "\n".join(lines)


def _cell(manager: ManagerWeights, layer: int, largest: float, plain: bool) -> str:
    if layer not in manager.vision_layers:
        text = ""
    elif manager.sizes is None:
        text = "?"
    else:
        size = manager.sizes[manager.vision_layers.index(layer)]
        text = f"{_bar(size / largest if largest else 0.0, plain):<{BAR}} {size:.4f}"
    return f"{text:<{CELL}}"


def _bar(share: float, plain: bool) -> str:
    if plain:
        return "#" * round(share * BAR)
    whole, rest = divmod(round(share * BAR * 8), 8)
    return EIGHTHS[8] * whole + EIGHTHS[rest] * bool(rest)
