"""What turns pairs into numbers, and is kept in a model folder: tokenizer, size and colors of images, answers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llava.constants import CLIP_MEAN, CLIP_STD
from llava.data.pairs.transforms import Transform
from llava.data.pairs.vocabulary import FILE, read_answers, write_answers
from llava.data.schema import TransformName
from llava.errors import DataError
from llava.printable import one_line
from llava.text_files import read_json

IMAGES = "preprocessor_config.json"  # in the form of transformers' CLIPImageProcessor, which does `center`


@dataclass(frozen=True)
class PairProcessor:
    """Of one two-tower model.

    Args:
        tokenizer: Of the text tower.
        image_size: Pixels of a side.
        text_length: Tokens of every text, the padding on its right among them; longer texts are cut.
        mean: Of the image tower's channels, on [0, 1].
        std: Likewise.
        answers: What a head of questions chooses from.
    """

    tokenizer: PreTrainedTokenizerBase
    image_size: int
    text_length: int = 50
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    answers: tuple[str, ...] | None = None

    def transform(self, name: TransformName) -> Transform:
        """The transform of that name, to this model's size and colors."""
        return Transform(name, self.image_size, self.mean, self.std)

    def encode(self, text: str | Sequence[str]) -> dict[str, list]:
        """input_ids, attention_mask and special_tokens_mask of a text, each of text_length; lists for several."""
        encoded = self.tokenizer(
            text if isinstance(text, str) else list(text),
            padding="max_length",
            truncation=True,
            max_length=self.text_length,
            return_special_tokens_mask=True,
        )
        return {name: encoded[name] for name in ("input_ids", "attention_mask", "special_tokens_mask")}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the tokenizer's files, IMAGES and, of a model with answers, answers.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.model_max_length = self.text_length
        self.tokenizer.save_pretrained(folder)
        size = self.image_size
        images = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": size},
            "crop_size": {"height": size, "width": size},
            "resample": 3,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        (folder / IMAGES).write_text(json.dumps(images, indent=2) + "\n", encoding="utf-8")
        if self.answers is not None:
            write_answers(folder / FILE, self.answers)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "PairProcessor":
        """Of a model folder. Raises DataError that names what is missing there."""
        folder = Path(folder)
        try:
            images = read_json(folder / IMAGES)
            size = int(images["crop_size"]["height"])
            mean, std = tuple(images["image_mean"]), tuple(images["image_std"])
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"model {folder}: its tokenizer or {IMAGES} cannot be read: {one_line(str(error))}"
            ) from None
        return cls(
            tokenizer,
            size,
            tokenizer.model_max_length,
            mean,
            std,
            read_answers(folder / FILE) if (folder / FILE).is_file() else None,
        )


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, pad_token_id: int | None, tower: object
) -> None:
    """Raises DataError for a tokenizer of another text tower.

    Args:
        tokenizer: Whose tokens the tower is to embed.
        vocab_size: How many it embeds, of which some may be unused.
        pad_token_id: Which of them is padding; None for one that does not say.
        tower: Its name, for the message.
    """
    name = tokenizer.name_or_path or type(tokenizer).__name__
    if len(tokenizer) > vocab_size:
        raise DataError(
            f"tokenizer {name} has {len(tokenizer):,} tokens, but the text tower {tower} embeds {vocab_size:,}"
        )
    if pad_token_id is not None and tokenizer.pad_token_id != pad_token_id:
        raise DataError(
            f"tokenizer {name} pads with token {tokenizer.pad_token_id}, but the text tower {tower} with {pad_token_id}"
        )
