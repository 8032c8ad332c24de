"""One training stage on one process of a run: model, data, Trainer, checkpoint."""

import gc
import os
import shutil
import time
import warnings
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path

import torch
from transformers import PreTrainedModel, ProcessorMixin, TrainingArguments, set_seed
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging as transformers_logging

from llava.text_files import read_json
from llava.train.ends import ends_told, exit_stopped
from llava.train.estimate.heaviest import Heaviest
from llava.train.estimate.plan import Plan, describe
from llava.train.family import Data, Family, StageData, StageRecipe, family_of
from llava.train.folders.interim import (
    check_seen,
    checkpoints_folder,
    clear_leftovers,
    last_checkpoint,
    start_anew,
)
from llava.train.folders.manifest import end_manifest, start_manifest, write_start
from llava.train.folders.resume_point import ResumePoint, resume_point
from llava.train.folders.stage_folder import check_disk, start_working_folder, working_folder, write_checkpoint
from llava.train.loop.components import freeze
from llava.train.loop.precision import lower_precision, trains_in_bf16
from llava.train.loop.stop import die_with_launcher
from llava.train.loop.trainer import LlavaTrainer
from llava.train.ranks.hardware import repeat_bits
from llava.train.ranks.preflight import preflight
from llava.train.ranks.process_group import (
    first_on_each_host,
    leave_process_group,
    on_first_rank,
    rank,
    start_process_group,
)
from llava.train.ranks.shared_weights import share_weights
from llava.train.ranks.waiting import meet
from llava.train.recipe.running import RunRecipe


@dataclass(frozen=True)
class Stage:
    """A stage that is ready to train, on this process."""

    recipe: StageRecipe
    family: Family
    plan: Plan
    mixture: Data
    processor: ProcessorMixin
    trainer: LlavaTrainer


def run_stage(recipe: StageRecipe) -> None:
    """Trains the stage and leaves its checkpoint in `run.output_dir`. Every process of the run calls it.

    Raises:
        LlavaError: for input that cannot be used; DataError names the file and sample.
    """
    started = time.time()
    reports = preflight(recipe)
    stage = prepare(recipe, started)
    manifest = on_first_rank(partial(_write_start, stage, reports), recipe.run.startup_timeout)
    with ends_told(stage.recipe, stage.plan.processes, stage.trainer):
        train(stage.trainer)
    if stage.trainer.save_and_stop.stopped_by:
        leave_process_group()
        exit_stopped(stage.trainer)
    save(stage, manifest)
    leave_process_group()


def _write_start(stage: Stage, reports: list[dict]) -> dict:
    """The first rank's part: what is known before the first step, which it writes."""
    recipe = stage.recipe
    manifest = start_manifest(recipe, stage.plan, stage.trainer.components, stage.mixture, reports)
    write_start(working_folder(recipe.run.output_dir), manifest, stage.family.sampled_rows(stage.mixture))
    return manifest


def prepare(recipe: StageRecipe, started: float | None = None) -> Stage:
    """Loads model and data, joins the ranks and builds the Trainer; rank 0 prints what will happen.

    Args:
        recipe: checked.
        started: when this process began with the stage, in seconds since 1970; None for now.
    """
    started = time.time() if started is None else started
    quiet()
    die_with_launcher()
    set_seed(recipe.run.seed)
    if recipe.run.deterministic:
        repeat_bits()
    family = family_of(recipe)
    shared = family.shares_weights(recipe)
    load_weights = partial(family.build, recipe, with_weights=rank() == 0 or not shared)
    model, processor = first_on_each_host(load_weights, recipe.run.startup_timeout)
    components = family.components(model, recipe)
    freeze(components)
    lower_precision(model, recipe)
    family.prepare_layers(model, recipe)
    mixture = first_on_each_host(partial(family.load_data, recipe), recipe.run.startup_timeout)
    plan = Plan.of(recipe, len(mixture.samples), family.tokens_of_sample(recipe, model.config))
    check_disk(recipe.run.output_dir, components)
    checkpoint = last_checkpoint(recipe.run)
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        clear_leftovers(recipe.run.output_dir)
    if rank() == 0:
        make_room(recipe.run, checkpoint)
        about = family.about(recipe, plan, model.config)
        described = describe(recipe, plan, components, model.config._attn_implementation, *about)
        print(described, mixture, sep="\n\n", flush=True)

    meet(recipe.run.startup_timeout)
    start_process_group(recipe.run)
    arguments = training_arguments(recipe, plan)
    if shared:
        share_weights(model, arguments.device, zero_3_configuration(arguments, model))
    data = family.stage_data(recipe, mixture, model, processor, components)
    decide = partial(resume_point, checkpoint, recipe, arguments.world_size, data)
    resume = on_first_rank(decide, recipe.run.startup_timeout)
    first_on_each_host(partial(check_seen, resume.checkpoint), recipe.run.startup_timeout)
    largest = on_first_rank(partial(find_heaviest, data, resume, arguments), recipe.run.startup_timeout)
    tries = recipe.run.rehearsal == "always" or (recipe.run.rehearsal == "auto" and torch.cuda.is_available())
    if rank() == 0:
        print(largest, "tried before the first step" if tries else "not tried", sep=", ", flush=True)
    trainer = LlavaTrainer(
        model,
        arguments,
        data,
        components=components,
        lr_groups=recipe.lr_groups,
        run=recipe.run,
        processor=processor,
        evaluates_at_start=recipe.eval.at_start,
        resume=resume,
        heaviest=largest if tries else None,
        started=started,
    )
    set_seed(recipe.run.seed + rank())  # noise and dropout are each rank's own
    return Stage(recipe, family, plan, mixture, processor, trainer)


