"""What becomes of a sample of more tokens than a model reads: known from sizes and texts, without a pixel."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN, VIDEO_TOKEN
from llava.data.schema import Turn
from llava.errors import DataError, NoAnswerError, TemplateError

if TYPE_CHECKING:
    from llava.data.processor import LlavaOVManagerProcessor

OnOverLong = Literal["error", "truncate", "shrink_images"]
SHRINK_STEP = 0.9  # each try makes the sides of a sample's images so much shorter


class Encoding(TypedDict):
    """How samples are encoded, see LlavaOVManagerProcessor.encode_sample."""

    template: str
    label_rule: str
    max_length: int
    on_over_long: str
    positions: int | None


class FittedSample(NamedTuple):
    """A sample of no more tokens than a model reads.

    input_ids, labels: of equal length, placeholders expanded. image_sizes: the (width, height) at which its images are
    shown, those that are left out not among them; num_videos: how many are shown. tokens: how many the whole one had.
    """

    input_ids: list[int]
    labels: list[int]
    image_sizes: list[tuple[int, int]]
    num_videos: int
    tokens: int


def fit_sample(
    processor: "LlavaOVManagerProcessor",
    turns: Sequence[Turn],
    image_sizes: Sequence[tuple[int, int]],
    video_frames: Sequence[int],
    *,
    template: str,
    label_rule: str,
    max_length: int,
    on_over_long: str,
    positions: int | None = None,
) -> FittedSample:
    """Encodes a sample and, where it is too long, shortens it as LlavaOVManagerProcessor.encode_sample says.

    image_sizes: (width, height) of each image. video_frames: of each video.
    positions: of the language model; where they are fewer than max_length, they are the limit. None for any number.
    Raises DataError for turns that the template does not take, and for too long ones under `error` and when what is
    left has no token of an answer.
    """
    sizes, frames = list(image_sizes), list(video_frames)
    ids, labels = processor.encode_turns(turns, sizes, frames, template, label_rule)
    tokens = len(ids)
    limit = most_tokens(max_length, positions)
    if tokens <= limit:
        return FittedSample(ids, labels, sizes, len(frames), tokens)
    too_long = describe_too_long(tokens, max_length, positions)
    if on_over_long == "error":
        raise DataError(too_long)
    if on_over_long == "shrink_images":
        sizes = _shrunk(processor, sizes, tokens - limit, too_long)
    else:
        turns, sizes, frames = _fitting(processor, turns, sizes, frames, template, limit, too_long)
    ids, labels = processor.encode_turns(turns, sizes, frames, template, label_rule)
    _, answers = processor.encode_turns(turns, sizes, frames, template, "answers")
    if all(label == IGNORE_INDEX for label in answers[:limit]):
        raise DataError(f"{too_long}, and a cut there would leave no answer")
    return FittedSample(ids[:limit], labels[:limit], sizes, len(frames), tokens)


def most_tokens(max_length: int, positions: int | None) -> int:
    """How many tokens a sample may have: max_length, or the language model's positions where these are fewer."""
    return max_length if positions is None else min(max_length, positions)


def describe_too_long(tokens: int, max_length: int, positions: int | None) -> str:
    """What is wrong with a sample of `tokens`, with both numbers."""
    if most_tokens(max_length, positions) == max_length:
        return f"found {tokens} tokens but max_length is {max_length}"
    return f"found {tokens} tokens but the language model has {positions} positions (max_position_embeddings)"


def _fitting(
    processor: "LlavaOVManagerProcessor",
    turns: Sequence[Turn],
    sizes: list[tuple[int, int]],
    frames: list[int],
    template: str,
    max_length: int,
    too_long: str,
) -> tuple[Sequence[Turn], list[tuple[int, int]], list[int]]:
    """The turns before the first that shows something beyond max_length, and the images and videos of those."""
    visual = (processor.image_token_id, processor.video_token_id)
    try:
        while True:
            ids, _ = processor.encode_turns(turns, sizes, frames, template, "answers")
            if not any(token in visual for token in ids[max_length:]):
                return turns, sizes, frames
            images = [turn.text.count(IMAGE_TOKEN) if sizes else 0 for turn in turns]
            videos = [turn.text.count(VIDEO_TOKEN) if frames else 0 for turn in turns]
            last = max(number for number in range(len(turns)) if images[number] or videos[number])
            turns, sizes, frames = turns[:last], sizes[: sum(images[:last])], frames[: sum(videos[:last])]
    except (NoAnswerError, TemplateError):
        raise DataError(f"{too_long}, and a cut there would leave no answer behind a whole image or video") from None


def _shrunk(
    processor: "LlavaOVManagerProcessor", sizes: list[tuple[int, int]], excess: int, too_long: str
) -> list[tuple[int, int]]:
    """The sizes, all made smaller by the same factor until the images have `excess` tokens less.

    Raises DataError when the smallest images still have too many tokens.
    """
    allowed = sum(processor.image_tokens(sizes)) - excess
    scale, shrunk = 1.0, sizes
    while sum(processor.image_tokens(shrunk)) > allowed:
        if all(size == (1, 1) for size in shrunk):
            raise DataError(f"{too_long}, and smaller images would not help")
        scale *= SHRINK_STEP
        shrunk = [(max(int(width * scale), 1), max(int(height * scale), 1)) for width, height in sizes]
    return shrunk
