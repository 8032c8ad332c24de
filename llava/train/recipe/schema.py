"""What a stage of the MLLM may be told: the keys of a recipe, with their types, choices, bounds and a sentence each.

A key's sentence is that of its field under `Args:`; `llava train --keys` prints them all. Nothing here imports torch,
so that a wrong key costs a fraction of a second.
"""

from dataclasses import MISSING, asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from llava.anyres import TilingConfig
from llava.bounds import Bounds
from llava.constants import Merge
from llava.data.conversation import LabelRule, Template
from llava.data.image_folder import ImageFolder
from llava.data.over_long import OnOverLong
from llava.data.schema import OnBadSample, OutsidePaths
from llava.fusion.config import FusionConfig
from llava.fusion.methods import METHODS
from llava.train.recipe.dotted import Key, dotted_keys
from llava.train.recipe.running import Amount, Attention, Count, Decay, OptimRecipe, Rate, RunRecipe

if TYPE_CHECKING:
    from llava.data.video import VideoSampling

LAYERED = ("vision_tower", "language_model")  # the components that are many layers alike


def named_components(choice: bool | list[str]) -> tuple[str, ...]:
    """The components that `run.gradient_checkpointing` or `run.compile` names; true means LAYERED."""
    if isinstance(choice, bool):
        return LAYERED if choice else ()
    return tuple(choice)


@dataclass(frozen=True)
class ModelRecipe:
    """Where the weights come from: a checkpoint folder, or for the first stage a vision tower and a language model.

    Args:
        sizes: YAML file with the configurations that a dry run uses when the folders are not there.
        start_from: Checkpoint folder that the stage starts from; none takes `vision_tower` and `language_model`. A
            stage that follows another starts from that one's, in the folder `--checkpoints`, where nothing names it.
        vision_tower: Folder of a SigLIP, CLIP or DINOv2 model to start from.
        language_model: Folder of a Qwen2 or Qwen3 model to start from.
        vision_layers_dropped: Layers taken off the end of `vision_tower`; real SigLIP has 27, of which 26 are used.
        attention: The kernel of attention; `auto` takes flash_attention_2 when it is installed and there is a GPU, else
            sdpa.
    """

    sizes: str
    start_from: str | None = None
    vision_tower: str | None = None
    language_model: str | None = None
    vision_layers_dropped: Amount = 1
    attention: Attention = "auto"


@dataclass(frozen=True)
class TilingRecipe:
    """How an image becomes crops, in LLaVA's terms.

    Args:
        aspect_ratio: `square` resizes to one crop, `pad` pads first, `anyres` adds tiles, `anyres_max_N` no more than
            about N crops' worth of tokens.
        merge: How crops become one sequence: one behind another, as a map, or as a map without padding.
        pinpoints: The sizes that an anyres image is fitted into: [[width, height], ...] in pixels, or "(1x1),...,(6x6)"
            in tiles.
        newline_after_one_crop: Whether a newline vector ends an image of a single crop.
    """

    aspect_ratio: str
    merge: Merge
    pinpoints: list[list[int]] | str | None = None
    newline_after_one_crop: bool = False

    def config(self, tile: int) -> TilingConfig:
        """The tiling for crops of `tile` pixels. Raises LlavaError for keys that contradict each other."""
        config = TilingConfig.from_llava(self.aspect_ratio, self.merge, self.pinpoints, tile)
        return replace(config, newline_after_one_crop=self.newline_after_one_crop)


@dataclass(frozen=True)
class DataRecipe:
    """What is trained on. The `expected_*` keys serve a dry run's estimate while the data is not on disk.

    Args:
        mixture: YAML file of the data sets, or one data file (.json, .jsonl).
        image_folder: Folder that the data's images and videos are relative to.
        outside_paths: Which paths may lead out of it: none (`refuse`), those through `links` that stand in it, or
            `any`, absolute ones and `../` too.
        template: `plain` is image and caption, `qwen_1_5` is ChatML.
        max_length: Most tokens of a sample; see `on_over_long`.
        expected_samples: How many samples the mixture will have.
        expected_image: [width, height] of a typical image.
        expected_text_tokens: Tokens of a typical text, prompt included.
        label_rule: What is learned of a conversation: the `answers`, or what the `released` code takes for them.
        on_bad_sample: What a sample that cannot be read does: stop the run with an `error`, or be left out (`skip`).
        skip_ids: Ids of samples that train nothing, such as [a, "000123"]; the others keep their order. It may be added
            to an unfinished run.
        on_over_long: What becomes of a sample of more than `max_length` tokens: an `error`, a cut, or smaller images.
        packing: Whether a process takes the samples of a micro-batch as one row without padding, in which no sample
            sees another; a step holds the same samples, and learns the same, as without.
        workers: Data loader processes of each rank.
        video_fps: Frames that are taken of a second of video.
        frames_upbound: Most frames of a video, evenly spaced; 0 for no bound.
        force_sample: Whether `frames_upbound` frames are taken of every video, also of a short one.
        time_instruction: Whether the model is told, behind each video, when its frames were taken.
    """

    mixture: str
    image_folder: str
    template: Template
    max_length: Count
    expected_samples: Count
    expected_image: list[int]
    expected_text_tokens: Amount
    outside_paths: OutsidePaths = "refuse"
    label_rule: LabelRule = "answers"
    on_bad_sample: OnBadSample = "error"
    skip_ids: list[str] | None = None
    on_over_long: OnOverLong = "error"
    packing: bool = False
    workers: Annotated[int, Bounds(0, 1024)] = 4
    video_fps: float = 1.0
    frames_upbound: int = 32
    force_sample: bool = False
    time_instruction: bool = False

    def folder(self) -> ImageFolder:
        """The image folder, and which paths may lead out of it."""
        return ImageFolder(Path(self.image_folder), self.outside_paths)

    def video_sampling(self) -> "VideoSampling":
        """Which frames of a video are taken. Raises LlavaError for values that cannot be meant."""
        from llava.data.video import VideoSampling  # imports numpy

        return VideoSampling(self.video_fps, self.frames_upbound, self.force_sample)


