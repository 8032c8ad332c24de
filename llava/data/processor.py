"""The one processor: images and text in, model inputs out, for training, evaluation and chat."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import MultiModalData

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN, SYSTEM_MESSAGE, VIDEO_TOKEN
from llava.data.chat_messages import CHAT_TEMPLATE, checked_messages, is_message, marked, special_tokens
from llava.data.conversation import encode_conversation, encode_prompt
from llava.data.given import checked_texts, is_image, rgb_groups, rgb_image, share_out
from llava.data.given_video import is_video, rgb_frames
from llava.data.image_processor import as_tensors
from llava.data.images import RESAMPLING
from llava.data.options import AS_UINT8, NORMALIZED, PixelOptions, read_options
from llava.data.over_long import Encoding, fit_sample, most_tokens
from llava.data.placeholders import expanded_spans
from llava.data.rendered_prompt import cut_row, offsets_of, padded_rows, rendered_ids
from llava.data.schema import Dialogue, Sample, Turn
from llava.errors import DataError, LlavaError
from llava.request_errors import of_request


class LlavaOVManagerProcessor(ProcessorMixin):
    """Tokenizer and image processor. The tokenizer must know `<image>` and `<video>` (see add_visual_tokens)."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ):
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
        positions: int | None = None,
    ) -> dict:
        """A training sample as model inputs.

        videos: the frames of each. on_over_long: what happens to more than max_length tokens. `error`; `truncate` drops
        the turns that show an image or video that does not fit, and what they show, then cuts text at the end;
        `shrink_images` makes the images smaller until there are few enough tiles. No image is ever cut.
        positions: of the language model, which limit max_length; see fit_sample.
        Returns input_ids and labels (lists of equal length), num_images and num_videos, image_spans and video_spans
        (where each stands: first position, tokens), and `shortened` (whether it was too long); with images also
        pixel_values (crops, 3, S, S) and image_sizes (images, 2) as (height, width), with videos pixel_values_videos
        (frames, 3, S, S) and video_num_frames (videos,). Pixels are uint8; the model normalises them.
        Raises DataError, naming the sample, for placeholders that do not match, and when what is left has no answer.
        """
        images = [rgb_image(image) for image in images]
        sizes, frames = [image.size for image in images], [len(video) for video in videos]
        encoding: Encoding = {
            "template": template,
            "label_rule": label_rule,
            "max_length": max_length,
            "on_over_long": on_over_long,
            "positions": positions,
        }
        try:
            fitted = fit_sample(self, sample.turns, sizes, frames, **encoding)
        except DataError as error:
            raise DataError(f"{sample}: {error}") from None
        images = [_resized(image, size) for image, size in zip(images, fitted.image_sizes)]
        videos = videos[: fitted.num_videos]
        encoded: dict[str, Any] = {"input_ids": fitted.input_ids, "labels": fitted.labels}
        shortened = fitted.tokens > most_tokens(max_length, positions)
        encoded |= {"num_images": len(images), "num_videos": len(videos), "shortened": shortened}
        counts = self._token_counts(fitted.image_sizes, [len(video) for video in videos])
        for name, token_id in (("image_spans", self.image_token_id), ("video_spans", self.video_token_id)):
            encoded[name] = expanded_spans(fitted.input_ids, token_id, counts[token_id])
        visual = self._pixels([images], [videos], AS_UINT8, AS_UINT8)
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
        images = [rgb_image(image) for image in images]
        ids = encode_prompt(self.tokenizer, tuple(turns), system, images=len(images), videos=len(videos))
        counts = self._token_counts([image.size for image in images], [len(video) for video in videos])
        return self._expand(ids, counts)[0]

    def encode_prompts(
        self,
        dialogues: Sequence[Dialogue],
        system: str = SYSTEM_MESSAGE,
        pixels: PixelOptions = NORMALIZED,
        each: Callable = map,
    ) -> BatchFeature:
        """A left-padded batch of prompts.

        dialogues: Dialogue, or tuples of its fields. each: as `map`, by which images and videos are cut; that of an
        executor lets several threads do so. Returns input_ids, attention_mask (B, L) and, if any dialogue has images or
        videos, what the image processor returns for them.
        """
        dialogues = [Dialogue(*fields) for fields in dialogues]
        groups = rgb_groups([dialogue.images for dialogue in dialogues], "image", rgb_image)
        dialogues = [dialogue._replace(images=images) for dialogue, images in zip(dialogues, groups)]
        rows = [self.prompt_ids(dialogue, system) for dialogue in dialogues]
        length = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        batch = {
            "input_ids": torch.tensor([[pad] * (length - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
        }
        images, videos = [dialogue.images for dialogue in dialogues], [dialogue.videos for dialogue in dialogues]
        visual = self._pixels(images, videos, pixels, pixels, each)
        return BatchFeature(batch | visual)

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        audio: Any = None,
        padding: Any = True,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """transformers' convention: prompts as text with `<image>` and `<video>`, images and videos.

        text: a string or a list. images, videos: one, a list (shared out over the texts by their placeholders) or one
        list per text. Of an image see rgb_image for what it may be given as: PIL image, path, URL, data: URL, bytes,
        array or tensor; a video is a list of such, an array (frames, height, width, 3), or the path or URL of a file,
        see VideoOptions. Keywords: see Options, flat or in text_kwargs, images_kwargs and videos_kwargs.
        Raises DataError for what cannot be read, naming it, for placeholders that do not match, and for more than
        max_length tokens unless they are truncated, which never cuts an image; LlavaError for keywords.
        """
        if audio is not None and len(audio):
            raise DataError("this model reads text, images and videos, not audio")
        of_audio = ("audio_from_video_indices", "load_audio_from_video", "sanitize_control_tokens")  # nothing to do
        options = read_options({k: v for k, v in kwargs.items() if k not in of_audio}, padding, return_tensors)
        texts = checked_texts(text)
        image_groups = share_out(images, texts, IMAGE_TOKEN, is_image)
        video_groups = share_out(videos, texts, VIDEO_TOKEN, is_video)
        image_groups = rgb_groups(image_groups, "image", partial(rgb_image, channels=options.images.input_data_format))
        video_groups = rgb_groups(video_groups, "video", partial(rgb_frames, options=options.videos))
        shown = [
            self._token_counts([image.size for image in images], [len(video) for video in videos])
            for images, videos in zip(image_groups, video_groups)
        ]
        rows = [self._expand(rendered_ids(self.tokenizer, text), counts)[0] for text, counts in zip(texts, shown)]
        batch = padded_rows(self.tokenizer, [cut_row(self.tokenizer, row, options.text) for row in rows], options)
        if options.text.return_offsets_mapping or options.text.return_text_replacement_offsets:
            batch |= offsets_of(self.tokenizer, texts, shown, list(map(len, batch["input_ids"])), options)
        visual = self._pixels(image_groups, video_groups, options.images, options.videos)
        return BatchFeature(batch | as_tensors(visual, options.return_tensors))

    def apply_chat_template(  # type: ignore[override]  # all but the first two come by their names
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """See transformers' method. What the messages say is text, also where it looks like a token of the template.

        `<image>` in a text is an image only where no message shows one as a part of its content and the images are
        given apart: to this processor with the rendered prompt, or in processor_kwargs.
        Raises DataError for messages that are none and for what cannot be read, naming it.
        """
        processor_kwargs = dict(processor_kwargs or {})
        for done in ("sanitize_control_tokens", "load_audio_from_video"):  # always, and never
            kwargs.pop(done, None)
        apart = not tokenize or any(processor_kwargs.get(kind) is not None for kind in ("images", "videos"))
        try:
            is_batch = isinstance(conversation, list | tuple) and bool(conversation) and not is_message(conversation[0])
            given = conversation if is_batch else [conversation]
            chats = [marked(checked_messages(chat), special_tokens(self.tokenizer), apart) for chat in given]
            result = super().apply_chat_template(
                chats if is_batch else chats[0],
                chat_template,
                tokenize=tokenize,
                processor_kwargs=processor_kwargs,
                **kwargs,
            )
        except LlavaError as error:
            raise of_request(error) from None
        if isinstance(result, BatchFeature) and "assistant_masks" in result and torch.is_tensor(result["input_ids"]):
            result["assistant_masks"] = torch.as_tensor(result["assistant_masks"])  # transformers leaves lists
        return result

    def _get_num_multimodal_tokens(
        self,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        video_sizes: Sequence[tuple[int, int, int]] | None = None,
        **kwargs: Any,
    ) -> MultiModalData:
        """What images and videos become, untouched: transformers' contract with vLLM.

        image_sizes: (height, width) of the images of one prompt, of which several are cut otherwise than one.
        video_sizes: (frames, height, width) of each. kwargs: see Options; LlavaError for others.
        Returns num_image_tokens, num_image_patches (crops) and num_video_tokens: lists, None of what is not given.
        """
        read_options(kwargs)
        if image_sizes is None:
            tokens = crops = None
        else:
            layouts = [
                self.image_processor.layout((width, height), len(image_sizes) > 1) for height, width in image_sizes
            ]
            tokens = [layout.num_tokens for layout in layouts]
            crops = [layout.num_crops for layout in layouts]
        videos = None if video_sizes is None else self._video_tokens([frames for frames, _, _ in video_sizes])
        return MultiModalData(num_image_tokens=tokens, num_image_patches=crops, num_video_tokens=videos)

    @property
    def model_input_names(self) -> list[str]:
        """The names of all that a call of the processor can return."""
        names = [*self.image_processor.model_input_names, *self.image_processor.video_input_names]
        return [*self.tokenizer.model_input_names, *names]

    def _pixels(
        self,
        images: Sequence[Sequence],
        videos: Sequence[Sequence],
        of_images: PixelOptions = NORMALIZED,
        of_videos: PixelOptions = NORMALIZED,
        each: Callable = map,
    ) -> dict[str, torch.Tensor]:
        """What the tower is given, from one list of images and one of videos per sample."""
        batch: dict[str, torch.Tensor] = {}
        if any(map(len, images)):
            batch |= self.image_processor.encode_images(images, of_images, each)
        if any(map(len, videos)):
            batch |= self.image_processor.encode_videos(videos, of_videos, each=each)
        return batch

    def image_tokens(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """Of each of a sample's images, from their (width, height)."""
        return [self.image_processor.layout(size, len(sizes) > 1).num_tokens for size in sizes]

    def _video_tokens(self, frames: Sequence[int]) -> list[int]:
        return [self.image_processor.video_layout(count).num_tokens for count in frames]

    def _token_counts(self, sizes: Sequence[tuple[int, int]], frames: Sequence[int]) -> dict[int, list[int]]:
        """The tokens of each image or video, by the id of its placeholder."""
        return {self.image_token_id: self.image_tokens(sizes), self.video_token_id: self._video_tokens(frames)}

    def _expand(
        self, ids: list[int], counts: dict[int, list[int]], labels: list[int] | None = None
    ) -> tuple[list[int], list[int]]:
        """Each placeholder repeated as often as its image or video has tokens; labels grow alike, ignored.

        The ids can hold fewer placeholders than the text: templates leave out some turns.
        """
        for token_id, name in ((self.image_token_id, "image"), (self.video_token_id, "video")):
            placeholders, shown = ids.count(token_id), len(counts[token_id])
            if placeholders != shown:
                raise DataError(f"found {placeholders} <{name}> placeholders in the prompt but {shown} {name}s")
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
