"""A training stage as data: one YAML file, an arm that changes a few of its keys, and what the user changes.

Keys are dotted (`optim.max_steps`). Later sources win: the recipe's file, its arm, `--override` files in their order,
`--key value` on the command line. Every fault of every source is collected and raised at once. Nothing here imports
torch, so that a wrong key costs a fraction of a second.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from llava.errors import LlavaError
from llava.train.recipe.dotted import assemble, coerce, dotted_keys, flatten, read_yaml, suggestion

LAYERED = ("vision_tower", "language_model")  # the components that are many layers alike


def named_components(asked: bool | list[str]) -> tuple[str, ...]:
    """The components that `run.gradient_checkpointing` or `run.compile` names; true means LAYERED."""
    if isinstance(asked, bool):
        return LAYERED if asked else ()
    return tuple(asked)


@dataclass(frozen=True)
class ModelRecipe:
    """Where the weights come from: a checkpoint folder, or for the first stage a vision tower and a language model.

    vision_layers_dropped: layers taken off the end of `vision_tower`; real SigLIP has 27, of which 26 are used.
    sizes: YAML file with the configurations that a dry run uses when the folders are not there.
    attention: `auto` takes flash_attention_2 when it is installed and there is a GPU, else sdpa.
    """

    sizes: str
    start_from: str | None = None
    vision_tower: str | None = None
    language_model: str | None = None
    vision_layers_dropped: int = 1
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"


@dataclass(frozen=True)
class ManagersRecipe:
    """The visual managers. Every layer that is named replaces those of `layer_set`; negative ones count from the end.

    vision_start, vision_end, vision_interval: every `vision_interval`-th state of the tower (0 = the embeddings'
        output) from the first to before the second, as in Figure 10; None keeps that end of `layer_set`'s range.
    injection_start, injection_end, interval: the same for layers of the language model, as in Figure 11; None is the
        first, and behind the last.
    vision_layers, injection_layers: lists instead of ranges.
    query: `none` trains static managers. Else all but the first are adaptive (AAUM) and ask with the visual token's
        state alone (`self`) or beside the question's `last` token, its `average`, or a `cross` attention over it.
    question: the text of the `turn` that holds the image, or what the `released` code takes for it.
    """

    layer_set: Literal["none", "paper", "released"]
    interval: int = 4
    scope: Literal["all", "main", "grid"] = "all"
    vision_start: int | None = None
    vision_end: int | None = None
    vision_interval: int = 1
    vision_layers: list[int] | None = None
    injection_start: int | None = None
    injection_end: int | None = None
    injection_layers: list[int] | None = None
    jitter: Literal["as_layer_set", "paper", "released", "none"] = "as_layer_set"
    query: Literal["none", "self", "last", "average", "cross"] = "none"
    question: Literal["turn", "released"] = "turn"


@dataclass(frozen=True)
class TilingRecipe:
    """How an image becomes crops, in LLaVA's terms. pinpoints: [[width, height], ...] or "(1x1),...,(6x6)"."""

    aspect_ratio: str
    merge: Literal["flat", "spatial", "spatial_unpad"]
    pinpoints: list[list[int]] | str | None = None
    newline_after_one_crop: bool = False


@dataclass(frozen=True)
class DataRecipe:
    """What is trained on, see SupervisedDataset; the keys from video_fps on are for videos, see VideoSampling.

    packing: a process takes the `optim.batch_size` samples of a micro-batch as one row without padding, in which no
    sample sees another. A step holds the same samples, and learns the same, as without.
    The `expected_*` keys serve a dry run's estimate while the data is not on disk. expected_image: (width, height) of a
    typical image. expected_text_tokens: its text, prompt included.
    """

    mixture: str
    image_folder: str
    template: Literal["plain", "qwen_1_5"]
    max_length: int
    expected_samples: int
    expected_image: list[int]
    expected_text_tokens: int
    label_rule: Literal["answers", "released"] = "answers"
    on_bad_sample: Literal["error", "skip"] = "error"
    on_over_long: Literal["error", "truncate", "shrink_images"] = "error"
    packing: bool = False
    workers: int = 4
    video_fps: float = 1.0
    frames_upbound: int = 32
    force_sample: bool = False
    time_instruction: bool = False


@dataclass(frozen=True)
class ComponentRecipe:
    """One part of the model. lr, weight_decay: None takes `optim.lr` and `optim.weight_decay`."""

    trained: bool
    lr: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class AdaptableRecipe(ComponentRecipe):
    """A part that can be trained through adapters: with `lora` its own weights are frozen. lr is then the adapters'."""

    lora: bool = False


@dataclass(frozen=True)
class ComponentsRecipe:
    """What trains, and how fast. The newline vector and the managers may be absent from a model; that is no fault."""

    vision_tower: AdaptableRecipe
    projector: ComponentRecipe
    managers: ComponentRecipe
    newline: ComponentRecipe
    language_model: AdaptableRecipe


