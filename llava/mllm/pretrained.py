"""What transformers has to know of the model: which parts it has, how they begin, and how it may be run."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llava.constants import ADAPTER_FOLDER
from llava.fusion.base import SelfInitialised
from llava.mllm.configuration import LlavaOVManagerConfig


class LlavaOVManagerPreTrainedModel(PreTrainedModel):
    """What transformers has to know of the model: its parts, and how it may be run."""

    config: LlavaOVManagerConfig
    base_model_prefix = "model"
    input_modalities = ["image", "video", "text"]
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True  # a decoding step; prefill with images runs uncompiled, as generate does it

    @property
    def device(self) -> torch.device:
        """Where inputs go: where the first parameter is that is not left on the CPU or the disk until it is used."""
        return next(
            (parameter.device for parameter in self.parameters() if not parameter.is_meta), torch.device("meta")
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The parts that are ours know how they begin; the others as in transformers."""
        if isinstance(module, SelfInitialised):
            module.initialise()
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, which sees the weights alone: it warns where LoRA adapters lie beside them."""
        folder = pretrained_model_name_or_path
        if folder is not None and Path(folder, ADAPTER_FOLDER).is_dir():
            warnings.warn(
                f"{folder} holds LoRA adapters, which are not applied here; `llava convert "
                "merge-lora` makes a checkpoint of both, llava.checkpoint.loading.load_model loads both",
                stacklevel=2,
            )
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
