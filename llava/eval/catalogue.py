"""Which tasks are meant by the words of `--tasks`: ours, lmms-eval's, and those of a user's YAML files.

word ── our own task ───────────────────────────────────────────────────────────────┐
     ├─ a path: the YAML file, or all YAML files of the folder ── tasks and groups ──┼── a TaskChoice for each task
     └─ else lmms-eval's: a task, a group of tasks, or a tag that tasks share ──────┘

The YAML files are read as data: nothing of lmms-eval is imported, and no function of theirs runs.
"""

import difflib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import yaml

from llava.arguments import did_you_mean, nearest, shown
from llava.errors import LlavaError
from llava.eval.task import task_names, upstream_tasks

GENERATE = "generate_until"  # the output type of tasks that ask one question and read the text of the answer
SUBMISSION = "submission"  # the metric of what is only handed in to a challenge's server
ALIKE = 0.75  # difflib's likeness of names that may be meant: there are 2,000, and some one is always a little alike
LISTED = 5  # names in a message
SUFFIXES = (".yaml", ".yml")
FOLDER_NAME = re.compile(r"\w[\w.+\-]*")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML in which `!function utils.f` is the text `utils.f`."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: loader.construct_scalar(node))


@dataclass(frozen=True)
class Group:
    """Tasks with a score in common: the mean of their headlines.

    metric: what the group names as their headline, where it names one. by_size: whether the mean counts documents.
    """

    name: str
    tasks: tuple[str, ...]
    metric: str | None = None
    by_size: bool = False


@dataclass(frozen=True)
class TaskChoice:
    """A task that is asked. file: its YAML, None for our own tasks. groups: of which it was asked as a part."""

    name: str
    file: Path | None = None
    groups: tuple[Group, ...] = ()


@dataclass
class _Catalogue:
    """The tasks of some YAML files: task -> file, group -> configuration, tag -> tasks."""

    files: dict[str, Path] = field(default_factory=dict)
    groups: dict[str, dict] = field(default_factory=dict)
    tags: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, files: Iterable[Path]) -> "_Catalogue":
        catalogue = cls()
        for file in files:
            config = _read(file)
            task = config.get("task")
            if isinstance(task, list) and isinstance(config.get("group"), str):
                catalogue.groups[config["group"]] = config
            elif isinstance(task, str):
                catalogue.files[task] = file
                for tag in (*_listed(config.get("tag")), *_listed(config.get("group"))):
                    catalogue.tags.setdefault(tag, []).append(task)
        return catalogue

    @property
    def names(self) -> list[str]:
        return [*self.files, *self.groups, *self.tags]


def choose_tasks(words: Sequence[str]) -> list[TaskChoice]:
    """The tasks that the words mean, each once.

    Args:
        words: names of tasks, groups and tags, and paths of YAML files or of folders with them.

    Raises:
        LlavaError: for a word that means nothing, a YAML file that is no task's, two files for one name, and tasks that
            need what this model does not give.
    """
    choices: dict[str, TaskChoice] = {}
    for word in words:
        for choice in _choices(word):
            earlier = choices.setdefault(choice.name, choice)
            if earlier.file != choice.file:
                raise LlavaError(f"task {choice.name}: stands in {earlier.file} and in {choice.file}; ask for one")
            choices[choice.name] = replace(earlier, groups=tuple(dict.fromkeys(earlier.groups + choice.groups)))
    _check_possible(choices.values())
    return list(choices.values())


def _choices(word: str) -> list[TaskChoice]:
    if word in task_names():
        return [TaskChoice(word)]
    if word.endswith(SUFFIXES) or "/" in word:
        return _choices_of_path(Path(word).expanduser())
    catalogue = _upstream()
    if word not in catalogue.names:
        _refuse_unknown(word, catalogue)
    return _expanded(word, [catalogue])


def _choices_of_path(path: Path) -> list[TaskChoice]:
    if path.is_dir():
        local = _Catalogue.of(sorted(file for suffix in SUFFIXES for file in path.rglob(f"*{suffix}")))
        in_groups = {str(entry) for config in local.groups.values() for entry in config["task"]}
        words = [name for name in (*local.groups, *local.files) if name not in in_groups]
        if not words:
            raise LlavaError(f"{path}: has no YAML file of a task")
    elif path.is_file():
        one = _Catalogue.of([path])
        words = [*one.groups, *one.files]
        if not words:
            raise LlavaError(f"{path}: not the YAML file of a task, it names no task")
        local = _Catalogue.of(sorted(path.parent.glob("*.y*ml"))) if one.groups else one
    else:
        raise LlavaError(f"{path}: no such task file or folder")
    if taken := sorted(set(local.files) & set(task_names())):
        file = local.files[taken[0]]
        raise LlavaError(f"{file}: the name {taken[0]!r} is taken by a task of this package; give it another")
    return [choice for word in words for choice in _expanded(word, [local])]


