"""Pre-training and the tasks that a two-tower model is fine-tuned for, one row each. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """What the model, its data and its evaluation need to know of a task.

    Attributes:
        title: for people.
        heads: names in llava/two_tower/heads.py.
        objectives: names in llava/two_tower/objectives.py; their losses are added.
        fields: of a batch, beside `input_ids`, `attention_mask` and `pixel_values`, that the objectives need.
        metric: what is reported first.
        num_labels: of the classification head; 0 where there is none, None where the configuration says it
            (num_answers).
        num_images: of an example.
    """

    title: str
    heads: tuple[str, ...]
    objectives: tuple[str, ...]
    fields: tuple[str, ...]
    metric: str
    num_labels: int | None = 0
    num_images: int = 1


TASKS = {
    "pretrain": Task(
        title="Pre-training (MLM + ITM)",
        heads=("mlm", "itm"),
        objectives=("mlm", "itm"),
        fields=("mlm_input_ids", "mlm_labels", "itm_pixel_values", "itm_labels"),
        metric="itm_accuracy",
    ),
    "vqav2": Task(
        title="VQAv2",
        heads=("classifier",),
        objectives=("vqa",),
        fields=("targets",),
        metric="vqa_score",
        num_labels=None,
    ),
    "snli_ve": Task(
        title="SNLI-VE",
        heads=("classifier",),
        objectives=("classification",),
        fields=("labels",),
        metric="accuracy",
        num_labels=3,
    ),
    "nlvr2": Task(
        title="NLVR2",
        heads=("classifier",),
        objectives=("classification",),
        fields=("pixel_values_2", "labels"),
        metric="accuracy",
        num_labels=2,
        num_images=2,
    ),
    "retrieval": Task(
        title="Retrieval (Flickr30K, COCO)",
        heads=("itc", "itm"),
        objectives=("itc", "itm_hard"),
        fields=("image_index", "negative_draws"),
        metric="r_mean",
    ),
}
