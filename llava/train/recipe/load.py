"""From files and the command line to a recipe.

    base -> the stage's file -> fusion method -> grid -> --override files -> --key value          later sources win

An arm of the MLLM is a tiling and a fusion method: `baseline` and `grid` are one crop and tiles with no method, METHOD
and grid_METHOD the same with METHOD.yaml of the folder `methods`. One of the two towers is a file of the folder `arms`.
Besides keys a stage's file may name

    base      a file whose keys count where this one names none
    family    two_tower; what names none trains the MLLM
    methods   the folder with one file a fusion method; none.yaml is that of `baseline` and `grid`
    arms      in place of methods, the folder with one file an arm
    grid      the keys that the grid arms change; without it they share the stage with their partners
    follows   the file of the stage before, whose checkpoint this one starts from

counted from the file. Checkpoints stand in one folder, each under STAGE-ARM by its file's name. Every fault of every
source is collected and raised at once.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava.errors import LlavaError, raise_faults
from llava.fusion.methods import METHODS
from llava.printable import brief
from llava.train.recipe.dotted import Key, assemble, coerce, flatten, read_yaml, suggestion
from llava.train.recipe.schema import Recipe, all_recipe_keys, recipe_keys
from llava.train.two_tower.recipe import TwoTowerRecipe, two_tower_keys

CHECKPOINTS = "playground/checkpoints"
NO_METHOD = "none"
MLLM, TWO_TOWER = "mllm", "two_tower"
DEFAULT_ARMS = {MLLM: "baseline", TWO_TOWER: "manager"}
FORMER_KEYS = {"managers.": "fusion.", "components.managers.": "components.fusion."}
DERIVED = "the stage and the arm"  # the origin of folders that no source names


@dataclass(frozen=True)
class Source:
    """Keys, and where they come from, for messages."""

    origin: str
    keys: dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """What of a stage is trained. method: the name of its file, NO_METHOD for none. grid: images are cut into tiles."""

    method: str = NO_METHOD
    grid: bool = False

    def __str__(self) -> str:
        if self.method == NO_METHOD:
            return "grid" if self.grid else "baseline"
        return f"grid_{self.method}" if self.grid else self.method


@dataclass(frozen=True)
class StageFile:
    """A stage's file, read, with what it builds on.

    Args:
        path: The file.
        keys: Its keys and those of its bases, the furthest base first.
        grid: What the grid arms change, likewise.
        family: What it trains.
        methods: Folder of the fusion methods.
        arm_files: Folder of the arms.
        follows: The file of the stage before.
    """

    path: str
    keys: tuple[Source, ...]
    grid: tuple[Source, ...] = ()
    family: str = MLLM
    methods: str | None = None
    arm_files: str | None = None
    follows: str | None = None

    @classmethod
    def read(cls, path: str, extended_by: tuple[str, ...] = ()) -> "StageFile":
        """The file and its bases. Raises LlavaError for one that cannot be read or that is its own base."""
        if path in extended_by:
            raise LlavaError(f"{path}: is its own base")
        keys = read_yaml(path)
        base, methods, arms, follows = (_file_named(path, name, keys.pop(name, None)) for name in REFERENCES)
        family = keys.pop("family", None)
        if family not in (None, *DEFAULT_ARMS):
            raise LlavaError(f"{path}: family must be one of {', '.join(DEFAULT_ARMS)}; found {brief(family)}")
        grid = keys.pop("grid", {})
        if not isinstance(grid, dict):
            raise LlavaError(f"{path}: grid must be a mapping of keys, found {type(grid).__name__}")
        below = cls.read(base, (*extended_by, path)) if base is not None else cls(path, ())
        return cls(
            path=path,
            keys=(*below.keys, Source(path, keys)),
            grid=(*below.grid, Source(f"{path}: grid", grid)) if grid else below.grid,
            family=family or below.family,
            methods=methods or below.methods,
            arm_files=arms or below.arm_files,
            follows=follows or below.follows,
        )

    def arms(self) -> dict[str, Arm]:
        """{name: arm} of all that can be trained."""
        if self.arm_files is not None:
            return {path.stem: Arm(path.stem) for path in sorted(Path(self.arm_files).glob("*.yaml"))}
        methods = sorted(path.stem for path in Path(self.methods).glob("*.yaml")) if self.methods else []
        methods = [NO_METHOD, *(method for method in methods if method != NO_METHOD)]
        return {str(arm): arm for arm in (Arm(method, grid) for grid in (False, True) for method in methods)}

    def arm(self, name: str | None) -> Arm:
        """The arm of this name, or the family's first; raises LlavaError that lists the arms for one that is not."""
        arms, name = self.arms(), name or DEFAULT_ARMS[self.family]
        if name not in arms:
            meant = suggestion(name, arms)
            raise LlavaError(
                f"{self.path}: unknown arm '{name}'{meant}{' There' if meant else '; there'} are {', '.join(arms)}"
            )
        return arms[name]

    def sources(self, arm: Arm) -> list[Source]:
        """The keys of the arm, later ones win."""
        sources = [*self.keys]
        folder = self.arm_files or self.methods
        if folder is not None:
            path = os.path.join(folder, f"{arm.method}.yaml")
            sources.append(Source(path, read_yaml(path)))
        return sources + (list(self.grid) if arm.grid else [])

    def output_folder(self, arm: Arm, checkpoints: str) -> str:
        """Where the arm's checkpoint of this stage goes, in the folder `checkpoints`."""
        trained = arm if self.grid else replace(arm, grid=False)
        return os.path.join(checkpoints, f"{Path(self.path).stem}-{trained}")


