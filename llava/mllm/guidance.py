"""What a fusion is told of a batch's text: where visual tokens stand, and the questions that guide the visual input.

input_ids ── placeholders, questions ── Context ──┬── Fusion.deltas
inputs_embeds ────────── means of the questions ──┴── Fusion.guided_visual_input
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from llava.fusion.base import Context, Questions
from llava.mllm.configuration import LlavaOVManagerConfig
from llava.mllm.places import placeholder_positions, recognised_ids
from llava.mllm.questions import mean_embeddings, questions_of_batch, sequences_of_batch
from llava.mllm.visual_input import image_layouts, video_layouts


def batch_context(
    config: LlavaOVManagerConfig,
    input_ids: torch.Tensor,
    lengths: dict[str, list[int]],
    *,
    attention_mask: torch.Tensor | dict[str, torch.Tensor] | None = None,
    position_ids: torch.Tensor | None = None,
    past_key_values: Cache | None = None,
    sequence_lengths: list[int] | None = None,
    visual_positions: torch.Tensor | None = None,
    question_positions: torch.Tensor | None = None,
    question_lengths: list[int] | None = None,
) -> Context:
    """Where the visual tokens of a batch stand, and the questions about them.

    input_ids: (B, L). lengths: by modality, tokens of each image or video. The others: as forward is given them.
    Raises LlavaError unless there is a placeholder for each token.
    """
    counts = {modality: sum(of_one) for modality, of_one in lengths.items()}
    positions = placeholder_positions(input_ids, counts, config, said=visual_positions)
    in_order = [length for of_one in lengths.values() for length in of_one]

    def questions(rule: str) -> Sequence[torch.Tensor]:
        if question_positions is not None and question_lengths is not None:
            return question_positions.split(question_lengths)
        sequences = sequences_of_batch(input_ids, attention_mask, position_ids, past_key_values, sequence_lengths)
        return questions_of_batch(input_ids, sequences, positions, in_order, rule, config)

    return Context(positions, in_order, questions)


def guiding_questions(config: LlavaOVManagerConfig, inputs_embeds: torch.Tensor, context: Context) -> Questions:
    """About each image and video of a batch, for a fusion that is guided by them. inputs_embeds: (B, L, D)."""
    return mean_embeddings(inputs_embeds, context.questions(config.fusion.question_rule))


def guidance(
    config: LlavaOVManagerConfig,
    embed: nn.Module,
    lengths: dict[str, list[int]],
    *,
    input_ids: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    past_key_values: Cache | None = None,
) -> dict[str, Questions]:
    """guiding_questions by modality, of prompts whose images and videos are encoded before forward reads them.

    Args:
        config: of the model.
        embed: its input embeddings.
        lengths: by modality, tokens of each image or video.
        input_ids: of the prompts, (B, L).
        inputs_embeds: (B, L, D), where there are no input_ids.
        attention_mask: (B, L), with what stands before input_ids.
        past_key_values: of what stands before input_ids.

    Raises:
        LlavaError: unless the placeholders are those of these images and videos.
    """
    if inputs_embeds is None:
        inputs_embeds = embed(input_ids)
    ids = input_ids if input_ids is not None else recognised_ids(inputs_embeds, embed, config)
    context = batch_context(config, ids, lengths, attention_mask=attention_mask, past_key_values=past_key_values)
    questions = guiding_questions(config, inputs_embeds, context)
    numbers = torch.arange(len(questions.means), device=questions.means.device)
    parts = numbers.split([len(of_one) for of_one in lengths.values()])
    return {modality: questions.of(part) for modality, part in zip(lengths, parts)}


def questions_for_features(
    config: LlavaOVManagerConfig, embed: nn.Module, inputs: torch.Tensor, given: dict[str, Any]
) -> dict[str, Questions]:
    """The arguments image_questions of get_image_features and video_questions of get_video_features.

    inputs: ids (B, L) or embeddings (B, L, D) of prompts. given: what else the model is given with them; of that the
    pixels' sizes, the mask and the cache are read.
    """
    lengths: dict[str, list[int]] = {}
    if given.get("pixel_values") is not None:
        layouts = image_layouts(config, given["image_sizes"], given.get("batch_num_images"))
        lengths["image"] = [layout.num_tokens for layout in layouts]
    if given.get("pixel_values_videos") is not None:
        lengths["video"] = [layout.num_tokens for layout in video_layouts(config, given["video_num_frames"])]
    if not lengths:
        return {}
    past = given.get("past_key_values")
    new = inputs[:, past.get_seq_length() if past is not None else 0 :]
    text = {"inputs_embeds" if new.is_floating_point() else "input_ids": new}
    mask = given.get("attention_mask")
    by_modality = guidance(config, embed, lengths, attention_mask=mask, past_key_values=past, **text)
    return {f"{modality}_questions": questions for modality, questions in by_modality.items()}
