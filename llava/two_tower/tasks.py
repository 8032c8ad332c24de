"""Pre-training and the tasks that a two-tower model is fine-tuned for, one row each. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
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
        pairs: what kind of pairs it is learned from, a name in llava/data/pairs/pair.py.
        parts: what a data set adds to text and image, see llava.data.pairs.dataset.PairDataset; it makes `fields`.
        train_transform, transform: of images in training and in evaluation, see llava/data/pairs/transforms.py.
        text_length: tokens of a text.
    """

    title: str
    heads: tuple[str, ...]
    objectives: tuple[str, ...]
    fields: tuple[str, ...]
    metric: str
    num_labels: int | None = 0
    num_images: int = 1
    pairs: str
    parts: tuple[str, ...]
    train_transform: str = "randaug_color"
    transform: str = "squash"
    text_length: int = 50


@dataclass(frozen=True, kw_only=True)
class TaskSet:
    """A data set of a task, which `llava eval` knows by its name.

    Attributes:
        title: as the paper writes it.
        task: a name in TASKS.
        mixture: below MIXTURES; its splits are named here.
        train: the split that is trained on.
        val: the one that is evaluated meanwhile, of which nothing is trained on. The reference trains VQAv2 on what it
            validates on, and chooses Flickr30K's epoch on the test split: splits `reference_train`, `reference_val`.
        tests: the splits whose numbers the paper gives.
        reranked: of retrieval, how many texts of an image and images of a text, the nearest by ITC, ITM ranks anew.
    """

    title: str
    task: str
    mixture: str
    train: str = "train"
    val: str = "val"
    tests: tuple[str, ...] = ("test",)
    reranked: int | None = None


TASKS = {
    "pretrain": Task(
        title="Pre-training (MLM + ITM)",
        heads=("mlm", "itm"),
        objectives=("mlm", "itm"),
        fields=("mlm_input_ids", "mlm_labels", "itm_labels", "false_pixel_values"),
        metric="itm_accuracy",
        pairs="captions",
        parts=("mlm", "itm"),
        train_transform="center",
        transform="center",
    ),
    "vqav2": Task(
        title="VQAv2",
        heads=("classifier",),
        objectives=("vqa",),
        fields=("targets",),
        metric="vqa_score",
        num_labels=None,
        pairs="questions",
        parts=("answers",),
        train_transform="randaug_no_flip",
    ),
    "snli_ve": Task(
        title="SNLI-VE",
        heads=("classifier",),
        objectives=("classification",),
        fields=("labels",),
        metric="accuracy",
        num_labels=3,
        pairs="entailment",
        parts=("label",),
    ),
    "nlvr2": Task(
        title="NLVR2",
        heads=("classifier",),
        objectives=("classification",),
        fields=("pixel_values_2", "labels"),
        metric="accuracy",
        num_labels=2,
        num_images=2,
        pairs="statements",
        parts=("label",),
    ),
    "retrieval": Task(
        title="Retrieval (Flickr30K, COCO)",
        heads=("itc", "itm"),
        objectives=("itc", "itm_hard"),
        fields=("image_index", "negative_draws"),
        metric="r_mean",
        pairs="captions",
        parts=("retrieval",),
        text_length=40,
    ),
}

MIXTURES = "scripts/train/mixtures/two_tower"
SETS = {
    "pretrain": TaskSet(title="4M", task="pretrain", mixture="pretrain.yaml", tests=()),
    "vqav2": TaskSet(title="VQAv2", task="vqav2", mixture="vqav2.yaml", tests=("test-dev", "test")),
    "snli_ve": TaskSet(title="SNLI-VE", task="snli_ve", mixture="snli_ve.yaml", tests=("val", "test")),
    "nlvr2": TaskSet(title="NLVR2", task="nlvr2", mixture="nlvr2.yaml", tests=("val", "test")),
    "flickr30k": TaskSet(title="Flickr30K", task="retrieval", mixture="flickr30k.yaml", reranked=128),
    "coco": TaskSet(title="COCO", task="retrieval", mixture="coco.yaml", reranked=256),
}
