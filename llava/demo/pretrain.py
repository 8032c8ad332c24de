"""The step that plays the part of SigLIP's and Qwen2's checkpoints, which cannot be had without a download.

The tower learns to label the patches of tiles (which digit or nothing, and which patch) and is saved like the real one,
with one layer more than is used: the state before the last layer is what is supervised. The language model learns the
questions on pages and notes written as text, laid out as the visual tokens will be: crop 0, then the map's rows, each
with a newline.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava.constants import IGNORE_INDEX
from llava.data.collator import Collator
from llava.data.conversation import encode_conversation
from llava.data.images import normalize
from llava.data.schema import Turn
from llava.demo.digit_pages import (
    NOTE,
    PAGE,
    PATCH,
    TILE,
    Sheet,
    ask_arithmetic,
    cells_of,
    center,
    draw_digits,
    draw_numbers,
    page_turns,
    places_of,
    read_page,
)
from llava.demo.tokenizer import VOCABULARY, train_tokenizer
from llava.files import follow_umask

SIDE = TILE // PATCH
NOTHING = 10  # the label of a patch without digit
LISTED_PLACES = 40  # in a text without questions; looking places up is learned from many at once
TOWER_LAYERS = 7  # the last is dropped when LLaVA is built, as with the real tower


def pretrain_tower(folder: Path, steps: int, batch_size: int = 64, lr: float = 2e-3, seed: int = 0) -> float:
    """Trains and saves the tower; returns the share of held-out digits whose patch it labels right."""
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
    # Two heads on every patch: which digit it shows, and where it is.
    head = nn.Sequential(nn.LayerNorm(config.hidden_size), nn.Linear(config.hidden_size, NOTHING + 1))
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
    tower.save_pretrained(folder)
    SiglipImageProcessorPil(
        size={"height": TILE, "width": TILE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    follow_umask(folder)
    return right[labels != NOTHING].float().mean().item()


def tiles(seed: list[int], count: int, test: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Tiles with digits in some patches: pixels (count, 3, TILE, TILE), labels (count, patches)."""
    rng = np.random.default_rng(seed)
    images, labels = [], np.full((count, SIDE * SIDE), NOTHING)
    for index in range(count):
        patches = rng.choice(SIDE * SIDE, int(rng.integers(1, 7)), replace=False)
        labels[index, patches] = rng.integers(0, 10, len(patches))
        digits = [(int(labels[index, p]), *center(int(p) % SIDE, int(p) // SIDE)) for p in patches]
        images.append(draw_digits(rng, TILE, digits, test))
    pixels = np.stack(images)[:, None].repeat(3, axis=1)
    return torch.from_numpy(normalize(pixels, (0.5,) * 3, (0.5,) * 3)), torch.from_numpy(labels)


def pretrain_language_model(folder: Path, steps: int, batch_size: int = 24, lr: float = 2e-3, seed: int = 0) -> float:
    """Trains and saves the language model and its tokenizer; returns its share of right answers on new text pages."""
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

    def predictions(seed: list[int], size: int, chat_share: float) -> tuple[torch.Tensor, torch.Tensor]:
        batch = text_batch(tokenizer, seed, size, chat_share)
        labels = batch["labels"][:, 1:]
        supervised = labels != IGNORE_INDEX
        states = model.model(batch["input_ids"]).last_hidden_state[:, :-1]
        return model.lm_head(states[supervised]), labels[supervised]

    def loss(step: int) -> torch.Tensor:
        # Looking places up is learned from lists, where there are many; answering questions then comes quickly.
        return cross_entropy(*predictions([seed, step], batch_size, chat_share=0.1 if step < steps * 0.4 else 0.75))

    _train("language model", list(model.parameters()), loss, steps, lr)
    with torch.no_grad():
        logits, labels = predictions([seed, 2**31 - 1], 200, chat_share=1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    follow_umask(folder)
    return (logits.argmax(-1) == labels).float().mean().item()


def text_batch(
    tokenizer: PreTrainedTokenizerBase, seed: list[int], size: int, chat_share: float
) -> dict[str, torch.Tensor]:
    """A batch of conversations about pages and arithmetic, and of lists of places; see Collator."""
    rng = np.random.default_rng(seed)
    encoded = [_chat(tokenizer, rng) if rng.random() < chat_share else _list(tokenizer, rng) for _ in range(size)]
    items = [{"input_ids": ids, "labels": labels, "num_images": 0, "num_videos": 0} for ids, labels in encoded]
    return Collator(tokenizer.pad_token_id)(items)


def _chat(tokenizer, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    if rng.random() < 0.05:
        question = ask_arithmetic(rng)
        turns = (Turn("human", question.text), Turn("gpt", question.answer))
        return encode_conversation(tokenizer, turns, "qwen_1_5", "answers")
    numbers = draw_numbers(rng)
    turns = page_turns(rng, numbers, places=6)
    return _with_page(tokenizer, *encode_conversation(tokenizer, turns, "qwen_1_5", "answers", images=1), numbers, PAGE)


def _list(tokenizer, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """The caption of a page or a note, and then many of its places in random order, of which the digits are learned."""
    numbers = draw_numbers(rng)
    places = places_of(numbers)
    chosen = [places[index] for index in rng.integers(len(places), size=LISTED_PLACES)]
    listed = " ".join(place + digit for place, digit in chosen)
    turns = (Turn("human", "<image>"), Turn("gpt", f"{read_page(numbers)}\n{listed}"))
    ids, labels = encode_conversation(tokenizer, turns, "plain", "answers", images=1)
    digits = set(tokenizer.convert_tokens_to_ids(list("0123456789")))
    caption = 2 * len(places) + 1  # place and digit of each, and the newline
    labels = [
        label if position <= caption or label in digits else IGNORE_INDEX for position, label in enumerate(labels)
    ]
    return _with_page(tokenizer, ids, labels, numbers, NOTE if rng.random() < 0.5 else PAGE)


def _with_page(tokenizer, ids: list[int], labels: list[int], numbers: tuple[str, ...], sheet: Sheet):
    """The placeholder replaced by the sheet as text."""
    at = ids.index(tokenizer.convert_tokens_to_ids("<image>"))
    page = tokenizer.convert_tokens_to_ids(_as_tokens(numbers, sheet))
    return ids[:at] + page + ids[at + 1 :], labels[:at] + [IGNORE_INDEX] * len(page) + labels[at + 1 :]


def _as_tokens(numbers: tuple[str, ...], sheet: Sheet) -> list[str]:
    """One token per visual token: a digit, or a dot for an empty patch. Crop 0 of a page shows nothing readable."""
    side = sheet.size // PATCH
    rows = [["."] * side for _ in range(side)]
    for row, column, digit in cells_of(numbers, sheet):
        rows[row][column] = digit
    if sheet is NOTE:
        return [token for row in rows for token in row]
    return ["."] * SIDE * SIDE + [token for row in rows for token in (*row, "\u010a")]


def _train(what: str, parameters: list, loss: Callable[[int], torch.Tensor], steps: int, lr: float) -> None:
    """AdamW, clipped gradients, a bar with the remaining time; the rate rises for a tenth, falls for three."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (0.1 * steps), 0.05 + (steps - step) / (0.3 * steps))
    )
    bar = tqdm(range(steps), desc=what, mininterval=5)
    for step in bar:
        value = loss(step)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{value.item():.3f}", refresh=False)
