"""How long a stage takes to its first step, and what it holds in memory, with a mixture of many records.

    python benchmarks/start_up.py --records 1000000

Synthetic LLaVA records in several files, most with an image, and a tiny model: two ranks start, once without an index
and once with the one that the first start made. Prints one line of JSON. seconds: from the launch to where the first
step would begin, imports included; beyond_imports: without these. rank_gib: the most of any rank's resident memory
beyond what its imports took, mapped files included; rank_private_gib: its own alone. worker_private_gib: of a data
loader's worker, forked as in training, that has read its share of the records. cpu_seconds: processor time, the most of
any rank, its imports' (import_cpu_seconds) among it, which says more than seconds where others are at work.

access: microseconds of processor time, medians over random rows of the first data file, of a record through the index
(record) and from the file's records in memory (record_in_memory), and of dataset[i] with the one and the other behind
it, for rows with an image and for those of text alone, of which the ratios are told.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

RANKS, FILES, LOADER_WORKERS = 2, 20, 4
IMAGES = 5000  # files; records share them
TEXT_ONLY = 20  # every so many records
SECONDS, FOLDER = "START_UP_BEGIN", "START_UP_FOLDER"  # variables of the ranks
ACCESSES = 400  # rows of each kind that are read at random
GIB = 1 << 30


def make_data(folder: Path, records: int) -> None:
    """Images, data files of about 1.4 kB a record, and their mixture."""
    from PIL import Image

    (folder / "images").mkdir(parents=True)
    images = min(IMAGES, records)
    for number in range(images):
        size = (320 + number * 37 % 700, 240 + number * 61 % 600)
        Image.linear_gradient("L").resize(size).convert("RGB").save(folder / f"images/{number:06d}.jpg", quality=50)
    for number in range(FILES):
        rows = range(number * records // FILES, (number + 1) * records // FILES)
        with open(folder / f"part{number}.json", "w", encoding="utf-8") as stream:
            stream.write("[\n" + ",\n".join(json.dumps(_record(row, images)) for row in rows) + "\n]\n")
    entries = [{"json_path": f"part{number}.json", "sampling_strategy": "all"} for number in range(FILES)]
    (folder / "mixture.yaml").write_text(json.dumps({"datasets": entries}))


def _record(row: int, images: int) -> dict:
    shown = row % TEXT_ONLY > 0
    turns = [
        ("human", "<image>\n" * shown + "What can be seen here, and what does it tell? " + "Describe it. " * (row % 9))
    ]
    turns += [("gpt", f"Answer {row}: " + "a red car stands in front of a house. " * (4 + row % 13))]
    turns += [
        ("human", "And what else, if anything, is worth a look? " * 2),
        ("gpt", "Nothing but trees. " * (9 + row % 29)),
    ]
    image = {"image": f"images/{row * 7919 % images:06d}.jpg"} if shown else {}
    return {"id": f"set/{row:09d}", **image, "conversations": [{"from": role, "value": text} for role, text in turns]}


def make_model(folder: Path) -> None:
    """A tiny model with random weights and a processor."""
    from bench_eval import random_engine

    options = argparse.Namespace(device="cpu", dtype="float32", vision_layers=None, text_layers=None, layers=None)
    engine = random_engine(options, tiny=True)
    engine.model.save_pretrained(folder)
    engine.processor.save_pretrained(folder)


def memory(process: str = "self") -> tuple[int, int]:
    """Resident and private bytes of a process."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kilobytes["Rss"] << 10, (kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]) << 10


def run_rank(folder: Path) -> None:
    """One rank of a start: writes what it took, and ends where training would begin."""
    from llava.train.imports import import_stage
    from llava.train.recipe.load import load_recipe

    keys = {
        "model.start_from": str(folder / "model"),
        "data.mixture": str(folder / "mixture.yaml"),
        "data.image_folder": str(folder),
        "optim.global_batch_size": 512,
        "run.deepspeed": None,
        "run.output_dir": str(folder / "out"),
    }
    recipe = load_recipe("scripts/train/recipes/mllm/stage2.yaml", "grid_manager", keys=keys)
    stage = import_stage(recipe)
    imports, imported, import_cpu = memory(), time.time(), time.process_time()

    def report(trainer, *_) -> None:
        seconds = time.time() - float(os.environ[SECONDS])
        resident, private = (now - before for now, before in zip(memory(), imports))
        facts = {
            "seconds": seconds,
            "beyond": time.time() - imported,
            "cpu": time.process_time(),
            "import_cpu": import_cpu,
            "resident": resident,
            "private": private,
            "worker": read_in_worker(trainer),
        }
        (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(facts))
        raise SystemExit(0)

    stage.train = report
    stage.run_stage(recipe)


