"""Keys and values of a conversation, kept between its turns, so that only what is new is computed.

prompt of the turn before, its answer   [system|user|image image|question|assistant|answer]
prompt of the next turn                 [system|user|image image|question|assistant|answer|user|question|assistant]
                                         └────────── alike: taken from the cache ─────────┘└────── prefilled ─────┘

What is alike is found by comparing, token by token and image by image, so that it does not matter how the next prompt
came about: another turn, a turn taken back, another answer to the same question, another system message.
"""

from collections.abc import Callable
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import DynamicCache

from llava.anyres import ImageLayout, VideoLayout
from llava.data.processor import LlavaOVManagerProcessor
from llava.data.schema import Dialogue
from llava.engine.usage import Usage
from llava.errors import LlavaError
from llava.fusion.question_spans import reusable_tokens
from llava.mllm import LlavaOVManagerConfig, LlavaOVManagerForConditionalGeneration
from llava.mllm.features import VisualFeatures
from llava.mllm.guidance import guidance
from llava.mllm.visual_input import VisualInput, normalized


class Span(NamedTuple):
    """Where an image or a video stands in a prompt. several: whether the prompt has more than one image."""

    start: int
    visual: Any
    layout: ImageLayout | VideoLayout
    several: bool


class Kept(NamedTuple):
    """Tokens, what stands among them, and their keys and values."""

    ids: list[int]
    spans: list[Span]
    past: DynamicCache | None


class KeptCache:
    """Give the same one to each `Engine.stream` of a conversation. usage: of the last answer, None before the first.

    Images and videos are recognised by identity: the same object must be given again.
    """

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.clear()

    def clear(self) -> None:
        """Forgets all keys and values."""
        self._kept = Kept([], [], None)

    def prepare(
        self,
        model: LlavaOVManagerForConditionalGeneration,
        processor: LlavaOVManagerProcessor,
        dialogue: Dialogue,
        each: Callable = map,
    ) -> tuple[dict, Callable[[list[int]], None]]:
        """What `generate` is given for a dialogue, and a function to call with the ids of prompt and answer behind it.

        Until that is called, nothing is kept: a generation may fail half-way. each: as `map`, by which images are cut.
        """
        ids = processor.prompt_ids(dialogue)
        check_length(len(ids), model)
        spans = find_spans(ids, dialogue, processor)
        shared = self._shared(ids, spans, model.config)
        past = self._kept.past if shared else DynamicCache(config=model.config.text_config)
        if past.get_seq_length() > shared:
            past.crop(shared - past.get_seq_length())
        self.clear()

        def store(output_ids: list[int]) -> None:
            visual = sum(span.layout.num_tokens for span in spans)
            self.usage = Usage(len(ids), visual, len(ids) - shared, len(output_ids) - len(ids))
            self._kept = Kept(output_ids[: past.get_seq_length()], spans, past)  # an answer's last token is never read

        input_ids = torch.tensor([ids], device=model.device)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "past_key_values": past,
            "mm_encoder_outputs": _encode(model, processor, input_ids, spans, shared, each),
        }
        return inputs, store

    def _shared(self, ids: list[int], spans: list[Span], config: LlavaOVManagerConfig) -> int:
        """How many leading tokens have the keys and values that are kept; at least one token is left to compute."""
        if self._kept.past is None or "sliding_attention" in config.text_config.layer_types:  # a window cannot go back
            return 0
        kept = self._kept
        pairs = zip(ids, kept.ids)
        shared = next((n for n, (new, old) in enumerate(pairs) if new != old), min(len(ids), len(kept.ids)))
        shared = min(shared, len(ids) - 1)
        for new, old in zip_longest(spans, kept.spans):
            if new is None or new.start >= shared:
                break
            if not _alike(new, old):
                shared = new.start
                break
        rule = config.fusion.question_rule
        if spans and rule is not None:
            starts = [span.start for span in spans]
            return reusable_tokens(rule, shared, ids, starts, len(kept.spans), config.turn_start_token_id)
        return shared


def check_length(tokens: int, model: LlavaOVManagerForConditionalGeneration) -> None:
    """Raises LlavaError for a prompt that the model cannot read."""
    limit = model.config.text_config.max_position_embeddings
    if tokens > limit:
        raise LlavaError(f"the prompt has {tokens} tokens, but the model reads at most {limit}")


def find_spans(ids: list[int], dialogue: Dialogue, processor: LlavaOVManagerProcessor) -> list[Span]:
    """Where the images and videos of a dialogue stand in its prompt, in order of their places."""
    several = len(dialogue.images) > 1
    layout, video_layout = processor.image_processor.layout, processor.image_processor.video_layout
    pending = {
        processor.image_token_id: iter([(image, layout(image.size, several), several) for image in dialogue.images]),
        processor.video_token_id: iter([(video, video_layout(len(video)), False) for video in dialogue.videos]),
    }
    spans, position = [], 0
    while position < len(ids):
        if ids[position] in pending:
            spans.append(Span(position, *next(pending[ids[position]])))
            position += spans[-1].layout.num_tokens
        else:
            position += 1
    return spans


def _alike(new: Span | None, old: Span | None) -> bool:
    """Whether both give the same features: several images of a prompt are cut into crops in another way than one."""
    return None not in (new, old) and new.visual is old.visual and new.several == old.several


def _encode(
    model: LlavaOVManagerForConditionalGeneration,
    processor: LlavaOVManagerProcessor,
    input_ids: torch.Tensor,
    spans: list[Span],
    shared: int,
    each: Callable,
) -> dict[str, VisualFeatures]:
    """Features of the images and videos behind the first `shared` tokens, by modality, as `generate` takes them."""
    makers = {
        "image": (ImageLayout, lambda span: processor.image_processor.crops(span.visual, span.several)),
        "video": (VideoLayout, lambda span: processor.image_processor.frames(span.visual)),
    }
    of_kind = {name: [span for span in spans if isinstance(span.layout, kind)] for name, (kind, _) in makers.items()}
    lengths = {name: [span.layout.num_tokens for span in of_one] for name, of_one in of_kind.items() if of_one}
    guided = model.config.fusion.guided and any(span.start >= shared for span in spans)
    embed = model.get_input_embeddings()
    questions = guidance(model.config, embed, lengths, input_ids=input_ids) if guided else {}
    features = {}
    for modality, (_, crops_of) in makers.items():
        chosen = [number for number, span in enumerate(of_kind[modality]) if span.start >= shared]
        if chosen:
            new = [of_kind[modality][number] for number in chosen]
            crops = torch.from_numpy(np.concatenate(list(each(crops_of, new))))
            layouts, of_one_sample = [span.layout for span in new], [0] * len(new)
            given = VisualInput(normalized(crops.to(model.device), model.config), layouts, of_one_sample)
            about = questions[modality].of(torch.tensor(chosen, device=model.device)) if guided else None
            features[modality] = model.model.get_visual_features(given, about)
    return features
