"""A small SigLIP that is pretrained on the spot by reading: every patch of a tile says which letters stand on it.

It plays the part of SigLIP's checkpoint for text pages, and is saved like the real one, with one layer more than is
used: the state before the last layer is supervised, too. Tiles are windows anywhere on training pages.
"""

import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from llava.data.images import normalize
from llava.demo.fonts import width
from llava.demo.text_pages import Layout, TextPage, compose, draw
from llava.errors import LlavaError
from llava.files import follow_umask

PATCH = 14
ALPHABET = string.ascii_letters + string.digits + "'().,-/:;?!"
NOTHING = len(ALPHABET)  # the label of an empty slot
SLOTS = 3  # letters of a patch that are read, in reading order
BATCH = 64
RATE = 1e-3
PLACES = 0.2  # the loss of where a patch is, in losses of what it shows


@dataclass(frozen=True)
class TowerSize:
    """layers: built, one more than is used. heads: of attention."""

    width: int = 192
    layers: int = 9
    heads: int = 6

    def config(self, tile: int) -> SiglipVisionConfig:
        """SigLIP's, for crops of `tile` pixels."""
        return SiglipVisionConfig(
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            image_size=tile,
            patch_size=PATCH,
            vision_use_head=False,
        )


@dataclass(frozen=True)
class Sheet:
    """A drawn page. pixels: (side, side) uint8. letters: (N, 3), centre x and y in pixels, index in ALPHABET."""

    pixels: np.ndarray
    letters: np.ndarray


class Reader(nn.Module):
    """The tower and its heads, which are thrown away."""

    def __init__(self, size: TowerSize, tile: int):
        super().__init__()
        self.tower = SiglipVisionModel(size.config(tile))
        self.patches = (tile // PATCH) ** 2
        self.letters = nn.Sequential(nn.LayerNorm(size.width), nn.Linear(size.width, SLOTS * (NOTHING + 1)))
        self.place = nn.Linear(size.width, self.patches)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of letters (B, patches, SLOTS, classes) and of places (B, patches, patches) of pixels (B, 3, S, S)."""
        states = self.tower(pixels, output_hidden_states=True).hidden_states
        letters = self.letters(states[-2]) + self.letters(states[-1])
        return letters.unflatten(-1, (SLOTS, NOTHING + 1)), self.place(states[-2])

    def loss(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """labels: (B, patches, SLOTS)."""
        letters, places = self(pixels)
        right_place = torch.arange(self.patches, device=labels.device).repeat(len(labels))
        read = cross_entropy(letters.flatten(0, 2).float(), labels.flatten())
        return read + PLACES * cross_entropy(places.flatten(0, 1).float(), right_place)


def write_text_tower(
    folder: Path,
    layout: Layout,
    size: TowerSize,
    steps: int,
    sheets: int = 2000,
    seed: int = 0,
    device: str = "cpu",
) -> float:
    """Trains and saves a tower; returns the share of letters that it reads right on pages of test topics.

    Args:
        folder: Of the tower and its image processor.
        layout: Of the pages; its tile is a multiple of PATCH.
        size: Of the tower.
        steps: Of AdamW, in each of which BATCH tiles are read.
        sheets: Pages that are drawn once; tiles are windows anywhere on them.
        seed: Of weights, pages and windows.
        device: torch's; on a GPU the forward pass runs in bfloat16.

    Raises:
        LlavaError: The tile is no multiple of PATCH, or the tower's width none of its heads.
    """
    if layout.tile % PATCH or size.width % size.heads:
        raise LlavaError(
            f"a tile of {layout.tile} pixels must be whole patches of {PATCH}, a width of {size.width} whole heads "
            f"({size.heads})"
        )
    torch.manual_seed(seed)
    reader = Reader(size, layout.tile).to(device)
    drawn = [draw_sheet(np.random.default_rng([seed, index]), layout, test=False) for index in range(sheets)]
    held_out = [draw_sheet(np.random.default_rng([seed, sheets + index]), layout, test=True) for index in range(50)]
    _train(reader, lambda step: windows([seed, sheets, step], drawn, BATCH, layout.tile), steps)
    read = _share_read(reader, windows([seed, sheets, steps], held_out, 100, layout.tile))
    reader.tower.cpu().save_pretrained(folder)
    SiglipImageProcessorPil(
        size={"height": layout.tile, "width": layout.tile}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    follow_umask(folder)
    return read


def _train(reader: Reader, batch: Callable[[int], tuple[torch.Tensor, torch.Tensor]], steps: int) -> None:
    """AdamW, clipped gradients; the rate rises for a twentieth of the steps, then falls to zero in a half cosine."""
    optimizer = torch.optim.AdamW(reader.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * float(np.cos(np.pi * step / steps)))
    )
    device = reader.place.weight.device
    for step in tqdm(range(steps), desc="vision tower", mininterval=5):
        pixels, labels = (part.to(device) for part in batch(step))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            loss = reader.loss(pixels, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def _share_read(reader: Reader, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    pixels, labels = batch
    read = reader(pixels.to(reader.place.weight.device))[0].argmax(-1).cpu()
    return (read == labels)[labels != NOTHING].float().mean().item()


def draw_sheet(rng: np.random.Generator, layout: Layout, test: bool) -> Sheet:
    """A page of the layout and where its letters stand."""
    page = compose(rng, layout, test)
    return Sheet(np.asarray(draw(rng, page)), letters_of(page))


def letters_of(page: TextPage) -> np.ndarray:
    """(N, 3): x and y of the middle of every letter, in pixels, and its index in ALPHABET."""
    rows = []
    for placed in page.placed:
        x = placed.x
        for letter in placed.word:
            advance = width(page.face, placed.size, letter)
            rows.append((x + advance / 2, placed.y - 0.3 * placed.size, ALPHABET.index(letter)))
            x += advance
    return np.array(rows)


def windows(seed: list[int], sheets: list[Sheet], count: int, tile: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of sheets: pixels (count, 3, tile, tile), normalised, and labels (count, patches, SLOTS)."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for _ in range(count):
        sheet = sheets[int(rng.integers(len(sheets)))]
        left, top = (int(start) for start in rng.integers(0, len(sheet.pixels) - tile + 1, 2))
        images.append(sheet.pixels[top : top + tile, left : left + tile])
        labels.append(labels_of(sheet.letters - (left, top, 0), tile))
    pixels = normalize(np.stack(images)[:, None].repeat(3, axis=1), (0.5,) * 3, (0.5,) * 3)
    return torch.from_numpy(pixels), torch.from_numpy(np.stack(labels))


def labels_of(letters: np.ndarray, tile: int) -> np.ndarray:
    """(patches, SLOTS): the first letters whose middle lies in each patch, from top to bottom and left to right.

    letters: as of letters_of, from the window's corner; those outside the window count nowhere.
    """
    side = tile // PATCH
    x, y, index = letters[((letters[:, :2] >= 0) & (letters[:, :2] < side * PATCH)).all(1)].T
    patch = (y // PATCH * side + x // PATCH).astype(int)
    order = np.lexsort((x, y, patch))
    patch, index = patch[order], index[order].astype(int)
    slot = np.arange(len(patch)) - np.searchsorted(patch, patch)
    labels = np.full((side * side, SLOTS), NOTHING)
    labels[patch[slot < SLOTS], slot[slot < SLOTS]] = index[slot < SLOTS]
    return labels
