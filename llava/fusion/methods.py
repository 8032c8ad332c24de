"""The methods of fusion that there are. Imports no torch."""

from dataclasses import fields
from typing import Any

from llava.errors import LlavaError
from llava.fusion.config import FusionConfig
from llava.fusion.configs.cli_reconstruction import CliReconstructionConfig
from llava.fusion.configs.cross_attention import CrossAttentionConfig
from llava.fusion.configs.deepstack import DeepstackConfig
from llava.fusion.configs.deepstack_qwen3 import DeepstackQwen3Config
from llava.fusion.configs.dense_connector import ConcatConfig, DciConfig, SciConfig
from llava.fusion.configs.igva import IgvaConfig
from llava.fusion.configs.layer_select import LayerSelectConfig
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.configs.mmfuser import MmfuserConfig
from llava.fusion.configs.none import NoneConfig
from llava.fusion.configs.sti import StiConfig
from llava.fusion.configs.tgif import TgifConfig

KINDS: list[type[FusionConfig]] = [
    NoneConfig,
    ManagerConfig,
    DeepstackConfig,
    DeepstackQwen3Config,
    ConcatConfig,
    SciConfig,
    DciConfig,
    MmfuserConfig,
    StiConfig,
    LayerSelectConfig,
    CrossAttentionConfig,
    CliReconstructionConfig,
    TgifConfig,
    IgvaConfig,
]
METHODS = {kind.method: kind for kind in KINDS}


def fusion_config(values: dict[str, Any]) -> FusionConfig:
    """The configuration that a mapping of `method` and its fields describes, as in config.json.

    Raises LlavaError for an unknown method or field, and for a value that a field does not take.
    """
    fields_of_method = dict(values)
    method = fields_of_method.pop("method", None)
    if method not in METHODS:
        raise LlavaError(f"unknown fusion method {method!r}; choose one of {', '.join(METHODS)}")
    kind = METHODS[method]
    names = [one.name for one in fields(kind) if one.init]
    unknown = sorted(set(fields_of_method) - set(names))
    if unknown:
        raise LlavaError(
            f"the fusion method {method} has no field {', '.join(unknown)}; it has {', '.join(names) or 'none'}"
        )
    try:
        return kind(**fields_of_method)
    except TypeError as error:  # a value of the wrong kind
        raise LlavaError(f"fusion method {method}: {error}") from None