def read_in_worker(trainer) -> int:
    """Private bytes of a fork of this process that reads one worker's share of an epoch."""
    import gc

    dataset, rank = trainer.train_dataset, int(os.environ["RANK"])
    gc.collect()
    gc.freeze()
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        for number in range(rank, len(dataset), RANKS * LOADER_WORKERS):
            assert dataset.samples[number].turns
        for number in range(rank, len(dataset), max(len(dataset) // 50, 1)):
            dataset[number]
        gc.collect()
        os.write(writer, str(memory()[1]).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        private = int(stream.read())
    os.waitpid(child, 0)
    return private


def access(folder: Path) -> dict:
    """Random access to records and samples, through the index and from a list of the same records; see the top."""
    import llava.mllm  # noqa: F401 - tells transformers of the processor's parts
    from llava.data.dataset import SupervisedDataset
    from llava.data.indexing import index_file
    from llava.data.processor import LlavaOVManagerProcessor
    from llava.data.record_store import Part, RecordStore
    from llava.data.schema import sample_of
    from llava.data.workers import Workers

    file = folder / "part0.json"
    index = index_file(file, Workers())
    store = RecordStore([Part(index, range(len(index)))])
    records = json.loads(file.read_text(encoding="utf-8"))
    in_memory = [sample_of(record, f"{file} row {row}") for row, record in enumerate(records, start=1)]
    processor = LlavaOVManagerProcessor.from_pretrained(folder / "model")
    indexed, plain = (SupervisedDataset(samples, processor, image_folder=folder) for samples in (store, in_memory))
    rows = random.Random(0).sample(range(len(store)), len(store))
    texts, images = (
        [row for row in rows if bool(in_memory[row].images) == shown][:ACCESSES] for shown in (False, True)
    )
    record, record_before = _pair(store.__getitem__, lambda row: sample_of(records[row], "a row"), rows[:ACCESSES])
    results = {"record_us": record, "record_in_memory_us": record_before}
    for name, chosen in (("image", images), ("text", texts)):
        now, before = _pair(indexed.__getitem__, plain.__getitem__, chosen)
        results |= {f"{name}_us": now, f"{name}_in_memory_us": before, f"{name}_ratio": round(now / before, 3)}
    return results


def _pair(one: Callable, other: Callable, rows: list[int]) -> tuple[float, float]:
    """Median microseconds of processor time of two ways to read a row, which take turns in being first."""
    taken: dict[Callable, list[int]] = {one: [], other: []}
    for number, row in enumerate(rows):
        for read in (one, other) if number % 2 else (other, one):
            began = time.process_time_ns()
            read(row)
            taken[read].append(time.process_time_ns() - began)
    return tuple(round(median(taken[read]) / 1000, 1) for read in (one, other))


def start(folder: Path) -> dict:
    """Starts the stage; what the ranks wrote, the most of each."""
    shutil.rmtree(folder / "out.unfinished", ignore_errors=True)
    environment = os.environ | {SECONDS: str(time.time()), FOLDER: str(folder), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}", __file__]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout[-4000:])
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(RANKS)]
    return {key: max(rank[key] for rank in ranks) for key in ranks[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000, help="(default 1000000)")
    parser.add_argument("--folder", help="where the data is made, and stays (default: a temporary folder)")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(options.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="start-up-")))
        if not (folder / "mixture.yaml").exists():
            make_data(folder, options.records)
            make_model(folder / "model")
        shutil.rmtree(folder / ".llava-index", ignore_errors=True)
        first, second = start(folder), start(folder)
        accesses = access(folder)
    results = {
        "records": options.records,
        "ranks": RANKS,
        "cores": len(os.sched_getaffinity(0)),
        "first_start_seconds": round(first["seconds"], 1),
        "second_start_seconds": round(second["seconds"], 1),
        "first_start_beyond_imports": round(first["beyond"], 1),
        "second_start_beyond_imports": round(second["beyond"], 1),
        "second_start_cpu_seconds": round(second["cpu"], 1),
        "second_start_import_cpu_seconds": round(second["import_cpu"], 1),
        "rank_gib": round(max(first["resident"], second["resident"]) / GIB, 3),
        "rank_private_gib": round(max(first["private"], second["private"]) / GIB, 3),
        "worker_private_gib": round(max(first["worker"], second["worker"]) / GIB, 3),
        "access": accesses,
    }
    print(json.dumps(results))


if __name__ == "__main__":
    if FOLDER in os.environ:
        run_rank(Path(os.environ[FOLDER]))
    else:
        main()
