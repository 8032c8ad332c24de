"""One job of a bench in a process of its own, of one thread: `python -m llava.bench.work OUT/jobs/NAME`.

It does what task.json in that folder says and writes result.json last, whole: a job whose process was killed has none.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava.bench.data_sets import DATA_SETS
from llava.bench.entry import UNTIMED, DataSet
from llava.bench.jobs import NEW_PARTS, RESULT, STAGE_1, TASK
from llava.engine.engine import Engine
from llava.errors import LlavaError
from llava.files import whole_file, whole_folder
from llava.mllm.cost import forward_cost
from llava.text_files import read_json
from llava.train.folders.stage_folder import write_model
from llava.train.loop.components import Component
from llava.train.loop.guard import NonFiniteError
from llava.train.loop.step_log import peak_memory_gib
from llava.train.loop.trainer import LlavaTrainer
from llava.train.mllm.data import sample_sizes
from llava.train.ranks.fingerprint import git_state, versions
from llava.train.recipe.load import load_recipe
from llava.train.stage import Stage, prepare, train

TOGETHER = 50  # questions that are answered at a time, and that a measurement times


class StepClock(TrainerCallback):
    """The seconds between the ends of two steps, loading included: on the clock, and of the processor."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Notes both clocks, once the device has done the step."""
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        self.ends.append((time.perf_counter(), time.process_time()))

    def medians(self) -> tuple[float, float]:
        """Of the steps behind the first few."""
        clock, processor = np.median(np.diff(self.ends[UNTIMED:], axis=0), axis=0)
        return float(clock), float(processor)


def main(folder: Path) -> int:
    """Does the job, and returns 0. What cannot be is told in one line, with status 2, and has no result."""
    task = read_json(folder / TASK)
    started, entry = time.time(), DATA_SETS[task["data"]]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    try:
        result = _make(task, entry) if task["kind"] in ("data", "parts") else _train(task, entry)
    except LlavaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in ("model.unfinished", f"{STAGE_1}.unfinished", STAGE_1):
        shutil.rmtree(folder / name, ignore_errors=True)
    result |= {"seconds": time.time() - started, "git": git_state(), "versions": versions()}
    with whole_file(folder / RESULT, sync=True) as stream:
        json.dump(result, stream)
    return 0


def _make(task: dict, entry: DataSet) -> dict[str, Any]:
    settings = task["settings"]
    with whole_folder(task[f"{task['kind']}_folder"]) as working:
        if task["kind"] == "data":
            entry.make(working, *(settings[name] for name in ("captions", "samples", "held_out", "documents")))
        else:
            parts = entry.parts[settings["parts"]]
            parts.make(working, settings["part_steps"] or parts.steps)
    return {}


def _train(task: dict, entry: DataSet) -> dict[str, Any]:
    clock, orders = StepClock(), []
    try:
        if "stage_1" in task:
            first, _ = _trained(task["stage_1"])
            orders.append(order_hash(first.trainer))
            folder = Path(first.recipe.run.output_dir)
            write_model(first.trainer.model, first.processor, first.trainer.gather_weights(), folder)
        stage, seconds = _trained(task["recipe"], clock)
    except NonFiniteError as error:
        if task["kind"] != "grid":
            raise LlavaError(f"training diverged: {error}") from None
        return {"held_out_loss": None}
    trainer, orders = stage.trainer, [*orders, order_hash(stage.trainer)]
    rate = stage.recipe.components.projector.lr
    result = {"training_seconds": seconds, "order": " ".join(orders), "rate": rate}
    if task["kind"] == "measure":
        result |= measured(stage, clock) | _timed_answers(stage, entry, Path(task["data_folder"]))
    else:
        (result["held_out_loss"],) = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    if task["kind"] == "run":
        result |= answered(stage, entry, Path(task["data_folder"]))
    return result


def _trained(arguments: dict, *callbacks: TrainerCallback) -> tuple[Stage, float]:
    """The stage of load_recipe's arguments, and its seconds of training. Raises NonFiniteError where it diverges."""
    stage = prepare(load_recipe(**arguments))
    for callback in callbacks:
        stage.trainer.add_callback(callback)
    began = time.time()
    train(stage.trainer)
    if stage.trainer.save_and_stop.stopped_by:
        raise LlavaError("stopped by a signal")
    return stage, time.time() - began


def order_hash(trainer: LlavaTrainer) -> str:
    """The SHA-256 of the samples of each step, in the order of the steps. Within a step their order trains nothing."""
    size, digest = trainer.get_total_train_batch_size(trainer.args), hashlib.sha256()
    sampler, left, epoch = trainer.train_sampler, trainer.state.global_step, 0
    while left > 0:
        sampler.set_epoch(epoch)
        indices = [-1 if index is None else index for index in sampler]
        steps = np.sort(np.reshape(indices, (-1, size))[:left], axis=1)
        digest.update(steps.astype("<i8").tobytes())
        left, epoch = left - len(steps), epoch + 1
    return digest.hexdigest()


def measured(stage: Stage, clock: StepClock) -> dict[str, Any]:
    """Parameters, operations of a sample, seconds of a step and peak memory. Operations are means over the samples."""
    trainer, config = stage.trainer, stage.trainer.model.config
    sizes = sample_sizes(stage.recipe, trainer.train_dataset)
    forward, training = (float(np.mean(sizes.costs(cost))) for cost in (forward_cost(config), trainer.step_log.cost))
    on_clock, of_processor = clock.medians()
    return {
        "fusion": config.fusion.to_dict(),
        "sizes": asdict(config.sizes),
        "described": config.fusion.describe(),
        "parameters": {"total": _count(trainer.components), "new": _count(trainer.components, NEW_PARTS)},
        "flops": {"forward": forward, "training": training},
        "batch_size": trainer.get_total_train_batch_size(trainer.args),
        "device": str(trainer.args.device.type),
        "step_seconds": {"clock": on_clock, "processor": of_processor},
        "peak_memory_gib": peak_memory_gib(trainer.args.device),
    }


def _count(components: list[Component], names: tuple[str, ...] | None = None) -> int:
    return sum(one.num_parameters for one in components if names is None or one.name in names)


def _timed_answers(stage: Stage, entry: DataSet, data: Path) -> dict[str, Any]:
    questions = list(entry.questions(data))[:TOGETHER]
    engine = Engine(stage.trainer.model, stage.processor)
    began = time.perf_counter()
    engine.generate([question.dialogue for question in questions], max_new_tokens=entry.max_new_tokens)
    return {"seconds_per_answer": (time.perf_counter() - began) / len(questions)}


def answered(stage: Stage, entry: DataSet, data: Path) -> dict[str, Any]:
    """The greedy answers to all questions of the test, which of them are right, and what was asked."""
    began, answers, questions = time.time(), [], list(entry.questions(data))
    engine = Engine(stage.trainer.model, stage.processor)
    for start in range(0, len(questions), TOGETHER):
        dialogues = [question.dialogue for question in questions[start : start + TOGETHER]]
        answers += engine.generate(dialogues, max_new_tokens=entry.max_new_tokens)
    return {
        "questions": [[question.id, question.document, question.kind] for question in questions],
        "answers": answers,
        "right": [int(question.is_right(answer)) for question, answer in zip(questions, answers, strict=True)],
        "answering_seconds": time.time() - began,
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
