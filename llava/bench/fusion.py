"""The bench of fusion from start to table: makes, measures, chooses rates, trains, and goes on where it was stopped."""

import json
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from llava.bench.estimate import all_jobs, disk_needed, seconds_left, source_of_times
from llava.bench.jobs import Bench, Job, Settings, Training
from llava.bench.processes import run_jobs
from llava.bench.results import collect, write_results
from llava.bench.rows import REFERENCE, Row, rows_named
from llava.bench.show import draw_to, show
from llava.bench.sweep import read_sweep
from llava.errors import LlavaError
from llava.eval.workers import StopError, sole_writer, stoppable
from llava.files import free_bytes, whole_file
from llava.sizes import duration, in_bytes
from llava.text_files import read_json
from llava.text_table import text_table
from llava.train.recipe.dotted import shown

STARTED = "bench.json"  # what a bench was started with
OUT = Path("playground/bench")  # in it each bench has its folder, where nobody names another
TILING = "anyres"  # where neither the command line nor a sweep names one


def bench_from(arguments: Namespace) -> Bench:
    """The bench that the command line describes. Raises LlavaError for rows, data sets and parts that there are not."""
    data, sweep = tuple(arguments.data), None
    if arguments.sweep is None:
        rows = tuple(rows_named(arguments.methods, arguments.without or ()))
    elif arguments.methods or arguments.without:
        raise LlavaError(f"{arguments.sweep} says which rows there are; leave --methods and --without")
    else:
        sweep = read_sweep(arguments.sweep, data, arguments.parts)
        rows = sweep.rows
    names = [field for field in Settings.__dataclass_fields__ if field not in ("rates", "tiling")]
    settings = Settings(
        **{name: getattr(arguments, name) for name in names},
        tiling=arguments.tiling or (sweep.tiling if sweep else TILING),
        rates=tuple(sorted(arguments.rates)),
    )
    out = arguments.out or OUT / (sweep.name if sweep else "fusion")
    bench = Bench(out, settings, data, rows, arguments.seeds, arguments.jobs, sweep)
    check_started(bench)
    return bench


def check_started(bench: Bench) -> dict:
    """What the bench is started with: {settings, rows}, joined with what its folder was started with before.

    Raises LlavaError where they differ in anything but more or fewer rows, data sets and seeds.
    """
    started = {"settings": json.loads(json.dumps(vars(bench.settings))), "rows": bench.resolved()}
    file = bench.out / STARTED
    if not file.exists():
        return started
    before = read_json(file)
    pairs = [("", before["settings"], started["settings"])]
    pairs += [
        (f"{name}: ", before["rows"][name], keys) for name, keys in started["rows"].items() if name in before["rows"]
    ]
    for where, old, new in pairs:
        for key in [*old, *(new.keys() - old.keys())]:
            if old.get(key) != new.get(key):
                raise LlavaError(
                    f"{bench.out} was started with {where}{key} {shown(old.get(key))}, this is {shown(new.get(key))}; "
                    "name another --out"
                )
    return started | {"rows": before["rows"] | started["rows"]}


def told(bench: Bench) -> str:
    """What the bench will do: rows, jobs, time and disk."""
    jobs, settings = all_jobs(bench), bench.settings
    done = sum(bench.result(job) is not None for job in jobs)
    trainings = [job for job in jobs if isinstance(job, Training)]
    count = {kind: sum(job.kind == kind for job in trainings) for kind in ("measure", "grid", "run")}
    seconds, source = seconds_left(bench, jobs), source_of_times(bench)
    time_left = "not known before the first measurement" if seconds is None else f"about {duration(seconds)} from here"
    if source:
        time_left += f", as fast as {source} and every row as {REFERENCE}"
    return "\n".join(
        [
            *([f"{bench.sweep.title}: {bench.sweep.axis}", ""] if bench.sweep else []),
            text_table([(row.name, row.about) for row in bench.rows], right=[False]),
            *(bench.sweep.remarks if bench.sweep else ()),
            "",
            f"jobs  {len(jobs)}, {done} done: {len(bench.makings())} make {', '.join(bench.data)} and parts, "
            f"{count['measure']} measure, {count['grid']} try rates for {settings.grid_steps} steps, "
            f"{count['run']} train for {settings.steps}, each behind {settings.captions} captions",
            f"time  {time_left}, {bench.at_once} side by side",
            f"disk  {in_bytes(disk_needed(bench))} in {bench.out}, {in_bytes(free_bytes(bench.out))} are free",
        ]
    )


def run_bench(bench: Bench) -> int:
    """Does what is not done, and prints the table. Returns 0, 1 where a job failed, 128 + N after a signal N."""
    try:
        with stoppable(), sole_writer(bench.out, ["fusion"]):
            return _Running(bench).run()
    except StopError as stop:
        name = signal.Signals(stop.number).name
        print(f"\n{name}: stopped; what is done stays, and the same command goes on from there", file=sys.stderr)
        return 128 + stop.number


