"""The folder that a stage starts from and the one it ends in.

A finished folder is self-contained: config.json, model.safetensors, processor, tokenizer, trainer_state.json, what that
logs as log.csv, and the run's manifest run.json. It is written under another name beside its place and renamed when
complete, so that what stands in its place is always either the old checkpoint or the new one.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.checkpoint.folder import MANIFEST, OTHER_BYTES, STAGE_WORKING, TENSORBOARD
from llava.errors import LlavaError
from llava.files import existing_folder, free_bytes, put_back, put_in_place
from llava.sizes import in_bytes
from llava.text_files import read_json
from llava.train.family import StageRecipe
from llava.train.folders.log_table import write_log

if TYPE_CHECKING:  # it imports torch
    from transformers import PreTrainedModel, ProcessorMixin, TrainerState

ANSWERS = "eval"  # folder of the answers to held-out samples


def trained_arm(folder: Path) -> str | None:
    """The arm of the stage that wrote a checkpoint; None where no stage did, as of imported models."""
    if not (folder / MANIFEST).is_file():
        return None
    return read_json(folder / MANIFEST).get("recipe", {}).get("arm")


def check_output_folder(recipe: StageRecipe) -> None:
    """Looks into `run.output_dir`.

    Raises:
        LlavaError: when it holds what must not be replaced, or cannot be written to.
    """
    output, run = Path(recipe.run.output_dir), recipe.run
    if recipe.model.start_from is not None and output.resolve() == Path(recipe.model.start_from).resolve():
        raise LlavaError(f"run.output_dir {output} is also model.start_from")
    parent = existing_folder(output.absolute().parent)
    if not os.access(parent, os.W_OK):
        raise LlavaError(f"run.output_dir {output}: {parent} cannot be written to")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / MANIFEST).is_file():
        raise LlavaError(f"run.output_dir {output} exists and is not a checkpoint of a stage; choose another")
    if not run.overwrite:
        raise LlavaError(
            f"run.output_dir {output} holds a finished checkpoint; pass --run.overwrite true to replace it"
        )


def check_disk(output_dir: str, components: Sequence) -> None:
    """Compares a checkpoint's size, of weights in the precision that they train in, with what is free.

    Args:
        output_dir: run.output_dir.
        components: the model's, see llava.train.loop.components.

    Raises:
        LlavaError: unless its disk has room for a checkpoint beside what stands there.
    """
    needed = sum(component.num_bytes for component in components) + OTHER_BYTES
    free = free_bytes(Path(output_dir).absolute().parent)
    if free < needed:
        raise LlavaError(
            f"run.output_dir {output_dir}: a checkpoint needs {in_bytes(needed)}, {in_bytes(free)} are free"
        )


def working_folder(output_dir: str) -> Path:
    """Where a run writes until it is finished: beside `output_dir`, on the same disk."""
    return Path(f"{output_dir}{STAGE_WORKING}")


def start_working_folder(output_dir: str, goes_on: bool = False) -> Path:
    """An empty working folder; puts a checkpoint back in place whose replacement was interrupted.

    goes_on: the run continues an unfinished one, whose logs and answers stay.
    """
    put_back(Path(output_dir))
    folder = working_folder(output_dir)
    for path in folder.glob("*"):
        if path.name not in (TENSORBOARD, ANSWERS) or not goes_on:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def publish(output_dir: str) -> None:
    """Renames the complete working folder to `output_dir`; an older checkpoint there is deleted only afterwards."""
    put_in_place(working_folder(output_dir), Path(output_dir))


def write_model(model: "PreTrainedModel", processor: "ProcessorMixin", state_dict: dict, folder: Path) -> None:
    """Writes what a stage can start from: configuration, weights, processor and tokenizer."""
    model.save_pretrained(folder, state_dict=state_dict)
    processor.save_pretrained(folder)


def write_checkpoint(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    state_dict: dict,
    trainer_state: "TrainerState",
    manifest: dict,
    output_dir: str,
    adapter: dict | None = None,
) -> None:
    """Writes the self-contained folder and puts it in place; called by one rank, with the gathered `state_dict`.

    Args:
        model: for its configuration.
        processor: with the tokenizer.
        state_dict: the weights, whole.
        trainer_state: what was logged.
        manifest: the content of run.json, see end_manifest.
        output_dir: run.output_dir.
        adapter: of a model trained with LoRA, see split_weights in llava/train/mllm/lora.py.

    Raises:
        LlavaError: when it cannot be written; what stood at `output_dir` is then untouched.
    """
    from safetensors import SafetensorError

    folder = working_folder(output_dir)
    try:
        write_model(model, processor, state_dict, folder)
        trainer_state.save_to_json(str(folder / "trainer_state.json"))
        write_log(trainer_state.log_history, folder)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        if adapter is not None:
            from llava.train.mllm.lora import write_adapter  # imports torch

            write_adapter(model, adapter, folder)
        publish(output_dir)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise LlavaError(f"the checkpoint {output_dir} could not be written: {error}") from error
