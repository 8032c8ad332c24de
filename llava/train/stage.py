"""One training stage on one process of a run: model, data, Trainer, checkpoint."""

import gc
import os
import shutil
import signal
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from llava.data.collator import Collator
from llava.data.content import content_digest
from llava.data.mixture import Mixture, load_mixture
from llava.data.processor import LlavaOVManagerProcessor
from llava.errors import DataError
from llava.mllm.cost import training_cost
from llava.train.estimate.plan import Plan, describe, manifest
from llava.train.folders.interim import (
    check_data_unchanged,
    checkpoints_folder,
    last_checkpoint,
    read_mark,
    resume_facts,
)
from llava.train.folders.manifest import run_facts, sampled_rows, write_start
from llava.train.folders.reshape import join_states
from llava.train.folders.stage_folder import check_disk, start_working_folder, working_folder, write_checkpoint
from llava.train.loop.components import freeze, split_components
from llava.train.loop.guard import NonFiniteError
from llava.train.loop.stop import die_with_launcher
from llava.train.loop.totals import results
from llava.train.loop.trainer import LlavaTrainer
from llava.train.mllm.build import build, trains_in_bf16
from llava.train.mllm.data import held_out, sizes_once, supervised_dataset
from llava.train.mllm.lora import split_weights
from llava.train.mllm.recompute_compile import prepare_layers
from llava.train.ranks.preflight import preflight
from llava.train.ranks.process_group import (
    end_all,
    first_on_each_host,
    leave_process_group,
    on_first_rank,
    rank,
    start_process_group,
)
from llava.train.ranks.waiting import meet
from llava.train.recipe.dotted import read_json
from llava.train.recipe.schema import Recipe


@dataclass(frozen=True)
class Stage:
    """A stage that is ready to train, on this process."""

    recipe: Recipe
    plan: Plan
    mixture: Mixture
    processor: LlavaOVManagerProcessor
    trainer: LlavaTrainer


def run_stage(recipe: Recipe) -> None:
    """Trains the stage and leaves its checkpoint in `run.output_dir`. Every process of the run calls it.

    Raises LlavaError for input that cannot be used; DataError names the file and sample.
    """
    started = time.time()
    reports = preflight(recipe)
    stage = prepare(recipe)
    stage.trainer.totals.start = started
    facts = run_facts(recipe, stage.mixture, reports)
    if rank() == 0:
        record = manifest(recipe, stage.plan, stage.trainer.components, **facts)
        write_start(working_folder(recipe.run.output_dir), record, sampled_rows(stage.mixture, recipe.run.seed))
    meet(recipe.run.startup_timeout)
    try:
        train(stage.trainer)
    except NonFiniteError as error:
        if rank() == 0:
            print(file=sys.stderr)  # the progress bar's line is open
        end_all(error)
    if stage.trainer.stopped_by:
        leave_process_group()
        exit_stopped(stage.trainer)
    save(stage, **facts)
    leave_process_group()


def exit_stopped(trainer: LlavaTrainer) -> None:
    """Ends this process with the status of the signal that stopped training; rank 0 says how to go on."""
    if rank() == 0:
        state, name = trainer.state, signal.Signals(trainer.stopped_by).name
        kept = f"the same command goes on from {trainer.last_saved}" if trainer.last_saved else "nothing was saved"
        print(f"stopped by {name} after step {state.global_step} of {state.max_steps}; {kept}", file=sys.stderr)
    raise SystemExit(128 + trainer.stopped_by)


def prepare(recipe: Recipe) -> Stage:
    """Loads model and data, joins the ranks and builds the Trainer; rank 0 prints what will happen."""
    quiet()
    die_with_launcher()
    set_seed(recipe.run.seed)
    model, processor = build(recipe)
    components = split_components(model, recipe)
    freeze(components)
    prepare_layers(model, recipe)
    load = partial(load_mixture, recipe.data.mixture, recipe.run.seed)
    mixture = first_on_each_host(load, recipe.run.startup_timeout)
    plan = Plan.of(recipe, model.config, len(mixture.samples))
    check_disk(recipe.run.output_dir, components)
    checkpoint = last_checkpoint(recipe)
    if rank() == 0:
        start_working_folder(recipe.run.output_dir, goes_on=checkpoint is not None)
        if checkpoint is None:
            shutil.rmtree(checkpoints_folder(recipe.run.output_dir), ignore_errors=True)
        described = describe(recipe, plan, components, model.config, model.config._attn_implementation)
        print(described, mixture, sep="\n\n", flush=True)

    meet(recipe.run.startup_timeout)
    start_process_group(recipe.run)
    arguments = training_arguments(recipe, plan)
    positions = model.config.text_config.max_position_embeddings
    dataset = supervised_dataset(recipe, mixture.samples, processor, positions)
    sizes = sizes_once(recipe, dataset)
    cost = training_cost(model.config, [component.name for component in components if component.trained])
    evaluated = held_out(recipe, processor, cost, positions)
    trainer = LlavaTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=Collator(processor.tokenizer.pad_token_id, recipe.data.packing),
        components=components,
        lr_groups=recipe.lr_groups,
        cost=cost,
        costs=cost(sizes.crops, sizes.tokens, sizes.supervised),
        run=recipe.run,
        processor=processor,
        held_out=evaluated,
    )
    go_on_from(checkpoint, recipe, trainer)
    arguments.eval_on_start = recipe.eval.at_start and trainer.last_saved is None
    set_seed(recipe.run.seed + rank())  # the managers' jitter is each rank's own
    return Stage(recipe, plan, mixture, processor, trainer)


