"""Where the answers to held-out samples go: a file per evaluation, and what the run reports to."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.integrations import TensorBoardCallback

from llava.data.images import open_image
from llava.data.schema import Sample
from llava.data.video import read_video
from llava.train.loop.held_out import HeldOut, question_and_reference

SIDE = 256  # pixels, at most, of a thumbnail
FRAMES = 4  # of a video that are shown
COLUMNS = ("step", "sample", "pictures", "question", "reference", "answer")


class AnswerLog:
    """Writes FOLDER/step_N.jsonl, and tables with small pictures to wandb and tensorboard, on the first rank.

    Neither a full disk nor a service that cannot be reached ends the training: each is told once.

    Args:
        folder: of the files.
        held_out: what is answered.
        to_wandb: whether the run reports there.
        tensorboard: the run's log there; None where it has none.
    """

    def __init__(self, folder: Path, held_out: HeldOut, to_wandb: bool, tensorboard: TensorBoardCallback | None):
        self.folder = folder
        self.held_out = held_out
        self.to_wandb = to_wandb
        self.tensorboard = tensorboard
        self._failed: set[str] = set()

    def write(self, step: int, answers: Sequence[str]) -> None:
        """Writes the answers to all prompts, in their order, after `step`."""
        samples = self.held_out.prompts.samples
        rows = [_row(step, sample, answer) for sample, answer in zip(samples, answers, strict=True)]
        self._attempt("to a file", self._write_file, step, rows)
        if self.to_wandb:
            self._attempt("to wandb", self._send_to_wandb, step, rows)
        if self.tensorboard is not None:
            self._attempt("to tensorboard", self._send_to_tensorboard, step, rows)

    def _attempt(self, where: str, write: Callable, *args: Any) -> None:
        try:
            write(*args)
        except Exception as error:  # whatever a service's client raises, a week of training is worth more
            if where not in self._failed:
                self._failed.add(where)
                reason = " ".join(str(error).split()) or type(error).__name__
                print(f"the held-out answers could not be written {where}: {reason}; training goes on", flush=True)

    def _write_file(self, step: int, rows: list[dict]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.folder / f"step_{step}.jsonl").write_text(lines, encoding="utf-8")

    def _send_to_wandb(self, step: int, rows: list[dict]) -> None:
        import wandb

        table = wandb.Table(columns=list(COLUMNS))
        for row, pictures in zip(rows, self._pictures()):
            cells = row | {"pictures": wandb.Image(pictures) if pictures is not None else None}
            table.add_data(*(cells[column] for column in COLUMNS))
        wandb.log({"eval/answers": table, "train/global_step": step})

    def _send_to_tensorboard(self, step: int, rows: list[dict]) -> None:
        writer = self.tensorboard.tb_writer
        if writer is None:
            return  # PatientTensorBoard has said why
        for number, (row, pictures) in enumerate(zip(rows, self._pictures()), start=1):
            tag = f"eval/{number}"
            text = "\n\n".join(f"**{key}** {row[key]}" for key in ("sample", "question", "reference", "answer"))
            writer.add_text(tag, text, step)
            if pictures is not None:
                writer.add_image(tag, np.asarray(pictures), step, dataformats="HWC")
        writer.flush()

    def _pictures(self) -> list[Image.Image | None]:
        """What each sample shows, small and side by side; None for text alone."""
        prompts = self.held_out.prompts
        pictures = []
        for sample in prompts.samples:
            shown = [open_image(prompts.image_folder.file(path)) for path in sample.images]
            for path in sample.videos:
                frames = read_video(prompts.image_folder.file(path), prompts.video_sampling).frames
                chosen = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).astype(int)
                shown += [Image.fromarray(np.asarray(frames[index])) for index in chosen]
            pictures.append(side_by_side(shown) if shown else None)
        return pictures


def _row(step: int, sample: Sample, answer: str) -> dict:
    question, reference = question_and_reference(sample)
    return {
        "step": step,
        "sample": sample.id,
        "images": list(sample.images),
        "videos": list(sample.videos),
        "question": question,
        "reference": reference,
        "answer": answer,
    }


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Thumbnails of at most SIDE pixels, from left to right on white."""
    small = [image.copy() for image in images]
    for image in small:
        image.thumbnail((SIDE, SIDE))
    strip = Image.new("RGB", (sum(image.width for image in small), max(image.height for image in small)), "white")
    left = 0
    for image in small:
        strip.paste(image, (left, 0))
        left += image.width
    return strip
