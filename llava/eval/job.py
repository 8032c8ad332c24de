"""What a task's process is asked to do."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Job:
    """model: checkpoint folder. task: its name. out: the run folder.

    file: the task's YAML; None for one of `task_names()`. groups: of which the task was asked as a part, the fields of
    each `Group` (llava/eval/catalogue.py).
    data: the dataset's folder, or None for the benchmark's data set on the hub. limit: evaluate only the first
    documents. image_noise: the blind model (see llava/eval/lmms_model.py). protocol: see llava/eval/benchmarks.py.
    mode: "run" (predict and score), "predict" (answers are stored and nothing is scored) or "judge" (score what is
    stored). judge: the fields of `JudgeSettings`; None takes them from the environment. weights: the model's
    `weights_id`, computed once for all tasks; None leaves it to the task's process. server: the fields of
    `ServerSettings` where a server answers, of whose models `model` may be the name; None: the model in this process.
    rerank: of retrieval, how many of the nearest ITM ranks anew, 0 for none; None as the data set says.
    """

    model: str
    task: str
    data: str | None
    out: str
    limit: int | None = None
    batch_size: int = 1
    image_noise: bool = False
    device: str | None = None
    dtype: str = "auto"
    protocol: str = "paper"
    mode: str = "run"
    judge: dict | None = None
    weights: str | None = None
    file: str | None = None
    groups: list[dict] = field(default_factory=list)
    server: dict | None = None
    rerank: int | None = None
