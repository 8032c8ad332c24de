"""The pieces of work of a bench: what each is called, what it trains, and the result that says it is done.

OUT/bench.json           what the bench was started with
OUT/data/DATA            a data set
OUT/parts/DATA           its tower and language model
OUT/jobs/NAME            of one job: task.json, log.txt, and result.json once it is done
OUT/results.json  table.md  score_and_cost.png (of a sweep sweep.png)
"""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from llava.bench.data_sets import parts_of
from llava.bench.entry import CAPTIONS, HELD_OUT, LANGUAGE_MODEL, TRAIN, VISION_TOWER, Tiling, Tower
from llava.bench.rows import REFERENCE, Row
from llava.bench.sweep import Sweep
from llava.errors import LlavaError, raise_faults
from llava.fusion.config import Sizes
from llava.fusion.configs.none import width_for
from llava.text_files import read_json
from llava.train.recipe.dotted import flatten
from llava.train.recipe.load import Arm, load_recipe

TASK, RESULT, LOG = "task.json", "result.json", "log.txt"
STAGE_1 = "stage_1"  # the checkpoint that a job starts from, in its folder while it is at work
NEW_PARTS = ("projector", "fusion", "newline")  # components that are drawn anew, and learn at the rate of the grid
STAGE_1_RATE = 4  # times the rate, while the new parts learn alone, as in the quickstart
GRID_SEED = 0  # of the short runs that choose a rate; those of the table have 1, 2, ..


@dataclass(frozen=True)
class Settings:
    """What decides the figures: two benches may differ in it only in folders of their own.

    parts: of DATA_SETS. tower: `frozen` or `trained`. tiling: `square` or `anyres`. steps: of a run, stage 1 aside.
    grid_steps: of the short runs that choose a rate. timed_steps: of a measurement. rates: of the grid. captions: of
    stage 1; samples, held_out, documents: of each data set. part_steps: of pretraining, None for the parts' own.
    """

    parts: str
    tower: Tower
    tiling: Tiling
    steps: int
    grid_steps: int
    timed_steps: int
    rates: tuple[float, ...]
    captions: int
    samples: int
    held_out: int
    documents: int
    part_steps: int | None


@dataclass(frozen=True)
class Making:
    """Makes a data set (`data`) or its tower and language model (`parts`)."""

    kind: Literal["data", "parts"]
    data: str

    @property
    def name(self) -> str:
        """Of the job's folder."""
        return f"{self.kind}-{self.data}"


@dataclass(frozen=True)
class Training:
    """Trains one row on one data set.

    kind: `measure`, a few steps for time and memory; `grid`, a short run at one rate, and its loss on held-out samples;
    `run`, one of the table, with its answers. rate: of the new parts; of a run it is known once the grid is done.
    """

    kind: Literal["measure", "grid", "run"]
    data: str
    row: Row
    seed: int = GRID_SEED
    rate: float | None = None

    @property
    def name(self) -> str:
        """Of the job's folder."""
        of_kind = {"measure": "", "grid": f"-{self.rate or 0:g}", "run": f"-{self.seed}"}[self.kind]
        return f"{self.kind}-{self.data}-{self.row.name}{of_kind}"


Job = Making | Training


