"""In a micro-batch nothing waits for the device: it is trained on a device whose tensors hold no numbers.

On torch's `meta` device a tensor is a shape and nothing else. Whatever brings numbers to Python, as .item(), .tolist(),
.cpu(), a truth value, nonzero and an index of booleans do, fails there; on a GPU it would wait until all that is queued
is done.
"""

from contextlib import nullcontext

import pytest
import torch
from transformers import modeling_flash_attention_utils

from llava.data.collator import Collator
from llava.mllm.attention import SDPA_BY_SAMPLE
from llava.mllm.questions import question_finder
from llava.train.stage import prefetch_factor, prepare

META = torch.device("meta")
ADAPTIVE = [
    {"fusion.query": "cross", "fusion.question": "turn"},
    {"fusion.query": "last", "fusion.question": "released", "fusion.jitter": "released"},
    {"fusion.query": "self", "fusion.jitter": "paper"},
]
MIXED = [(11, 5)]  # samples of each micro-batch: a video beside an image, and two images
OTHERS = [(4, 7), (2,)]  # text alone, and one sample, of tiles


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch):
    """torch knows of it on real devices alone."""
    enabled, dtype, autocast = torch.is_autocast_enabled, torch.get_autocast_dtype, torch.autocast
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": kind != "meta" and enabled(kind))
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.float32 if kind == "meta" else dtype(kind))
    monkeypatch.setattr(
        torch, "autocast", lambda kind, *args: nullcontext() if kind == "meta" else autocast(kind, *args)
    )


@pytest.fixture
def flash(monkeypatch):
    """Flash attention's functions, played by ones that compute nothing; a list of those that were called."""
    called = []

    def rows(query, key, value, **kwargs):
        called.append("rows")
        return query + key.mean() + value.mean()

    def samples(query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **kwargs):
        called.append("samples")
        assert cu_seqlens_q.device == cu_seqlens_k.device == query.device
        assert max_seqlen_q == max_seqlen_k <= len(query)
        return query + key.mean() + value.mean()

    for name in ("_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_process_flash_kwargs_fn"):
        monkeypatch.setattr(modeling_flash_attention_utils, name, None)
    functions = (rows, samples, None, None, None)
    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", lambda *_, **__: functions)
    return called


def train_on(trainer, items: list[dict]) -> None:
    """What the Trainer does with a micro-batch, from the loader to the gradients."""
    (batch,), supervised = trainer.get_batch_samples(iter([trainer.data_collator(items)]), 1, META)
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, batch, supervised)
    trainer._track_num_input_tokens(batch)
    trainer.floating_point_ops(batch)
    assert loss.device == trainer.totals._loss.device == META
    assert all(p.grad is not None for p in trainer.model.model.multi_modal_projector.parameters())


@pytest.fixture
def trainer_of(tiny_recipe, data_folder):
    """A function: arm and keys to a trainer of few layers on a device without numbers."""

    def make(arm: str, **keys):
        turns = {"data.mixture": f"{data_folder}/turns.yaml", "data.template": "qwen_1_5"}
        grid = {"tiling.aspect_ratio": "anyres_max_9", "tiling.merge": "spatial_unpad"} if "grid" in arm else {}
        trainer = prepare(tiny_recipe("1", arm, **turns, **grid, **keys)).trainer
        trainer.model.model.language_model.layers = trainer.model.model.language_model.layers[:3]
        trainer.model.to(META).tie_weights()
        trainer.model.model.without_images = "all"
        vars(trainer.args)["_setup_devices"] = META
        trainer.totals._loss = trainer.totals._loss.to(META)
        trainer._end_if_bad = lambda origins: None  # waits once a step, before anything of it is queued
        return trainer

    return make


@pytest.mark.parametrize(
    ("arm", "keys", "micro_batches"),
    [
        *((arm, {}, MIXED) for arm in ("baseline", "manager", "grid")),
        *(("grid_manager", keys, MIXED) for keys in ADAPTIVE),
        ("grid_manager", {}, OTHERS),
    ],
    ids=lambda value: "-".join(value.values()) or "static" if isinstance(value, dict) else None,
)
def test_no_wait_in_a_micro_batch(trainer_of, flash, arm, keys, micro_batches):
    recompute = {"run.gradient_checkpointing": micro_batches is OTHERS}
    trainer = trainer_of(arm, **recompute, **keys)
    config, text = trainer.model.config, trainer.model.model.language_model
    for packing in (False, True):
        trainer.data_collator = Collator(0, packing, question_finder(config))
        for attention in ("flash_attention_2", SDPA_BY_SAMPLE if packing else "sdpa"):
            text.config._attn_implementation = attention
            for samples in micro_batches:
                flash.clear()
                train_on(trainer, [trainer.train_dataset[index] for index in samples])
                by_flash = "samples" if packing or len(samples) == 1 else "rows"
                assert set(flash) == ({by_flash} if attention == "flash_attention_2" else set())


@pytest.mark.parametrize("key", ["sequence_lengths", "visual_positions", "supervised_positions", "question_positions"])
def test_a_wait_would_be_seen(trainer_of, flash, key):
    """What a batch does not say the model looks for."""
    trainer = trainer_of("grid_manager", **ADAPTIVE[0])
    trainer.model.model.language_model.config._attn_implementation = SDPA_BY_SAMPLE
    batch = Collator(0, True, question_finder(trainer.model.config))([trainer.train_dataset[i] for i in (5, 6)])
    batch = trainer._prepare_inputs({name: value for name, value in batch.items() if name not in (key, "samples")})
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        trainer.compute_loss(trainer.model, batch)


def test_a_step_more_is_loaded_than_is_trained():
    assert [prefetch_factor(*numbers) for numbers in ((32, 4), (16, 4), (1, 4), (5, 2), (32, 0))] == [9, 5, 2, 4, None]
