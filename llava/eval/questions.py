"""A request that was read: what is asked, under which key its answer is stored, and what reading it costs the model."""

from dataclasses import dataclass

import torch
from PIL import Image, UnidentifiedImageError

from llava.data.schema import Dialogue
from llava.engine.engine import Engine
from llava.engine.kept_cache import check_length
from llava.errors import LlavaError
from llava.eval.messages import noise_like
from llava.mllm.cost import forward_cost
from llava.mllm.questions import question_finder


@dataclass(frozen=True)
class Question:
    """index: its place among the requests. name: task and document, for messages. key: of its answer."""

    index: int
    name: str
    key: str
    doc_id: int
    dialogue: Dialogue


def prompt_cost(engine: Engine, dialogue: Dialogue) -> int:
    """Operations until the first token of the answer. LlavaError when the prompt is longer than the model can read."""
    config, pictures = engine.model.config, engine.processor.image_processor
    ids = torch.tensor([engine.prompt_ids(dialogue)])
    tokens = ids.shape[1]
    check_length(tokens, engine.model)
    several = len(dialogue.images) > 1
    layouts = [pictures.layout(image.size, several) for image in dialogue.images]
    crops = sum(layout.num_crops for layout in layouts) + sum(map(len, dialogue.videos))
    visual = [layout.num_tokens for layout in layouts]
    visual += [pictures.video_layout(len(video)).num_tokens for video in dialogue.videos]
    find, asked = question_finder(config), visual
    if find is not None:
        places = [(ids[0] == token).nonzero()[:, 0] for token in (config.image_token_id, config.video_token_id)]
        questions = find(ids, [(0, tokens)], torch.cat(places), visual)
        asked = [len(question) or count for question, count in zip(questions, visual)]
    pairs = sum(count**2 for count in visual)
    asked_pairs = sum(count * question for count, question in zip(visual, asked))
    return forward_cost(config)(crops, tokens, 1, None, sum(visual), pairs, len(visual), sum(asked), asked_pairs)


def blind(dialogue: Dialogue, doc_id: int) -> Dialogue:
    """The dialogue with noise in place of all pictures, seeded by the document."""
    images = [noise_like(image, doc_id, place) for place, image in enumerate(dialogue.images)]
    videos = [
        [noise_like(frame, doc_id, place, number) for number, frame in enumerate(video)]
        for place, video in enumerate(dialogue.videos)
    ]
    return dialogue._replace(images=images, videos=videos)


def reason(error: Exception) -> str:
    """One line that says what went wrong; the kind of error where its message was not written for users."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    text = (str(error).strip().splitlines() or [""])[0]
    if text and isinstance(error, LlavaError | OSError | Image.DecompressionBombError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
