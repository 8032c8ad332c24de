"""The step that plays the part of SigLIP's and Qwen2's checkpoints, which cannot be had without a download.

The tower learns to label the patches of tiles (which character or nothing, and which patch) and is saved like the real
one, with one layer more than is used: the state before the last layer is what is supervised. The language model learns
the questions on pages written as text, and to copy notes, see pages_as_text.py.
"""

import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava.constants import IGNORE_INDEX
from llava.data.images import normalize
from llava.demo.digit_pages import (
    CHARACTERS,
    PATCH,
    SIDE,
    TILE,
    draw_characters,
    draw_numbers,
    draw_page,
    note_cells,
)
from llava.demo.pages_as_text import text_batch, write_chat, write_drills
from llava.demo.tokenizer import VOCABULARY, train_tokenizer
from llava.files import follow_umask

EMPTY = len(CHARACTERS)  # the label of an empty patch
DRILL_SHARE = 1 / 2  # of the language model's steps, at most
DRILL_LOSS = 0.2  # of drills that are learned
SHRUNKEN = 0.15  # of the tower's images, which show a page as crop 0 does
NOISE, LOUDEST = 0.03, 16.0  # added to the language model's inputs, and the most by which they are multiplied
STATE_SIZE = 0.1  # of the tower's states, of what training makes them
TOWER_LAYERS = 7  # the last is dropped when LLaVA is built, as with the real tower


