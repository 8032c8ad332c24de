"""A two-tower folder with modeling files of its own, loaded where this package cannot be imported."""

import json

import pytest
import torch
import yaml
from transformers import BertTokenizer

from llava.cli import main
from llava.convert.model_card import model_card
from llava.convert.to_remote_code import task_class
from llava.data.pairs.processor import PairProcessor
from llava.two_tower.tasks import TASKS
from tests.convert.elsewhere import run_elsewhere
from tests.convert.test_model_card import EVENTS, LOG, add_logs, parts, scored
from tests.two_tower.test_modeling import batch_of, fields_of
from tests.two_tower.tiny import tiny_config, tiny_model

ELSEWHERE = """
import importlib
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

folder, inputs, output, name = sys.argv[1:5]
batch, remote = torch.load(inputs), {"trust_remote_code": True}
of_task = getattr(importlib.import_module("transformers"), name)
model, loading = of_task.from_pretrained(folder, output_loading_info=True, **remote)
assert not any(loading.values()), loading
assert type(AutoConfig.from_pretrained(folder, **remote)) is type(model.config)
features = AutoModel.from_pretrained(folder, **remote)
ids = AutoTokenizer.from_pretrained(folder, **remote)("a cat").input_ids
size = AutoImageProcessor.from_pretrained(folder, **remote).crop_size
ids_and_mask = [batch[name] for name in ("input_ids", "attention_mask")]
with torch.no_grad():
    results = {"logits": model(**batch).logits, "pooled": features(*ids_and_mask, batch["pixel_values"]).pooled}
    if "itc" in model.heads:
        text, image = model.model.encode_text(*ids_and_mask).cls, model.model.encode_image(batch["pixel_values"]).cls
        embedded = model.contrastive.embed_text(text), model.contrastive.embed_image(image)
        results["similarity"] = model.contrastive.similarity(*embedded)
torch.save(results | {"ids": ids, "size": size["height"]}, output)
"""


def saved(folder, tokenizer, task="vqav2", **options):
    """A model of the task in a folder with its processor."""
    model = tiny_model(task, **options)
    model.save_pretrained(folder)
    PairProcessor(tokenizer, 16, answers=("yes", "no") if task == "vqav2" else None).save_pretrained(folder)
    return model


@pytest.fixture
def tokenizer(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat"]
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    return BertTokenizer(str(vocabulary))


@pytest.fixture
def folder(tmp_path, tokenizer):
    """Of a model for VQA."""
    return tmp_path / "model", saved(tmp_path / "model", tokenizer, num_answers=2), tokenizer


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("vqav2", {"num_answers": 2}),
        ("nlvr2", {"bridge": "bridge_tower"}),
        ("retrieval", {"bridge": "meter"}),
    ],
)
def test_equal_without_this_package(tokenizer, tmp_path, task, options):
    source, out = tmp_path / "model", tmp_path / "exported"
    model = saved(source, tokenizer, task, **options)
    add_logs(source)
    assert main(["convert", "export", str(source), "--out", str(out), "--format", "remote_code"]) == 0
    assert (out / "log.csv").read_text() == LOG
    assert (out / EVENTS).is_file()
    assert "(log.csv)" in (out / "README.md").read_text()
    assert (out / "answers.json").exists() == (task == "vqav2")
    if task == "vqav2":
        assert json.loads((out / "answers.json").read_text()) == ["yes", "no"]
    plain = batch_of(model.config)
    fields = fields_of(model.config, plain)
    batch = plain | {name: fields[name] for name in TASKS[task].fields}
    torch.save(batch, tmp_path / "inputs.pt")
    run_elsewhere(ELSEWHERE, tmp_path, out, tmp_path / "inputs.pt", tmp_path / "results.pt", task_class(task))
    results = torch.load(tmp_path / "results.pt")
    with torch.no_grad():
        assert torch.equal(results["logits"], model(**batch).logits)
        assert torch.equal(results["pooled"], model.model(**plain).pooled)
        if task == "retrieval":
            text = model.model.encode_text(plain["input_ids"], plain["attention_mask"])
            image = model.model.encode_image(plain["pixel_values"])
            embedded = model.contrastive.embed_text(text.cls), model.contrastive.embed_image(image.cls)
            assert torch.equal(results["similarity"], model.contrastive.similarity(*embedded))
    assert results["ids"] == tokenizer("a cat").input_ids
    assert results["size"] == 16