def _expanded(entry: str | dict, catalogues: list[_Catalogue], within: tuple[str, ...] = ()) -> list[TaskChoice]:
    """The tasks of one entry of a group's list: a task, a group, a tag, or a group that is written out there."""
    if isinstance(entry, dict):
        if not (isinstance(entry.get("task"), list) and isinstance(entry.get("group"), str)):
            raise LlavaError(f"group {within[-1]}: {shown(str(entry))} is no name of a task; write it as a YAML file")
        return _of_group(entry["group"], entry, catalogues, within)
    for catalogue in catalogues:
        if entry in catalogue.files:
            return [TaskChoice(entry) if entry in task_names() else TaskChoice(entry, catalogue.files[entry])]
        if entry in catalogue.groups:
            return _of_group(entry, catalogue.groups[entry], catalogues, within)
        if entry in catalogue.tags:
            return [choice for task in catalogue.tags[entry] for choice in _expanded(task, catalogues, within)]
    if entry in task_names():
        return [TaskChoice(entry)]
    if _upstream() in catalogues:
        _refuse_unknown(entry, _upstream(), f"group {within[-1]}: ")
    return _expanded(entry, [*catalogues, _upstream()], within)


def _of_group(name: str, config: dict, catalogues: list[_Catalogue], within: tuple[str, ...]) -> list[TaskChoice]:
    if name in within:
        raise LlavaError(f"group {name}: is a part of itself ({' > '.join([*within, name])})")
    choices = [choice for entry in config["task"] for choice in _expanded(entry, catalogues, (*within, name))]
    if unscored := [choice.name for choice in choices if choice.file and _only_handed_in(_read(choice.file))]:
        print(f"note: group {name}: left out, as they have no score: {', '.join(unscored)}", file=sys.stderr)
        choices = [choice for choice in choices if choice.name not in unscored]
    aggregates = config.get("aggregate_metric_list") or [{}]
    first = aggregates if isinstance(aggregates, dict) else aggregates[0]
    group = Group(
        name,
        tuple(dict.fromkeys(choice.name for choice in choices)),
        metric=first.get("metric"),
        by_size=bool(first.get("weight_by_size")),
    )
    return [replace(choice, groups=(*choice.groups, group)) for choice in choices]


def _check_possible(choices: Iterable[TaskChoice]) -> None:
    """Raises LlavaError that names the tasks which need what this model does not give, with what that is."""
    refused: dict[str, list[str]] = {}
    for choice in choices:
        if choice.file is not None and (reason := _impossible(choice.name, _read(choice.file))):
            refused.setdefault(reason, []).append(choice.name)
    if refused:
        lines = (f"{_some(names)}: {reason}" for reason, names in refused.items())
        raise LlavaError(f"cannot be evaluated: {'; '.join(lines)}")


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= LISTED else f"{', '.join(names[:LISTED])} and {len(names) - LISTED} more"


def _impossible(name: str, config: dict) -> str | None:
    if not FOLDER_NAME.fullmatch(name):
        return "the name cannot be a folder's"
    if "class" in config:
        return "a task that is written as a class"
    kind = config.get("output_type", GENERATE)
    if kind != GENERATE:
        return f"of output type {kind}, but this model answers one question by one text ({GENERATE})"
    if _only_handed_in(config):
        return "without a score: a file for the server of a challenge is all that comes of it"
    return None


def _only_handed_in(config: dict) -> bool:
    metrics = [entry.get("metric") for entry in config.get("metric_list") or ()]
    return bool(metrics) and all(metric == SUBMISSION for metric in metrics)


def _refuse_unknown(word: str, catalogue: _Catalogue, where: str = "") -> None:
    names = [*task_names(), *catalogue.names]
    if Path(word).exists():
        raise LlavaError(f"{where}unknown task {shown(word)}; a file or folder of tasks is given as ./{word}")
    alike = difflib.get_close_matches(word, names, n=1, cutoff=ALIKE)
    if meant := alike[0] if alike else nearest(word, task_names()):
        raise LlavaError(f"{where}unknown task {shown(word)}{did_you_mean(meant)}")
    raise LlavaError(
        f"{where}unknown task {shown(word)}; choose of {', '.join(task_names())}, or of lmms-eval's, which "
        "`python -m lmms_eval --tasks list` prints"
    )


@cache
def _upstream() -> _Catalogue:
    if find_spec("lmms_eval") is None:
        raise LlavaError("lmms-eval is not installed; docs/evaluate.md says how")
    return _Catalogue.of(sorted(upstream_tasks().rglob("*.yaml")))


def _read(file: Path) -> dict:
    """The configuration, what it includes below it. An included file lies beside it unless its path is whole."""
    try:
        config = yaml.load(file.read_bytes(), _Loader) or {}
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise LlavaError(f"{file}: not a task's YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise LlavaError(f"{file}: not a task's YAML file, which has keys and values")
    included: dict = {}
    for path in reversed(_listed(config.pop("include", None))):
        included |= _read(Path(os.path.normpath(file.parent / path)))
    return included | config


def _listed(value: object) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)