def quiet() -> None:
    """Silences what libraries say on every rank and step and a user cannot act on; errors still come through."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # of loading and saving; the Trainer has its own
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 is about to drop.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def training_arguments(recipe: Recipe, plan: Plan) -> TrainingArguments:
    """The recipe in transformers' words; creating it joins the process group."""
    optim, run = recipe.optim, recipe.run
    on_gpu = torch.cuda.is_available()
    if run.report_to == "wandb":
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_PROJECT", "llava-ov-manager")
    return TrainingArguments(
        output_dir=str(working_folder(run.output_dir)),
        run_name=f"stage{recipe.stage}-{recipe.arm}",
        report_to=run.report_to,
        per_device_train_batch_size=optim.batch_size,
        gradient_accumulation_steps=plan.accumulation,
        average_tokens_across_devices=True,
        num_train_epochs=optim.epochs,
        max_steps=optim.max_steps or -1,
        learning_rate=optim.lr,
        lr_scheduler_type=optim.schedule,
        warmup_steps=optim.warmup,
        max_grad_norm=optim.max_grad_norm,
        bf16=trains_in_bf16(recipe),
        deepspeed=read_json(run.deepspeed) if run.deepspeed else None,
        use_cpu=not on_gpu,
        ddp_timeout=run.collective_timeout,
        ddp_find_unused_parameters=False,
        dataloader_num_workers=recipe.data.workers,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        include_num_input_tokens_seen="non_padding",
        logging_steps=run.logging_steps,
        logging_nan_inf_filter=False,
        log_level="error",
        log_level_replica="error",  # of packed samples it would tell in every micro-batch how it counts their tokens
        disable_tqdm=False,
        save_strategy="no",
        eval_strategy="no" if recipe.eval.data is None else "steps",
        eval_steps=recipe.eval.steps,
        per_device_eval_batch_size=recipe.eval.batch_size or optim.batch_size,
        seed=run.seed,
    )


def go_on_from(checkpoint: Path | None, recipe: Recipe, trainer: LlavaTrainer) -> None:
    """Readies the trainer to go on from `checkpoint`, or to start anew, as the first rank decides.

    Raises LlavaError when the data is not what the checkpoint was trained on.
    """
    decided = on_first_rank(partial(_decide, checkpoint, recipe, trainer), recipe.run.startup_timeout)
    trainer.last_saved, trainer.joined_states, trainer.facts = decided


def _decide(checkpoint: Path | None, recipe: Recipe, trainer: LlavaTrainer) -> tuple[Path | None, Path | None, dict]:
    """The first rank's part: where to go on from, where joined states are, and what new checkpoints note."""
    dataset, processes = trainer.train_dataset, trainer.args.world_size
    digest = content_digest(dataset.samples, trainer.costs)
    facts, joined = resume_facts(recipe, processes, digest), None
    if checkpoint is not None:
        check_data_unchanged(checkpoint, digest)
        mark = read_mark(checkpoint)
        if mark["processes"] != processes and recipe.run.deepspeed is not None:
            joined = checkpoints_folder(recipe.run.output_dir) / "joined"
            shutil.rmtree(joined, ignore_errors=True)
            join_states(checkpoint, mark["step"], joined)
        trainer.totals.before = mark["totals"]
        print(f"\ngoes on after step {mark['step']}, from {checkpoint}", flush=True)
    return checkpoint, joined, facts


def train(trainer: LlavaTrainer):
    """Trains, from where an unfinished run was.

    A bad sample met by a data loader's worker is reported as what it is, without the worker's traceback.
    """
    gc.collect()
    gc.freeze()  # or a data loader's worker, when it collects garbage, copies all that was there before it
    try:
        with trainer.stop_request:
            return trainer.train(resume_from_checkpoint=trainer.last_saved and str(trainer.last_saved))
    except DataError as error:
        fault = str(error).strip().rpartition("DataError: ")[2]
        begin = f", from {trainer.last_saved}" if trainer.last_saved else ""
        raise DataError(f"{fault}; mend it, or go on with --data.on_bad_sample skip{begin}") from None
    finally:
        gc.unfreeze()


def save(stage: Stage, **facts) -> None:
    """Gathers the weights on every rank and writes the checkpoint on the first, with `facts` in its manifest."""
    trainer, recipe = stage.trainer, stage.recipe
    weights = trainer.gather_weights()
    totals = trainer.joined_totals()
    if rank() == 0:
        weights, adapter = split_weights(trainer.model, weights)
        check_disk(recipe.run.output_dir, trainer.components)
        record = manifest(
            recipe,
            stage.plan,
            trainer.components,
            optimizer_groups=trainer.optimizer_check.groups,
            mixture=[asdict(row) for row in stage.mixture.table],
            attention=trainer.model.config._attn_implementation,
            steps=trainer.state.global_step,
            tokens_seen=int(trainer.state.num_input_tokens_seen),
            **facts,
            **results(totals, trainer.state.global_step),
        )
        write_checkpoint(trainer.model, stage.processor, weights, trainer.state, record, recipe.run.output_dir, adapter)
        shutil.rmtree(checkpoints_folder(recipe.run.output_dir), ignore_errors=True)
        skipped, shortened = totals["skipped"], totals["shortened"]
        notes = f"; {skipped} bad samples were skipped" * (skipped > 0)
        notes += f"; {shortened} samples were too long and were shortened" * (shortened > 0)
        print(f"saved {recipe.run.output_dir}{notes}", flush=True)
    trainer.accelerator.wait_for_everyone()
