"""What stands around the tables: where the numbers come from, and what should be equal between runs and is not.

runs: run -> task -> the "run" block of its results.
"""

from collections.abc import Iterable

from llava.eval.benchmarks import BENCHMARKS
from llava.eval.report.intervals import RESAMPLES, SEED
from llava.eval.server.settings import NOT_TOLD
from llava.eval.suites import PAPER_BENCHMARKS

Runs = dict[str, dict[str, dict]]
Place = tuple[str, str]  # run, task


def warnings(runs: Runs) -> list[str]:
    """A line for each thing that differs and makes scores hard to compare: protocol, harness, engine, task, ...

    Likewise where one run, hence one column, mixes weights, precisions, or true images with noise.
    """
    blocks = {(run, task): block for run, tasks in runs.items() for task, block in tasks.items()}
    judged = {place: block["judge"] for place, block in blocks.items() if block["judge"] is not None}
    lines = [
        _difference("protocol", {place: block["protocol"] or "not recorded" for place, block in blocks.items()}),
        _difference(
            "lmms-eval", {place: block["versions"].get("lmms-eval", "not recorded") for place, block in blocks.items()}
        ),
        _difference("engine", {place: block["engine"] for place, block in blocks.items()}),
        _difference("judge", {place: judge["name"] for place, judge in judged.items()}),
    ]
    for task in dict.fromkeys(task for _, task in blocks):
        of_task = {place: block for place, block in blocks.items() if place[1] == task}
        versions = {place: str(block["task_version"]) for place, block in of_task.items()}
        prompts = {place: judged[place]["prompts"] for place in of_task if place in judged}
        lines.append(_difference(f"version of task {task}", versions))
        lines.append(_difference(f"prompts of the judge of {task}", prompts))
    for run, tasks in runs.items():
        for key, words in (("weights", "weights"), ("dtype", "precision"), ("image_noise", "noise for images")):
            values = {(run, task): str(block[key]) for task, block in tasks.items()}
            lines.append(_difference(f"{words} within {run}", values))
    return [line for line in lines if line is not None]


def _difference(what: str, values: dict[Place, str]) -> str | None:
    """`different WHAT: a (run), b (other run: task, task)`; None where all are equal."""
    places = _places(values)
    if len(places) < 2:
        return None
    return f"different {what}: {', '.join(f'{value} ({where})' for value, where in places.items())}"


def _places(values: dict[Place, str]) -> dict[str, str]:
    """Where each value holds: `run, other run`; with its tasks, `run: task, task`, where a run has several values."""
    places: dict[str, dict[str, list[str]]] = {}
    for (run, task), value in values.items():
        places.setdefault(value, {}).setdefault(run, []).append(task)
    mixed = {run for run, _ in values if sum(run in runs for runs in places.values()) > 1}
    return {
        value: "; ".join(f"{run}: {', '.join(tasks)}" if run in mixed else run for run, tasks in runs.items())
        for value, runs in places.items()
    }


def notes(runs: Runs, with_paper: bool, averages: bool = True) -> list[str]:
    """How to read the numbers, then the models and settings of each run, judges, versions.

    with_paper: whether the paper's are among the numbers. averages: whether averages over benchmarks are.
    """
    intervals = f"Wilson for 0/1 scores, bootstrap ({RESAMPLES} resamples, seed {SEED}) for others"
    lines = [f"Scores on [0, 100] with 95% intervals over n documents: {intervals}."]
    if averages and any(row.task in tasks for tasks in runs.values() for row in BENCHMARKS):
        lines += _benchmark_notes(with_paper)
    headlines = [(task, block["headline"]) for tasks in runs.values() for task, block in tasks.items()]
    units = dict.fromkeys(f"{task} {line['metric']}" for task, line in headlines if line and not line["bounded"])
    if units:
        lines.append(f"In lmms-eval's own unit, not on [0, 100]: {', '.join(units)}.")
    for run, tasks in runs.items():
        settings = _places({(run, task): _settings(block) for task, block in tasks.items()})
        days = sorted({block["date"][:10] for block in tasks.values()})
        dates = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        lines += [f"{where if len(settings) > 1 else run}: {words}, {dates}" for words, where in settings.items()]
    remarks = dict.fromkeys(
        f"{task}: {note}" for tasks in runs.values() for task, run in tasks.items() for note in run["notes"]
    )
    return [*lines, *_judges(runs), *_task_versions(runs), *remarks]


def _benchmark_notes(with_paper: bool) -> list[str]:
    paper = "The paper's figures are means of all 20 benchmarks (Table IV); it gives no table of the single ones."
    stated = ", ".join(row.name for row in PAPER_BENCHMARKS if row.image_kind or row.resolution)
    return [
        f"Averages are unweighted means over the suite `paper` ({len(PAPER_BENCHMARKS)} benchmarks), whatever else was "
        "asked; their intervals resample the documents of every benchmark; "
        "differences resample the same documents for both runs.",
        f"Image kind and resolution: only of the benchmarks of which the paper states them ({stated}).",
        *([paper] if with_paper else []),
    ]


def _settings(block: dict) -> str:
    images = "images replaced by noise" if block["image_noise"] else "images as they are"
    protocol = f"{block['protocol']} protocol" if block["protocol"] else "protocol not recorded"
    versions = ", ".join(f"{package} {version}" for package, version in block["versions"].items())
    computed = f"{block['dtype']} on {block['device']}, engine {block['engine']}"
    if block["dtype"] == NOT_TOLD:
        computed = f"precision {computed}"
    return f"{block['model']} (weights {block['weights']}), {images}, {protocol}, {computed}, {versions}"


def _judges(runs: Runs) -> list[str]:
    blocks = [(task, block["judge"]) for tasks in runs.values() for task, block in tasks.items() if block["judge"]]
    prompts = _grouped((judge["name"], f"{task} {judge['prompts']}") for task, judge in blocks)
    return [f"Judge {name}, its prompts' versions: {', '.join(versions)}" for name, versions in prompts.items()]


def _task_versions(runs: Runs) -> list[str]:
    blocks = [(task, block) for tasks in runs.values() for task, block in tasks.items()]
    versions = _grouped((str(block["task_version"]), task) for task, block in blocks)
    return [f"Task version {version}: {', '.join(tasks)}" for version, tasks in versions.items()]


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The second of the pairs by their first, each once."""
    grouped: dict[str, list[str]] = {}
    for first, second in dict.fromkeys(pairs):
        grouped.setdefault(first, []).append(second)
    return grouped
