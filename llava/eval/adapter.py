"""The model as lmms-eval sees it (chat type): requests in, answers out, batched through the engine."""

from collections.abc import Iterator

from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from llava.chat.engine import Engine
from llava.data.schema import Dialogue
from llava.errors import LlavaError
from llava.eval.messages import Settings, dialogue_from, noise_like, settings_from

WINDOW = 16  # batches that are loaded and sorted together: images of all documents at once would fill the memory


class LlavaOVManager(lmms):
    """`--model llava_ov_manager --model_args pretrained=DIR[,dtype=...,image_noise=True]`.

    pretrained: a checkpoint folder. batch_size: dialogues per forward pass (max_batch_size, which the harness may pass,
    changes nothing: batches do not grow). device, dtype, attn_implementation: as in `Engine.from_pretrained`; with
    several processes each takes its own GPU.
    image_noise: replaces every image by uniform noise of its size, seeded by the document, so that the model answers
    blind: with the same prompts and token counts, but nothing to see.
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
        image_noise: bool = False,
    ):
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise LlavaError(f"batch_size must be a whole number from 1, found {batch_size!r}")
        self.accelerator = Accelerator(cpu=device == "cpu")
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if self._world_size > 1:
            device = str(self.accelerator.device)
        self.engine = Engine.from_pretrained(
            pretrained, device=device or "auto", dtype=dtype, attn_implementation=attn_implementation
        )
        self.device = self.engine.device
        self.batch_size = int(batch_size)
        self.image_noise = image_noise

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """One answer per request, in the order of the requests; batches hold dialogues of similar length."""
        answers = [""] * len(requests)
        groups: dict[Settings, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(settings_from(request.args[2]), []).append(index)
        with tqdm(total=len(requests), desc="answers", unit="doc", disable=self.rank != 0) as progress:
            for settings, indices in groups.items():
                for batch in self._batches(requests, indices):
                    texts = self._generate([dialogue for _, dialogue in batch], settings)
                    for (index, _), text in zip(batch, texts, strict=True):
                        answers[index] = text
                    progress.update(len(batch))
        return answers

    def _batches(self, requests: list[Instance], indices: list[int]) -> Iterator[list[tuple[int, Dialogue]]]:
        """Batches of (index, dialogue), the longest dialogues of each window first."""
        step = self.batch_size * WINDOW
        for start in range(0, len(indices), step):
            window = [(index, *self._load(requests[index])) for index in indices[start : start + step]]
            window.sort(key=lambda entry: entry[2], reverse=True)
            for first in range(0, len(window), self.batch_size):
                yield [(index, dialogue) for index, dialogue, _ in window[first : first + self.batch_size]]

    def _load(self, request: Instance) -> tuple[Dialogue, int]:
        """The request's dialogue and its length in tokens; an error names task and document."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id])).messages
        try:
            dialogue = dialogue_from(messages)
            if self.image_noise:
                noise = [noise_like(image, doc_id, place) for place, image in enumerate(dialogue.images)]
                dialogue = dialogue._replace(images=noise)
            return dialogue, self.engine.count_tokens(dialogue)
        except LlavaError as error:
            raise LlavaError(f"{task} document {doc_id}: {error}") from error

    def _generate(self, dialogues: list[Dialogue], settings: Settings) -> list[str]:
        return self.engine.generate(
            dialogues,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            num_beams=settings.num_beams,
            stop=settings.stop,
        )

    def clean(self) -> None:
        """Frees the model; the harness calls this when all answers are in."""
        self.engine = None
        super().clean()

    def loglikelihood(self, requests: list[Instance]):
        raise LlavaError("this model answers by generating text: tasks that score given continuations cannot be run")

    def generate_until_multi_round(self, requests: list[Instance]):
        raise LlavaError("tasks in several rounds (generate_until_multi_round) cannot be run with this model")