def pretrain(
    tower: Path, language_model: Path, tower_steps: int, language_model_steps: int, seed: int = 0
) -> tuple[float, float]:
    """Trains both at once into the two folders, the language model in a process of its own, each with half the cores.

    Seeds torch's global generator. Returns what pretrain_tower and pretrain_language_model do.
    """
    before, threads = torch.get_num_threads(), max(1, len(os.sched_getaffinity(0)) // 2)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, torch.set_num_threads, (threads,)) as process:
        answers = process.submit(pretrain_language_model, language_model, language_model_steps, seed=seed)
        torch.set_num_threads(threads)
        try:
            reads = pretrain_tower(tower, tower_steps, seed=seed)
        finally:
            torch.set_num_threads(before)
        return reads, answers.result()


def pretrain_tower(folder: Path, steps: int, batch_size: int = 64, lr: float = 2e-3, seed: int = 0) -> float:
    """Trains and saves the tower; returns the share of held-out characters whose patch it labels right."""
    torch.manual_seed(seed)
    config = SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=3,
        image_size=TILE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    tower = SiglipVisionModel(config)
    # Two heads on every patch: which character it shows, and where it is.
    head = nn.Sequential(nn.LayerNorm(config.hidden_size), nn.Linear(config.hidden_size, EMPTY + 1))
    place_head = nn.Linear(config.hidden_size, SIDE * SIDE)

    def loss(step: int) -> torch.Tensor:
        pixels, labels = tiles([seed, step], batch_size, test=False)
        states = tower(pixels, output_hidden_states=True).hidden_states
        used, last = states[TOWER_LAYERS - 1], states[TOWER_LAYERS]
        digits = cross_entropy((head(used) + head(last)).flatten(0, 1), labels.flatten())
        places = torch.arange(SIDE * SIDE).repeat(batch_size)
        return digits + 0.2 * cross_entropy(place_head(used).flatten(0, 1), places)

    _train("vision tower", [*tower.parameters(), *head.parameters(), *place_head.parameters()], loss, steps, lr)
    with torch.no_grad():
        pixels, labels = tiles([seed, 2**31 - 1], 400, test=True)
        states = tower(pixels, output_hidden_states=True).hidden_states
        right = head(states[TOWER_LAYERS - 1]).argmax(-1) == labels
    _resize_states(tower, STATE_SIZE)
    tower.save_pretrained(folder)
    SiglipImageProcessorPil(
        size={"height": TILE, "width": TILE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    follow_umask(folder)
    return right[labels != EMPTY].float().mean().item()


@torch.no_grad()
def _resize_states(tower: SiglipVisionModel, size: float) -> None:
    """Multiplies all hidden states by `size`; as layers normalise what they read, they say what they said.

    Training leaves them so large that a new projector's tokens are ten times a word's, and become forty in stage 1.
    """
    writes = [module for layer in tower.encoder.layers for module in (layer.self_attn.out_proj, layer.mlp.fc2)]
    for module in (tower.embeddings, *writes):
        for weight in module.parameters():
            weight.mul_(size)


def tiles(seed: list[int], count: int, test: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Notes, full ones too, and pages as crop 0 shows them, in which nothing can be read.

    Training's characters are warped. Returns pixels (count, 3, TILE, TILE) and labels (count, patches).
    """
    rng = np.random.default_rng(seed)
    images, labels = [], np.full((count, SIDE, SIDE), EMPTY)
    for index in range(count):
        if rng.random() < SHRUNKEN:
            page = draw_page(rng, draw_numbers(rng), test)
            images.append(np.asarray(page.resize((TILE, TILE), Image.Resampling.BICUBIC)))
            continue
        cells = note_cells(rng, most=SIDE * SIDE)
        for row, column, character in cells:
            labels[index, row, column] = CHARACTERS.index(character)
        images.append(draw_characters(rng, TILE, cells, test, warped=not test))
    pixels = np.stack(images)[:, None].repeat(3, axis=1)
    return torch.from_numpy(normalize(pixels, (0.5,) * 3, (0.5,) * 3)), torch.from_numpy(labels).flatten(1)


def pretrain_language_model(folder: Path, steps: int, batch_size: int = 24, lr: float = 3e-3, seed: int = 0) -> float:
    """Trains and saves the language model and its tokenizer; returns its share of right answers on new text pages.

    It drills until it looks places up, which takes one seed twice as long as another, and then converses: conversations
    begun earlier teach it that no more. batch_size: drills of a step; of conversations two thirds as many.
    """
    torch.manual_seed(seed)
    tokenizer = train_tokenizer()
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=6,
            initializer_range=0.05,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )

    def predictions(seed: list[int], size: int, write: Callable) -> tuple[torch.Tensor, torch.Tensor]:
        batch = text_batch(tokenizer, seed, size, write)
        labels = batch["labels"][:, 1:]
        supervised = labels != IGNORE_INDEX
        words = _blurred(model.get_input_embeddings()(batch["input_ids"]))
        states = model.model(inputs_embeds=words).last_hidden_state[:, :-1]
        return model.lm_head(states[supervised]), labels[supervised]

    recent: deque[float] = deque(maxlen=10)  # losses of drills

    def loss(step: int) -> torch.Tensor:
        learned = len(recent) == recent.maxlen and mean(recent) < DRILL_LOSS
        drills = not learned and step < steps * DRILL_SHARE
        size, write = (batch_size, write_drills) if drills else (batch_size - batch_size // 3, write_chat)
        value = cross_entropy(*predictions([seed, step], size, write))
        if drills:
            recent.append(value.item())
        return value

    _train("language model", list(model.parameters()), loss, steps, lr)
    with torch.no_grad():
        logits, labels = predictions([seed, 2**31 - 1], 200, write_chat)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    follow_umask(folder)
    return (logits.argmax(-1) == labels).float().mean().item()


def _blurred(words: torch.Tensor) -> torch.Tensor:
    """Embeddings (B, L, D) as inexact, and as differently large, as what a projector makes of a tower's states."""
    size = LOUDEST ** torch.rand(*words.shape[:2], 1)
    return size * (words + NOISE * torch.randn_like(words))


def _train(what: str, parameters: list, loss: Callable[[int], torch.Tensor], steps: int, lr: float) -> None:
    """AdamW, clipped gradients, a line every tenth; the rate rises for a twentieth, falls for three tenths."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (0.05 * steps), 0.05 + (steps - step) / (0.3 * steps))
    )
    start = time.monotonic()
    for step in range(1, steps + 1):
        value = loss(step - 1)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 10) == 0:
            seconds = time.monotonic() - start
            print(f"{what}: step {step}/{steps}, loss {value.item():.3f}, {seconds:.0f} s", file=sys.stderr, flush=True)
