"""What of a request can be known without vLLM: the tokens of its pictures, and the questions about them."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from llava.anyres import SHRINK_THRESHOLD
from llava.data.image_processor import LlavaOVManagerImageProcessor
from llava.errors import DataError
from llava.fusion.question_spans import TurnMarks, question_positions
from llava.mllm.configuration import LlavaOVManagerConfig

BETWEEN = 4  # sizes that are tried between two pinpoints


def most_image_tokens(processor: LlavaOVManagerImageProcessor) -> tuple[int, tuple[int, int]]:
    """The most tokens that an image can have, and the (width, height) of one that has as many, or nearly.

    Where a map is shrunk to a budget, what fits it best is found by no formula: the number is what no image exceeds.
    """
    tiling, tile = processor.tiling, processor.size
    side = tile // processor.patch_size
    sizes = [(tile, tile), *tiling.pinpoints]
    steps = []
    for axis in (0, 1):
        ends = sorted({size[axis] for size in sizes})
        between = {low + (high - low) * part // BETWEEN for low, high in pairwise(ends) for part in range(BETWEEN)}
        steps.append(sorted(between | {ends[-1]}))
    tokens = {
        (width, height): processor.layout((width, height), several_images=False).num_tokens
        for width in steps[0]
        for height in steps[1]
    }
    largest = max(tokens, key=lambda size: tokens[size])
    most = tokens[largest]
    if tiling.mode == "anyres" and tiling.max_tiles is not None and tiling.in_sequence == "all":
        rows = max(height for _, height in tiling.pinpoints) // processor.patch_size
        kept = int(SHRINK_THRESHOLD**2 * tiling.max_tiles * side**2)
        cells = max(width * height for width, height in tiling.pinpoints) // processor.patch_size**2
        most = max(most, tiling.crop_tokens(side) + min(kept, cells) + rows)
    return most, largest


def check_places(prompt: Sequence[int], counts: Mapping[str, int], config: LlavaOVManagerConfig) -> None:
    """Raises DataError where a prompt has more or less placeholders than pictures. counts: `image`, `video`."""
    for kind, token in (("image", config.image_token_id), ("video", config.video_token_id)):
        places, shown = list(prompt).count(token), counts.get(kind, 0)
        if places != shown:
            raise DataError(f"found {places} <{kind}> placeholders in the prompt but {shown} {kind}s")


def questions_of_prompt(prompt: Sequence[int], config: LlavaOVManagerConfig) -> dict[str, list[list[int]]]:
    """Token ids of the question about each image, and about each video, of a prompt of one placeholder for each."""
    marks = TurnMarks(config.turn_start_token_id, config.turn_end_token_id, config.newline_token_id)
    tokens = {"image": config.image_token_id, "video": config.video_token_id}
    ids, rule = list(prompt), str(config.fusion.question_rule)
    questions = {}
    for kind, token in tokens.items():
        places = [(position, 1) for position, given in enumerate(ids) if given == token]
        spans = question_positions(ids, places, rule, marks, set(tokens.values()))
        questions[kind] = [[ids[position] for position in span] for span in spans]
    return questions
