"""What a task's batch costs the model: sums over examples, divided by their number over all ranks.

    loss = sum over objectives of  (sum over this rank's examples) / (number of them in the step, over all ranks)

so that one process and many have the same loss and gradient. Who knows the step's numbers gives them (count_items,
added up over micro-batches and ranks, and then the loss times the number of ranks, as transformers' Trainer does it);
without them each forward pass adds up those of its micro-batch, and the mean of the ranks' losses is that of all.

Shapes: B examples of this rank, A of all ranks, L text tokens, D the hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather
from torch.nn import functional

from llava.constants import IGNORE_INDEX
from llava.errors import LlavaError
from llava.two_tower.tasks import TASKS

if TYPE_CHECKING:
    from llava.two_tower.modeling import Encoded, TwoTowerForTask

Batch = Mapping[str, torch.Tensor]
Items = Mapping[str, torch.Tensor | float]


@dataclass(frozen=True)
class Part:
    """Of one objective: the sum of this rank's examples, and how many they are."""

    total: torch.Tensor
    count: int | torch.Tensor


@dataclass(frozen=True)
class Result:
    """parts: by the objective's name; empty without labels. logits: see TaskOutput."""

    parts: dict[str, Part]
    logits: torch.Tensor


def pretrain(model: TwoTowerForTask, batch: Batch) -> Result:
    """MLM, of masked texts with their images, and ITM, of whole texts with images of which half are others'.

    Both at once, as 2B pairs: an image is encoded once, for MLM and, where it is the true one, for ITM.
    """
    mask, labels, size = batch["attention_mask"].repeat(2, 1), batch["itm_labels"], len(batch["input_ids"])
    text = model.model.encode_text(torch.cat([batch["mlm_input_ids"], batch["input_ids"]]), mask)
    image = model.model.encode_image(torch.cat([batch["pixel_values"], batch["false_pixel_values"]]))
    pairs = torch.arange(size, device=labels.device)
    shown = torch.where(labels == 1, pairs, size - 1 + (labels == 0).cumsum(0))
    fused = model.model.fuse(text, image.rows(torch.cat([pairs, shown])), mask)

    masked = batch["mlm_labels"] != IGNORE_INDEX
    words = model.heads["mlm"](fused.text_features[:size][masked])
    mlm = functional.cross_entropy(words.float(), batch["mlm_labels"][masked], reduction="sum")
    logits = model.heads["itm"](fused.pooled[size:])
    itm = functional.cross_entropy(logits.float(), labels, reduction="sum")
    return Result({"mlm": Part(mlm, masked.sum()), "itm": Part(itm, len(logits))}, logits)


def answer(model: TwoTowerForTask, batch: Batch) -> Result:
    """VQA: binary cross-entropy of every answer, summed over answers (its mean times their number)."""
    logits = model.classify(batch)
    if "targets" not in batch:
        return Result({}, logits)
    total = functional.binary_cross_entropy_with_logits(logits.float(), batch["targets"].float(), reduction="sum")
    return Result({"vqa": Part(total, len(logits))}, logits)


def classify(model: TwoTowerForTask, batch: Batch) -> Result:
    """Cross-entropy of one label an example."""
    logits = model.classify(batch)
    if "labels" not in batch:
        return Result({}, logits)
    total = functional.cross_entropy(logits.float(), batch["labels"], reduction="sum")
    return Result({"classification": Part(total, len(logits))}, logits)


def retrieve(model: TwoTowerForTask, batch: Batch) -> Result:
    """ITC among all ranks' pairs, and ITM of 3B pairs: true, with a hard negative image, with a hard negative text.

    Texts of several ranks are of one length, to which their collator pads them: ranks need not tell each other.
    """
    mask = batch["attention_mask"]
    text = model.model.encode_text(batch["input_ids"], mask)
    image = model.model.encode_image(batch["pixel_values"])
    index_A = gathered(batch["image_index"])
    same_BA = batch["image_index"][:, None] == index_A
    check_negatives(same_BA)

    head = model.contrastive
    with torch.autocast(text.cls.device.type, enabled=False):
        texts, images = head.embed_text(text.cls).float(), head.embed_image(image.cls).float()
        to_images_BA = head.similarity(texts, with_gradient(images))
        to_texts_BA = head.similarity(images, with_gradient(texts))
    target_BA = same_BA.float() / same_BA.sum(1, keepdim=True)
    itc = -(target_BA * (to_images_BA.log_softmax(1) + to_texts_BA.log_softmax(1))).sum() / 2

    draws = batch["negative_draws"]
    image_rows = drawn(negative_weights(to_images_BA, same_BA), draws[:, 0])
    text_rows = drawn(negative_weights(to_texts_BA, same_BA), draws[:, 1])
    other_text, other_image, other_mask = _negatives(model, batch, text, image, text_rows, image_rows)
    logits = model.match(
        _joined(text, text, other_text), _joined(image, other_image, image), torch.cat([mask, mask, other_mask])
    )
    labels = torch.arange(len(logits), device=logits.device) < len(mask)
    itm = functional.cross_entropy(logits.float(), labels.long(), reduction="sum")
    return Result({"itc": Part(itc, len(mask)), "itm_hard": Part(itm, len(logits))}, logits)