@dataclass(frozen=True)
class Bench:
    """A bench in its folder. seeds: how many runs each row has of each data set. at_once: jobs side by side.

    sweep: that the rows are of, None where they are methods.
    """

    out: Path
    settings: Settings
    data: tuple[str, ...]
    rows: tuple[Row, ...]
    seeds: int
    at_once: int
    sweep: Sweep | None = None

    def folder(self, job: Job) -> Path:
        """Of a job."""
        return self.out / "jobs" / job.name

    def data_folder(self, data: str) -> Path:
        """Of a data set."""
        return self.out / "data" / data

    def parts_folder(self, data: str) -> Path:
        """Of its parts."""
        return self.out / "parts" / data

    def result(self, job: Job) -> dict[str, Any] | None:
        """What a job came to, None until it is done."""
        file = self.folder(job) / RESULT
        return read_json(file) if file.exists() else None

    def steps(self, job: Training) -> int:
        """Optimizer steps of a job."""
        settings = self.settings
        return {"measure": settings.timed_steps, "grid": settings.grid_steps, "run": settings.steps}[job.kind]

    def recipe_arguments(self, job: Training) -> dict[str, Any]:
        """What a job trains, as load_recipe takes it."""
        settings, data, parts = self.settings, self.data_folder(job.data), self.parts_folder(job.data)
        row, of_parts, steps = job.row, parts_of(job.data, settings.parts), self.steps(job)
        of_row = of_parts.sections.get(row.name, of_parts.sections.get(row.arm, {}))
        section = {**of_row, **row.section, **self.like_section(job.data, row)}
        keys: dict[str, Any] = {
            "model.vision_tower": str(parts / VISION_TOWER),
            "model.language_model": str(parts / LANGUAGE_MODEL),
            **{f"fusion.{name}": value for name, value in section.items()},
            "data.mixture": str(data / TRAIN),
            "data.image_folder": str(data),
            "components.vision_tower.trained": settings.tower == "trained",
            **{f"components.{name}.lr": settings.rates[0] if job.rate is None else job.rate for name in NEW_PARTS},
            "optim.max_steps": steps,
            "run.seed": job.seed,
            "run.output_dir": str(self.folder(job) / "model"),
        }
        if job.kind != "measure":
            keys |= {"model.start_from": str(self.folder(job) / STAGE_1)}
            keys |= {"eval.data": str(data / HELD_OUT), "eval.steps": steps, "eval.answers": 0}
        arm = Arm(row.arm, grid=settings.tiling == "anyres")
        return {"path": of_parts.recipe, "arm": str(arm), "keys": keys}

    def stage_1_arguments(self, job: Training) -> dict[str, Any]:
        """What the new parts of a grid's run or one of the table learn first, alone, from captions, in single crops."""
        arguments = self.recipe_arguments(job)
        keys = {key: value for key, value in arguments["keys"].items() if not key.startswith("eval.")}
        del keys["model.start_from"], keys["optim.max_steps"]
        keys |= {f"components.{name}.trained": False for name in ("vision_tower", "language_model", "newline")}
        keys |= {f"components.{name}.lr": STAGE_1_RATE * keys[f"components.{name}.lr"] for name in NEW_PARTS}
        keys |= {
            "data.mixture": str(self.data_folder(job.data) / CAPTIONS),
            "data.template": "plain",
            "run.output_dir": str(self.folder(job) / STAGE_1),
        }
        return {"path": arguments["path"], "arm": str(Arm(job.row.arm)), "keys": keys}

    def like_section(self, data: str, row: Row) -> dict[str, int]:
        """The projector's width of a row that has another's number of parameters; {} of others, and until it is known.

        Raises LlavaError where the other adds no parameter to those of the reference.
        """
        rows = {one.name: one for one in self.rows if one.name in (row.like, REFERENCE)}
        measured = {name: self.result(Training("measure", data, one)) for name, one in rows.items() if row.like}
        other, reference = measured.get(row.like or ""), measured.get(REFERENCE)
        if not other or not reference:
            return {}
        added = other["parameters"]["total"] - reference["parameters"]["total"]
        if added <= 0:
            raise LlavaError(f"{row.like} adds no parameters")
        return {"projector_width": width_for(added, Sizes(**reference["sizes"]))}

    def write_task(self, job: Job) -> None:
        """Writes what the job's process is to do into its folder, which is emptied."""
        folder = self.folder(job)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        task: dict[str, Any] = {
            "kind": job.kind,
            "data": job.data,
            "data_folder": str(self.data_folder(job.data)),
            "parts_folder": str(self.parts_folder(job.data)),
            "settings": asdict(self.settings),
        }
        if isinstance(job, Training):
            task["recipe"] = self.recipe_arguments(job)
            if job.kind != "measure":
                task["stage_1"] = self.stage_1_arguments(job)
        (folder / TASK).write_text(json.dumps(task, indent=1), encoding="utf-8")

    def makings(self) -> list[Making]:
        """What makes the data sets and their parts."""
        return [Making(kind, data) for data in self.data for kind in ("data", "parts")]

    def measurements(self, row: Row) -> list[Training]:
        """A short training of the row on each data set, alone on the machine."""
        return [Training("measure", data, row) for data in self.data]

    def grid(self, data: str, row: Row) -> list[Training]:
        """The short runs of a row that choose its rate; none where there is one rate alone."""
        rates = self.settings.rates
        return [Training("grid", data, row, rate=rate) for rate in rates] if len(rates) > 1 else []

    def runs(self, data: str, row: Row) -> list[Training]:
        """The runs of a row in the table, at the chosen rate, None until it is chosen."""
        rate = self.chosen_rate(data, row)
        return [Training("run", data, row, seed, rate) for seed in range(1, self.seeds + 1)]

    def losses(self, data: str, row: Row) -> dict[float, float | None]:
        """{rate: loss on held-out samples, None where it diverged} of the grid's runs that are done."""
        results = {job.rate: self.result(job) for job in self.grid(data, row)}
        return {rate: result["held_out_loss"] for rate, result in results.items() if rate and result}

    def chosen_rate(self, data: str, row: Row) -> float | None:
        """The rate with the least loss on held-out samples; None until all are done, or where all diverged."""
        if len(self.settings.rates) == 1:
            return self.settings.rates[0]
        losses = self.losses(data, row)
        finite = {rate: loss for rate, loss in losses.items() if loss is not None}
        if len(losses) < len(self.settings.rates) or not finite:
            return None
        return min(finite, key=lambda rate: finite[rate])

    def resolved(self) -> dict[str, dict[str, Any]]:
        """{data set and row: the dotted keys of its runs}, without folders, rates and what follows from measurements.

        Raises LlavaError for what cannot be.
        """
        resolved = {}
        for data in self.data:
            for row in self.rows:
                recipe = load_recipe(**self.recipe_arguments(Training("run", data, replace(row, like=None), seed=1)))
                raise_faults(f"the row {row.name}", [f"{row.name}: fusion.{fault}" for fault in recipe.fusion.faults()])
                keys = flatten(json.loads(json.dumps(recipe.to_dict())))
                resolved[f"{data} {row.name}"] = {key: keys[key] for key in keys if key not in LEFT_OUT}
        return resolved


LEFT_OUT = (
    "model.start_from",
    "model.vision_tower",
    "model.language_model",
    "data.mixture",
    "data.image_folder",
    "eval.data",
    "run.output_dir",
    *(f"components.{name}.lr" for name in NEW_PARTS),
)
