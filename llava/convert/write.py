"""From a described source to a checkpoint folder: configuration, processor, weights and a record of the conversion."""

from itertools import chain
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from llava.checkpoint.compose import expected_shapes, make_processor, pixel_statistics
from llava.checkpoint.folder import VOCABULARIES, has_tokenizer
from llava.checkpoint.match import check_tied_head, match_keys, read_matched
from llava.checkpoint.shards import write_shards
from llava.convert.output import check_room, dtype_name, new_folder, write_record
from llava.convert.parts import generation_config, new_parameters
from llava.convert.source import Source, read_tokenizer
from llava.data.conversation import add_visual_tokens
from llava.errors import LlavaError
from llava.mllm import LlavaOVManagerConfig, LlavaOVManagerForConditionalGeneration
from llava.mllm.parts import EMBEDDINGS, FUSION, NEWLINE, PROJECTOR, UNUSED
from llava.mllm.questions import turn_token_ids


def convert(source: Source, out: Path, tokenizer_folder: Path | None, max_shard_bytes: int, seed: int) -> None:
    """Writes a source as a checkpoint of this model, printing what became of every key.

    Args:
        source: What is converted.
        out: The folder to write; after an error it is as it was.
        tokenizer_folder: Of the tokenizer; None for the source's own.
        max_shard_bytes: Of a file of weights.
        seed: Of the parameters that the source lacks.

    Raises:
        LlavaError: A key does not fit, which is told before anything is written, or `out` cannot be written.
    """
    tokenizer = load_tokenizer(source, tokenizer_folder)
    config = model_config(source, tokenizer)
    with torch.device("meta"):
        model = LlavaOVManagerForConditionalGeneration(config)
    match = match_keys(source.parts, expected_shapes(model), source.may_be_new)
    print(f"{source.name}: {source.kind}\n{match.table()}")
    match.check(source.name)
    check_tied_head(match, source.parts, source.name)
    config.dtype = match.dtype(EMBEDDINGS)
    processor = make_processor(config, tokenizer, pixel_statistics(source.folders))
    config.image_mean, config.image_std = processor.image_processor.image_mean, processor.image_processor.image_std
    torch.manual_seed(seed)
    new = new_parameters(model, match, config.dtype, (*UNUSED, PROJECTOR, NEWLINE, FUSION))
    check_room(out, source.name, [owner.infos[name] for owner, name in match.mapped.values()])
    with new_folder(out) as folder:
        config.save_pretrained(folder)
        generation_config(source.folders, tokenizer).save_pretrained(folder)
        processor.save_pretrained(folder)
        index = write_shards(folder, chain(new.items(), read_matched(match, source.parts)), max_shard_bytes)
        write_record(folder, source.name, source.kind, source.parts, match, config.dtype)
    files = len(set(index["weight_map"].values()))
    for note in source.notes:
        print(f"note: {note}")
    newline = "with" if config.tiling.newline_after_one_crop else "without"
    print(f"{out}: {dtype_name(config.dtype)}, {files} weight file(s), one-crop images {newline} newline")


def load_tokenizer(source: Source, folder: Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer of `folder`, or of the first of the source's folders that has one. Raises LlavaError."""
    folders = [folder] if folder is not None else source.folders
    for candidate in folders:
        if has_tokenizer(candidate):
            return read_tokenizer(source.text, candidate)
    raise LlavaError(f"{folders[0]}: no tokenizer ({' or '.join(VOCABULARIES)}); give its folder: --tokenizer DIR")


def model_config(source: Source, tokenizer: PreTrainedTokenizerBase) -> LlavaOVManagerConfig:
    """The source's configuration in ours; the tokenizer gains `<image>` and `<video>` where it lacks them."""
    visual_tokens = add_visual_tokens(tokenizer, source.text.vocab_size)
    for field, stated in source.visual_token_ids.items():
        if visual_tokens[field] != stated:
            raise LlavaError(
                f"{source.name}: {field} is {stated} in config.json, {visual_tokens[field]} in the tokenizer"
            )
    config = LlavaOVManagerConfig(
        vision_config=source.vision,
        text_config=source.text,
        fusion=source.fusion,
        tiling=source.tiling,
        **visual_tokens,
        **_turn_marks(source, tokenizer),
    )
    config.architectures = [LlavaOVManagerForConditionalGeneration.__name__]
    return config


def _turn_marks(source: Source, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Ids by which the question about an image is found; models that ask for none do without."""
    try:
        return turn_token_ids(tokenizer)
    except LlavaError:
        if source.fusion.question_rule is not None:
            raise
        return {}