def find_heaviest(data: StageData, resume: ResumePoint, arguments: TrainingArguments) -> Heaviest:
    """The micro-batch to try, or to tell of; it goes through the order of the whole epoch."""
    costs = data.costs if resume.costs is None else resume.costs
    return data.heaviest(data.sampler(data.dataset, arguments, costs))


def train(trainer: LlavaTrainer) -> TrainOutput:
    """Trains, from where an unfinished run was."""
    checkpoint = trainer.resume.checkpoint
    gc.collect()
    gc.freeze()  # or a data loader's worker, when it collects garbage, copies all that was there before it
    try:
        with trainer.stop_request:
            return trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        gc.unfreeze()


def save(stage: Stage, manifest: dict) -> None:
    """Gathers the weights on every rank and writes the checkpoint on the first.

    Args:
        stage: trained.
        manifest: of the start, on the first rank; see start_manifest.
    """
    trainer, recipe = stage.trainer, stage.recipe
    weights = trainer.gather_weights()
    totals = trainer.joined_totals()
    if rank() == 0:
        weights, adapter = stage.family.split_weights(trainer.model, weights)
        check_disk(recipe.run.output_dir, trainer.components)
        manifest = end_manifest(
            manifest,
            totals,
            steps=trainer.state.global_step,
            tokens_seen=int(trainer.state.num_input_tokens_seen),
            mixture=stage.mixture,
            optimizer_groups=trainer.optimizer_check.groups,
            attention=trainer.model.config._attn_implementation,
        )
        output = recipe.run.output_dir
        write_checkpoint(trainer.model, stage.processor, weights, trainer.state, manifest, output, adapter)
        shutil.rmtree(checkpoints_folder(output), ignore_errors=True)
        print(f"saved {output}{odd_samples(totals)}", flush=True)
    meet(recipe.run.startup_timeout)  # the first rank may write for longer than a collective may take
    trainer.accelerator.wait_for_everyone()


def odd_samples(totals: dict) -> str:
    """How many samples were not trained on as they are, behind what was saved; empty where all were."""
    notes = ""
    if totals["skipped"]:
        notes += f"; {totals['skipped']} bad samples were skipped"
    if totals["shortened"]:
        notes += f"; {totals['shortened']} samples were too long and were shortened"
    return notes


def make_room(run: RunRecipe, checkpoint: Path | None) -> None:
    """Empties the working folder but for what an unfinished run goes on with; see start_anew."""
    start_working_folder(run.output_dir, goes_on=checkpoint is not None)
    if checkpoint is None:
        start_anew(run)


def quiet() -> None:
    """Silences what libraries say on every rank and step and a user cannot act on; errors still come through."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # of loading and saving; the Trainer has its own
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 is about to drop.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def training_arguments(recipe: StageRecipe, plan: Plan) -> TrainingArguments:
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
        adam_beta2=optim.beta2,
        bf16=trains_in_bf16(recipe),
        deepspeed=read_json(run.deepspeed, by_hand=True) if run.deepspeed else None,
        use_cpu=not on_gpu,
        ddp_timeout=run.collective_timeout,
        ddp_find_unused_parameters=False,
        dataloader_num_workers=recipe.data.workers,
        dataloader_prefetch_factor=prefetch_factor(plan.accumulation, recipe.data.workers),
        dataloader_pin_memory=on_gpu,
        accelerator_config={"non_blocking": on_gpu},  # copies of pinned batches wait for nothing
        remove_unused_columns=False,
        include_num_input_tokens_seen="non_padding",
        logging_steps=run.logging_steps,
        logging_nan_inf_filter=False,
        log_level="error",
        log_level_replica="error",  # of packed samples it would tell in every micro-batch how it counts their tokens
        disable_tqdm=False,
        save_strategy="no",
        eval_strategy=evaluation_rhythm(recipe),
        eval_steps=recipe.eval.steps,
        per_device_eval_batch_size=recipe.eval.batch_size or optim.batch_size,
        seed=run.seed,
    )


def evaluation_rhythm(recipe: StageRecipe) -> str:
    """When what is held out is evaluated, in transformers' words."""
    if not recipe.evaluates:
        return "no"
    return "epoch" if recipe.eval.steps is None else "steps"


def zero_3_configuration(arguments: TrainingArguments, model: PreTrainedModel) -> dict | None:
    """DeepSpeed's configuration as the Trainer completes it for this model; None unless parameters are partitioned."""
    if not arguments.deepspeed or not arguments.hf_deepspeed_config.is_zero3():
        return None
    config = arguments.hf_deepspeed_config
    config.trainer_config_finalize(arguments, model, num_training_steps=0)  # for a schedule, which it has none of
    return config.config


def prefetch_factor(accumulation: int, workers: int) -> int | None:
    """How many batches each of a data loader's workers loads ahead; None without workers.

    The Trainer takes all micro-batches of a step before it trains on the first: while it trains, the next step's are
    loaded, and one more of each worker's.
    """
    return ceil(accumulation / workers) + 1 if workers else None