@dataclass(frozen=True)
class ComponentRecipe:
    """One part of the model.

    Args:
        trained: Whether the part's weights learn.
        lr: Learning rate of the part; none takes `optim.lr`.
        weight_decay: Weight decay of the part; none takes `optim.weight_decay`.
    """

    trained: bool
    lr: Rate | None = None
    weight_decay: Decay | None = None


@dataclass(frozen=True)
class AdaptableRecipe(ComponentRecipe):
    """A part that can be trained through adapters.

    Args:
        lora: Whether adapters train in place of the part's own weights, which are frozen; `lr` is then the adapters'.
    """

    lora: bool = False


@dataclass(frozen=True)
class ComponentsRecipe:
    """What trains, and how fast. A model's fusion may have no parameters; that is no fault."""

    vision_tower: AdaptableRecipe
    projector: ComponentRecipe
    fusion: ComponentRecipe
    newline: ComponentRecipe
    language_model: AdaptableRecipe


@dataclass(frozen=True)
class LoraRecipe:
    """The adapters of the components with `lora: true`, in peft's terms. They add alpha / rank * B A to a weight.

    Args:
        rank: Rows of A and columns of B.
        alpha: Scales what the adapters add, by alpha / rank.
        dropout: Share of an adapter's inputs that is dropped while it trains.
        dora: Whether each weight's magnitude is learned apart from its direction (DoRA).
        base: The components' own weights as they are, or in 4 bits where a layer's width is a multiple of 64 (QLoRA,
            needs bitsandbytes); both are saved in full.
        target_modules: Names of the linear layers that get an adapter, such as [q_proj, v_proj]; none is every one.
    """

    rank: Count = 16
    alpha: Annotated[float, Bounds(0, above=True)] = 32.0
    dropout: Annotated[float, Bounds(0, 1, below=True)] = 0.0
    dora: bool = False
    base: Literal["full", "nf4"] = "full"
    target_modules: list[str] | None = None


@dataclass(frozen=True)
class EvalRecipe:
    """Held-out samples that are evaluated while a stage trains: their loss, and the model's answers to the first ones.

    Args:
        data: A mixture, or one data file (.json, .jsonl), encoded as the training data is; none evaluates nothing.
        image_folder: Folder that its images and videos are relative to; none is `data.image_folder`.
        steps: Evaluated every so many optimizer steps, and after the last.
        at_start: Whether it is evaluated before the first step too.
        batch_size: Samples that a process takes at once; none is `optim.batch_size`.
        answers: How many samples, the first that are not too long, get an answer, greedily.
        max_new_tokens: Most tokens of an answer.
    """

    data: str | None = None
    image_folder: str | None = None
    steps: Count = 500
    at_start: bool = False
    batch_size: Count | None = None
    answers: Amount = 8
    max_new_tokens: Count = 64


@dataclass(frozen=True)
class Recipe:
    """A resolved stage.

    Args:
        stage: Name of the stage, as logs and run.json have it.
        arm: What is trained in it, from `--arm`.
        lr_groups: `components` trains each at its own rate, `single` all at `optim.lr`, as the released run in effect
            did.
    """

    stage: str
    arm: str
    model: ModelRecipe
    fusion: FusionConfig
    tiling: TilingRecipe
    data: DataRecipe
    components: ComponentsRecipe
    optim: OptimRecipe
    run: RunRecipe
    lora: LoraRecipe = LoraRecipe()
    eval: EvalRecipe = EvalRecipe()
    lr_groups: Literal["components", "single"] = "components"

    keeps_order: ClassVar[bool] = True

    @property
    def evaluates(self) -> bool:
        """Whether something is evaluated while it trains."""
        return self.eval.data is not None

    @property
    def uses_adapters(self) -> bool:
        """Whether a component trains through adapters."""
        return self.components.vision_tower.lora or self.components.language_model.lora

    @property
    def held_out_folder(self) -> str:
        """Folder of the held-out samples' images and videos."""
        return self.eval.image_folder or self.data.image_folder

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as they are printed and saved."""
        return asdict(self)


def recipe_keys(method: str) -> dict[str, Key]:
    """Every dotted key of a recipe whose fusion is `method`, in the order of the fields."""
    keys = dotted_keys(Recipe, chosen={"fusion": METHODS[method]})
    return keys | {"fusion.method": replace(keys["fusion.method"], type=Literal[tuple(METHODS)], default=MISSING)}


def all_recipe_keys() -> dict[str, Key]:
    """The dotted keys of recipes of every method."""
    return {key: field for method in METHODS for key, field in recipe_keys(method).items()}
