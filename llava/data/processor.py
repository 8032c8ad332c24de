"""The one processor: images and text in, model inputs out, for training, evaluation and chat."""

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from llava.anyres import ImageLayout, TilingConfig, image_layout
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN, SYSTEM_MESSAGE, VIDEO_TOKEN
from llava.data.conversation import encode_conversation, encode_prompt
from llava.data.images import crop_image, normalize
from llava.data.schema import Sample, Turn
from llava.errors import DataError, LlavaError

OVER_LONG = ("error", "truncate")
# Images of one turn are joined by spaces and followed by a newline, as in training.
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\\n" + SYSTEM_MESSAGE + "<|im_end|>\\n' }}{%- endif -%}"
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}"
    "{{ '" + IMAGE_TOKEN + "' + (' ' if loop.nextitem is defined and loop.nextitem['type'] == 'image' else '\\n') }}"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] }}"
    "{%- else -%}{{ raise_exception('only text and images can be shown, not ' + part['type']) }}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


class LlavaOVManagerImageProcessor(BaseImageProcessor):
    """Cuts images into crops and normalises them.

    Args:
        size: pixels per side of a crop. patch_size: pixels per side of a patch of the tower.
        tiling: TilingConfig or its dict. image_mean, image_std: per channel, on values from 0 to 1.
    """

    model_input_names = ["pixel_values", "image_sizes", "batch_num_images"]

    def __init__(
        self, size=384, patch_size=14, tiling=None, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5), **kwargs
    ):
        super().__init__(**kwargs)
        self.size = size
        self.patch_size = patch_size
        self.tiling = tiling if isinstance(tiling, TilingConfig) else TilingConfig(**(tiling or {}))
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def to_dict(self) -> dict:
        return {**super().to_dict(), "tiling": self.tiling.to_dict()}

    def layout(self, image_size: tuple[int, int], several_images: bool) -> ImageLayout:
        """The layout of an image of (width, height) pixels."""
        return image_layout(
            *image_size,
            self.tiling,
            tile=self.size,
            side=self.size // self.patch_size,
            several_images=several_images,
        )

    def crops(self, image: Image.Image, several_images: bool) -> np.ndarray:
        """Normalised crops of one image, float32 (crops, 3, size, size)."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        layout = self.layout(image.size, several_images)
        pad_color = tuple(int(mean * 255) for mean in self.image_mean)
        crops = crop_image(image, layout, self.tiling, self.size, several_images, pad_color)
        return normalize(crops, self.image_mean, self.image_std)

    def __call__(self, images: list[list[Image.Image]], **kwargs) -> BatchFeature:
        """images: one list of images per sample. Returns tensors pixel_values, image_sizes, batch_num_images."""
        flat = [(image, len(group) > 1) for group in images for image in group]
        return BatchFeature(
            {
                "pixel_values": torch.from_numpy(np.concatenate([self.crops(*entry) for entry in flat])),
                "image_sizes": torch.tensor([(image.height, image.width) for image, _ in flat]),
                "batch_num_images": torch.tensor([len(group) for group in images]),
            }
        )


class LlavaOVManagerProcessor(ProcessorMixin):
    """Tokenizer and image processor. The tokenizer must know `<image>` as a special token (see add_visual_tokens)."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        if self.image_token_id in (None, tokenizer.unk_token_id):
            raise LlavaError(f"the tokenizer {tokenizer.name_or_path!r} does not know the token {IMAGE_TOKEN}")

    def encode_sample(
        self,
        sample: Sample,
        images: list[Image.Image],
        *,
        template: str,
        label_rule: str,
        max_length: int,
        on_over_long: str = "error",
    ) -> dict:
        """A training sample as model inputs.

        Returns input_ids and labels (lists of equal length) and num_images; with images also pixel_values
        (crops, 3, S, S) and image_sizes (images, 2) as (height, width).
        Raises DataError, naming the sample, for placeholders that do not match the images and for more than max_length
        tokens, unless on_over_long is `truncate` and the cut falls behind the last image and before the last answer.
        """
        try:
            ids, labels = encode_conversation(self.tokenizer, sample.turns, template, label_rule, images=len(images))
            ids, labels = self._expand(ids, self._token_counts([image.size for image in images]), labels)
            if all(label == IGNORE_INDEX for label in labels):
                raise DataError("the conversation has no answer to learn from")
            if len(ids) > max_length:
                ids, labels = self._cut(ids, labels, max_length, on_over_long)
        except DataError as error:
            raise DataError(f"{sample}: {error}") from None
        encoded = {"input_ids": ids, "labels": labels, "num_images": len(images)}
        if images:
            visual = self.image_processor([images])
            encoded |= {"pixel_values": visual["pixel_values"], "image_sizes": visual["image_sizes"]}
        return encoded

    def count_tokens(self, sample: Sample, image_sizes: list[tuple[int, int]], template: str) -> int:
        """Length of encode_sample's input_ids, from the images' (width, height) alone."""
        ids, _ = encode_conversation(self.tokenizer, sample.turns, template, "answers", images=len(image_sizes))
        return len(self._expand(ids, self._token_counts(image_sizes))[0])

    def encode_prompts(
        self, dialogues: list[tuple[tuple[Turn, ...], list[Image.Image]]], system: str = SYSTEM_MESSAGE
    ) -> BatchFeature:
        """A left-padded batch of prompts, each of turns and their images, that ends where the next answer begins.

        Returns input_ids, attention_mask (B, L) and, if any dialogue has images, what the image processor returns.
        """
        rows = []
        for turns, images in dialogues:
            ids = encode_prompt(self.tokenizer, tuple(turns), system, images=len(images))
            rows.append(self._expand(ids, self._token_counts([image.size for image in images]))[0])
        length = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        batch = {
            "input_ids": torch.tensor([[pad] * (length - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
        }
        if any(images for _, images in dialogues):
            batch |= self.image_processor([images for _, images in dialogues])
        return BatchFeature(batch)

    def __call__(self, images=None, text=None, padding=True, return_tensors="pt", **kwargs) -> BatchFeature:
        """transformers' convention: prompts as text with `<image>`, and images.

        text: a string or a list. images: one image, a list of images (shared out over the texts by their placeholders)
        or one list per text. Other keywords go to the tokenizer.
        """
        texts = [text] if isinstance(text, str) else list(text)
        groups = _group_images(images, texts)
        sizes = [[image.size for image in group] for group in groups]
        expanded = []
        for prompt, sizes_of_text in zip(texts, sizes):
            pieces = prompt.split(IMAGE_TOKEN)
            counts = self._token_counts(sizes_of_text)
            expanded.append("".join(p + IMAGE_TOKEN * c for p, c in zip(pieces, counts)) + pieces[-1])
        batch = self.tokenizer(expanded, padding=padding, return_tensors=return_tensors, **kwargs)
        if any(groups):
            batch.update(self.image_processor(groups))
        return BatchFeature(dict(batch))

    def _token_counts(self, sizes: list[tuple[int, int]]) -> list[int]:
        return [self.image_processor.layout(size, len(sizes) > 1).num_tokens for size in sizes]

    def _expand(self, ids: list[int], counts: list[int], labels: list[int] | None = None):
        """Each placeholder repeated as often as its image has tokens; labels grow alike, ignored.

        The ids can hold fewer placeholders than the text: templates leave out some turns.
        """
        found = ids.count(self.image_token_id)
        if found != len(counts):
            raise DataError(f"found {found} {IMAGE_TOKEN} placeholders in the prompt but {len(counts)} images")
        pending = iter(counts)
        expanded, expanded_labels = [], []
        for position, token in enumerate(ids):
            times = next(pending) if token == self.image_token_id else 1
            expanded += [token] * times
            if labels is not None:
                expanded_labels += [labels[position] if times == 1 else IGNORE_INDEX] * times
        return expanded, expanded_labels

    def _cut(self, ids: list[int], labels: list[int], max_length: int, on_over_long: str):
        found = f"found {len(ids)} tokens but max_length is {max_length}"
        if on_over_long == "error":
            raise DataError(found)
        if self.image_token_id in ids[max_length:]:
            raise DataError(f"{found}, and a cut there would fall before the end of an image")
        if all(label == IGNORE_INDEX for label in labels[:max_length]):
            raise DataError(f"{found}, and a cut there would leave no answer")
        return ids[:max_length], labels[:max_length]


def add_visual_tokens(tokenizer, vocab_size: int) -> dict[str, int]:
    """Makes `<image>` and `<video>` special tokens; returns {"image_token_id": ..., "video_token_id": ...}.

    Qwen2's tokenizers gain ids 151646 and 151647, which lie inside the model's vocabulary of 151,936, so that no
    embedding is resized. Raises LlavaError when an id would lie outside a vocabulary of `vocab_size`.
    """
    tokens = [IMAGE_TOKEN, VIDEO_TOKEN]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    ids = tokenizer.convert_tokens_to_ids(tokens)
    for token, token_id in zip(tokens, ids):
        if token_id >= vocab_size:
            raise LlavaError(f"{token} would get id {token_id}, but the language model's vocabulary is {vocab_size}")
    return dict(zip(("image_token_id", "video_token_id"), ids))


def _group_images(images, texts: list[str]) -> list[list[Image.Image]]:
    """One list of images per text; DataError when placeholders and images do not match."""
    wanted = [text.count(IMAGE_TOKEN) for text in texts]
    if images is None:
        images = []
    elif isinstance(images, Image.Image):
        images = [images]
    if images and isinstance(images[0], (list, tuple)):
        groups = [list(group) for group in images]
    elif sum(wanted) == len(images):
        pending = iter(images)
        groups = [[next(pending) for _ in range(count)] for count in wanted]
    else:
        groups = [list(images)] + [[] for _ in texts[1:]]
    found = [len(group) for group in groups]
    if found != wanted:
        raise DataError(f"found {wanted} {IMAGE_TOKEN} placeholders in the texts but {found} images")
    return groups
