"""What tiny stages of the two towers start from: two towers, and pairs of every kind in ViLT's columns."""

import json

import pytest
import torch
import yaml
from transformers import CLIPVisionConfig, CLIPVisionModel, RobertaConfig, RobertaModel

from llava.train.recipe.load import load_recipe
from tests.data.pairs.conftest import picture, tokenizer, write_arrow

__all__ = ["tokenizer"]

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 210), "white": (240, 240, 240)}
KINDS = {
    "pretrain": "captions",
    "retrieval": "captions",
    "vqav2": "questions",
    "snli_ve": "entailment",
    "nlvr2": "statements",
}
STAGES = {name: name for name in KINDS} | {"retrieval": "flickr30k"}
ROWS = 12
WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="session")
def towers(tmp_path_factory, tokenizer):
    """Folders `text` and `vision`, as their publishers save them: with a pooling layer, for another image size."""
    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(1)
    text = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=20, pad_token_id=1, **STILL, **WIDTHS)
    RobertaModel(text).save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    CLIPVisionModel(CLIPVisionConfig(image_size=16, patch_size=8, **WIDTHS)).save_pretrained(folder / "vision")
    return folder


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """A folder with a mixture for each kind of pairs, of 12 rows to train on and 5 to evaluate."""
    folder = tmp_path_factory.mktemp("pairs")
    names = list(COLOURS)
    rows = {
        "captions": lambda n, name, other: {
            "image": picture(COLOURS[name]),
            "caption": [f"a {name} square", f"there is {name} circle {n}"][: 1 + n % 2],
        },
        "questions": lambda n, name, other: {
            "image": picture(COLOURS[name]),
            "questions": ["what color is the square"],
            "answers": [[name, other]],
            "answer_scores": [[1.0, 0.3]],
            "question_id": [n],
        },
        "entailment": lambda n, name, other: {
            "image": picture(COLOURS[name]),
            "sentences": [[f"a {name} page", f"there is {name if n % 3 else other}"]],
            "labels": [n % 3],
        },
        "statements": lambda n, name, other: {
            "image_0": picture(COLOURS[name]),
            "image_1": picture(COLOURS[other]),
            "questions": [f"the left is {name if n % 2 else other}"],
            "answers": ["True" if n % 2 else "False"],
        },
    }
    (folder / "answers.json").write_text(json.dumps(names))
    for kind, row in rows.items():
        splits = {}
        for split, count in (("train", ROWS), ("val", 5)):
            made = [row(n, names[n % 4], names[(n + 1) % 4]) for n in range(count)]
            write_arrow(folder / f"{kind}_{split}.arrow", made)
            splits[split] = [{"name": kind, "files": f"{kind}_{split}.arrow"}]
        mixture = {"kind": kind, "splits": splits} | ({"answers": "answers.json"} if kind == "questions" else {})
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(mixture))
    return folder


@pytest.fixture(scope="session")
def pair_keys(towers, pairs):
    """A function: task to the dotted keys that make its shipped recipe tiny and fast."""

    def keys(task: str, **changes) -> dict:
        start = {"model.text_tower": f"{towers}/text", "model.vision_tower": f"{towers}/vision"}
        return {
            **({} if "model.start_from" in changes else start | {"model.start_from": None}),
            "fusion.text_layers": 2,
            "fusion.image_layers": 2,
            "fusion.cross_modal_layers": 2,
            "fusion.hidden_size": 32,
            "fusion.num_attention_heads": 2,
            "fusion.intermediate_size": 48,
            "data.mixture": f"{pairs}/{KINDS[task]}.yaml",
            "data.image_size": 24,
            "data.text_length": 12,
            "data.workers": 0,
            "optim.global_batch_size": 4,
            "optim.batch_size": 2,
            "optim.max_steps": None,
            "optim.epochs": 2,
            "optim.warmup": 0,
            "optim.lr": 1e-3,
            "eval.samples": None if task == "retrieval" else 3,
            "eval.steps": None,
            "run.collective_timeout": 60,
            **changes,
        }

    return keys


@pytest.fixture
def pair_recipe(pair_keys, tmp_path):
    """A function: task and arm to the shipped recipe made tiny, with any key changed; its output is in tmp_path."""

    def make(task: str, arm: str = "manager", **changes):
        keys = pair_keys(task, **{"run.output_dir": f"{tmp_path}/{task}", **changes})
        return load_recipe(f"scripts/train/recipes/two_tower/{STAGES[task]}.yaml", arm, keys=keys)

    return make
