"""The parts of gpu_check.py. Each runs in a process of its own and yields its rows as they come.

The models have random weights at the sizes of SigLIP so400m and Qwen2-0.5B, the images are noise; nothing is loaded.
Training by the command that users give is in gpu_training.py.
"""

import argparse
import gc
import json
import os
import socket
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch
from bench_eval import noise_images, random_engine
from gpu_meter import memory_of, seconds_of, start_memory, synchronize
from gpu_place import MICRO_BATCH, Place, side_row, speed
from gpu_training import training
from torch import distributed

from llava.bench.arms import ARMS, Side, our_loss
from llava.constants import FLASH_ATTENTION
from llava.data.schema import Dialogue
from llava.engine.engine import Engine
from llava.errors import LlavaError
from llava.text_files import read_json

Rows = Iterator[dict]
ARM = "grid_manager"
RATE = 1e-4
SIDE = 8192  # of the matrices in `device`
PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "flash-attn")


def device(place: Place) -> Rows:
    """What is here, and how fast it multiplies matrices."""
    facts = {name: _version(name) for name in PACKAGES} | {"cuda": torch.version.cuda}
    if place.on_gpu:
        properties = torch.cuda.get_device_properties(place.device)
        facts |= {"device": properties.name, "capability": f"{properties.major}.{properties.minor}"}
        facts |= {"memory_gib": properties.total_memory / 2**30, "peak_tflops": place.peak}
        facts |= {"nccl": ".".join(map(str, torch.cuda.nccl.version())), "cudnn": torch.backends.cudnn.version()}
    side = 64 if place.tiny else SIDE
    matrix = torch.randn(side, side, device=place.device, dtype=torch.bfloat16)
    seconds = seconds_of(lambda: matrix @ matrix, place.device, place.patience / 3)
    yield facts | {"matmul_tflops": 2 * side**3 / seconds / 1e12}


def arms(place: Place) -> Rows:
    """A micro-step, forward and backward, of each arm; of the dearest also with large images."""
    bench = place.bench()
    for arm in ARMS:
        yield side_row(place, bench, Side(arm, arm, attention=place.attention()), ["640x480"] * MICRO_BATCH)
    yield side_row(place, bench, Side(ARM, ARM, attention=place.attention()), ["1000x1000"] * MICRO_BATCH)
    kept = Side("nothing checkpointed", ARM, attention=place.attention(), checkpointed=False)
    yield side_row(place, bench, kept, ["640x480"] * MICRO_BATCH)


def attention(place: Place) -> Rows:
    """Flash attention against sdpa."""
    lacks = place.lacks_for_flash()
    if lacks is not None:
        yield {"side": FLASH_ATTENTION, "fault": f"needs {lacks}"}
    bench = place.bench()
    for name in ("640x480", "1000x1000"):
        for kernel in place.attentions():
            yield side_row(place, bench, Side(kernel, ARM, attention=kernel), [name] * MICRO_BATCH)


def packing(place: Place) -> Rows:
    """Samples of unequal lengths, padded against packed."""
    bench, names = place.bench(), ["384x384", "1000x1000"]
    for kernel in place.attentions():
        for packed in (False, True):
            side = Side(f"{'packed' if packed else 'padded'}, {kernel}", ARM, attention=kernel, packing=packed)
            yield side_row(place, bench, side, names)


def zero1(place: Place) -> Rows:
    """Steps under DeepSpeed ZeRO-1, one process: forward, backward, reduction, clipping, AdamW."""
    return zero(place, 1)


def zero2(place: Place) -> Rows:
    """The same under ZeRO-2."""
    return zero(place, 2)


def zero3(place: Place) -> Rows:
    """The same under ZeRO-3."""
    return zero(place, 3)


def zero(place: Place, stage: int) -> Rows:
    """Steps with the configuration that training ships."""
    join_alone(place)
    import deepspeed  # it looks for its accelerator when it is imported

    bench = place.bench("float32")  # as training builds it; DeepSpeed makes bfloat16 of it
    bench.use(Side(ARM, ARM, attention=place.attention()))
    model = bench.model
    model.model.without_images = "all" if stage == 3 else "trained"
    batch = bench.batch(place.sizes(*["640x480"] * MICRO_BATCH))
    config = deepspeed_config(stage, model.config.text_config.hidden_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=place.on_gpu or None)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)

    def step() -> torch.Tensor:
        loss = our_loss(engine, batch)
        engine.backward(loss)
        engine.step()
        return loss.detach()

    start_memory(place.device)
    losses = [step()]
    synchronize(place.device)
    started = time.perf_counter()
    losses += [step() for _ in range(place.steps - 1)]
    synchronize(place.device)
    seconds = (time.perf_counter() - started) / (place.steps - 1)
    row = {"side": f"ZeRO-{stage}, {distributed.get_backend()}", "images": "640x480+640x480"}
    row |= speed(place, bench, batch, seconds) | memory_of(place.device)
    yield row | {"losses": [loss.item() for loss in losses]}
    distributed.destroy_process_group()


