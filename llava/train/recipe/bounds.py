"""What the numbers of a recipe may be, those apart that checks.py judges together. Imports no torch."""

import math
from typing import NamedTuple

from llava.printable import brief
from llava.train.recipe.dotted import flatten
from llava.train.recipe.schema import Recipe

LARGEST = 2**31 - 1  # of whole numbers without a bound of their own; beyond it libraries fail one by one


class Bounds(NamedTuple):
    """What a number may be: from `low`, or above it alone, to `high`, which may be infinite, the number never.

    hint: what to pass instead, in parentheses behind the fault.
    """

    low: float
    high: float = math.inf
    above: bool = False
    hint: str = ""

    def fault(self, number: float) -> str | None:
        """What is wrong with `number`, to be read behind its key; None where nothing is."""
        within = (self.low < number if self.above else self.low <= number) and number <= self.high
        if not within:  # nan is not either
            upper = f" and at most {self.high}" if self.high < math.inf else ""
            allowed = f"be above {self.low}{upper}" if self.above else f"lie between {self.low} and {self.high}"
        elif number == math.inf:
            allowed = "be finite"
        elif isinstance(number, int) and number > max(LARGEST, self.low):
            allowed = f"be at most {LARGEST}"
        else:
            return None
        return f"must {allowed}; found {brief(number) if isinstance(number, int) else number}{self.hint}"


RATE = Bounds(0, 1, above=True, hint=" (components.*.trained false freezes)")
DECAY = Bounds(0)
COUNT = Bounds(1)
COMPONENTS = ("vision_tower", "projector", "managers", "newline", "language_model")
BOUNDS = {
    "model.vision_layers_dropped": Bounds(0),
    "managers.interval": COUNT,
    "managers.vision_interval": COUNT,
    "data.max_length": COUNT,
    "data.expected_samples": COUNT,
    "data.expected_text_tokens": Bounds(0),
    "data.workers": Bounds(0, 1024),
    **{f"components.{name}.lr": RATE for name in COMPONENTS},
    **{f"components.{name}.weight_decay": DECAY for name in COMPONENTS},
    "optim.lr": RATE,
    "optim.weight_decay": DECAY,
    "optim.epochs": Bounds(0, 1_000_000, above=True),
    "optim.max_steps": COUNT,
    "optim.warmup": Bounds(0, 1),
    "optim.max_grad_norm": Bounds(0, hint=" (0 clips nothing)"),
    "run.seed": Bounds(0),
    "run.logging_steps": COUNT,
    "run.collective_timeout": COUNT,
    "run.save_steps": COUNT,
    "run.save_minutes": Bounds(0, hint=" (none is never)"),
    "run.keep_last": COUNT,
    "eval.steps": COUNT,
    "eval.batch_size": COUNT,
    "eval.answers": Bounds(0),
    "eval.max_new_tokens": COUNT,
}


def out_of_bounds(recipe: Recipe) -> list[str]:
    """A line for each number of the recipe that cannot be, with its key."""
    values = flatten(recipe.to_dict())
    found = {key: bounds.fault(values[key]) for key, bounds in BOUNDS.items() if values[key] is not None}
    faults = [f"{key} {fault}" for key, fault in found.items() if fault is not None]
    image = recipe.data.expected_image
    if len(image) != 2 or not all(1 <= side <= LARGEST for side in image):
        faults.append(f"data.expected_image must be [width, height], both at least 1; found {brief(image)}")
    return faults