class _Running:
    """A bench at work. failed: jobs that failed. left_out: {"data row": why} of rows that cannot be."""

    def __init__(self, bench: Bench):
        self.bench = bench
        self.failed: list[str] = []
        self.left_out: dict[str, str] = {}

    def run(self) -> int:
        bench = self.bench
        needed, free = disk_needed(bench), free_bytes(bench.out)
        if free < needed:
            raise LlavaError(f"{bench.out}: the bench needs {in_bytes(needed)} of disk, {in_bytes(free)} are free")
        with whole_file(bench.out / STARTED) as stream:
            json.dump(check_started(bench), stream, indent=1)
        print(told(bench), end="\n\n", flush=True)
        self._do(bench.makings(), bench.at_once)
        reference, *others = bench.rows
        self._do(bench.measurements(reference), 1)
        if self.failed or self.left_out:  # nothing can be compared
            return self._end()
        self._do([job for row in others if not row.like for job in bench.measurements(row)], 1)
        self._do([job for row in others if row.like for job in bench.measurements(row) if self._has_width(job)], 1)
        self._do([job for pair in self._pairs() for job in bench.grid(*pair)], bench.at_once)
        runs = [job for pair in self._pairs() for job in bench.runs(*pair) if self._has_rate(job)]
        self._do(sorted(runs, key=lambda job: job.seed), bench.at_once)
        results = collect(bench, self.left_out)
        write_results(bench.out / "results.json", results)
        print()
        picture = bench.out / ("sweep.png" if bench.sweep else "score_and_cost.png")
        if find_spec("matplotlib") is None:
            print(f"no picture is drawn: matplotlib is not installed (llava bench table {bench.out}/results.json)")
        elif any(of_data["questions"] for of_data in results["data"].values()):
            draw_to(results, picture)
        show(results, bench.out / "table.md")
        return self._end()

    def _pairs(self) -> list[tuple[str, Row]]:
        """The data sets and rows that are not left out."""
        pairs = [(data, row) for data in self.bench.data for row in self.bench.rows]
        return [(data, row) for data, row in pairs if f"{data} {row.name}" not in self.left_out]

    def _is_left_out(self, job: Training) -> bool:
        return f"{job.data} {job.row.name}" in self.left_out

    def _has_width(self, job: Training) -> bool:
        """Whether it is known how wide the projector of a row is that has another's number of parameters."""
        try:
            has_width, why = bool(self.bench.like_section(job.data, job.row)), f"{job.row.like} is left out"
        except LlavaError as error:
            has_width, why = False, str(error)
        if not has_width:
            self.left_out[f"{job.data} {job.row.name}"] = why
        return has_width

    def _has_rate(self, job: Training) -> bool:
        """Whether a rate was chosen for the run; a row that diverged at every rate is left out."""
        if job.rate is None:
            self.left_out.setdefault(f"{job.data} {job.row.name}", "no rate of the grid came to an end that is finite")
        return job.rate is not None

    def _end(self) -> int:
        for line in self.failed:
            print(f"failed: {line}", file=sys.stderr)
        return 1 if self.failed else 0

    def _do(self, jobs: Sequence[Job], at_once: int) -> None:
        """Does those of the jobs that are not done, and tells each that ends."""
        for ended in run_jobs(self.bench, jobs, at_once):
            if ended.reason is None:
                outcome = _outcome(self.bench.result(ended.job) or {})
            else:
                outcome = f"{'left out' if ended.refused else 'failed'}: {ended.reason}"
            if ended.refused and isinstance(ended.job, Training) and ended.job.kind == "measure":
                self.left_out[f"{ended.job.data} {ended.job.row.name}"] = ended.reason or ""
            elif ended.reason is not None:
                self.failed.append(f"{ended.job.name}: {ended.reason}")
            jobs = [job for job in all_jobs(self.bench) if not (isinstance(job, Training) and self._is_left_out(job))]
            done = sum(self.bench.result(job) is not None for job in jobs)
            left = seconds_left(self.bench, jobs)
            remaining = "" if left is None else f"; about {duration(left)} left"
            print(f"[{done}/{len(jobs)}] {ended.job.name}: {outcome}{remaining}", flush=True)


def _outcome(result: dict) -> str:
    """What a job came to, in a few words."""
    if "right" in result:
        return f"{100 * sum(result['right']) / len(result['right']):.1f}% right, {duration(result['seconds'])}"
    if "held_out_loss" in result:
        loss = result["held_out_loss"]
        return "diverged" if loss is None else f"held-out loss {loss:.4f}, {duration(result['seconds'])}"
    if "step_seconds" in result:
        return f"{result['step_seconds']['clock']:.3f} seconds a step"
    return duration(result["seconds"])
