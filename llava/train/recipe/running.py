"""What a stage of either family may be told: how it optimises, and where and how it runs. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from llava.bounds import Bounds

Attention = Literal["auto", "sdpa", "flash_attention_2", "eager"]
Count = Annotated[int, Bounds(1)]
Amount = Annotated[int, Bounds(0)]
Decay = Annotated[float, Bounds(0)]
Rate = Annotated[float, Bounds(0, 1, above=True, hint=" (components.*.trained false freezes)")]


@dataclass(frozen=True)
class OptimRecipe:
    """AdamW and its schedule. Accumulation is what `global_batch_size` leaves after the processes have their share.

    Args:
        lr: Learning rate of every component that names none of its own.
        global_batch_size: Samples of an optimizer step, all processes together.
        batch_size: Samples that a process takes at once.
        weight_decay: Weight decay of every component that names none of its own.
        epochs: How often the data is gone through.
        max_steps: Stop early, or go on past `epochs`; none follows `epochs`.
        warmup: Share of the steps in which the learning rates rise.
        schedule: How the learning rates fall after the warm-up.
        max_grad_norm: Gradients of a larger norm are scaled down to it; 0 clips nothing.
        beta2: How much of the mean of squared gradients a step of AdamW keeps.
    """

    lr: Rate
    global_batch_size: Count
    batch_size: Count
    weight_decay: Decay = 0.0
    epochs: Annotated[float, Bounds(0, 1_000_000, above=True)] = 1.0
    max_steps: Count | None = None
    warmup: Annotated[float, Bounds(0, 1)] = 0.03
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    max_grad_norm: Annotated[float, Bounds(0, hint=" (0 clips nothing)")] = 1.0
    beta2: Annotated[float, Bounds(0, 1, below=True)] = 0.999


@dataclass(frozen=True)
class RunRecipe:
    """Where and how it runs. While a stage trains it writes checkpoints to `output_dir`.checkpoints.

    Args:
        output_dir: Folder of the finished checkpoint; where nothing names it, STAGE-ARM in the folder `--checkpoints`.
        overwrite: Whether a finished checkpoint in `output_dir` is replaced.
        seed: Of the data's order, of new weights and of noise.
        precision: Of the forward and backward pass; `auto` is bf16 on a GPU that has it, else fp32. A GPU that would
            emulate bf16 is refused.
        deepspeed: DeepSpeed JSON file; none is plain data parallelism.
        gradient_checkpointing: The components whose activations are computed again in the backward pass instead of
            kept, such as [language_model]; true is the tower's and the language model's layers.
        compile: The components whose layers go through torch.compile; true is both. It costs minutes at the start, and
            is not for ZeRO-3.
        deterministic: Whether a GPU takes only kernels that add in one order, so that a run can be repeated bit for
            bit; slower, and an operation that has none ends the run.
        logging_steps: Optimizer steps between two lines of the log.
        report_to: Where the log goes beside the terminal.
        startup_timeout: Seconds that ranks wait for each other before training, while data is indexed and images are
            looked at, and while a checkpoint is written.
        collective_timeout: Seconds until a rank that is silent while it trains counts as dead.
        save_steps: Optimizer steps between two checkpoints of the unfinished run; none for no such rhythm.
        save_minutes: Minutes between two checkpoints of the unfinished run, where steps do not come first; none for no
            such rhythm.
        keep_last: How many checkpoints of the unfinished run are kept.
        interim_weights: Whether those checkpoints also hold the whole model under ZeRO-3, as a folder to start from or
            to evaluate, which gathers it on the first process each time; without ZeRO-3 they always do.
        rehearsal: Whether the micro-batch of an epoch that takes the most memory is tried before the first step, whose
            result stays the same, so that a lack of memory shows in the first minute; `auto` is on a GPU.
        resume: Whether a stage that is started again goes on from its last checkpoint. `false` starts anew and sets
            the checkpoints aside (OUTPUT.checkpoints.1), `delete` starts anew and deletes them.
        reshape: Whether a run may go on with another number of processes, which draw other noise, or another ZeRO
            stage: its states are joined and cut anew.
    """

    output_dir: str
    overwrite: bool = False
    seed: Amount = 42
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    deepspeed: str | None = None
    gradient_checkpointing: bool | list[Literal["vision_tower", "projector", "language_model"]] = True
    compile: bool | list[Literal["vision_tower", "language_model"]] = False
    deterministic: bool = False
    logging_steps: Count = 1
    report_to: Literal["none", "tensorboard", "wandb"] = "none"
    startup_timeout: Count = 14_400
    collective_timeout: Count = 600
    save_steps: Count | None = 500
    save_minutes: Annotated[float, Bounds(0, hint=" (none is never)")] | None = 30
    keep_last: Count = 2
    interim_weights: bool = False
    rehearsal: Literal["auto", "always", "never"] = "auto"
    resume: bool | Literal["delete"] = True
    reshape: bool = False
