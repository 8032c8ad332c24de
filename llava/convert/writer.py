"""Weights written shard by shard, so that one shard is the most that is held at a time."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """A tensor to write: its name, its size, and how to get it when its turn comes."""

    name: str
    num_bytes: int
    read: Callable[[], torch.Tensor]


def plan_shards(entries: Iterable[Entry], max_bytes: int) -> list[list[Entry]]:
    """Entries in their order, cut into shards of at most `max_bytes`; a larger tensor is a shard of its own."""
    shards, room = [], 0
    for entry in entries:
        if not shards or entry.num_bytes > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(entry)
        room -= entry.num_bytes
    return shards


def write_shards(shards: list[list[Entry]], folder: Path, after_shard: Callable[[], None]) -> None:
    """Writes model.safetensors, or numbered shards and their index, as transformers names them.

    after_shard: called when a shard is on the disk, to let go of what reading it held.
    """
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({entry.name: entry.read().contiguous() for entry in shard}, folder / file, metadata={"format": "pt"})
        after_shard()
        weight_map |= {entry.name: file for entry in shard}
    if len(shards) > 1:
        total = sum(entry.num_bytes for shard in shards for entry in shard)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
