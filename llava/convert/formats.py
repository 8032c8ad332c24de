"""What `llava convert export` writes: transformers' own format, or any model with its modeling files."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedConfig, PreTrainedModel

from llava.checkpoint.folder import (
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION_CONFIG,
    IMAGE_PROCESSOR_CONFIG,
    LOG,
    PROCESSOR_CONFIG,
    TENSORBOARD,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    model_type_of,
)
from llava.checkpoint.shards import MAX_SHARD_BYTES, read_tensors, tensor_shapes, write_shards
from llava.convert.model_card import CARD
from llava.convert.output import new_folder
from llava.convert.to_llava_onevision import check_expressible, onevision_config, onevision_name, onevision_processor
from llava.convert.to_remote_code import MLLM, TWO_TOWER, task_class, write_code
from llava.data.pairs.vocabulary import FILE as ANSWERS
from llava.errors import LlavaError
from llava.mllm import LlavaOVManagerConfig, LlavaOVManagerForConditionalGeneration
from llava.mllm.former_names import current_name
from llava.text_files import read_json
from llava.two_tower.configuration import TwoTowerConfig
from llava.two_tower.modeling import TwoTowerForTask

# Files that stay as they are, where the model has them. Of training's own the logs alone come along, with the card.
_CARRIED = (*TOKENIZER_FILES, CHAT_TEMPLATE, GENERATION_CONFIG)


def export_as(format_name: str, source: Path, out: Path, accept_differences: bool, card: str) -> list[str]:
    """Writes a checkpoint of this package to a new folder.

    Args:
        format_name: `llava_onevision` or `remote_code`.
        source: The checkpoint.
        out: The folder; nothing is left there after an error.
        accept_differences: Whether to export also what llava_onevision computes otherwise.
        card: The model card's text.

    Returns:
        What the user should know about it, a line each.

    Raises:
        LlavaError: The format cannot hold the model, or weights do not fit it.
    """
    if model_type_of(source) == TwoTowerConfig.model_type:
        return _export_two_tower(format_name, source, out, card)
    config = LlavaOVManagerConfig.from_pretrained(source)
    if format_name == "llava_onevision":
        return _export_onevision(source, out, config, accept_differences, card)
    return _export_remote_code(source, out, config, card)


def _export_onevision(
    source: Path, out: Path, config: LlavaOVManagerConfig, accept_differences: bool, card: str
) -> list[str]:
    differences, notes = check_expressible(config)
    if differences and not accept_differences:
        raise LlavaError(
            f"llava_onevision computes something else for {'; '.join(differences)}. "
            "Pass --accept_differences to export it all the same, or --format remote_code for an equal model"
        )
    target = onevision_config(config)
    _check_names(source, LlavaOnevisionForConditionalGeneration, target, onevision_name)
    processor = onevision_processor(config, read_json(source / PROCESSOR_CONFIG)["image_processor"])
    with new_folder(out) as folder:
        target.save_pretrained(folder)
        _write_card(source, folder, card)
        _write_json(folder / PROCESSOR_CONFIG, processor)
        _carry(source, folder)
        tokenizer = read_json(source / TOKENIZER_CONFIG) | {"processor_class": processor["processor_class"]}
        _write_json(folder / TOKENIZER_CONFIG, tokenizer)
        renamed = ((onevision_name(name), tensor) for name, tensor in read_tensors(source))
        write_shards(folder, renamed, MAX_SHARD_BYTES)
    return [f"different from this model for {difference}" for difference in differences] + notes


def _export_remote_code(source: Path, out: Path, config: LlavaOVManagerConfig, card: str) -> list[str]:
    _check_names(source, LlavaOVManagerForConditionalGeneration, config, current_name)
    processor = read_json(source / PROCESSOR_CONFIG)
    processor["auto_map"] = MLLM.auto_map("AutoProcessor")
    processor["image_processor"]["auto_map"] = MLLM.auto_map("AutoImageProcessor")
    model = read_json(source / CONFIG)
    auto_classes = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
    model["auto_map"] = MLLM.auto_map(*auto_classes)
    with new_folder(out) as folder:
        _write_json(folder / CONFIG, model)
        _write_card(source, folder, card)
        _write_json(folder / PROCESSOR_CONFIG, processor)
        _carry(source, folder)
        write_code(folder)
        renamed = ((current_name(name), tensor) for name, tensor in read_tensors(source))
        write_shards(folder, renamed, MAX_SHARD_BYTES)
    return []


def _export_two_tower(format_name: str, source: Path, out: Path, card: str) -> list[str]:
    """Tokenizer and image processor are transformers' own, and stand beside the code as they are."""
    if format_name != "remote_code":
        raise LlavaError(f"{format_name} holds no two-tower model; pass --format remote_code")
    config = TwoTowerConfig.from_pretrained(source)
    _check_names(source, TwoTowerForTask, config)
    model = read_json(source / CONFIG)
    for_task = task_class(config.task)
    model["auto_map"] = TWO_TOWER.auto_map("AutoConfig", "AutoModel", for_task)
    with new_folder(out) as folder:
        _write_json(folder / CONFIG, model)
        _write_card(source, folder, card)
        _carry(source, folder, (*TOKENIZER_FILES, IMAGE_PROCESSOR_CONFIG, ANSWERS))
        write_code(folder, TWO_TOWER)
        write_shards(folder, read_tensors(source), MAX_SHARD_BYTES)
    return [f"its auto classes are AutoModel, without heads, and {for_task}, with those of {config.task}"]


def _check_names(
    source: Path, kind: type[PreTrainedModel], config: PreTrainedConfig, rename: Callable[[str], str] = str
) -> None:
    """LlavaError unless the weights, renamed, are those of a model of this kind, in name and shape; reads headers."""
    with torch.device("meta"):
        model = kind(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    saved = {rename(name): shape for name, shape in tensor_shapes(source).items()}
    tied = set(model._tied_weights_keys or ()) if config.tie_word_embeddings else set()
    for problem, names in (
        ("missing", expected.keys() - saved.keys() - tied),
        ("unexpected", saved.keys() - expected.keys()),
        ("of another shape", {name for name in expected.keys() & saved.keys() if expected[name] != saved[name]}),
    ):
        if names:
            raise LlavaError(f"{source}: {len(names)} weights are {problem}, first {min(names)}")


def _carry(source: Path, folder: Path, names: Iterable[str] = _CARRIED) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _write_card(source: Path, folder: Path, card: str) -> None:
    """And beside it what was logged in training, where the checkpoint has it."""
    (folder / CARD).write_text(card, encoding="utf-8")
    _carry(source, folder, [LOG])
    if (source / TENSORBOARD).is_dir():
        shutil.copytree(source / TENSORBOARD, folder / TENSORBOARD)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