def test_the_card_tells_the_run_and_its_lines_load_the_model(folder, tmp_path, export, hub, monkeypatch):
    source, model, tokenizer = folder
    run = {
        "recipe": {
            "stage": "vqav2",
            "arm": "manager",
            "model": {"start_from": "/home/me/secret/pretrain"},
            "fusion": {"bridge": "manager", "manager_kind": "aaum"},
            "task": {"name": "vqav2", "num_answers": 2},
            "data": {"mixture": "/home/me/secret/vqav2.yaml", "image_folder": "/home/me/secret", "image_size": 16},
            "rates": {"cross_modal": 5.0},
            "optim": {"lr": 9e-06, "global_batch_size": 504},
        },
        "mixture": [{"json_path": "/data/vqav2_train.arrow", "sampling_strategy": "all", "rows": 8278, "taken": 8278}],
        "steps": 12,
        "train_loss": 3.25,
    }
    (source / "run.json").write_text(json.dumps(run))
    (tmp_path / "scores.json").write_text(json.dumps(scored(manager=71.5)))
    options = ("--format", "remote_code", "--license", "mit", "--scores", tmp_path / "scores.json")
    out = tmp_path / "out"
    assert export(source, "--out", out, *options, "--push", "me/vqa", "--private") == 0
    assert [name for name, _, _ in hub.calls] == ["whoami", "create_repo", "upload_folder"]
    assert (hub.calls[2][2]["repo_id"], hub.calls[2][2]["folder_path"]) == ("me/vqa", out)
    card = (out / "README.md").read_text()
    front, sections = parts(card)
    assert (front["license"], front["pipeline_tag"]) == ("mit", "visual-question-answering")
    assert list(sections) == ["How to load", "Recipe", "Data", "Scores", "Licence", "Limits"]
    for line in (
        "task: VQAv2",
        "text tower: roberta, 3 layers of 16",
        "image tower: clip_vision_model, 3 layers of 16",
        "bridge: manager (aaum, query fused, weights vector)",
        "cross-modal layers: 2 of 16",
        "steps: 12",
        "mean training loss: 3.25",
    ):
        assert f"- {line}\n" in sections["Recipe"]
    told = yaml.safe_load(sections["Recipe"].split("```yaml\n")[1].split("```")[0])
    assert told == {
        **{key: run["recipe"][key] for key in ("stage", "arm", "fusion", "task", "rates", "optim")},
        "data.image_size": 16,
    }
    assert "| docvqa_val | anls | 71.5 [70.5, 72.5] | 5,349 |" in sections["Scores"]
    assert "| vqav2_train.arrow | all | 8,278 | 8,278 |" in sections["Data"]
    assert "secret" not in card

    lines = sections["How to load"].split("```python\n")[1].split("\n```")[0]
    assert lines.count("\n") == 2
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(lines.replace("me/vqa", "out"), names)
    state = model.state_dict()
    assert all(tensor.equal(state[name]) for name, tensor in names["model"].state_dict().items())
    assert names["tokenizer"]("a cat").input_ids == tokenizer("a cat").input_ids
    assert names["image_processor"].crop_size["height"] == 16


@pytest.mark.parametrize("task", TASKS)
def test_a_card_without_a_run(task, tmp_path):
    """Of a model that was imported; its auto class is the task's own."""
    tiny_config(task).save_pretrained(tmp_path)
    front, sections = parts(model_card(tmp_path, "me/model", True, None, None))
    assert ("pipeline_tag" in front) == (task == "vqav2")
    assert f"- task: {TASKS[task].title}\n" in sections["Recipe"]
    assert "no run.json" in sections["Recipe"]
    assert f"AutoImageProcessor, {task_class(task)}, AutoTokenizer" in sections["How to load"]


def test_another_format_is_refused(folder, tmp_path, capsys):
    words = [str(folder[0]), "--out", str(tmp_path / "exported"), "--format", "llava_onevision"]
    assert main(["convert", "export", *words]) != 0
    assert "holds no two-tower model; pass --format remote_code" in capsys.readouterr().err