REFERENCES = ("base", "methods", "arms", "follows")  # what a stage's file names besides keys and `grid`


def _file_named(path: str, name: str, value: Any) -> str | None:
    """The file or folder that `path` names, which counts from it."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise LlavaError(f"{path}: {name} must be a path, found {type(value).__name__}")
    return os.path.normpath(os.path.join(os.path.dirname(path), value))


def load_recipe(
    path: str,
    arm: str | None = None,
    overrides: Sequence[str] = (),
    keys: dict[str, Any] | None = None,
    checkpoints: str = CHECKPOINTS,
) -> Recipe | TwoTowerRecipe:
    """Resolves a stage's file with an arm and what the user changes.

    Args:
        path: The stage's file.
        arm: Name of the arm; None is `baseline`, of the two towers `manager`.
        overrides: Files of keys, later ones win.
        keys: The command line's keys, which win over all.
        checkpoints: Folder of the stages' checkpoints, for `run.output_dir` and `model.start_from` where no source
            names them.

    Raises:
        LlavaError: One that lists every unknown key, wrong value and missing key of all sources.
    """
    stage = StageFile.read(path)
    chosen = stage.arm(arm)
    folders = {"run.output_dir": stage.output_folder(chosen, checkpoints)}
    if stage.follows is not None:
        folders["model.start_from"] = StageFile.read(stage.follows).output_folder(chosen, checkpoints)
    sources = [Source(DERIVED, folders), *stage.sources(chosen)]
    sources += [Source(override, read_yaml(override)) for override in overrides]
    sources.append(Source("command line", keys or {}))

    is_mllm = stage.family == MLLM
    method, faults, given, values = NO_METHOD, [], set(), {"arm": str(chosen)}
    for source in sources:
        try:
            flat = flatten(source.keys)
        except LlavaError as error:
            raise LlavaError(f"{source.origin}: {error}") from error
        if is_mllm and flat.get("fusion.method", method) != method and flat["fusion.method"] in METHODS:
            method = flat["fusion.method"]  # what sources before it say was for another method
            values = {key: value for key, value in values.items() if not key.startswith("fusion.")}
        keys_of_recipe = recipe_keys(method) if is_mllm else two_tower_keys()
        del keys_of_recipe["arm"]  # chosen by itself, before any key
        for key, value in flat.items():
            given.add(key)
            if key not in keys_of_recipe:
                faults.append(f"{source.origin}: {_unknown(key, method if is_mllm else None, keys_of_recipe)}")
                continue
            try:
                values[key] = coerce(value, keys_of_recipe[key].type)
            except ValueError as error:
                faults.append(f"{source.origin}: {key} {error}")
    required = [key for key, field in keys_of_recipe.items() if field.required]
    faults += [f"{path}: {key} is missing" for key in required if key not in given]
    raise_faults(path, faults)
    if not is_mllm:
        return assemble(TwoTowerRecipe, values)
    return assemble(Recipe, values, chosen={"fusion": METHODS[method]})


def known_keys() -> set[str]:
    """The dotted keys of recipes of every family and method."""
    return {*all_recipe_keys(), *two_tower_keys()}


def _unknown(key: str, method: str | None, keys: dict[str, Key]) -> str:
    """What is wrong with a key that a recipe of this method does not have, and what may be meant.

    method: None where the recipe is one of the two towers.
    """
    if method is None:
        return f"unknown key '{key}'{suggestion(key, keys)}"
    for former, current in FORMER_KEYS.items():
        if key.startswith(former):
            return f"unknown key '{key}'; {former}* is called {current}* now, docs/recipe_keys.md lists its keys"
    methods = [other for other in METHODS if key in recipe_keys(other)]
    if methods:
        return f"unknown key '{key}' of the fusion method {method}; it is one of {' and '.join(methods)}"
    return f"unknown key '{key}'{suggestion(key, keys)}"