def join_alone(place: Place) -> None:
    """A process group of this process; raises LlavaError where it cannot even add up its own number."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    if not place.on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled
    else:
        torch.cuda.set_device(0)
    distributed.init_process_group("nccl" if place.on_gpu else "gloo")
    number = torch.full((), 3.0, device=place.device)
    distributed.all_reduce(number)
    if number.item() != 3.0:
        raise LlavaError(f"one process added up 3 to {number.item()}")


def deepspeed_config(stage: int, width: int) -> dict:
    """The shipped file with what transformers puts in for `auto`. width: of the language model."""
    config = read_json(f"scripts/train/deepspeed/zero{stage}.json", by_hand=True)
    config |= {"train_batch_size": MICRO_BATCH, "train_micro_batch_size_per_gpu": MICRO_BATCH}
    config |= {"gradient_accumulation_steps": 1, "gradient_clipping": 1.0}
    config["bf16"]["enabled"], config["fp16"]["enabled"] = True, False
    automatic = {
        "reduce_bucket_size": width**2,
        "stage3_prefetch_bucket_size": int(0.9 * width**2),
        "stage3_param_persistence_threshold": 10 * width,
    }
    zero = config["zero_optimization"]
    config["zero_optimization"] = {key: automatic[key] if value == "auto" else value for key, value in zero.items()}
    return config


def generation(place: Place) -> Rows:
    """Answers to one image and to many at once: the time to the first token, and from token to token."""
    options = argparse.Namespace(
        device=place.device.type, dtype=place.dtype, layers=None, vision_layers=None, text_layers=None
    )
    engine = random_engine(options, place.tiny)
    sizes = [f"{width}x{height}" for width, height in place.sizes("640x480", "384x384")]
    dialogues = noise_images(place.many, sizes)
    for kernel in place.attentions():
        engine.model.set_attn_implementation(kernel)
        for count in (1, place.many):
            yield answers_row(place, engine, dialogues[:count], kernel)


def answers_row(place: Place, engine: Engine, dialogues: list[Dialogue], kernel: str) -> dict:
    """What one batch of answers takes, its images cut before."""
    row = {"side": f"batch {len(dialogues)}, {kernel}"}
    started = time.perf_counter()
    inputs = engine.prepare(dialogues)
    row["cutting_seconds"] = time.perf_counter() - started
    start_memory(place.device)

    def answer(tokens: int) -> list[str]:
        return engine.generate(dialogues, inputs=inputs, max_new_tokens=tokens)

    try:
        first = seconds_of(lambda: answer(1), place.device, place.patience)
        whole = seconds_of(lambda: answer(1 + place.long), place.device, place.patience)
    except torch.OutOfMemoryError:
        return row | {"fault": "out of memory"}
    row |= {"tokens": int(inputs["attention_mask"].sum()), "first_token_seconds": first}
    row |= {"token_ms": (whole - first) / place.long * 1e3, "answers_per_second": len(dialogues) / whole}
    return row | memory_of(place.device)


def precision(place: Place) -> Rows:
    """Losses of the same steps in float32 and in bfloat16 autocast, as training without ZeRO runs."""
    expected = None
    for name, autocast in (("float32", False), ("bfloat16", True)):
        losses, seconds = _losses(place, autocast)
        row = {"side": name, "seconds": seconds, "losses": losses}
        if expected is not None:
            row["largest_difference"] = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
        expected = losses
        gc.collect()  # the model before, if anything refers to itself in it
        yield row


def _losses(place: Place, autocast: bool) -> tuple[list[float], float]:
    bench = place.bench("float32")
    bench.use(Side(ARM, ARM))
    batch = bench.batch(place.sizes(*["640x480"] * MICRO_BATCH))
    optimizer = torch.optim.AdamW(bench.model.parameters(), lr=RATE, fused=place.on_gpu or None)
    losses, started = [], time.perf_counter()
    for _ in range(place.steps):
        with torch.autocast(place.device.type, torch.bfloat16, enabled=autocast):
            loss = our_loss(bench.model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    losses = [loss.item() for loss in losses]
    return losses, (time.perf_counter() - started) / place.steps


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


ALL = (device, training, arms, attention, packing, zero1, zero2, zero3, generation, precision)
PARTS = {part.__name__: part for part in ALL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rows", required=True, help="file that gets a line of JSON for each row")
    options = parser.parse_args()
    with open(options.rows, "a", encoding="utf-8") as file:
        for row in PARTS[options.part](Place(options.device, options.tiny)):
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
