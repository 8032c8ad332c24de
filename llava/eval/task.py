"""From a task's name to the harness's task object: lmms-eval's own YAML, what we change in it, and the documents.

tasks/TASK.yaml, where there is one, goes over lmms-eval's YAML key by key (its functions lie beside it); over both go
the protocol's settings and the place of the data.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.errors import LlavaError
from llava.eval.benchmarks import BENCHMARKS, benchmark
from llava.eval.judge.settings import KEY
from llava.eval.plugin import MODEL_ID

if TYPE_CHECKING:
    from datasets import Dataset
    from lmms_eval.api.task import ConfigurableTask

TASKS = Path(__file__).parent / "tasks"
NO_VERSION = "not given"  # lmms-eval would say "Yaml"


def task_names() -> list[str]:
    """The benchmarks in the table's order, then the other tasks that ship with the package."""
    names = [row.task for row in BENCHMARKS]
    return names + sorted({file.stem for file in TASKS.glob("*.yaml")} - set(names))


def task_config(task: str, protocol: str, file: str | None = None) -> dict:
    """The task's configuration under a protocol (see llava/eval/benchmarks.py), without documents.

    Args:
        task: its name.
        protocol: the paper's changes what is known as a benchmark.
        file: its YAML, for a task that is none of ours.
    """
    from lmms_eval.utils import load_yaml_config

    row = benchmark(task)
    with some_key():
        if file is not None:
            config = load_yaml_config(yaml_path=file)
        else:
            files = [TASKS / f"{task}.yaml"] if (TASKS / f"{task}.yaml").is_file() else []
            if row:
                files.append(upstream_tasks() / row.yaml)
            config = load_yaml_config(yaml_config={"include": [str(path) for path in files]}, yaml_dir=str(TASKS))
    if config.get("metric_list"):  # what is only handed in to a challenge's server has no score
        config["metric_list"] = [entry for entry in config["metric_list"] if entry["metric"] != "submission"]
    metadata = config.get("metadata") or {}
    if isinstance(metadata, list):  # of entries, in which lmms-eval does not find the task's version
        metadata = {key: value for entry in metadata for key, value in entry.items()}
    config["metadata"] = {"version": NO_VERSION, **metadata}
    if row and protocol == "paper":
        greedy = {"max_new_tokens": row.tokens, "temperature": 0, "do_sample": False}
        config["generation_kwargs"] = {**config.get("generation_kwargs", {}), **greedy}
    return config


def build_task(task: str, config: dict, source: Mapping, documents: "Dataset", simple: bool) -> "ConfigurableTask":
    """The harness's task object, for models of the simple or of the chat type.

    Args:
        task: its name.
        config: see task_config.
        source: see llava/eval/documents.py.
        documents: likewise.
        simple: the type of the model.

    Raises:
        LlavaError: when the harness cannot load the data set.
    """
    import lmms_eval.api.metrics  # noqa: F401  # registers the metrics and aggregations that tasks name
    from lmms_eval.api.task import ConfigurableMessagesTask, ConfigurableTask
    from tenacity import RetryError

    from llava.eval.documents import with_readable_images, without_images

    # A damaged image is the plugin's to tell: it alone reads all, the harness only what it scores with.
    looked_at, readable = without_images(documents), with_readable_images(documents)
    split, process = config.get("test_split") or config.get("validation_split"), config.get("process_docs")

    def process_docs(rows: "Dataset") -> "Dataset":
        """Ours in place of the split that is asked; the examples of few-shot prompts can be another's."""
        if rows.split is None or str(rows.split) == split:
            return readable
        return rows if process is None else process(rows)

    config = config | {"task": task, **source, "process_docs": process_docs}
    try:
        built = (ConfigurableTask if simple else ConfigurableMessagesTask)(config=config, model_name=MODEL_ID)
    except RetryError as error:
        cause = error.last_attempt.exception()
        raise LlavaError(f"task {task}: {source['dataset_path']} cannot be loaded ({cause})") from cause
    scored = readable if built.config.process_results_use_image else looked_at
    splits = [name for name, rows in built.dataset.items() if rows is readable]
    built.dataset = {**built.dataset, **dict.fromkeys(splits, documents)}
    built.dataset_no_image = {**built.dataset, **dict.fromkeys(splits, scored)}
    score = partial(type(built).process_results.__wrapped__, built)  # without the harness's five attempts
    built.process_results = partial(_scored, score, task, looked_at)
    return built


def _scored(score: Callable, task: str, documents: "Dataset", doc: dict, results: list, full_docs: Any = None) -> dict:
    """The scores of one answer. Raises LlavaError that names the document where the task's function fails."""
    facts = _plain_facts(doc)
    try:
        return score(doc, results, full_docs)
    except LlavaError:
        raise
    except Exception as error:  # the task's own function runs on whatever a document holds
        rows = enumerate(documents)
        number = next((number for number, row in rows if facts == _plain_facts(row)), "of unknown number")
        raise LlavaError(f"{task} document {number}: cannot be scored ({type(error).__name__}: {error})") from error


def _plain_facts(doc: dict) -> dict:
    """The fields that no task's function changes in place."""
    return {field: value for field, value in doc.items() if isinstance(value, str | int | float)}


def data_folder(root: Path | None, task: str, alone: bool) -> str | None:
    """The task's folder below `root`; `root` itself for a single task that has no folder there."""
    if root is None:
        return None
    if not root.is_dir():
        raise LlavaError(f"{root}: not a dataset folder")
    return str(root if alone and not (root / task).is_dir() else root / task)


def upstream_tasks() -> Path:
    """lmms-eval's folder of tasks."""
    return Path(find_spec("lmms_eval").submodule_search_locations[0]) / "tasks"


@contextmanager
def some_key() -> Iterator[None]:
    """lmms-eval's judged tasks make an OpenAI client as they are read, which wants a key even if nobody uses it."""
    missing = not os.environ.get(KEY)
    if missing:
        os.environ[KEY] = "unused"
    try:
        yield
    finally:
        if missing:
            del os.environ[KEY]
