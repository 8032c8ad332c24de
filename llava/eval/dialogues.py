"""The documents of a task as the model is asked them, outside lmms-eval's own run."""

from pathlib import Path
from typing import Any

from lmms_eval.protocol import ChatMessages

from llava.data.schema import Dialogue
from llava.errors import LlavaError
from llava.eval.benchmarks import benchmark
from llava.eval.catalogue import TaskChoice
from llava.eval.documents import load_documents, source_of, spec_of, state_of
from llava.eval.fields import check_documents
from llava.eval.messages import dialogue_from, dialogue_of_context, with_rgb_images
from llava.eval.questions import reason
from llava.eval.task import build_task, task_config, task_names

PROTOCOL = "paper"


class TaskDialogues:
    """The first documents of a task under the paper's protocol; each is read when it is asked for.

    names: of each document, for messages. identity: changes when the documents do.

    Args:
        choice: the task.
        data: its data set's folder, None for the place that the task names.
        limit: how many documents at most.

    Raises:
        LlavaError: the documents cannot be had, or one cannot be asked.
    """

    def __init__(self, choice: TaskChoice, data: str | None, limit: int):
        name, file = choice.name, None if choice.file is None else str(choice.file.resolve())
        config = task_config(name, PROTOCOL, file)
        spec = spec_of(name, config if file else None)
        source = source_of(spec, data)
        documents = load_documents(spec, source)
        check_documents(name, source["dataset_path"], documents, limit, scores=False)
        self.simple = benchmark(name) is not None
        self.has_places = name not in task_names()
        self.task = build_task(name, config, source, documents, self.simple)
        self.task.build_all_requests(limit=limit)
        self.requests = self.task.instances
        place = source["dataset_path"]  # whose fingerprint is the same where a folder's files were changed in place
        self.identity = f"{place} {documents._fingerprint if data is None else state_of(Path(place))}"
        self.names = [f"{name} document {self._where(request)[0]}" for request in self.requests]

    def _where(self, request: Any) -> tuple:
        """Document, task, split."""
        return request.args[-3:]

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, place: int) -> Dialogue:
        """Raises LlavaError, which names the document, where it cannot be read."""
        request = self.requests[place]
        number, _, split = self._where(request)
        try:
            document = with_rgb_images(self.task.dataset[split][number])
            if self.simple:
                return dialogue_of_context(request.args[0], request.args[2](document), places=self.has_places)
            return dialogue_from(ChatMessages(messages=request.args[1](document)).messages, places=self.has_places)
        except Exception as error:  # the task's own functions run on whatever a damaged document holds
            raise LlavaError(f"{self.names[place]}: {reason(error)}") from error
