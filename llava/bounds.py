"""What a number or a text may be, said where the value is: `Annotated[int, Bounds(1)]`, `Literal["a", "b"]`.

Imports no torch: recipes, the command line and the code that uses a value all read the same annotation.
"""

import math
from typing import Any, NamedTuple, get_args

from llava.errors import LlavaError
from llava.printable import brief

LARGEST = 2**31 - 1  # of whole numbers without a bound of their own; beyond it libraries fail one by one


class Bounds(NamedTuple):
    """What a number may be; never infinite, nor not a number.

    Args:
        low: The least value.
        high: The greatest value; infinity for no bound.
        above: Whether `low` itself is left out.
        below: Whether `high` itself is left out.
        hint: What to pass instead, in parentheses behind the fault.
    """

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False
    hint: str = ""

    def __str__(self) -> str:
        least = f"above {self.low}" if self.above else f"at least {self.low}"
        if self.high == math.inf:
            return least
        if not self.above and not self.below:
            return f"between {self.low} and {self.high}"
        return f"{least} and {'below' if self.below else 'at most'} {self.high}"

    def fault(self, number: float) -> str | None:
        """What is wrong with `number`, to be read behind its key; None where nothing is."""
        high_enough = self.low < number if self.above else self.low <= number
        low_enough = number < self.high if self.below else number <= self.high
        if not (high_enough and low_enough):  # nan is neither
            allowed = f"lie {self}" if str(self).startswith("between") else f"be {self}"
        elif number == math.inf:
            allowed = "be finite"
        elif isinstance(number, int) and number > max(LARGEST, self.low):
            allowed = f"be at most {LARGEST}"
        else:
            return None
        return f"must {allowed}; found {brief(number) if isinstance(number, int) else number}{self.hint}"


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raises LlavaError unless `value` is one of `choices`, a Literal. name: of what is chosen, for the message."""
    if value not in get_args(choices):
        raise LlavaError(f"unknown {name} {value!r}; choose one of {', '.join(get_args(choices))}")
