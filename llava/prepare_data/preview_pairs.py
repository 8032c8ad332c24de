"""What a two-tower model sees of one pair: its tokens, its image as evaluation and training show it, what is true."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from PIL import Image

from llava.checkpoint.folder import CONFIG, check_folder
from llava.data.image_folder import ImageFolder
from llava.data.pairs.answers import form_among
from llava.data.pairs.dataset import PairDataset
from llava.data.pairs.draws import Draws, Purpose
from llava.data.pairs.mixture import load_pairs, read_pair_mixture
from llava.data.pairs.pair import LABELS, Pair
from llava.data.pairs.processor import PairProcessor
from llava.data.schema import TransformName
from llava.errors import DataError
from llava.printable import visible
from llava.text_files import read_json
from llava.two_tower.parts import MODEL_TYPE
from llava.two_tower.tasks import TASKS, Task

EPOCHS = 3  # of training that are drawn
GAP = 4  # pixels between squares


@dataclass(frozen=True)
class PairPreview:
    """lines: what is said of the pair. rows: of each image the squares, evaluation's first, then one an epoch."""

    lines: tuple[str, ...]
    rows: tuple[tuple[Image.Image, ...], ...]

    def __str__(self) -> str:
        return "\n".join(map(visible, self.lines))


def preview_pair(
    data: str | Path, split: str | None, index: int, model: str | Path, folder: ImageFolder, seed: int = 0
) -> PairPreview:
    """The pair of an index, counted from 0, as a model of this folder sees it.

    Args:
        data: A mixture of pairs, or a data file.
        split: Of the mixture; None is its first.
        index: Of the pair.
        model: Its folder; only its configuration and its processor are read.
        folder: Where images lie that are named by their path.
        seed: Of the training that is drawn.

    Raises:
        LlavaError: There is no such split or pair, it cannot be used, or the model is of another kind.
    """
    check_folder(model, "--model", model_types=(MODEL_TYPE,))
    task = TASKS[read_json(Path(model) / CONFIG)["task"]]
    processor = PairProcessor.from_pretrained(model)
    mixture = read_pair_mixture(data, task.pairs)
    split = split or next(iter(mixture.splits))
    store = load_pairs(mixture, split, seed).store
    if not 0 <= index < len(store):
        raise DataError(f"index {index} is out of range: {data} split {split} has {len(store)} pairs, counted from 0")
    pair = store[index]
    dataset = PairDataset(store, processor, transform=cast(TransformName, task.transform), image_folder=folder)
    images = [dataset.open(image, pair.origin) for image in pair.images]
    seen = f"{processor.image_size} x {processor.image_size}, {task.transform}; in training {task.train_transform}"
    lines = [
        str(pair),
        *(
            f"image {number}: {image.width} x {image.height} pixels, seen as {seen}"
            for number, image in enumerate(images, 1)
        ),
        *_text_lines(pair, processor),
        *_truth_lines(pair, processor, task),
    ]
    transforms = [processor.transform(cast(TransformName, name)) for name in (task.transform, task.train_transform)]
    rows = []
    for image, purpose in zip(images, (Purpose.IMAGE, Purpose.SECOND_IMAGE)):
        squares = [transforms[0].picture(image, Draws(purpose, seed, 0, index))]
        squares += [transforms[1].picture(image, Draws(purpose, seed, epoch, index)) for epoch in range(EPOCHS)]
        rows.append(tuple(squares))
    return PairPreview(tuple(lines), tuple(rows))


def _text_lines(pair: Pair, processor: PairProcessor) -> list[str]:
    encoded = processor.encode(pair.text)
    tokens = processor.tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    count = sum(encoded["attention_mask"])
    whole = len(processor.tokenizer(pair.text)["input_ids"])
    cut = f", cut from {whole}" if whole > count else ""
    return [f"text: {pair.text}", f"tokens, {count} of {processor.text_length}{cut}: {' '.join(tokens[:count])}"]


def _truth_lines(pair: Pair, processor: PairProcessor, task: Task) -> list[str]:
    if pair.label is not None:
        return [f"label {pair.label}: {list(LABELS[task.pairs])[pair.label]}"]
    if pair.answers is None or pair.scores is None:
        return [] if task.pairs == "captions" else ["nothing is said of what is true"]
    vocabulary = set(processor.answers or ())

    def remark(answer: str) -> str:
        return ", not in the vocabulary" if form_among(answer, vocabulary) is None else ""

    return [f"answer {answer}: {score:g}{remark(answer)}" for answer, score in zip(pair.answers, pair.scores)]


def draw_pair(preview: PairPreview) -> Image.Image:
    """The squares, a row for each image."""
    side = preview.rows[0][0].width
    step = side + GAP
    picture = Image.new("RGB", (step * len(preview.rows[0]) - GAP, step * len(preview.rows) - GAP), "white")
    for down, squares in enumerate(preview.rows):
        for across, square in enumerate(squares):
            picture.paste(square, (across * step, down * step))
    return picture
