"""How a rank imports the stage that it runs: without what no line of it calls, and without looking for garbage.

transformers, peft and accelerate import what they find installed beside them, called or not: datasets with pandas, a
tower of scipy, bitsandbytes with torch's compiler, deepspeed. With the collector's passes over what is being imported
that was half of a rank's start; benchmarks/RESULTS.md has the figures.
"""

import gc
import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType

from llava.train.family import StageRecipe

OTHERS = ("datasets", "scipy", "sklearn")  # what libraries import that are themselves imported, and no stage needs
ADAPTERS = ("peft", "bitsandbytes")


def import_stage(recipe: StageRecipe) -> ModuleType:
    """llava.train.stage, imported for one recipe.

    In a rank's process, which ends with its stage, packages that the recipe does not need are not found meanwhile.
    deepspeed stays so, for accelerate looks for it again; the others are there for whoever imports them afterwards,
    as the adapters of a checkpoint to start from are read with peft.
    """
    unused = [*OTHERS, *(() if recipe.uses_adapters else ADAPTERS)] if "RANK" in os.environ else []
    if unused and recipe.run.deepspeed is None:
        sys.modules.setdefault("deepspeed", None)  # type: ignore[arg-type]
    with _no_collection(), _not_found(unused):
        return importlib.import_module("llava.train.stage")


@contextmanager
def _not_found(packages: Iterable[str]) -> Iterator[None]:
    """Those that are not imported yet cannot be: None in sys.modules is Python's own word for it."""
    absent = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Modules are no garbage, and each full pass looks at all that are there by then."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
