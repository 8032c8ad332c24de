"""Where a part of gpu_check.py runs, at which sizes, and what it tells of a step."""

import importlib
from collections.abc import Callable

import torch
from gpu_meter import memory_of, seconds_of, start_memory, waits_of, work_of

from llava.bench.arms import ArmModel, Side
from llava.constants import FLASH_ATTENTION
from llava.mllm.attention import lacks_for_flash
from llava.mllm.cost import training_cost
from llava.mllm.parts import PREFIXES
from llava.train.loop.step_log import peak_bf16_tflops
from llava.train.mllm.counts import count_batch

SIZES = {"640x480": (640, 480), "1000x1000": (1000, 1000), "384x384": (384, 384)}
TINY_SIZES = {"640x480": (100, 70), "1000x1000": (160, 160), "384x384": (56, 56)}
MICRO_BATCH = 2  # samples, as in the recipes
PATIENCE, TINY_PATIENCE = 3.0, 0.0  # seconds that one side is timed
STEPS, TINY_STEPS = 20, 3  # of training with an optimizer
LONG, TINY_LONG = 32, 4  # tokens of an answer
MANY, TINY_MANY = 16, 2  # answers at once


class Place:
    """Where a part runs, and how much of it: a GPU at the real sizes, or a CPU at tiny ones."""

    def __init__(self, device: str, tiny: bool):
        self.device, self.tiny = torch.device(device), tiny
        self.on_gpu = self.device.type == "cuda"
        in_bf16 = self.on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)  # as training does
        self.dtype = "bfloat16" if in_bf16 else "float32"
        self.patience = TINY_PATIENCE if tiny else PATIENCE
        self.steps = TINY_STEPS if tiny else STEPS
        self.long, self.many = (TINY_LONG, TINY_MANY) if tiny else (LONG, MANY)
        self.peak = peak_bf16_tflops(torch.cuda.get_device_name(self.device)) if in_bf16 else None

    def bench(self, dtype: str | None = None) -> ArmModel:
        """A model of random weights."""
        return ArmModel(self.device.type, dtype or self.dtype, None, None, self.tiny)

    def sizes(self, *names: str) -> list[tuple[int, int]]:
        """Of images, in pixels, whatever their names say where all is tiny."""
        return [(TINY_SIZES if self.tiny else SIZES)[name] for name in names]

    def attention(self) -> str:
        """The kernel that training takes here, unless it is broken."""
        return self.attentions()[-1]

    def attentions(self) -> list[str]:
        """The kernels that can be compared here."""
        return ["sdpa", FLASH_ATTENTION] if self.lacks_for_flash() is None else ["sdpa"]

    def lacks_for_flash(self) -> str | None:
        """What flash attention needs and does not find; None where it can run."""
        lacks = lacks_for_flash(self.on_gpu, self.dtype != "float32")
        if lacks is None:
            try:
                importlib.import_module("flash_attn")
            except ImportError as error:  # it was built with another torch
                return f"a flash_attn that can be imported: {error}"
        return lacks


def side_row(place: Place, bench: ArmModel, side: Side, names: list[str]) -> dict:
    """What a micro-step of the side takes; a side for which the memory is too small says so."""
    row = {"side": side.name, "images": "+".join(names)}
    try:
        bench.use(side)
        batch = bench.batch(place.sizes(*names), side.packing)
        return row | step_row(place, bench, lambda: side.loss(bench.model, batch), batch)
    except torch.OutOfMemoryError:
        return row | {"fault": "out of memory"}
    finally:
        bench.model.zero_grad()
        if place.on_gpu:
            torch.cuda.empty_cache()


def step_row(place: Place, bench: ArmModel, loss: Callable[[], torch.Tensor], batch: dict) -> dict:
    """Speed, work, memory and waits of a loss and its backward pass."""
    start_memory(place.device)
    seconds = seconds_of(lambda: loss().backward(), place.device, place.patience)
    row = speed(place, bench, batch, seconds) | memory_of(place.device)
    work = work_of(lambda: loss().backward(), place.device)
    if work is not None:
        row |= {"gpu_seconds": work[0], "gpu_waits": max(0.0, 1 - work[0] / seconds), "kernels": work[1]}
    waits = waits_of(loss, place.device)
    if waits is not None:
        row |= {"waits_forward": waits.forward, "waits_backward": waits.backward, "waits_at": waits.at}
    with torch.no_grad():
        return row | {"loss": loss().item()}


def speed(place: Place, bench: ArmModel, batch: dict, seconds: float) -> dict:
    """Of a step that took `seconds`: what it worked on, and rates."""
    tokens, token_pairs, _, supervised, crops = count_batch(batch).tolist()
    tflop = training_cost(bench.model.config, PREFIXES)(crops, tokens, supervised, token_pairs) / 1e12
    row = {"crops": crops, "tokens": tokens, "tflop": tflop, "seconds": seconds}
    row |= {"samples_per_second": MICRO_BATCH / seconds, "tokens_per_second": tokens / seconds}
    return row | ({"mfu": tflop / seconds / place.peak} if place.peak else {})
