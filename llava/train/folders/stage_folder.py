"""The folder that a stage starts from and the one it ends in.

A finished folder is self-contained: config.json, model.safetensors, processor, tokenizer, trainer_state.json and the
run's manifest run.json. It is written under another name beside its place and renamed when complete, so that what
stands in its place is always either the old checkpoint or the new one.
"""

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from llava.constants import ADAPTER_FOLDER, MODEL_TYPE, ONEVISION_MODEL_TYPE, REFERENCE_MODEL_TYPES
from llava.convert.files import indexed_names
from llava.errors import LlavaError
from llava.files import follow_umask
from llava.sizes import in_bytes
from llava.train.recipe.schema import Recipe, raise_faults

TOWER_TYPES = ("siglip_vision_model", "siglip")
LANGUAGE_MODEL_TYPES = ("qwen2",)
PROCESSOR_FILES = ("processor_config.json", "tokenizer.json", "tokenizer_config.json")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
MANIFEST = "run.json"
ANSWERS = "eval"  # folder of the answers to held-out samples
BYTES_PER_PARAMETER = 4  # weights are saved in the precision they train in, at most float32
OTHER_BYTES = 100 * 2**20  # tokenizer, processor, logs


def check_start_folders(recipe: Recipe) -> None:
    """Raises LlavaError unless the folders that the recipe starts from are complete and of the right architecture."""
    raise_faults("the model to start from", start_folder_faults(recipe))


def start_folder_faults(recipe: Recipe) -> list[str]:
    """What is wrong with the folders that the recipe starts from, the first fault of each."""
    faults = []
    for name, types, files in (
        ("start_from", (MODEL_TYPE,), PROCESSOR_FILES),
        ("vision_tower", TOWER_TYPES, ()),
        ("language_model", LANGUAGE_MODEL_TYPES, PROCESSOR_FILES[1:]),
    ):
        folder = getattr(recipe.model, name)
        if folder is not None:
            try:
                check_folder(f"model.{name}", folder, types, files)
            except LlavaError as error:
                faults.append(str(error))
    return faults


def check_folder(key: str, path: str, model_types: tuple[str, ...], files: tuple[str, ...] = ()) -> None:
    """Raises LlavaError unless `path` holds config.json of one of `model_types`, whole weights and `files`."""
    from safetensors import SafetensorError, safe_open

    folder = Path(path)
    if not folder.is_dir():
        hub = MODEL_TYPE in model_types and HUB_ID.fullmatch(path) and not folder.exists()
        hint = f"; a model of the hub is fetched by llava convert import {path} --out DIR" if hub else ""
        raise LlavaError(f"{key} {path}: {'a file, and no' if folder.exists() else 'no such'} folder{hint}")
    if not (folder / "config.json").is_file():
        raise LlavaError(f"{key} {path}: no model folder, it has no config.json{models_inside(folder)}")
    found = read_json(folder / "config.json").get("model_type")
    if found not in model_types:
        other = MODEL_TYPE in model_types and found in (*REFERENCE_MODEL_TYPES, ONEVISION_MODEL_TYPE)
        hint = f"; llava convert import {path} --out DIR makes one of it" if other else ""
        raise LlavaError(f"{key} {path}: holds a model of type '{found}'; expected {' or '.join(model_types)}{hint}")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise LlavaError(f"{key} {path}: incomplete, it has no {', '.join(missing)}")
    for shard in _weight_files(key, folder) + _adapter_files(key, folder):
        try:
            with safe_open(shard, framework="numpy"):
                pass  # reads the header and compares it with the file's size
        except (OSError, SafetensorError) as error:
            raise LlavaError(f"{key} {path}: {shard.name} is missing or cut off ({error})") from error


def models_inside(folder: Path) -> str:
    """How a message about a folder without a model ends: with the folders in or around it that have one."""
    if (folder / ADAPTER_FILES[0]).is_file():
        return f"; it holds adapters alone, their model is {folder.absolute().parent}"
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    return f"; name one of the folders in it: {', '.join(inside)}" if inside else ""


def _weight_files(key: str, folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in indexed_names(index)]
    if not (folder / "model.safetensors").is_file():
        raise LlavaError(f"{key} {folder}: incomplete, it has no model.safetensors")
    return [folder / "model.safetensors"]