OBJECTIVES: dict[str, Callable[[TwoTowerForTask, Batch], Result]] = {
    "pretrain": pretrain,
    "vqav2": answer,
    "snli_ve": classify,
    "nlvr2": classify,
    "retrieval": retrieve,
}


def check_negatives(same_BA: torch.Tensor) -> None:
    """Raises LlavaError where a row has nothing to be compared with. same_BA: pairs of one image."""
    if same_BA.all(1).any():
        pairs = same_BA.shape[1]
        content = "is one pair" if pairs == 1 else f"has {pairs} pairs, all of one image"
        raise LlavaError(f"ITC compares a pair with pairs of other images, but the batch over all ranks {content}")


def negative_weights(similarity_BA: torch.Tensor, same_BA: torch.Tensor) -> torch.Tensor:
    """By what hard negatives are drawn, (B, A), rows that sum to one: the softmax, without pairs of the same image."""
    return similarity_BA.detach().masked_fill(same_BA, -torch.inf).softmax(1)


def drawn(weights_BA: torch.Tensor, draws_B: torch.Tensor) -> torch.Tensor:
    """The column of each row whose part of the row's cumulated weights a draw from [0, 1) falls in, (B,)."""
    cumulated = weights_BA.double().cumsum(1)  # so that no draw times the sum is rounded up to the sum
    return torch.searchsorted(cumulated, draws_B.double()[:, None] * cumulated[:, -1:], right=True)[:, 0]


def _negatives(
    model: TwoTowerForTask,
    batch: Batch,
    text: Encoded,
    image: Encoded,
    text_rows: torch.Tensor,
    image_rows: torch.Tensor,
) -> tuple[Encoded, Encoded, torch.Tensor]:
    """Hard negative texts and images, encoded, and the texts' mask. rows: (B,), of the pairs of all ranks.

    Of this rank alone they are encoded already. Those of others are encoded here, so that gradients reach the towers
    without states of all layers going between ranks.
    """
    if num_ranks() == 1:
        return text.rows(text_rows), image.rows(image_rows), batch["attention_mask"][text_rows]
    ids, mask = gathered(batch["input_ids"])[text_rows], gathered(batch["attention_mask"])[text_rows]
    pixels = gathered(batch["pixel_values"])[image_rows]
    return model.model.encode_text(ids, mask), model.model.encode_image(pixels), mask


def _joined(*parts: Encoded) -> Encoded:
    return type(parts[0])(torch.cat([one.states for one in parts], 1), torch.cat([one.cls for one in parts]))


def num_ranks() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """(A, ...) of all ranks' (B, ...), which are of one shape, without gradient."""
    if num_ranks() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(num_ranks())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def with_gradient(features: torch.Tensor) -> torch.Tensor:
    """(A, ...) of all ranks' (B, ...); the gradient goes back to the rank that each is of."""
    return features if num_ranks() == 1 else torch.cat(all_gather(features.contiguous()))


def count_items(task: str, batch: Batch) -> dict[str, int | torch.Tensor]:
    """{objective: how many items of this micro-batch it sums}: to be added up over a step and given to forward."""
    size = len(batch["input_ids"])
    of_batch = {
        "mlm": (batch["mlm_labels"] != IGNORE_INDEX).sum() if "mlm_labels" in batch else 0,
        "itm_hard": 3 * size,
    }
    return {name: of_batch.get(name, size) for name in TASKS[task].objectives}


def divided(parts: Mapping[str, Part], items: Items | None) -> dict[str, torch.Tensor]:
    """{objective: its loss}, see the head of this file. items: numbers of the whole step; None for this pass's."""
    if items is not None:
        return {name: part.total / items[name] for name, part in parts.items()}
    if not parts:
        return {}
    device = next(iter(parts.values())).total.device
    counts = torch.stack([torch.as_tensor(part.count, device=device, dtype=torch.float32) for part in parts.values()])
    if num_ranks() > 1:
        dist.all_reduce(counts)
        counts /= num_ranks()
    # A step without any masked word has no loss of them: 0 / 1 rather than 0 / 0.
    return {name: part.total / count.clamp(min=1 / num_ranks()) for (name, part), count in zip(parts.items(), counts)}
