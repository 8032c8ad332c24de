"""What this code does on a GPU, in one command and at most eight minutes.

    make gpu-check                                           # or: python benchmarks/gpu_check.py
    python benchmarks/gpu_check.py --parts arms zero2        # some of it
    python benchmarks/gpu_check.py --device cpu --tiny       # no figures: tries out what runs without a GPU

Needs one GPU, and neither weights nor data nor a network: weights are random, at the sizes of SigLIP so400m and
Qwen2-0.5B, images are noise; `training` takes the quickstart's tiny models and digit pages. Each part runs in a process
of its own with a time of its own; one that fails, hangs or runs out of memory is told, and the others go on. What is
there is written to --json after each part: paste that file and the tables into benchmarks/RESULTS.md.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from llava.text_table import text_table
from llava.train.ranks.fingerprint import git_state

ROOT = Path(__file__).resolve().parents[1]
# Of each part, loading Python's packages included; what one leaves over the next may use. With DYING after each they
# are less than eight minutes.
SECONDS = {
    "device": 35,
    "training": 60,
    "arms": 80,
    "attention": 45,
    "packing": 30,
    "zero1": 35,
    "zero2": 35,
    "zero3": 35,
    "generation": 45,
    "precision": 45,
}
TELLS = {
    "device": "what is here, and how fast it multiplies matrices in bfloat16",
    "training": "llava train as a run launches it, with tiny models, and an answer of what it trained",
    "arms": "forward and backward of two samples: waits is the share of the time in which the GPU has nothing to do",
    "attention": "flash attention against sdpa, the same",
    "packing": "two samples of unequal lengths, padded against packed",
    "zero1": "whole steps under DeepSpeed ZeRO-1, one process",
    "zero2": "whole steps under DeepSpeed ZeRO-2, one process",
    "zero3": "whole steps under DeepSpeed ZeRO-3, one process",
    "generation": "answers to one image and to many at once",
    "precision": "losses of the same steps in float32 and under bfloat16 autocast",
}
DYING = 3  # seconds for a process that was killed to be gone
LAST_LINES = 15  # of what a failed part printed


@dataclass(frozen=True)
class Column:
    """A column of a table: its head, the keys of a row that it shows, and how."""

    head: str
    keys: Sequence[str]
    form: str = "{:.3g}"


COLUMNS = (
    Column("", ("side",), "{}"),
    Column("images", ("images",), "{}"),
    Column("tokens", ("tokens",), "{:,}"),
    Column("seconds", ("seconds",)),
    Column("samples/s", ("samples_per_second",)),
    Column("tokens/s", ("tokens_per_second",), "{:,.0f}"),
    Column("MFU", ("mfu",), "{:.1%}"),
    Column("GiB", ("memory_gib",), "{:.1f}"),
    Column("waits", ("gpu_waits",), "{:.1%}"),
    Column("kernels", ("kernels",), "{:,}"),
    Column("host waits", ("waits_forward", "waits_backward"), "{} + {}"),
    Column("command s", ("command_seconds",)),
    Column("first token s", ("first_token_seconds",)),
    Column("ms a token", ("token_ms",)),
    Column("answers/s", ("answers_per_second",)),
    Column("first loss", ("first_loss",), "{:.4f}"),
    Column("last loss", ("last_loss",), "{:.4f}"),
    Column("largest difference", ("largest_difference",), "{:.2%}"),
)


def run_part(command: Sequence[str], rows_file: Path, environment: Mapping[str, str], seconds: float) -> dict:
    """Runs a part to its end or to the end of its time: its rows, its seconds, and what was wrong, or None."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        fault = None
        try:
            status = process.wait(seconds)
            fault = f"ended with status {status}" if status else None
        except subprocess.TimeoutExpired:
            fault = f"not done after {seconds:.0f} s"
        finally:
            _kill(process)
        printed.seek(0)
        lines = printed.read().decode(errors="replace").splitlines()
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()] if rows_file.exists() else []
    result = {"seconds": round(time.monotonic() - started, 1), "rows": rows, "fault": fault}
    return result | ({"printed": lines[-LAST_LINES:]} if fault else {})