def _adapter_files(key: str, folder: Path) -> list[Path]:
    adapter = folder / ADAPTER_FOLDER
    if not adapter.is_dir():
        return []
    missing = [name for name in ADAPTER_FILES if not (adapter / name).is_file()]
    if missing:
        raise LlavaError(f"{key} {folder}: incomplete, its {ADAPTER_FOLDER} has no {', '.join(missing)}")
    return [adapter / ADAPTER_FILES[1]]


def read_json(path: Path) -> dict:
    """A JSON object from a file; LlavaError when it is missing, broken or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LlavaError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise LlavaError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def trained_arm(folder: Path) -> str | None:
    """The arm of the stage that wrote a checkpoint; None where no stage did, as of imported models."""
    if not (folder / MANIFEST).is_file():
        return None
    return read_json(folder / MANIFEST).get("recipe", {}).get("arm")


def check_output_folder(recipe: Recipe) -> None:
    """Raises LlavaError when `run.output_dir` holds what must not be replaced."""
    output, run = Path(recipe.run.output_dir), recipe.run
    if recipe.model.start_from is not None and output.resolve() == Path(recipe.model.start_from).resolve():
        raise LlavaError(f"run.output_dir {output} is also model.start_from")
    parent = _existing_parent(output)
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
    """Raises LlavaError unless the disk of `output_dir` has room for a checkpoint beside what stands there.

    components: the model's, see llava.train.loop.components.
    """
    needed = sum(component.num_parameters for component in components) * BYTES_PER_PARAMETER + OTHER_BYTES
    free = shutil.disk_usage(_existing_parent(Path(output_dir))).free
    if free < needed:
        raise LlavaError(
            f"run.output_dir {output_dir}: a checkpoint needs {in_bytes(needed)}, {in_bytes(free)} are free"
        )


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())


def working_folder(output_dir: str) -> Path:
    """Where a run writes until it is finished: beside `output_dir`, on the same disk."""
    return Path(f"{output_dir}.unfinished")


def start_working_folder(output_dir: str, goes_on: bool = False) -> Path:
    """An empty working folder; puts a checkpoint back in place whose replacement was interrupted.

    goes_on: the run continues an unfinished one, whose logs and answers stay.
    """
    output, replaced = Path(output_dir), _replaced(output_dir)
    if replaced.exists() and not output.exists():
        replaced.rename(output)
    folder = working_folder(output_dir)
    for path in folder.glob("*"):
        if path.name not in ("runs", ANSWERS) or not goes_on:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def publish(output_dir: str) -> None:
    """Renames the complete working folder to `output_dir`; an older checkpoint there is deleted only afterwards."""
    output, replaced = Path(output_dir), _replaced(output_dir)
    follow_umask(working_folder(output_dir))
    if output.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        output.rename(replaced)
    working_folder(output_dir).rename(output)
    shutil.rmtree(replaced, ignore_errors=True)


def _replaced(output_dir: str) -> Path:
    return Path(f"{output_dir}.replaced")


def write_model(model, processor, state_dict: dict, folder: Path) -> None:
    """Writes what a stage can start from: configuration, weights, processor and tokenizer."""
    model.save_pretrained(folder, state_dict=state_dict)
    processor.save_pretrained(folder)


def write_checkpoint(
    model, processor, state_dict: dict, trainer_state, manifest: dict, output_dir: str, adapter: dict | None = None
) -> None:
    """Writes the self-contained folder and puts it in place; called by one rank, with the gathered `state_dict`.

    adapter: of a model trained with LoRA, see split_weights in llava/train/mllm/lora.py.
    Raises LlavaError when it cannot be written; what stood at `output_dir` is then untouched.
    """
    from safetensors import SafetensorError

    folder = working_folder(output_dir)
    try:
        write_model(model, processor, state_dict, folder)
        trainer_state.save_to_json(str(folder / "trainer_state.json"))
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        if adapter is not None:
            from llava.train.mllm.lora import write_adapter  # imports torch

            write_adapter(model, adapter, folder)
        publish(output_dir)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise LlavaError(f"the checkpoint {output_dir} could not be written: {error}") from error
