"""What little already does on emoji pages: the floors that a trained model has to beat.

Retrieval: the two towers as they are, joined by ridge regression alone, from the mean of an image's last states to its
caption's embedding. Questions: a blind model, ridge regression from the question's embedding to the answers.
"""

from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import torch
from torch.nn.functional import normalize
from transformers import CLIPVisionModel

from llava.data.images import open_image
from llava.data.pairs.draws import Draws, Purpose
from llava.data.pairs.mixture import load_pairs, read_pair_mixture
from llava.data.pairs.pair import Pair
from llava.data.pairs.transforms import Transform
from llava.demo.emoji_towers import BATCH, embed_texts
from llava.text_table import text_table
from llava.two_tower.metrics import RECALLS, Ranks, ranks_of

MOST = 4000  # pairs that are learned from
PENALTIES = (0.1, 1.0, 10.0, 100.0)  # of ridge regression; the best one on the split val is taken


def retrieval_floor(text_tower: Path, image_tower: Path, mixture: Path) -> dict[str, Ranks]:
    """{split: ranks} of every split of a mixture of captions but `train`, which the regression learns from."""
    pairs = read_pair_mixture(mixture)
    features = {split: _features(text_tower, image_tower, _pairs(mixture, split)) for split in pairs.splits}
    texts, images, index = features["train"]
    fits = [_ridge(images[index], texts, penalty) for penalty in PENALTIES]
    best = max(fits, key=lambda fit: _ranks(features["val"], fit).recalls()["r_mean"])
    return {split: _ranks(features[split], best) for split in pairs.splits if split != "train"}


def blind_floor(text_tower: Path, mixture: Path, answers: Sequence[str]) -> dict[str, float]:
    """The share of the split test's questions, in percent, that are answered right without the page.

    {kind: share}, the kind being what stands behind the number in a question's id, and `all`.
    """
    embedded, right = {}, {}
    for split in ("train", "val", "test"):
        pairs = _pairs(mixture, split)
        embedded[split] = embed_texts(text_tower, [pair.text for pair in pairs])
        right[split] = torch.tensor([answers.index((pair.answers or ("",))[0]) for pair in pairs])
    wanted = torch.nn.functional.one_hot(right["train"], len(answers)).float()
    fits = [_ridge(embedded["train"], wanted, penalty) for penalty in PENALTIES]
    best = max(fits, key=lambda fit: ((_with_one(embedded["val"]) @ fit).argmax(1) == right["val"]).float().mean())
    hits = ((_with_one(embedded["test"]) @ best).argmax(1) == right["test"]).tolist()
    kinds = [str(pair.question_id).partition("-")[2] for pair in _pairs(mixture, "test")]
    of_kind, totals = Counter(kind for kind, hit in zip(kinds, hits) if hit), Counter(kinds)
    return {"all": 100 * sum(hits) / len(hits)} | {kind: 100 * of_kind[kind] / totals[kind] for kind in sorted(totals)}


def render(ranks: dict[str, Ranks], blind: dict[str, float]) -> str:
    """Both floors as text."""
    head = ["split", "texts", "images", *(f"IR@{k}" for k in RECALLS), *(f"TR@{k}" for k in RECALLS), "R_MEAN"]
    rows = [
        [
            split,
            str(len(of.of_texts)),
            str(len(of.of_images)),
            *(f"{100 * share:.1f}" for share in of.recalls().values()),
        ]
        for split, of in ranks.items()
    ]
    kinds = [["questions", "right"], *([kind, f"{share:.1f}"] for kind, share in blind.items())]
    return "\n\n".join(
        [
            "retrieval: frozen towers, joined by ridge regression",
            text_table([head, *rows], right=[False, True]),
            "questions: blind, ridge regression from the question alone",
            text_table(kinds, right=[False, True]),
        ]
    )


def _pairs(mixture: Path, split: str) -> list[Pair]:
    store = load_pairs(read_pair_mixture(mixture), split).store
    return [store[number] for number in range(min(len(store), MOST) if split == "train" else len(store))]


@torch.no_grad()
def _features(text_tower: Path, image_tower: Path, pairs: Sequence[Pair]) -> tuple[torch.Tensor, ...]:
    """Texts (n, W_T), images (m, W_V), and of each text the number of its image (n,)."""
    numbers = {number: row for row, number in enumerate(dict.fromkeys(pair.image_index for pair in pairs))}
    stored = {pair.image_index: pair.images[0] for pair in pairs}
    tower = CLIPVisionModel.from_pretrained(image_tower).eval()
    transform = Transform("squash", tower.config.image_size)
    images = []
    for start in range(0, len(numbers), BATCH):
        opened = [open_image(BytesIO(stored[number])) for number in list(numbers)[start : start + BATCH]]
        pixels = torch.stack([transform(image, Draws(Purpose.IMAGE, 0)) for image in opened])
        images.append(tower(pixels).last_hidden_state[:, 1:].mean(1))
    index = torch.tensor([numbers[pair.image_index] for pair in pairs])
    return embed_texts(text_tower, [pair.text for pair in pairs]), torch.cat(images), index


def _with_one(features: torch.Tensor) -> torch.Tensor:
    return torch.cat([features, torch.ones(len(features), 1)], 1)


def _ridge(features: torch.Tensor, wanted: torch.Tensor, penalty: float) -> torch.Tensor:
    """(width + 1, targets): the last row is what does not depend on the features."""
    inputs = _with_one(features).double()
    gram = inputs.T @ inputs + penalty * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    return torch.linalg.solve(gram, inputs.T @ wanted.double()).float()


def _ranks(features: tuple[torch.Tensor, ...], fit: torch.Tensor) -> Ranks:
    texts, images, index = features
    similarity_IT = normalize(_with_one(images) @ fit, dim=-1) @ normalize(texts, dim=-1).T
    return ranks_of(similarity_IT.numpy(), index.numpy())
