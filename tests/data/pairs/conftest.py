"""Tiny files of pairs with the columns that ViLT's, METER's and other writers' files have, and a tiny tokenizer."""

import io
import json

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llava.data.pairs.processor import PairProcessor

WORDS = "a red green blue square circle is the left of what color yes no two one page there are many"


def picture(color, size=(24, 16), kind="PNG"):
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, kind)
    return stream.getvalue()


def write_arrow(path, rows, types=None):
    """As ViLT writes its files: one record batch of pandas' columns."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    table = pa.table({name: pa.array(values, (types or {}).get(name)) for name, values in columns.items()})
    with pa.OSFile(str(path), "wb") as sink, pa.RecordBatchFileWriter(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def write_parquet(path, rows):
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_json(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def captions(count, first=0):
    """Rows of so many images; row n has n % 3 + 1 captions."""
    return [
        {
            "image": picture((first + row, 0, 0)),
            "caption": [f"caption {text} of {first + row}" for text in range(row % 3 + 1)],
            "image_id": f"{first + row}.jpg",
            "split": "train",
        }
        for row in range(count)
    ]


QUESTIONS = [
    {
        "image": picture((255, 0, 0)),
        "questions": ["what color", "is there a circle"],
        "answers": [["red", "green"], ["yes"]],
        "answer_labels": [[0, 1], [2]],
        "answer_scores": [[1.0, 0.3], [0.9]],
        "image_id": 7,
        "question_id": [70, 71],
        "split": "val",
    },
    {
        "image": picture((0, 255, 0)),
        "questions": ["how many"],
        "answers": [["2"]],
        "answer_labels": [[3]],
        "answer_scores": [[0.6]],
        "image_id": 8,
        "question_id": [80],
        "split": "val",
    },
]
STATEMENTS = [
    {
        "image_0": picture((1, 0, 0)),
        "image_1": picture((2, 0, 0)),
        "questions": ["the left is red", "the left is blue"],
        "answers": ["True", "False"],
        "identifier": "dev-1-0",
    }
]
ENTAILMENT = [
    {
        "image": picture((3, 0, 0)),
        "sentences": [["a page", "there is a circle"], ["a page", "no circle"]],
        "labels": [2, 0],
    }
]


@pytest.fixture(scope="session")
def tokenizer():
    """RoBERTa's special tokens, padding with 1, and one token a word."""
    vocabulary = {
        token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *WORDS.split()])
    }
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    special = {
        "bos": "<s>",
        "cls": "<s>",
        "pad": "<pad>",
        "eos": "</s>",
        "sep": "</s>",
        "unk": "<unk>",
        "mask": "<mask>",
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=words, **{f"{name}_token": token for name, token in special.items()}
    )


@pytest.fixture(scope="session")
def processor(tokenizer):
    return PairProcessor(tokenizer, image_size=16, text_length=12)
