"""A vision tower and a language model as a source to import, and what of the model they do not have."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from llava.anyres import TilingConfig
from llava.checkpoint.compose import language_model_part, part_config, tower_part
from llava.checkpoint.folder import GENERATION_CONFIG
from llava.checkpoint.match import KeyMatch
from llava.convert.source import Source
from llava.fusion.configs.none import NoneConfig
from llava.mllm.parts import MASK_TOKEN, NEWLINE, PROJECTOR, UNUSED
from llava.text_files import read_json

LAYERS_DROPPED = 1  # real SigLIP has 27 layers, of which 26 are used; of every tower the state before the last


def parts_source(tower_folder: Path, language_model_folder: Path) -> Source:
    """A baseline of one square crop: projector and newline are new."""
    vision = part_config(tower_folder)
    vision.num_hidden_layers -= LAYERS_DROPPED
    return Source(
        name=f"{tower_folder} + {language_model_folder}",
        kind="vision tower + language model",
        parts=(tower_part(tower_folder), language_model_part(language_model_folder)),
        vision=vision,
        text=part_config(language_model_folder),
        fusion=NoneConfig(),
        tiling=TilingConfig(),
        folders=(language_model_folder, tower_folder),
        may_be_new=(*UNUSED, PROJECTOR, NEWLINE),
    )


def new_parameters(
    model: PreTrainedModel, match: KeyMatch, dtype: torch.dtype, prefixes: Iterable[str]
) -> dict[str, torch.Tensor]:
    """The parameters that start afresh, drawn from torch's global generator as for a new model.

    Args:
        model: On the meta device; the parts that are new become real.
        match: What the source holds.
        dtype: Of the parameters.
        prefixes: Of the parts that may be new, in the order in which they are drawn.

    Returns:
        {name: tensor}, on the CPU.
    """
    tensors = {}
    for prefix in prefixes:
        names = [name for name in match.new if name.startswith(prefix)]
        if names == [MASK_TOKEN]:  # no module, and what it is does nothing; DINOv2's own begins so
            tensors[MASK_TOKEN] = torch.zeros(model.get_parameter(MASK_TOKEN).shape, dtype=dtype)
        elif names:
            module = model.get_submodule(prefix.removesuffix(".")).to_empty(device="cpu")
            module.apply(model._init_weights)
            tensors |= {name: module.state_dict()[name.removeprefix(prefix)].to(dtype) for name in names}
    return tensors


def generation_config(folders: Sequence[Path], tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Where answers end, as the first folder with generation settings says, else as the tokenizer does.

    Sampling and penalties are left behind: Qwen2-Instruct's repetition_penalty of 1.1 changes greedy answers.
    """
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for folder in folders:
        if (folder / GENERATION_CONFIG).is_file():
            settings = read_json(folder / GENERATION_CONFIG)
            ends |= {key: settings[key] for key in ends if settings.get(key) is not None}
            break
    return GenerationConfig(**ends)
