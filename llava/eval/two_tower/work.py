"""One task of one two-tower model, in a process of its own: `python -m llava.eval.two_tower.work JOB`.

Every rank answers its part and stores each answer as it comes; a later run goes on behind them. The first rank scores
all of them and saves the results.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from llava.checkpoint.loading import load_two_tower
from llava.data.pairs.collator import collate_pairs
from llava.data.pairs.dataset import PairDataset
from llava.data.pairs.mixture import load_pairs, read_pair_mixture
from llava.data.pairs.processor import PairProcessor, check_tokenizer
from llava.data.pairs.vocabulary import check_num_answers
from llava.engine.placement import best_dtype, choose_device, on_cpu
from llava.errors import LlavaError
from llava.eval.answers import AnswerStore
from llava.eval.harness import answers_folder, main
from llava.eval.headline import mean_score
from llava.eval.job import Job
from llava.eval.record import work_facts
from llava.eval.store import save_task_run
from llava.eval.two_tower.documents import Documents, answer_rows, label_names, retrieval_rows, write_submission
from llava.eval.two_tower.names import choose_split
from llava.train.folders.stage_folder import trained_arm
from llava.train.rank import end_with
from llava.two_tower.metrics import ranks_of
from llava.two_tower.modeling import TwoTowerForTask
from llava.two_tower.retrieval import Retrieval, scores_of
from llava.two_tower.tasks import TASKS

PACKAGES = ("llava", "transformers", "torch")
WORKERS = 4  # processes that read and decode images, of a rank on a GPU
PATIENCE = timedelta(days=1)  # ranks that end early wait for the last


def run(job: Job) -> Path | None:
    """Answers the task's documents, scores them and saves the results.

    Returns:
        Their folder, on the first rank; None on others, in mode "predict", and of a split whose answers nobody knows
        here, of which VQA's become a file for EvalAI beside it.

    Raises:
        LlavaError: The data and the model do not fit each other.
    """
    started = datetime.now(UTC)
    evaluation = _Evaluation(job)
    with torch.inference_mode():
        evaluation.answer()
    evaluation.accelerator.wait_for_everyone()
    if not evaluation.accelerator.is_main_process or job.mode == "predict":
        return None
    return evaluation.save(started)


class _Evaluation:
    """A model, the documents it is asked, and its stored answers."""

    def __init__(self, job: Job):
        self.job = job
        cpu = on_cpu(job.device)
        self.accelerator = Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
        several = self.accelerator.num_processes > 1
        self.device = self.accelerator.device if several else choose_device(job.device or "auto")
        self.dtype = best_dtype(self.device) if job.dtype == "auto" else getattr(torch, job.dtype)
        self.processor = PairProcessor.from_pretrained(job.model)
        self.model = self._load()
        task = self.model.config.task
        self.chosen = choose_split(job.task, task, Path(job.data) if job.data else None, job.rerank)
        mixture = read_pair_mixture(self.chosen.mixture, TASKS[task].pairs)
        loaded = load_pairs(mixture, self.chosen.split)
        self.dataset = PairDataset(
            loaded.store, self.processor, transform=TASKS[task].transform, image_folder=mixture.root
        )
        settings = (job.weights, str(self.dtype), self.chosen.reranked)
        self.documents = Documents(loaded.store, task, job.limit, settings)
        self.answers = AnswerStore(answers_folder(job.out, job.task), self.accelerator.process_index)

    def _load(self) -> TwoTowerForTask:
        model = load_two_tower(self.job.model, dtype=self.dtype).to(self.device)
        config = model.config
        tower = f"of {self.job.model}"
        check_tokenizer(self.processor.tokenizer, config.text_config.vocab_size, config.text_config.pad_token_id, tower)
        if TASKS[config.task].num_labels is None:
            if self.processor.answers is None:
                raise LlavaError(
                    f"model {self.job.model}: has no answers.json, which names its {config.num_answers} answers"
                )
            check_num_answers(self.processor.answers, config.num_answers, "answers.json", self.job.model)
        return model

    @property
    def is_retrieval(self) -> bool:
        return self.documents.task == "retrieval"

    def answer(self) -> None:
        """This rank's part of the documents."""
        if self.is_retrieval:
            self._rank()
            return
        names: Sequence[str] = self.processor.answers or label_names(self.documents.task)
        part = self._part(self.documents.pairs)
        waiting = [place for place in part if self.documents.key(place) not in self.answers]
        for positions, batch in self._batches(waiting):
            logits = self.model(**batch).logits
            for position, number in zip(positions, logits.argmax(1).tolist(), strict=True):
                self._store(self.documents.key(position), position, names[number])

    def _rank(self) -> None:
        """ITC on every rank, of all texts and images; ITM of this rank's images."""
        texts, _ = self.documents.texts
        images = self.documents.images
        retrieval = Retrieval(self.model, self.chosen.reranked or 0, self.job.batch_size, torch.device("cpu"))
        tokens = [self.processor.encode(self.documents.store.text(position).text) for position in texts.tolist()]
        ids, mask = (torch.tensor([row[name] for row in tokens]) for name in ("input_ids", "attention_mask"))
        size = self.job.batch_size
        encoded = retrieval.encode_texts(zip(ids.split(size), mask.split(size)))
        part = self._part(range(len(images)))
        waiting = {place for place in part if self._image_key(place) not in self.answers}
        reranked, kept = self.chosen.reranked, {}
        embedded = retrieval.embed_images(self._opened(images.tolist(), waiting if reranked else set(), kept))
        near = retrieval.near(embedded, encoded.embeddings)
        for place in tqdm(sorted(waiting), desc="images", disable=not self.accelerator.is_main_process):
            if reranked:
                numbers, scores = near[place], retrieval.match(kept[place], encoded, near[place])
            else:  # ITC alone: its own similarities, of all
                numbers, scores = list(range(len(texts))), (encoded.embeddings @ embedded[place]).tolist()
            self._store(self._image_key(place), place, json.dumps({"texts": numbers, "logits": scores}))

    def _opened(self, images: list[int], places: set[int], kept: dict[int, torch.Tensor]) -> Iterator[torch.Tensor]:
        """The pixels of all images, (B, 3, S, S) each time; those of some places are kept, on the CPU."""
        numbers = iter(range(len(images)))
        for positions, batch in self._batches(images):
            for place, pixels in zip(islice(numbers, len(positions)), batch["pixel_values"].cpu(), strict=True):
                if place in places:
                    kept[place] = pixels
            yield batch["pixel_values"]

    def _image_key(self, place: int) -> str:
        sizes = len(self.documents.images), len(self.documents.texts[0])  # which texts are near depends on all
        return self.documents.key(int(self.documents.images[place]), *sizes)

    def _store(self, key: str, number: int, answer: str) -> None:
        self.answers.append(
            key, number, answer, weights=self.job.weights, device=str(self.device), dtype=str(self.dtype)
        )

    def _part(self, places: Sequence[int]) -> list[int]:
        """This rank's share. Of all places, not of those that wait: another rank may have begun to answer."""
        return list(places[self.accelerator.process_index :: self.accelerator.num_processes])

    def _batches(self, positions: Sequence[int]) -> Iterator[tuple[Sequence[int], dict[str, torch.Tensor]]]:
        """The batches of these pairs, on the model's device, with their positions."""
        workers = WORKERS if self.device.type == "cuda" else 0
        size = self.job.batch_size
        collate = partial(collate_pairs, padded=not self.model.config.mask_padding)
        loader = DataLoader(Subset(self.dataset, positions), size, collate_fn=collate, num_workers=workers)
        for number, batch in enumerate(tqdm(loader, desc="answers", disable=not self.accelerator.is_main_process)):
            batch.pop("samples")
            fields = {
                name: value.to(self.device, self.dtype) if value.is_floating_point() else value.to(self.device)
                for name, value in batch.items()
            }
            yield positions[number * size : (number + 1) * size], fields

    def save(self, started: datetime) -> Path | None:
        """The results, from the stored answers of all ranks."""
        job, folder = self.job, answers_folder(self.job.out, self.job.task)
        answers = AnswerStore(folder)
        notes = []
        if self.is_retrieval:
            places = range(len(self.documents.images))
            stored = [json.loads(answers.row(self._image_key(place))["answer"]) for place in places]
            scores = scores_of(
                *([row[key] for row in stored] for key in ("texts", "logits")), len(self.documents.texts[0])
            )
            rows, metrics = retrieval_rows(self.documents, ranks_of(scores, self.documents.texts[1]))
            how = f"ITM ranked the nearest {self.chosen.reranked} by ITC anew, both ways"
            notes = [
                f"{how if self.chosen.reranked else 'ranked by ITC alone'}; r_mean is the mean of the six recalls, its "
                "documents are texts and images"
            ]
        else:
            texts = [answers.row(self.documents.key(place))["answer"] for place in self.documents.pairs]
            rows, metrics = answer_rows(self.documents, texts)
            if not metrics:
                self._hand_in(texts)
                return None
        means = {f"{metric},none": _mean(rows, metric) for metric in metrics}
        results = {"results": {job.task: means}, "run": self._facts(started, rows, metrics, notes)}
        return save_task_run(Path(job.out), job.task, results, rows)

    def _hand_in(self, texts: Sequence[str]) -> None:
        if self.documents.task != "vqav2":
            raise LlavaError(
                f"{self.job.task}: no pair of {self.chosen.mixture} says what is right; answers are stored"
            )
        file = Path(self.job.out) / f"{self.job.task}.submission.json"
        write_submission(file, self.documents, texts)
        print(f"{file}: {len(texts)} answers, to be handed in at EvalAI", file=sys.stderr)

    def _facts(self, started: datetime, rows: list[dict], metrics: list[str], notes: list[str]) -> dict[str, Any]:
        job = self.job
        return {
            **asdict(job),
            **work_facts(started, PACKAGES),
            "arm": trained_arm(Path(job.model)),
            "dataset": f"{self.chosen.mixture.name} ({self.chosen.split})",
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "task_version": 1,
            "metrics": metrics,
            "score": None,
            "headline": None,
            "judge": None,
            "notes": notes,
            "documents": len(rows),
        }


def _mean(rows: Sequence[dict], metric: str) -> float:
    return mean_score([row["scores"][metric] for row in rows if metric in row["scores"]])


if __name__ == "__main__":
    end_with(lambda: main(sys.argv[1:], run))
