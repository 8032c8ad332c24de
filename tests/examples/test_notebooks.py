"""The notebooks run, cell by cell in a kernel of their own, on a tiny model in place of the one that they name."""

import re
from dataclasses import dataclass

import nbformat
import pytest
from nbclient import NotebookClient

from llava.data.schema import Dialogue, Turn
from tests.paths import ROOT

NOTEBOOK = ROOT / "examples/one_image.ipynb"
QUESTION = "Read place a."


@dataclass(frozen=True)
class Outcome:
    """Of one code cell: its standard output, and the types of what it showed besides."""

    printed: str
    shown: set[str]


def test_there_is_no_other_notebook():
    assert list((ROOT / "examples").glob("*")) == [NOTEBOOK]


@pytest.fixture(scope="module")
def outcomes(tiny_model_dir, make_image, tmp_path_factory):
    """What came of each code cell."""
    folder = tmp_path_factory.mktemp("notebook")
    make_image(100, 70).save(folder / "image.png")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source = re.sub('MODEL = ".*"', f'MODEL = "{tiny_model_dir}"', first.source)
    first.source = re.sub('IMAGE, QUESTION = ".*?"', f'IMAGE, QUESTION = "{folder}/image.png"', first.source)
    with pytest.MonkeyPatch.context() as patched:
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):  # history and connections are not left in the home
            patched.setenv(name, str(folder / name))
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [Outcome(_printed(cell.outputs), _shown(cell.outputs)) for cell in cells]


def _printed(outputs) -> str:
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def _shown(outputs) -> set[str]:
    return {kind for output in outputs for kind in output.get("data", ())}


def test_it_prints_what_the_engine_answers(outcomes, engine, make_image):
    answer = engine.generate([Dialogue([Turn("human", QUESTION)], [make_image(100, 70)])], max_new_tokens=32)[0]
    assert outcomes[1].printed == f"{engine.describe()}\n{answer}\n"


def test_it_counts_tokens_and_crops(outcomes):
    """100x70 pixels in tiles of 56 are 2x2 of them; 16 tokens, then 6 of 8 rows are left, of 8 tokens and a newline."""
    assert [line.split(" tokens  ")[1].split("  ->")[0] for line in outcomes[2].printed.splitlines()] == [
        QUESTION,
        "What differs?",
        "How much is 2 + 3?",
    ]
    assert outcomes[3].printed == "5 crops, 70 visual tokens; the grid is (2, 2)\n"
    assert "image/png" in outcomes[3].shown


def test_it_shows_every_manager(outcomes):
    assert re.findall(r"layer \d+", outcomes[4].printed) == ["layer 0", "layer 2", "layer 4"]


def test_it_is_stored_without_outputs():
    """They would be of one machine, and of another model."""
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert len(cells) == 5
    assert [cell for cell in cells if cell.outputs or cell.execution_count] == []
