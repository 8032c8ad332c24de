"""The digit pages of llava/demo, with the tiny models that are pretrained on the spot."""

from pathlib import Path

from llava.bench.entry import LANGUAGE_MODEL, VISION_TOWER, DataSet, Pace, Parts, Recorded
from llava.bench.pages import SEED, questions, write_pages

# A language model of 6 layers has as many places as one of 24.
SECTIONS = {
    "manager": {"interval": 1},
    "manager_last": {"interval": 1},
    "manager_in_order": {"interval": 1},
    "manager_permuted": {"interval": 1},
    "cross_attention": {"injection_layers": [0, 1, 2, 3, 4, 5]},
    "cli_reconstruction": {"injection_layers": [0, 1, 2, 3, 4, 5]},
}


def make_data(folder: Path, captions: int, samples: int, held_out: int, documents: int) -> None:
    """See write_pages; the test's digits are of other scans."""
    from llava.demo.digit_pages import DIGIT_PAGES

    write_pages(DIGIT_PAGES, folder, captions, samples, held_out, documents)


def make_parts(folder: Path, steps: int) -> None:
    """The tiny tower and language model of the demonstration; the tower is trained for half as many steps more."""
    from llava.demo.pretrain import pretrain

    tower, language_model = pretrain(folder / VISION_TOWER, folder / LANGUAGE_MODEL, 3 * steps // 2, steps, seed=SEED)
    print(f"vision tower: {tower:.1%} of held-out characters labelled right")
    print(f"language model: {language_model:.1%} of answer tokens right on text pages")


ENTRY = DataSet(
    make=make_data,
    questions=questions,
    questions_per_document=2,
    max_new_tokens=16,
    sample_size=5000,
    parts={
        "tiny": Parts(
            make=make_parts,
            recipe="scripts/bench/digit_pages-tiny.yaml",
            steps=1200,
            size=3_000_000,
            vision_layers=6,
            text_layers=6,
            sections=SECTIONS,
            recorded=Recorded("two cores of an Intel Xeon", making=420, pace=Pace(16, 0.97, 0.007, batch_size=32)),
        )
    },
)
