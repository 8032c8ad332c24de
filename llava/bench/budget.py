"""`llava bench budget`: the paper's Table IV on the device at hand, the four arms in turns.

    a round:  training step of each arm, answers of each arm; every second round the arms in the other order

Each round gives one ratio of an arm to the baseline, so that what slows the machine down for longer than a round hits
both. Weights are random, images are noise: what is computed does not depend on them. A training step is a forward and a
backward pass, layers checkpointed as the recipes do; the optimizer's step, one in 512 samples in the paper, is not part
of it, nor is reading data. Answers are greedy, all of one length, of prompts whose images are cut before.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from llava.bench.arms import (
    ANSWER_TOKENS,
    ARMS,
    PROMPT_TOKENS,
    ArmModel,
    Side,
    arm_config,
    arm_layout,
    has_managers,
    our_loss,
    whole_layers,
)
from llava.bench.meter import measure, measure_step
from llava.data.schema import Dialogue, Turn
from llava.engine.engine import Engine
from llava.files import whole_file
from llava.mllm import LlavaOVManagerConfig
from llava.mllm.attention import best_attention
from llava.mllm.cost import forward_cost, training_cost
from llava.mllm.parts import FUSION, PREFIXES
from llava.train.ranks.fingerprint import git_state, versions
from llava.train.ranks.hardware import cpu_name

FORMAT = "llava bench budget 1"
QUESTION = "What is written on the sign?"
PHASES = ("training", "inference")


@dataclass(frozen=True)
class BudgetSettings:
    """What is measured.

    image: (width, height) of every sample's. batch_size: samples of a step, and answers at once. new_tokens: of each
    answer. vision_layers, text_layers: None for all.
    """

    device: str
    dtype: str
    image: tuple[int, int]
    batch_size: int
    new_tokens: int
    rounds: int
    vision_layers: int | None = None
    text_layers: int | None = None
    tiny: bool = False


def run_budget(settings: BudgetSettings, file: Path, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Measures, and writes what is there to `file` after each round.

    {format, title, settings, git, versions, arms: {arm: {parameters, whole_parameters, crops, tokens,
    flops: {phase: of a sample}, whole_flops: likewise at the real sizes, training: [{seconds, mib}], inference: [..]}}}

    Args:
        settings: what is measured.
        file: of the JSON.
        tell: takes a line about how far it is, and how long the rest will take.
    """
    model = ArmModel(settings.device, settings.dtype, settings.vision_layers, settings.text_layers, tiny=settings.tiny)
    dialogues = [Dialogue([Turn("human", QUESTION)], [noise(settings.image)]) for _ in range(settings.batch_size)]
    engines = {arm: model.engine(arm) for arm in ARMS}
    results = _described(settings, model, engines, dialogues[0])
    tell(results["title"])
    prepared = {arm: engine.prepare(dialogues) for arm, engine in engines.items()}
    attention, started = _attention(settings), time.perf_counter()
    for number in range(1 + settings.rounds):  # the first sets up what is set up once, and is not counted
        for arm in ARMS[:: 1 if number % 2 else -1]:
            model.use(Side(arm, arm, attention=attention))
            measured = {
                "training": _step(model, settings),
                "inference": _answers(model, engines[arm], dialogues, prepared[arm], settings),
            }
            if number:
                for phase, (seconds, mib) in measured.items():
                    results["arms"][arm][phase].append({"seconds": seconds, "mib": mib})
        if number:
            with whole_file(file) as stream:
                json.dump(results, stream, indent=1)
        left = (time.perf_counter() - started) / (number + 1) * (settings.rounds - number)
        tell(f"round {number} of {settings.rounds}, about {left:.0f} s left")
    return results


def _attention(settings: BudgetSettings) -> str:
    """The kernel that training takes there."""
    return best_attention(torch.device(settings.device).type == "cuda", settings.dtype != "float32")


def noise(size: tuple[int, int]) -> Image.Image:
    """A picture of (width, height) pixels, the same at every call."""
    width, height = size
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _step(model: ArmModel, settings: BudgetSettings) -> tuple[float, float | None]:
    batch = model.batch([settings.image] * settings.batch_size)
    model.model.train()
    return measure_step(model.model, our_loss, batch)


def _answers(
    model: ArmModel, engine: Engine, dialogues: list[Dialogue], inputs: Any, settings: BudgetSettings
) -> tuple[float, float | None]:
    model.model.eval()
    return measure(
        lambda: engine.generate(dialogues, inputs=inputs, max_new_tokens=settings.new_tokens), model.model.device
    )


def _described(
    settings: BudgetSettings, model: ArmModel, engines: dict[str, Engine], dialogue: Dialogue
) -> dict[str, Any]:
    """All that is not measured."""
    prompts = {arm: engine.count_tokens(dialogue) for arm, engine in engines.items()}
    arms, real = {}, _without_memory()
    for arm in ARMS:
        config, whole = model.configs[arm], arm_config(arm, None, None, tiny=False)
        layout = arm_layout(config, settings.image)
        question = prompts[arm] - layout.num_tokens
        arms[arm] = {
            "parameters": _parameters(model.model, arm),
            "whole_parameters": _parameters(real, arm),
            "crops": layout.num_crops,
            "tokens": layout.num_tokens,
            "flops": _flops(config, settings, question),
            "whole_flops": _flops(whole, settings, question),
            **{phase: [] for phase in PHASES},
        }
    return {
        "format": FORMAT,
        "title": title(settings),
        "settings": vars(settings),
        "git": git_state(),
        "versions": versions(),
        "arms": arms,
    }


def title(settings: BudgetSettings) -> str:
    """What was measured where, and what was cut."""
    on_gpu = torch.device(settings.device).type == "cuda"
    device = torch.cuda.get_device_name(settings.device) if on_gpu else f"{cpu_name()}, processor time"
    whole, width, height = whole_layers(settings.tiny), *settings.image
    layers = tuple(one or all_ for one, all_ in zip((settings.vision_layers, settings.text_layers), whole, strict=True))
    if settings.tiny:
        sizes = "TINY widths, which say nothing"
    elif layers == whole:
        sizes = "the real sizes"
    else:
        sizes = f"CUT to {layers[0]} of {whole[0]} layers of the tower, {layers[1]} of {whole[1]} of the language model"
    kernels = f"{settings.dtype}, {_attention(settings)}"
    return (
        f"Table IV on {device}: {sizes}, {kernels}, images of {width}x{height}, {settings.batch_size} at once, "
        f"answers of {settings.new_tokens} tokens, {settings.rounds} rounds"
    )


def _without_memory() -> torch.nn.Module:
    """The model at the real sizes, with managers."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(arm_config("grid_manager", None, None, tiny=False))


def _parameters(model: torch.nn.Module, arm: str) -> int:
    """Of an arm of a model with managers; what is tied counts once."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if has_managers(arm) or not name.startswith(FUSION)
    )


def _flops(config: LlavaOVManagerConfig, settings: BudgetSettings, question: int) -> dict[str, int]:
    """Of one sample: of a training step, and of its answer, each token of which but the last is read once."""
    layout = arm_layout(config, settings.image)
    trained = layout.num_tokens + PROMPT_TOKENS + ANSWER_TOKENS
    read = layout.num_tokens + question + settings.new_tokens - 1
    return {
        "training": training_cost(config, PREFIXES)(layout.num_crops, trained, ANSWER_TOKENS),
        "inference": forward_cost(config)(layout.num_crops, read, settings.new_tokens),
    }