@dataclass(frozen=True)
class LoraRecipe:
    """The adapters of the components with `lora: true`, in peft's terms. They add alpha / rank * B A to a weight.

    dora: learn each weight's magnitude apart from its direction (DoRA). base: the components' own weights as they are,
    or in 4 bits where a layer's width is a multiple of 64 (QLoRA, needs bitsandbytes); both are saved in full.
    target_modules: names of the linear layers that get an adapter, such as [q_proj, v_proj]; None is every one.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    dora: bool = False
    base: Literal["full", "nf4"] = "full"
    target_modules: list[str] | None = None


@dataclass(frozen=True)
class OptimRecipe:
    """AdamW and its schedule. Accumulation is what `global_batch_size` leaves after the processes have their share.

    batch_size: samples a process takes at once. max_steps: stop early, or go on past `epochs`; None follows `epochs`.
    warmup: the fraction of the steps in which the learning rates rise.
    """

    lr: float
    global_batch_size: int
    batch_size: int
    weight_decay: float = 0.0
    epochs: float = 1.0
    max_steps: int | None = None
    warmup: float = 0.03
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class RunRecipe:
    """Where and how it runs.

    overwrite: replace a finished checkpoint in `output_dir`. precision: `auto` is bf16 on a GPU that has it, else fp32.
    deepspeed: a DeepSpeed JSON file, None for plain data parallelism. collective_timeout: seconds until a silent rank
    counts as dead.

    gradient_checkpointing: the components whose activations are computed again in the backward pass instead of kept,
    such as [language_model]; true is the tower's and the language model's layers. compile: the components whose layers
    go through torch.compile; true is both. It costs minutes at the start, and is not for ZeRO-3.

    While a stage trains it writes checkpoints to `output_dir`.checkpoints, every `save_steps` optimizer steps and every
    `save_minutes`, whichever comes first (None for never), and keeps the last `keep_last`. resume: go on from the last
    one when the same stage is started again; false deletes them and starts anew. reshape: go on with another number of
    processes than the checkpoint's, which draw other noise.
    """

    output_dir: str
    overwrite: bool = False
    seed: int = 42
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    deepspeed: str | None = None
    gradient_checkpointing: bool | list[Literal["vision_tower", "projector", "language_model"]] = True
    compile: bool | list[Literal["vision_tower", "language_model"]] = False
    logging_steps: int = 1
    report_to: Literal["none", "tensorboard", "wandb"] = "none"
    collective_timeout: int = 1800
    save_steps: int | None = 500
    save_minutes: float | None = 30
    keep_last: int = 2
    resume: bool = True
    reshape: bool = False


@dataclass(frozen=True)
class EvalRecipe:
    """Held-out samples that are evaluated while a stage trains: their loss, and the model's answers to the first ones.

    data: a mixture, or one data file (.json, .jsonl); None evaluates nothing. Encoded as the training data is.
    image_folder: None is `data.image_folder`.
    steps: every so many optimizer steps, and after the last. at_start: before the first step too.
    batch_size: samples a process takes at once; None is `optim.batch_size`.
    answers: how many samples, the first that are not too long, get an answer: greedy, of at most `max_new_tokens`
        tokens; see llava/train/loop/held_out.py.
    """

    data: str | None = None
    image_folder: str | None = None
    steps: int = 500
    at_start: bool = False
    batch_size: int | None = None
    answers: int = 8
    max_new_tokens: int = 64


@dataclass(frozen=True)
class Recipe:
    """A resolved stage. lr_groups: `single` trains everything at `optim.lr`, as the released run in effect did."""

    stage: str
    arm: str
    model: ModelRecipe
    managers: ManagersRecipe
    tiling: TilingRecipe
    data: DataRecipe
    components: ComponentsRecipe
    optim: OptimRecipe
    run: RunRecipe
    lora: LoraRecipe = LoraRecipe()
    eval: EvalRecipe = EvalRecipe()
    lr_groups: Literal["components", "single"] = "components"

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as they are printed and saved."""
        return asdict(self)


def load_recipe(path: str, arm: str, overrides: Sequence[str] = (), keys: dict[str, str] | None = None) -> Recipe:
    """Resolves `path` with `arm`, override files and the command line's `keys`.

    Raises one LlavaError that lists every unknown key, wrong value and missing key of all sources.
    """
    document = read_yaml(path)
    arms = document.pop("arms", {})
    if arm not in arms:
        raise LlavaError(f"{path}: unknown arm '{arm}'{suggestion(arm, arms)}; it has {', '.join(arms) or 'none'}")
    sources = [(path, document), (f"{path}: arm {arm}", arms[arm])]
    sources += [(override, read_yaml(override)) for override in overrides]
    sources += [("command line", keys or {})]

    known = dotted_keys(Recipe)
    del known["arm"]  # chosen by itself, before any key
    faults, given, values = [], set(), {"arm": arm}
    for origin, mapping in sources:
        try:
            flat = flatten(mapping)
        except LlavaError as error:
            raise LlavaError(f"{origin}: {error}") from error
        for key, value in flat.items():
            given.add(key)
            if key not in known:
                faults.append(f"{origin}: unknown key '{key}'{suggestion(key, known)}")
                continue
            try:
                values[key] = coerce(value, known[key].type)
            except ValueError as error:
                faults.append(f"{origin}: {key} {error}")
    faults += [f"{path}: {key} is missing" for key in known if known[key].required and key not in given]
    raise_faults(path, faults)
    return assemble(Recipe, values)


def raise_faults(origin: str, faults: list[str]) -> None:
    """Raises one LlavaError that lists `faults`, if there are any."""
    if len(faults) == 1:
        raise LlavaError(faults[0])
    if faults:
        raise LlavaError(f"{origin} has {len(faults)} faults:" + "".join(f"\n  - {fault}" for fault in faults))