def _kill(process: subprocess.Popen) -> None:
    """Ends the part and what it started; a process that hangs in the driver is left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    try:
        process.wait(DYING)
    except subprocess.TimeoutExpired:
        print(f"process {process.pid} does not end", file=sys.stderr)


def check(
    parts: Mapping[str, float], command_of: Callable[[str, Path], Sequence[str]], json_file: Path, facts: dict
) -> dict:
    """Runs the parts, one after the other, and tells and writes each one's result when it is there.

    parts: seconds of each; what one leaves over is the next one's. command_of: what runs a part, given its name and the
    file for its rows.
    """
    report, left_over = {**facts, "parts": {}}, 0.0
    environment = part_environment(facts["on_gpu"])
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in parts.items():
            rows_file = Path(folder) / name
            allowed = seconds + left_over
            result = run_part(command_of(name, rows_file), rows_file, environment, allowed)
            left_over = max(0.0, allowed - result["seconds"])
            report["parts"][name] = result
            json_file.write_text(json.dumps(report, indent=1) + "\n")
            print(told(name, result), end="\n\n", flush=True)
    return report


def part_environment(on_gpu: bool) -> dict[str, str]:
    """One GPU, or none; nothing from a hub."""
    environment = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"} | os.environ
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if on_gpu else ""
    return environment | {"CUDA_VISIBLE_DEVICES": visible}


def told(name: str, result: dict) -> str:
    """A part's table, and what was wrong."""
    lines = [f"== {name}, {result['seconds']} s: {TELLS.get(name, name)} =="]
    rows = [with_losses(row) for row in result["rows"]]
    measured = [row for row in rows if "side" in row and "fault" not in row]
    if measured:
        lines.append(table(measured))
    lines += [f"{_title(row)}: {row['fault']}" for row in rows if "fault" in row]
    lines += [f"{_title(row)} waits at {_listed(row['waits_at'])}" for row in measured if row.get("waits_at")]
    for facts in [row for row in rows if "side" not in row]:
        lines += [f"{key:<16}{_shown(value)}" for key, value in facts.items()]
    if result["fault"]:
        lines += [f"FAILED: {result['fault']}", *(f"    {line}" for line in result["printed"])]
    return "\n".join(lines)


def _title(row: dict) -> str:
    return ", ".join(row[key] for key in ("side", "images") if key in row)


def _shown(value: object) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


def with_losses(row: dict) -> dict:
    """The row with the first and the last of its losses apart."""
    losses = row.get("losses")
    return row | {"first_loss": losses[0], "last_loss": losses[-1]} if losses else row


def table(rows: Sequence[dict]) -> str:
    """The columns that any row has."""
    shown = [column for column in COLUMNS if any(column.keys[0] in row for row in rows)]
    cells = [[_cell(column, row) for column in shown] for row in rows]
    return text_table([[column.head for column in shown], *cells], right=[column.form != "{}" for column in shown])


def _cell(column: Column, row: dict) -> str:
    values = [row.get(key) for key in column.keys]
    return "-" if None in values else column.form.format(*values)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {site}" for site, count in counts.items())


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=SECONDS, default=list(SECONDS), help="default: all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models; needed on a CPU")
    parser.add_argument("--json", default="gpu_check.json", help="file for the numbers (default gpu_check.json)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    import torch

    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs alone"
        print(f"no GPU: torch {torch.__version__}, built for {built}, sees none; --device cpu --tiny tries it out")
        return 1
    if not on_gpu and not options.tiny:
        print("a CPU is too slow for the real sizes: add --tiny")
        return 1
    facts = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "git": git_state(), "on_gpu": on_gpu}
    place = ["--device", options.device, *(["--tiny"] if options.tiny else [])]
    script = str(Path(__file__).with_name("gpu_parts.py"))

    def command_of(part: str, rows: Path) -> list[str]:
        return [sys.executable, script, part, "--rows", str(rows), *place]

    started, json_file = time.monotonic(), Path(options.json)
    report = check({part: SECONDS[part] for part in options.parts}, command_of, json_file, facts)
    failed = [part for part, result in report["parts"].items() if result["fault"]]
    print(
        f"{time.monotonic() - started:.0f} s; the numbers are in {json_file}; failed: {', '.join(failed) or 'nothing'}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
