"""What every kind of source boils down to before anything is written."""

from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from llava.anyres import TilingConfig
from llava.checkpoint.folder import CONFIG
from llava.checkpoint.match import Part
from llava.errors import LlavaError
from llava.fusion.config import FusionConfig
from llava.mllm.parts import NEWLINE, UNUSED


@dataclass(frozen=True)
class Source:
    """A checkpoint to import, described in this model's terms.

    Attributes:
        name: As the user gave it.
        kind: For the table and the record.
        parts: Where the weights come from.
        vision: The tower, without the layers that are not used.
        text: The language model.
        fusion: Of the model.
        tiling: How images become crops.
        folders: Where tokenizer, generation settings and pixel statistics are looked for, in this order.
        may_be_new: Prefixes of parameters that start afresh where the parts lack them.
        visual_token_ids: Ids of `<image>` and `<video>` that the source's configuration states.
        notes: What the user should know about this source.
    """

    name: str
    kind: str
    parts: tuple[Part, ...]
    vision: PreTrainedConfig
    text: PreTrainedConfig
    fusion: FusionConfig
    tiling: TilingConfig
    folders: tuple[Path, ...]
    may_be_new: tuple[str, ...] = UNUSED
    visual_token_ids: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_config(kind: type[PreTrainedConfig], folder: Path, fields: dict | None = None) -> PreTrainedConfig:
    """The configuration of one of transformers' models.

    Args:
        kind: Its class.
        folder: Where config.json lies.
        fields: What of it is taken; None for all.

    Raises:
        LlavaError: Its class does not take the values.
    """
    try:
        return kind.from_pretrained(folder) if fields is None else kind(**fields)
    except (OSError, TypeError, ValueError, KeyError, StrictDataclassError) as error:
        raise LlavaError(f"{folder / CONFIG}: no {kind.__name__} ({' '.join(str(error).split())})") from error


def read_tokenizer(config: PreTrainedConfig, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder.

    Args:
        config: Of a model of its kind, because the folder's own may be of a type that transformers does not know.
        folder: Where its files lie.

    Raises:
        LlavaError: It cannot be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, config=config)
    except Exception as error:  # transformers and tokenizers each raise their own kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise LlavaError(f"{folder}: its tokenizer cannot be loaded: {reason}") from error


def newline_if_unused(tiling: TilingConfig) -> tuple[str, ...]:
    """The newline as a part that may be new, where this tiling never puts one into an image."""
    return () if tiling.merge == "spatial_unpad" or tiling.newline_after_one_crop else (NEWLINE,)
