"""The model as lmms-eval sees it, chat and simple type: requests in, answers out, batched through the engine.

requests ── windows of questions ── stored answer ───────────────────────────────────┐
                    └── some missing: sorted by cost ── batches ── engine ── stored ──┴── answers

Threads work ahead: of the window that is answered the next is read, of the batch that is answered the next is cut into
crops.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import NoReturn
from zlib import crc32

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from loguru import logger
from PIL import ImageFile
from tqdm import tqdm
from transformers import BatchFeature

from llava.checkpoint.folder import check_folder, weights_id
from llava.data.schema import Dialogue
from llava.engine.checks import check_attention, check_dtype
from llava.engine.engine import Engine
from llava.engine.placement import on_cpu
from llava.engine.read_ahead import read_ahead
from llava.errors import LlavaError
from llava.eval.answers import AnswerStore, answer_key
from llava.eval.messages import MAX_FRAMES, Settings, dialogue_from, dialogue_of_context, settings_from, with_rgb_images
from llava.eval.questions import Question, blind, prompt_cost, reason
from llava.eval.server.ask import ask_all
from llava.eval.server.client import Server
from llava.eval.server.settings import ServerSettings
from llava.eval.task import task_names

WINDOW = 8  # batches that are loaded and sorted together: images of all documents at once would fill the memory
PATIENCE = timedelta(days=7)  # of ranks for each other: where answers are stored, one may be done hours before another


class LlavaOVManager(lmms):
    """`--model llava_ov_manager --model_args pretrained=DIR[,answers=DIR,dtype=...,image_noise=True]`.

    pretrained: a checkpoint folder, loaded when the first answer has to be generated. batch_size: dialogues per forward
    pass (max_batch_size, which the harness may pass, changes nothing: batches do not grow). device, dtype,
    attn_implementation: as in `Engine.from_pretrained`; with several processes each takes its own GPU.
    answers: a folder where answers are stored as they come, and from where they are taken; see llava/eval/answers.py.
    weights: the folder's `weights_id` where it is known; computing it reads the whole checkpoint.
    stored_only: generate nothing, a missing answer is an error; the checkpoint may then be absent.
    server: answers in place of the checkpoint, which may be absent where `weights` says of which model the answers are.
    max_num_frames: of each video. image_noise: replaces every image by uniform noise of its size, seeded by the
    document, so that the model answers blind: with the same prompts and token counts, but nothing to see.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        answers: str | None = None,
        weights: str | None = None,
        stored_only: bool = False,
        max_num_frames: int = MAX_FRAMES,
        image_noise: bool = False,
        server: ServerSettings | None = None,
    ):
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise LlavaError(f"batch_size must be a whole number from 1, found {batch_size!r}")
        check_dtype(dtype)
        if not stored_only and server is None:
            check_folder(pretrained)
            check_attention(attn_implementation)
        self.accelerator = Accelerator(cpu=on_cpu(device), kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.pretrained, self.dtype, self.attn_implementation = pretrained, dtype, attn_implementation
        self.device_name = str(self.accelerator.device) if self._world_size > 1 else device or "auto"
        self.device = self.accelerator.device  # the harness's, for what ranks tell each other
        self.batch_size = int(batch_size)
        self.stored_only, self.max_num_frames, self.image_noise = stored_only, max_num_frames, image_noise
        self.store = AnswerStore(Path(answers) if answers is not None else None, self._rank)
        self.weights = weights or self._weights_id()
        self._computed = (dtype, attn_implementation) if server is None else server.identity  # what answers depend on
        self._server = None if server is None else Server(server)
        self._engine: Engine | None = None
        self._failures: list[str] = []
        self._used: set[tuple[str, str]] = set()  # (device, dtype) that the answers given here come from

    @property
    def engine(self) -> Engine:
        """The model; loaded when it is first asked for."""
        if self._engine is None:
            self._engine = Engine.from_pretrained(
                self.pretrained,
                device=self.device_name,
                dtype=self.dtype,
                attn_implementation=self.attn_implementation,
            )
        return self._engine

    def facts(self) -> dict[str, str]:
        """Device and dtype that this rank's answers were generated with, now or earlier; several are joined."""
        devices, dtypes = zip(*self._used) if self._used else ((), ())
        return {"device": ", ".join(sorted(set(devices))), "dtype": ", ".join(sorted(set(dtypes)))}

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """One answer per request, in the order of the requests; batches hold dialogues of similar cost.

        A document that cannot be asked is reported and left out. Raises LlavaError, on every rank, after all others are
        answered: a score on fewer documents would be another score.
        """
        answers, self._failures = [""] * len(requests), []
        groups: dict[Settings, list[int]] = {}
        for index, request in enumerate(requests):
            if not (request.metadata or {}).get("__padding_only__"):  # repeats what another request asks, for no one
                groups.setdefault(settings_from(self._fields(request)[1]), []).append(index)
        count = sum(map(len, groups.values()))
        with tqdm(total=count, desc="answers", unit="doc", disable=self.rank != 0) as progress:
            for settings, indices in groups.items():
                for window in self._windows(requests, indices, settings):
                    self._answer_missing(window, settings)
                    for question in window:
                        if question.key in self.store:
                            row = self.store.row(question.key)
                            answers[question.index] = row["answer"]
                            self._used.add((row.get("device", "unknown"), row.get("dtype", "unknown")))
                    progress.update(len(window))
        self._check_failures(count)
        return answers

    def _windows(self, requests: list[Instance], indices: list[int], settings: Settings) -> Iterator[list[Question]]:
        """The questions of a few batches at a time, read ahead."""
        together = self.batch_size if self._server is None else self._server.settings.requests
        step, copies = together * WINDOW, Counter()

        def read(part: list[int]) -> list[Question]:
            ImageFile.LOAD_TRUNCATED_IMAGES = False  # lmms-eval turns it on: half a page would be answered as a whole
            questions = (self._question(requests[index], index, settings, copies) for index in part)
            return [question for question in questions if question is not None]

        return read_ahead(read, [indices[start : start + step] for start in range(0, len(indices), step)])

    def _question(self, request: Instance, index: int, settings: Settings, copies: Counter) -> Question | None:
        """The request as a question, or None and one more failure, which names task and document."""
        _, _, doc_id, task, split = self._fields(request)
        name = f"{task} document {doc_id}"
        try:
            doc = with_rgb_images(self.task_dict[task][split][doc_id])
            dialogue = self._dialogue(request, doc, has_places=task not in task_names())
        except Exception as error:  # the task's own functions run on whatever a damaged document holds
            self._fail(name, error)
            return None
        if self.image_noise:
            dialogue = blind(dialogue, doc_id)
        key = answer_key(dialogue, self.weights, *self._computed, task, split, doc_id, settings)
        copies[key] += 1
        if copies[key] > 1:  # the harness's `repeats`: the same question, another answer
            key = f"{key}-{copies[key]}"
        return Question(index, name, key, doc_id, dialogue)

    def _fields(self, request: Instance) -> tuple:
        """What shows the document, generation kwargs, document, task, split."""
        _, doc_to_messages, gen_kwargs, doc_id, task, split = request.args
        return doc_to_messages, gen_kwargs, doc_id, task, split

    def _dialogue(self, request: Instance, doc: dict, has_places: bool) -> Dialogue:
        """has_places: whether `<image>` in a text is one, as for lmms-eval; in tasks of `llava eval` it is a word."""
        messages = ChatMessages(messages=self._fields(request)[0](doc)).messages
        return dialogue_from(messages, self.max_num_frames, has_places)

    def _answer_missing(self, window: list[Question], settings: Settings) -> None:
        """Generates and stores the answers that are not there, or notes for each why there is none."""
        missing = [question for question in window if question.key not in self.store]
        if self.stored_only:
            for question in missing:
                self._fail(question.name, LlavaError("no stored answer to what is asked"))
        elif self._server is not None:
            for question, text, error in ask_all(self._server, missing, settings):
                if error is None:
                    self._store(question, text, self._server.settings.place, self._server.settings.told_dtype)
                else:
                    self._fail(question.name, error)
        elif missing:
            for batch, inputs in read_ahead(self._prepared, self._batches(window, settings)):
                self._answer(batch, inputs, settings)

    def _batches(self, window: list[Question], settings: Settings) -> Iterator[list[Question]]:
        """The batches that have answers to generate, the most costly first.

        They are cut from all questions, answered or not: in bfloat16 an answer may depend on the batch it came in, and
        a run that goes on shall have the batches of one that never stopped.
        """
        engine = self.engine
        costs = {question.index: self._cost(engine, question) for question in window}
        ranked = [question for question in window if costs[question.index] is not None]
        ranked.sort(key=lambda question: costs[question.index], reverse=True)
        size = self.batch_size if settings.temperature == 0 else 1  # a drawn answer must not depend on its neighbours
        for first in range(0, len(ranked), size):
            batch = ranked[first : first + size]
            if any(question.key not in self.store for question in batch):
                yield batch

    def _cost(self, engine: Engine, question: Question) -> int | None:
        """Of its prompt, or None and one more failure."""
        try:
            return prompt_cost(engine, question.dialogue)
        except LlavaError as error:
            self._fail(question.name, error)
            return None

    def _prepared(self, batch: list[Question]) -> tuple[list[Question], BatchFeature]:
        """The batch, and what the engine makes of its dialogues before it answers them."""
        return batch, self.engine.prepare([question.dialogue for question in batch])

    def _answer(self, batch: list[Question], inputs: BatchFeature, settings: Settings) -> None:
        """Generates the batch's answers and stores those that were missing."""
        if settings.temperature > 0:
            torch.manual_seed(crc32(batch[0].key.encode()))
        try:
            dialogues = [question.dialogue for question in batch]
            texts = self.engine.generate(dialogues, inputs=inputs, **asdict(settings))
        except torch.OutOfMemoryError:
            raise LlavaError(
                f"{batch[0].name}: the memory of {self.engine.device} does not hold a batch of {len(batch)}; what is "
                "stored stays: go on with a smaller batch_size"
            ) from None
        dtype = str(self.engine.model.dtype).removeprefix("torch.")
        for question, text in zip(batch, texts, strict=True):
            if question.key not in self.store:
                self._store(question, text, str(self.engine.device), dtype)

    def _store(self, question: Question, text: str, device: str, dtype: str) -> None:
        self.store.append(question.key, question.doc_id, text, weights=self.weights, device=device, dtype=dtype)

    def _fail(self, name: str, error: Exception) -> None:
        self._failures.append(f"{name}: {reason(error)}")
        logger.error(self._failures[-1])

    def _check_failures(self, count: int) -> None:
        """Raises LlavaError, on every rank, when any rank failed to have an answer."""
        failures = self._failures
        if self._world_size > 1:
            failures, count = gather_object(failures), sum(gather_object([count]))
        if failures:
            others = "the answers to all others are stored" if self.store.on_disk else "all others were answered"
            raise LlavaError(f"{failures[0]} ({len(failures)} of {count} documents have no answer; {others})")

    def _weights_id(self) -> str:
        """Computed by the first rank for all."""
        if self.stored_only and not Path(self.pretrained).is_dir():
            return self.store.only_weights()
        weights = [weights_id(Path(self.pretrained)) if self.rank == 0 else None]
        return broadcast_object_list(weights)[0] if self._world_size > 1 else weights[0]

    def clean(self) -> None:
        """Frees the model; the harness calls this when all answers are in."""
        if self._engine is not None:
            self._engine = None
            super().clean()

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """Raises LlavaError: this model scores no given texts."""
        raise LlavaError("this model answers by generating text: tasks that score given continuations cannot be run")

    def generate_until_multi_round(self, requests: list[Instance]) -> NoReturn:
        """Raises LlavaError: this model is asked once."""
        raise LlavaError("tasks in several rounds (generate_until_multi_round) cannot be run with this model")


class SimpleLlavaOVManager(LlavaOVManager):
    """The same model for the harness's simple requests (`--force_simple`): images in front, the text as it was written.

    What the paper ran: MMMU's `<image 1>` stays in the text, where the chat type puts the image in its place.
    """

    is_simple = True

    def _fields(self, request: Instance) -> tuple:
        _, gen_kwargs, doc_to_visual, doc_id, task, split = request.args
        return doc_to_visual, gen_kwargs, doc_id, task, split

    def _dialogue(self, request: Instance, doc: dict, has_places: bool) -> Dialogue:
        return dialogue_of_context(request.args[0], self._fields(request)[0](doc), self.max_num_frames, has_places)
