"""A two-tower folder with modeling files of its own, loaded where this package cannot be imported."""

import json

import pytest
import torch
from transformers import BertTokenizer

from llava.cli import main
from llava.data.pairs.processor import PairProcessor
from tests.convert.elsewhere import run_elsewhere
from tests.two_tower.test_modeling import batch_of
from tests.two_tower.tiny import tiny_model

ELSEWHERE = """
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForVisualQuestionAnswering, AutoTokenizer

folder, inputs, output = sys.argv[1:4]
batch, remote = torch.load(inputs), {"trust_remote_code": True}
model, loading = AutoModelForVisualQuestionAnswering.from_pretrained(folder, output_loading_info=True, **remote)
assert not any(loading.values()), loading
assert type(AutoConfig.from_pretrained(folder, **remote)) is type(model.config)
features = AutoModel.from_pretrained(folder, **remote)
ids = AutoTokenizer.from_pretrained(folder, **remote)("a cat").input_ids
size = AutoImageProcessor.from_pretrained(folder, **remote).crop_size
with torch.no_grad():
    results = {"logits": model(**batch).logits, "pooled": features(**batch).pooled}
torch.save(results | {"ids": ids, "size": size["height"]}, output)
"""


@pytest.fixture
def folder(tmp_path):
    """Of a model for VQA."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat"]
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    tokenizer = BertTokenizer(str(vocabulary))
    model = tiny_model("vqav2", num_answers=2)
    model.save_pretrained(tmp_path / "model")
    PairProcessor(tokenizer, 16, answers=("yes", "no")).save_pretrained(tmp_path / "model")
    return tmp_path / "model", model, tokenizer


def test_equal_without_this_package(folder, tmp_path):
    source, model, tokenizer = folder
    out = tmp_path / "exported"
    assert main(["convert", "export", str(source), "--out", str(out), "--format", "remote_code"]) == 0
    assert json.loads((out / "answers.json").read_text()) == ["yes", "no"]
    batch = batch_of(model.config)
    torch.save(batch, tmp_path / "inputs.pt")
    run_elsewhere(ELSEWHERE, tmp_path, out, tmp_path / "inputs.pt", tmp_path / "results.pt")
    results = torch.load(tmp_path / "results.pt")
    with torch.no_grad():
        assert torch.equal(results["logits"], model(**batch).logits)
        assert torch.equal(results["pooled"], model.model(**batch).pooled)
    assert results["ids"] == tokenizer("a cat").input_ids
    assert results["size"] == 16


def test_another_format_is_refused(folder, tmp_path, capsys):
    words = [str(folder[0]), "--out", str(tmp_path / "exported"), "--format", "llava_onevision"]
    assert main(["convert", "export", *words]) != 0
    assert "holds no two-tower model; pass --format remote_code" in capsys.readouterr().err
