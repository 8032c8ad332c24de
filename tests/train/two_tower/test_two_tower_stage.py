"""Stages of the two towers in one process: pre-training, then each task from its folder, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import CLIPVisionModel, RobertaModel

from llava.data.pairs.processor import PairProcessor
from llava.errors import LlavaError
from llava.train.estimate.plan import dry_run
from llava.train.recipe.checks import check_data, check_recipe
from llava.train.recipe.load import load_recipe
from llava.train.stage import run_stage
from llava.train.two_tower.build import build
from llava.train.two_tower.data import load_data
from llava.train.two_tower.family import stage_data
from llava.two_tower.modeling import TwoTowerForTask
from llava.two_tower.towers import resized_positions

PRETRAIN = "scripts/train/recipes/two_tower/pretrain.yaml"
HEADS = {"vqav2": "classifier", "snli_ve": "classifier", "nlvr2": "classifier", "retrieval": "itc"}
POSITIONS = "model.image_tower.embeddings.position_embedding.weight"


def run(recipe) -> Path:
    check_recipe(recipe, 1, dry_run=False)
    check_data(recipe)
    run_stage(recipe)
    return Path(recipe.run.output_dir)


def evaluations(folder: Path) -> list[dict]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "eval_runtime" in entry]


@pytest.fixture(scope="module")
def pretrained(pair_keys, tmp_path_factory):
    """The folder that pre-training ends in."""
    folder = tmp_path_factory.mktemp("pretrained") / "pretrain"
    return run(load_recipe(PRETRAIN, keys=pair_keys("pretrain", **{"run.output_dir": str(folder)})))


@pytest.mark.parametrize("masked", [True, False])
def test_texts_keep_their_padding_where_a_fused_query_attends_to_it(pair_keys, masked):
    recipe = load_recipe(PRETRAIN, keys=pair_keys("pretrain", **{"fusion.mask_padding": masked}))
    model, processor = build(recipe)
    stage = stage_data(recipe, load_data(recipe), model, processor, [])
    batch = stage.collator([stage.dataset[number] for number in range(4)])
    longest = max(batch["lengths"])
    assert longest < recipe.data.text_length
    assert batch["input_ids"].shape[1] == (longest if masked else recipe.data.text_length)


def test_pretraining(pretrained, towers):
    assert sorted(path.name for path in pretrained.parent.iterdir()) == ["pretrain"]
    record = json.loads((pretrained / "run.json").read_text())
    assert (record["steps"], record["plan"]["samples"], record["plan"]["steps"]) == (8, 18, 8)  # 4 of 18 an epoch
    rates = {row["component"]: row["lr"] for row in record["components"]}
    assert rates == pytest.approx(
        {"text_tower": 1e-3, "image_tower": 1e-3, "embeddings": 1e-3, "cross_modal": 5e-3, "heads": 5e-3}
    )
    (first, last) = evaluations(pretrained)
    assert last["eval_loss"] == pytest.approx(last["eval_loss_mlm"] + last["eval_loss_itm"])
    assert last["eval_itm_accuracy"] in (0, 1 / 3, 2 / 3, 1)
    assert first["epoch"] == 1

    model, loading = TwoTowerForTask.from_pretrained(pretrained, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (model.config.task, model.config.vision_config.image_size) == ("pretrain", 24)
    text, vision = RobertaModel.from_pretrained(towers / "text"), CLIPVisionModel.from_pretrained(towers / "vision")
    before = {f"model.text_tower.{name}": value for name, value in text.named_parameters() if "pooler" not in name}
    before |= {f"model.image_tower.{name}": value for name, value in vision.named_parameters()}
    before[POSITIONS] = resized_positions(before[POSITIONS], 24, 8)
    for name, value in before.items():  # close to where they came from, and moved
        after = model.get_parameter(name)
        assert not torch.equal(after, value), name
        assert (after - value).abs().max() < 0.02, name


@pytest.mark.parametrize("task", HEADS)
def test_fine_tuning(pair_recipe, pretrained, task):
    recipe = pair_recipe(task, **{"model.start_from": str(pretrained), "data.image_size": 32})
    torch.manual_seed(5)
    start, _ = build(recipe)
    before = load_file(pretrained / "model.safetensors")
    for name, value in start.named_parameters():
        if name == POSITIONS:
            assert torch.equal(value, resized_positions(before[name], 32, 8))
        elif name == "model.type_embedding.weight":
            assert torch.equal(value[:2], before[name])
            assert torch.equal(value[2:], before[name][1:2].expand(len(value) - 2, -1))  # the second image's
        else:
            assert (name in before and torch.equal(value, before[name])) or name.startswith(f"heads.{HEADS[task]}"), (
                name
            )

    folder = run(recipe)
    assert TwoTowerForTask.from_pretrained(folder).config.task == task
    last = evaluations(folder)[-1]
    metric = {"vqav2": "vqa_score", "retrieval": "r_mean"}.get(task, "accuracy")
    assert 0 <= last[f"eval_{metric}"] <= 1
    answers = PairProcessor.from_pretrained(folder).answers
    assert answers == (("red", "green", "blue", "white") if task == "vqav2" else None)


def test_a_stage_of_the_same_task_keeps_its_head(pair_recipe, pretrained, tmp_path):
    first = run(pair_recipe("snli_ve", **{"model.start_from": str(pretrained), "optim.max_steps": 1}))
    second, _ = build(
        pair_recipe("snli_ve", **{"model.start_from": str(first), "run.output_dir": f"{tmp_path}/second"})
    )
    saved = load_file(first / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in second.named_parameters())


@pytest.mark.parametrize(
    ("answers", "changes", "words"),
    [
        (["red", "green", "blue", "white"], {}, None),
        (["green", "red", "blue", "white"], {}, "has 4 answers, the data 4; 2 stand at the same place"),
        (["red", "green", "blue"], {}, "has 4 answers, the data 3; 3 stand at the same place"),
        (["red", "green", "blue", "white"], {"task.head_width": 3}, "has head_width 2, the recipe 3"),
    ],
)
def test_a_classifier_of_other_answers_begins_anew_and_is_told(
    pair_recipe, pretrained, pairs, tmp_path, capsys, answers, changes, words
):
    folder = tmp_path / "first"
    first, processor = build(pair_recipe("vqav2", **{"model.start_from": str(pretrained)}))
    first.save_pretrained(folder)
    processor.save_pretrained(folder)
    mixture = yaml.safe_load((pairs / "questions.yaml").read_text()) | {"root": str(pairs)}
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(mixture | {"answers": str(tmp_path / "answers.json")}))
    keys = {"model.start_from": str(folder), "data.mixture": str(tmp_path / "m.yaml"), **changes}
    capsys.readouterr()
    second, _ = build(pair_recipe("vqav2", **keys))
    said = capsys.readouterr().out
    assert said == (f"note: the classifier begins anew: model.start_from {folder} {words}\n" if words else "")
    before = first.state_dict()
    for name, value in second.named_parameters():
        kept = value.shape == before[name].shape and torch.equal(value, before[name])
        assert kept or (words and name.startswith("heads.classifier.")), name
    weight = next(name for name in before if name.startswith("heads.classifier."))
    assert torch.equal(second.state_dict()[weight], before[weight]) == (words is None)


def test_kept_states_change_no_loss(pair_recipe, tmp_path):
    losses = {}
    for kept in (None, "images", "all"):
        keys = {"model.keep_states": kept, "rates.towers": 0, "run.output_dir": f"{tmp_path}/{kept}"}
        folder = run(pair_recipe("retrieval", **keys, **{"data.transform": "center", "run.logging_steps": 1}))
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        losses[kept] = [entry.get("loss", entry.get("eval_r_mean")) for entry in history]
    assert len(losses[None]) >= 6
    assert losses["images"] == pytest.approx(losses[None], abs=1e-5)
    assert losses["all"] == pytest.approx(losses[None], abs=1e-5)


def test_another_bridge_is_refused_in_one_line(pair_recipe, pretrained):
    with pytest.raises(LlavaError) as caught:
        check_recipe(pair_recipe("vqav2", "bridge_tower", **{"model.start_from": str(pretrained)}), 1, dry_run=False)
    assert str(caught.value).endswith(
        f"model.start_from {pretrained} has bridge manager, the recipe (arm bridge_tower) has bridge_tower"
    )


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"data.split": "tran"}, r"has no split 'tran'; it has train, val"),
        ({"eval.split": "test"}, r"has no split 'test'; it has train, val"),
        ({"model.text_tower": "absent"}, r"model\.text_tower absent: no such model folder"),
        (
            {"model.text_tower": None},
            r"needs model\.start_from, or model\.text_tower and model\.vision_tower",
        ),
        ({"fusion.gated_fusion": True}, r"fusion\.gated_fusion is METER's; fusion\.bridge is manager"),
        ({"rates.cross_modal": 0, "rates.heads": 0, "rates.towers": 0}, r"nothing trains"),
        ({"rates.heads": -1}, r"rates\.heads must lie between 0 and 10000; found -1\.0"),
        ({"run.compile": ["language_model"]}, r"run\.compile of the two towers is true or false"),
        ({"model.keep_states": "all"}, r"keep_states all needs towers that do not change; rates\.towers is 1$"),
        (
            {"model.keep_states": "images", "rates.towers": 0, "data.transform": "randaug"},
            r"keep_states images needs images that do not change; data\.transform is randaug$",
        ),
        (
            {"model.keep_states": "all", "rates.towers": 0, "fusion.mask_padding": False},
            r"keep_states all keeps no states at padding, which fusion\.mask_padding false attends to$",
        ),
        (
            {"model.keep_states": "images", "rates.towers": 0, "run.deepspeed": "scripts/train/deepspeed/zero3.json"},
            r"stage 3 runs a tower on all ranks at once, which with model\.keep_states images each runs when",
        ),
        (
            {"eval.split": None, "eval.steps": 3, "eval.samples": None},
            r"eval\.steps is for nothing",
        ),
    ],
)
def test_what_is_wrong_is_found_before_training(pair_recipe, changes, fault):
    with pytest.raises(LlavaError, match=fault) as caught:
        check_recipe(pair_recipe("pretrain", **changes), 1, dry_run=False)
    assert "\n" not in str(caught.value)


def test_retrieval_needs_another_pair(pair_recipe):
    recipe = pair_recipe("retrieval", **{"optim.batch_size": 1})
    with pytest.raises(LlavaError, match=r"optim\.batch_size 1 on 1 process: ITC compares a pair with others"):
        check_recipe(recipe, 1, dry_run=True)


def test_missing_data_is_counted_and_a_step_larger_than_the_data_is_refused(pair_recipe, pairs, tmp_path):
    mixture = tmp_path / "captions.yaml"
    mixture.write_text((pairs / "captions.yaml").read_text())
    with pytest.raises(LlavaError, match=r"2 files missing, first .*captions_train\.arrow"):
        check_recipe(pair_recipe("pretrain", **{"data.mixture": str(mixture)}), 1, dry_run=False)
    with pytest.raises(LlavaError, match=r"optim\.global_batch_size 20: .* in .*captions\.yaml split train, 18"):
        check_data(pair_recipe("pretrain", **{"optim.global_batch_size": 20}))


def test_a_dry_run_needs_neither_weights_nor_data(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    said = dry_run(load_recipe("scripts/train/recipes/two_tower/flickr30k.yaml"))
    for line in (
        "samples     145,000 x 20 epochs",
        "batch       512 = 64 x 1 accumulated x 8 processes",
        "steps       5,660",
        "bridge      ManagerTower, aaum, fused query",
        "note: 2 data files are not there yet",
    ):
        assert line in said
