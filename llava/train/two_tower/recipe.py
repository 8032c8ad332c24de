"""What a stage of the two-tower family may be told: the keys of its recipe, with a sentence each. Imports no torch.

How it optimises and where it runs is told with the same keys as a stage of the MLLM's.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from llava.bounds import Bounds
from llava.data.image_folder import ImageFolder
from llava.data.schema import OutsidePaths, TransformName
from llava.train.recipe.dotted import Key, dotted_keys
from llava.train.recipe.running import Attention, Count, OptimRecipe, RunRecipe
from llava.two_tower.choices import Bridge, ManagerKind, Query, Weight
from llava.two_tower.tasks import TASKS

Times = Annotated[float, Bounds(0, 10_000)]
Deviation = Annotated[float, Bounds(0, 1, above=True)]
Share = Annotated[float, Bounds(0, 1, below=True)]


@dataclass(frozen=True)
class TwoTowerModelRecipe:
    """Where the weights come from: a checkpoint folder, or for the first stage a text tower and a vision tower.

    Args:
        sizes: YAML file with the configurations that a dry run uses when the folders are not there.
        start_from: Checkpoint folder of an earlier stage, whose heads stay where the task has the same; none takes
            `text_tower` and `vision_tower`. Where nothing names it, it is that of the stage that this one follows, in
            the folder `--checkpoints`.
        text_tower: Folder of a BERT-like model to start from, with its tokenizer.
        vision_tower: Folder of a ViT-like model to start from.
        attention: The kernel of attention; `auto` takes flash_attention_2 when it is installed and bf16 runs on a GPU,
            else sdpa.
        keep_states: Of frozen towers, whose states are computed once for each input and stay in memory: those of
            `images`, or of `all`, texts too; for small data, since each rank keeps all that it has seen.
    """

    sizes: str
    start_from: str | None = None
    text_tower: str | None = None
    vision_tower: str | None = None
    attention: Attention = "auto"
    keep_states: Literal["images", "all"] | None = None


@dataclass(frozen=True)
class TwoTowerFusionRecipe:
    """How the towers' layers reach the cross-modal layers; the model's configuration has the same names.

    Args:
        bridge: `manager` is ManagerTower, `bridge_tower` goes layer by layer, `meter` takes the last layers alone.
        manager_kind: What weighs a tower's layers (Table I of the paper).
        query: What adaptive managers ask with: the `own` modality's states, or those `fused` with the other's.
        weight: Whether a learned weight is one number (`scalar`) or one a channel (`vector`).
        text_layers: How many of the text tower's last layers managers get.
        image_layers: How many of the vision tower's last layers managers get.
        cross_modal_layers: Cross-modal layers of each modality.
        hidden_size: Width of the cross-modal layers.
        num_attention_heads: Heads of their attention.
        intermediate_size: Width of their MLPs.
        initializer_range: Standard deviation of new linear layers and embeddings. BERT's 0.02 is for widths near 768; a
            layer of width 128 that begins so hears nothing of the other modality for long.
        noise: Whether managers' scores have noise while they train.
        mask_padding: Whether a fused query leaves padding out, which the authors' code attends to.
        gated_fusion: Whether METER adds a gated sum of a tower's lower layers.
        hidden_dropout_prob: Share of the states of the cross-modal layers that is dropped while they train.
        attention_probs_dropout_prob: Share of their attention's weights that is dropped while they train.
    """

    bridge: Bridge = "manager"
    manager_kind: ManagerKind = "aaum"
    query: Query = "fused"
    weight: Weight = "vector"
    text_layers: Count = 6
    image_layers: Count = 6
    cross_modal_layers: Count = 6
    hidden_size: Count = 768
    num_attention_heads: Count = 12
    intermediate_size: Count = 3072
    initializer_range: Deviation = 0.02
    noise: bool = True
    mask_padding: bool = True
    gated_fusion: bool = False
    hidden_dropout_prob: Share = 0.1
    attention_probs_dropout_prob: Share = 0.1


@dataclass(frozen=True)
class TaskRecipe:
    """What is learned.

    Args:
        name: Pre-training, or the task.
        head_width: How many times as wide as its input the classification head is inside.
        head_dropout: Share of the input of the classification head that is dropped while it trains.
        num_answers: Answers of VQA that a dry run counts with; training counts those of the mixture.
    """

    name: Literal[tuple(TASKS)]
    head_width: Annotated[int, Bounds(1, 16)] = 1
    head_dropout: Share = 0.0
    num_answers: Count = 3129


@dataclass(frozen=True)
class PairDataRecipe:
    """What is trained on. `expected_samples` serves a dry run while the data is not on disk.

    Args:
        mixture: YAML file of data sets of pairs, or one data file (.arrow, .parquet, .json, .jsonl).
        split: The mixture's split that is trained on; of one data file it is `all`.
        image_size: Pixels of a side of every image.
        text_length: Tokens of every text, the padding among them; longer texts are cut.
        transform: How an image becomes a square while it is trained on; see llava/data/pairs/transforms.py.
        expected_samples: How many pairs the split will have.
        image_folder: Folder of the images that are named by a path.
        outside_paths: Which paths may lead out of it: none (`refuse`), those through `links` that stand in it, or
            `any`, absolute ones and `../` too.
        skip_ids: Ids of rows that train nothing, such as [a, "coco_train.arrow:7"]: what the data's column id has, or
            file and row.
        workers: Data loader processes of each rank.
    """

    mixture: str
    split: str
    image_size: Annotated[int, Bounds(1, 4096)]
    text_length: Annotated[int, Bounds(3, 4096)]
    transform: TransformName
    expected_samples: Count
    image_folder: str = "."
    outside_paths: OutsidePaths = "refuse"
    skip_ids: list[str] | None = None
    workers: Annotated[int, Bounds(0, 1024)] = 4

    def folder(self) -> ImageFolder:
        """The image folder, and which paths may lead out of it."""
        return ImageFolder(Path(self.image_folder), self.outside_paths)


@dataclass(frozen=True)
class RatesRecipe:
    """How many times `optim.lr` the parts learn at, 0 freezes one, and what of them `optim.weight_decay` is for.

    Args:
        towers: Of both towers, the embeddings of types and layers, and the temperature of retrieval.
        cross_modal: Of what joins the towers: projections, managers or links, cross-modal layers.
        heads: Of the heads of the objectives.
        decay: `matrices` leaves out norms, biases and temperatures; `reference` decays what the authors' code does, by
            the names that it looks for: also the vision tower's and the managers' norms, and temperatures.
    """

    towers: Times = 1.0
    cross_modal: Times = 5.0
    heads: Times = 5.0
    decay: Literal["matrices", "reference"] = "matrices"


@dataclass(frozen=True)
class PairEvalRecipe:
    """Held-out pairs, whose loss and whose task's metric are told while the stage trains.

    Args:
        split: The mixture's split that is evaluated; none evaluates nothing.
        data: A mixture or data file of its own; none is `data.mixture`.
        steps: Evaluated every so many optimizer steps, and after the last; none is after each epoch.
        at_start: Whether it is evaluated before the first step too.
        batch_size: Pairs that a process takes at once; none is `optim.batch_size`.
        samples: Most pairs that are evaluated, the first ones; none for all.
        rerank: How many of retrieval's nearest, by their towers alone, are compared by the whole model.
    """

    split: str | None = None
    data: str | None = None
    steps: Count | None = None
    at_start: bool = False
    batch_size: Count | None = None
    samples: Count | None = None
    rerank: Count = 128


@dataclass(frozen=True)
class TwoTowerRecipe:
    """A resolved stage of the two towers.

    Args:
        stage: Name of the stage, as logs and run.json have it.
        arm: What is trained in it, from `--arm`.
    """

    lr_groups: ClassVar[str] = "components"
    keeps_order: ClassVar[bool] = False

    stage: str
    arm: str
    model: TwoTowerModelRecipe
    fusion: TwoTowerFusionRecipe
    task: TaskRecipe
    data: PairDataRecipe
    rates: RatesRecipe
    optim: OptimRecipe
    run: RunRecipe
    eval: PairEvalRecipe = PairEvalRecipe()

    @property
    def evaluates(self) -> bool:
        """Whether something is evaluated while it trains."""
        return self.eval.split is not None

    @property
    def uses_adapters(self) -> bool:
        """Whether a part trains through adapters."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as they are printed and saved."""
        return asdict(self)


def two_tower_keys() -> dict[str, Key]:
    """Every dotted key of a recipe of the two towers, in the order of the fields."""
    return dotted_keys(TwoTowerRecipe)
