"""Two runs on a twin of DocVQA, as `llava eval` leaves them, whose texts try to break out of the page."""

import dataclasses

import pytest

from llava.anyres import TilingConfig
from llava.cli import main
from llava.eval.store import save_task_run
from tests.eval.benchmarks.twins import Twin, picture, write_twin
from tests.eval.benchmarks.unjudged import DOCVQA
from tests.eval.report.run_folders import RUN

TILE = 56
GRID = {**TilingConfig.from_llava("anyres_max_9", "spatial_unpad", "(1x1),...,(6x6)", TILE).to_dict(), "tile": TILE}
SQUARE = {**TilingConfig().to_dict(), "tile": TILE}
HOSTILE = "<img src=x onerror=\"document.title='broken'\"></script><script>document.title='broken'</script>"
SIZES = [(112, 56), (56, 112), (100, 100), (40, 40), (300, 90)]
TYPES = [["form"], ["form", 'layout "<b>'], [], ['layout "<b>'], ["form"]]
QUESTIONS = ["What is the total?", f"Who? {HOSTILE}", "Where?", "When?", "How many?"]
ANSWERS = ["12", "A & B", "<i>here</i>", "1999", "7"]
SCORES = {"grid": [1.0, 0.0, 0.75, 1.0, 0.0], "manager": [0.0, 1.0, 0.25, 1.0, 0.0]}
WRONG = ["13", HOSTILE, "", "\u202e1999", "x" * 3000]


@pytest.fixture(scope="session")
def twin() -> Twin:
    """Five documents."""
    documents = [
        {
            "questionId": str(number),
            "question": question,
            "question_types": types,
            "image": picture(*size, number),
            "docId": number,
            "ucsf_document_id": "x",
            "ucsf_document_page_no": "1",
            "answers": [answer],
        }
        for number, (question, types, size, answer) in enumerate(zip(QUESTIONS, TYPES, SIZES, ANSWERS, strict=True))
    ]
    return dataclasses.replace(DOCVQA, documents=documents)


@pytest.fixture(scope="session")
def save_run(twin, tmp_path_factory):
    """A function: folder, scores and changes of the "run" block to a run on the twin."""
    data = write_twin(twin, tmp_path_factory.mktemp("data") / "docvqa_val")

    def save(run, scores, fields=True, **changes):
        rows = []
        for number, (document, score) in enumerate(zip(twin.documents, scores, strict=True)):
            row = {"doc_id": number, "target": document["answers"]}
            row |= {"answer": ANSWERS[number] if score >= 0.5 else WRONG[number], "scores": {"anls": score}}
            if fields:
                row["doc"] = {field: value for field, value in document.items() if field != "image"}
            rows.append(row)
        block = {**RUN, "documents": len(rows), "metrics": ["anls"], "score": 20 * sum(scores), "data": str(data)}
        save_task_run(run, "docvqa_val", {"run": block | changes, "results": {}}, rows)
        return run

    return save


@pytest.fixture(scope="session")
def runs(save_run, tmp_path_factory):
    """`grid`, which cuts images into tiles, and `manager`, which does not."""
    folder = tmp_path_factory.mktemp("runs")
    tilings = {"grid": GRID, "manager": SQUARE}
    return [save_run(folder / name, scores, tiling=tilings[name]) for name, scores in SCORES.items()]


@pytest.fixture(scope="session")
def page(runs, tmp_path_factory):
    """The folder of the page of these runs' cases."""
    out = tmp_path_factory.mktemp("cases") / "page"
    assert main(["eval", "cases", *map(str, runs), "--out", str(out)]) == 0
    return out
