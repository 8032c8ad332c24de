"""The one processor: images and text in, model inputs out, for training, evaluation and chat."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import load_image

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN, SYSTEM_MESSAGE, VIDEO_TOKEN
from llava.data.conversation import encode_conversation, encode_prompt
from llava.data.images import RESAMPLING
from llava.data.over_long import fit_sample
from llava.data.schema import Dialogue, Sample, Turn
from llava.errors import DataError, LlavaError

# Images and videos of one turn are joined by spaces and followed by a newline, as in training.
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\\n" + SYSTEM_MESSAGE + "<|im_end|>\\n' }}{%- endif -%}"
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] in ['image', 'video'] -%}{{ '<' + part['type'] + '>' }}"
    "{{ ' ' if loop.nextitem is defined and loop.nextitem['type'] in ['image', 'video'] else '\\n' }}"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] }}"
    "{%- else -%}{{ raise_exception('only text, images and videos can be shown, not ' + part['type']) }}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


class LlavaOVManagerProcessor(ProcessorMixin):
    """Tokenizer and image processor. The tokenizer must know `<image>` and `<video>` (see add_visual_tokens)."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        tokenizer.padding_side = "left"  # generate goes on at the end; training batches are padded by the collator
        self.image_token, self.video_token = IMAGE_TOKEN, VIDEO_TOKEN
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, VIDEO_TOKEN])
        for token, token_id in ((IMAGE_TOKEN, self.image_token_id), (VIDEO_TOKEN, self.video_token_id)):
            if token_id in (None, tokenizer.unk_token_id):
                raise LlavaError(f"the tokenizer {tokenizer.name_or_path!r} does not know the token {token}")

    def encode_sample(
        self,
        sample: Sample,
        images: list[Image.Image],
        videos: Sequence[Sequence] = (),
        *,
        template: str,
        label_rule: str,
        max_length: int,
        on_over_long: str = "error",
    ) -> dict:
        """A training sample as model inputs.

        videos: the frames of each. on_over_long: what happens to more than max_length tokens. `error`; `truncate` drops
        the turns that show an image or video that does not fit, and what they show, then cuts text at the end;
        `shrink_images` makes the images smaller until there are few enough tiles. No image is ever cut.
        Returns input_ids and labels (lists of equal length), num_images and num_videos, and `shortened` (whether it was
        too long); with images also pixel_values (crops, 3, S, S) and image_sizes (images, 2) as (height, width), with
        videos pixel_values_videos (frames, 3, S, S) and video_num_frames (videos,). Pixels are uint8; the model
        normalises them.
        Raises DataError, naming the sample, for placeholders that do not match, and when what is left has no answer.
        """
        sizes, frames = [image.size for image in images], [len(video) for video in videos]
        limits = {"max_length": max_length, "on_over_long": on_over_long}
        try:
            fitted = fit_sample(self, sample.turns, sizes, frames, template=template, label_rule=label_rule, **limits)
        except DataError as error:
            raise DataError(f"{sample}: {error}") from None
        images = [_resized(image, size) for image, size in zip(images, fitted.image_sizes)]
        videos = videos[: fitted.num_videos]
        encoded = {"input_ids": fitted.input_ids, "labels": fitted.labels}
        encoded |= {"num_images": len(images), "num_videos": len(videos), "shortened": fitted.tokens > max_length}
        visual = self._pixels([images], [videos], as_uint8=True)
        return encoded | {key: value for key, value in visual.items() if not key.startswith("batch_num")}

    def encode_turns(
        self,
        turns: Sequence[Turn],
        image_sizes: Sequence[tuple[int, int]],
        video_frames: Sequence[int],
        template: str,
        label_rule: str,
    ) -> tuple[list[int], list[int]]:
        """Token ids and labels of a training sample, placeholders expanded. Touches no pixel.

        image_sizes: (width, height) of each image. video_frames: of each video. Raises DataError as template_turns.
        """
        ids, labels = encode_conversation(
            self.tokenizer, tuple(turns), template, label_rule, images=len(image_sizes), videos=len(video_frames)
        )
        return self._expand(ids, self._token_counts(image_sizes, video_frames), labels)

    def prompt_ids(self, dialogue: Dialogue, system: str = SYSTEM_MESSAGE) -> list[int]:
        """Token ids of a prompt that ends where the next answer begins, placeholders expanded. Touches no pixel."""
        turns, images, videos = dialogue
        ids = encode_prompt(self.tokenizer, tuple(turns), system, images=len(images), videos=len(videos))
        counts = self._token_counts([image.size for image in images], [len(video) for video in videos])
        return self._expand(ids, counts)[0]

    def encode_prompts(self, dialogues: Sequence[Dialogue], system: str = SYSTEM_MESSAGE) -> BatchFeature:
        """A left-padded batch of prompts.

        dialogues: Dialogue, or tuples of its fields. Returns input_ids, attention_mask (B, L) and, if any dialogue has
        images or videos, what the image processor returns for them.
        """
        dialogues = [Dialogue(*fields) for fields in dialogues]
        rows = [self.prompt_ids(dialogue, system) for dialogue in dialogues]
        length = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        batch = {
            "input_ids": torch.tensor([[pad] * (length - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
        }
        visual = self._pixels([dialogue.images for dialogue in dialogues], [dialogue.videos for dialogue in dialogues])
        return BatchFeature(batch | visual)

    def __call__(
        self, images=None, text=None, videos=None, padding=True, return_tensors="pt", **kwargs
    ) -> BatchFeature:
        """transformers' convention: prompts as text with `<image>` and `<video>`, images and videos.

        text: a string or a list. images, videos: one, a list (shared out over the texts by their placeholders) or one
        list per text. An image may be a text that transformers' load_image understands (URL, data: URL, path). A video
        is a list of images or uint8 (frames, height, width, 3). Other keywords go to the tokenizer.
        """
        texts = [text] if isinstance(text, str) else list(text)
        image_groups = _group(images, texts, IMAGE_TOKEN, lambda given: isinstance(given, (Image.Image, str)))
        image_groups = [[_loaded(image) for image in group] for group in image_groups]
        video_groups = _group(videos, texts, VIDEO_TOKEN, _is_video)
        expanded = []
        for prompt, images_of_text, videos_of_text in zip(texts, image_groups, video_groups):
            for token, counts in (
                (IMAGE_TOKEN, self.image_tokens([image.size for image in images_of_text])),
                (VIDEO_TOKEN, self._video_tokens([len(video) for video in videos_of_text])),
            ):
                pieces = prompt.split(token) if counts else [prompt]
                prompt = "".join(p + token * count for p, count in zip(pieces, counts)) + pieces[-1]
            expanded.append(prompt)
        batch = self.tokenizer(expanded, padding=padding, return_tensors=return_tensors, **kwargs)
        return BatchFeature(dict(batch) | self._pixels(image_groups, video_groups))

    @property
    def model_input_names(self) -> list[str]:
        names = [*self.image_processor.model_input_names, *self.image_processor.video_input_names]
        return [*self.tokenizer.model_input_names, *names]

    def _pixels(
        self, images: list[Sequence], videos: list[Sequence], as_uint8: bool = False
    ) -> dict[str, torch.Tensor]:
        """What the tower is given, from one list of images and one of videos per sample."""
        batch = {}
        if any(map(len, images)):
            batch |= self.image_processor(images, as_uint8=as_uint8)
        if any(map(len, videos)):
            batch |= self.image_processor.encode_videos(videos, as_uint8=as_uint8)
        return batch

    def image_tokens(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """Of each of a sample's images, from their (width, height)."""
        return [self.image_processor.layout(size, len(sizes) > 1).num_tokens for size in sizes]

    def _video_tokens(self, frames: Sequence[int]) -> list[int]:
        return [self.image_processor.video_layout(count).num_tokens for count in frames]

    def _token_counts(self, sizes: Sequence[tuple[int, int]], frames: Sequence[int]) -> dict[int, list[int]]:
        """{placeholder id: tokens of each image or video}"""
        return {self.image_token_id: self.image_tokens(sizes), self.video_token_id: self._video_tokens(frames)}

    def _expand(self, ids: list[int], counts: dict[int, list[int]], labels: list[int] | None = None):
        """Each placeholder repeated as often as its image or video has tokens; labels grow alike, ignored.

        The ids can hold fewer placeholders than the text: templates leave out some turns.
        """
        for token_id, name in ((self.image_token_id, "image"), (self.video_token_id, "video")):
            found, wanted = ids.count(token_id), len(counts[token_id])
            if found != wanted:
                raise DataError(f"found {found} <{name}> placeholders in the prompt but {wanted} {name}s")
        pending = {token_id: iter(of_token) for token_id, of_token in counts.items()}
        expanded, expanded_labels = [], []
        for position, token in enumerate(ids):
            times = next(pending[token]) if token in pending else 1
            expanded += [token] * times
            if labels is not None:
                expanded_labels += [IGNORE_INDEX if token in pending else labels[position]] * times
        return expanded, expanded_labels


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.convert("RGB").resize(size, RESAMPLING)


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


def _group(given, texts: list[str], token: str, is_one) -> list[list]:
    """One list of images (or videos) per text; DataError when placeholders and images do not match."""
    wanted = [text.count(token) for text in texts]
    given = [] if given is None else [given] if is_one(given) else list(given)
    if given and not is_one(given[0]):
        groups = [list(group) for group in given]
    elif sum(wanted) == len(given):
        pending = iter(given)
        groups = [[next(pending) for _ in range(count)] for count in wanted]
    else:
        groups = [given] + [[] for _ in texts[1:]]
    found = [len(group) for group in groups]
    if found != wanted:
        raise DataError(f"found {wanted} {token} placeholders in the texts but {found} {token.strip('<>')}s")
    return groups


def _loaded(image: Image.Image | str) -> Image.Image:
    return load_image(image) if isinstance(image, str) else image


def _is_video(given) -> bool:
    """Whether it is one video, not a list of videos; DataError for the path of one, also in a list."""
    if isinstance(given, str) or (len(given) and isinstance(given[0], str)):
        raise DataError("a video must be given as its frames, not as a path or URL")
    if isinstance(given, np.ndarray):
        return given.ndim == 4
    return len(given) > 0 and (isinstance(given[0], Image.Image) or getattr(given[0], "ndim", 0) == 3)
