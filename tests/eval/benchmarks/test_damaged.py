"""Images that cannot be read, in every way that benchmarks store and use them: named, while all others are answered."""

from dataclasses import replace

import pytest

from llava.errors import LlavaError
from tests.eval.benchmarks.test_twins import TWINS
from tests.eval.benchmarks.twins import IMAGE, IMAGES

DAMAGED = {"bytes": b"nothing to see", "path": None}
# A column of images or of lists of them, which the task's scoring does not see, or does.
TASKS = ("textvqa_val", "seedbench", "dc100_en", "live_bench_2409")


@pytest.mark.parametrize("task", TASKS)
def test_a_damaged_image_is_named_and_all_others_are_answered(task, evaluate, tmp_path):
    (twin,) = [twin for twin in TWINS if twin.task == task]
    (column, kind), *_ = [(name, kind) for name, kind in twin.features.items() if kind in (IMAGE, IMAGES)]
    damaged = DAMAGED if kind == IMAGE else [DAMAGED]
    documents = [row | ({column: damaged} if number < 2 else {}) for number, row in enumerate(twin.documents)]
    message = rf"^{task} document 0: not an image that Pillow can read \(2 of {len(documents)} documents have no"
    with pytest.raises(LlavaError, match=message):
        evaluate(replace(twin, documents=documents), twin.oracle)
    (stored,) = tmp_path.glob(f"*/{task}.answers/rank0.jsonl")
    assert stored.read_text().count("\n") == len(documents) - 2
