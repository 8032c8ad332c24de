"""Before the first step the optimizer's real groups are compared with the component table. ZeRO: test_distributed."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from llava.errors import LlavaError
from llava.train.stage import prepare, run_stage


@pytest.fixture
def trainer(tiny_recipe):
    return prepare(tiny_recipe("1", **{"optim.max_steps": 1})).trainer


def optimizer_of(trainer, change):
    """Lets `change` spoil the groups of the optimizer that the trainer makes, before it trains."""
    make = trainer.create_optimizer

    def spoiled(model=None):
        optimizer = make()
        change(optimizer.param_groups)
        return optimizer

    trainer.create_optimizer = spoiled


PROJECTOR = "model.multi_modal_projector.linear_1.weight"
FAULTS = {
    "another rate": (
        lambda groups: groups[0].update(lr=0.5),
        f"{PROJECTOR} trains at lr 0.5, decay 0; the table's row projector says it trains at lr 0.001, decay 0 "
        "(and 3 parameters more)",
    ),
    "another decay": (
        lambda groups: groups[1].update(weight_decay=0.5),
        "trains at lr 0.001, decay 0.5; the table's row fusion says it trains at lr 0.001, decay 0",
    ),
    "left out": (
        lambda groups: groups[0]["params"].pop(0),
        f"{PROJECTOR} is frozen; the table's row projector says it trains at lr 0.001, decay 0",
    ),
    "a group lost": (lambda groups: groups.pop(0), f"{PROJECTOR} is frozen; the table's row projector"),
    "twice": (
        lambda groups: groups[1]["params"].append(groups[0]["params"][0]),
        f"{PROJECTOR} trains at lr 0.001, decay 0 and trains at lr 0.001, decay 0; the table's row projector",
    ),
    "a stranger": (
        lambda groups: groups[0]["params"].append(nn.Parameter(torch.zeros(2))),
        "1 parameters of the optimizer belong to no component",
    ),
}


@pytest.mark.parametrize(("device", "fused"), [("cuda", True), ("cpu", None)])
def test_the_optimizer_is_fused_on_a_gpu(trainer, monkeypatch, device, fused):
    """torch's own choice elsewhere. A run goes on from a checkpoint of either with the kernel that began it."""
    monkeypatch.setattr(type(trainer.args), "device", torch.device(device))
    optimizer = trainer.create_optimizer()
    assert [group["fused"] for group in optimizer.param_groups] == [fused] * len(optimizer.param_groups)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_difference_stops_the_run_before_its_first_step(trainer, fault):
    change, words = FAULTS[fault]
    optimizer_of(trainer, change)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    with pytest.raises(LlavaError, match=re.escape(words)):
        trainer.train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.model.named_parameters())


def test_a_frozen_parameter_in_the_optimizer_is_named(trainer):
    embeddings = trainer.model.get_input_embeddings().weight
    optimizer_of(trainer, lambda groups: groups[0]["params"].append(embeddings))
    words = "model.language_model.embed_tokens.weight trains at lr 0.001, decay 0; the table's row language_model says"
    with pytest.raises(LlavaError, match=re.escape(words) + " it is frozen"):
        trainer.train()


@pytest.mark.parametrize("lr_groups", ["components", "single"])
def test_the_manifest_has_the_table_and_the_real_groups(tiny_recipe, lr_groups):
    """`single`: one rate and one group for all, as in the released run, whatever rates the components are given."""
    recipe = tiny_recipe("1", lr_groups=lr_groups, **{"optim.max_steps": 1, "components.fusion.lr": 5e-5})
    run_stage(recipe)
    record = json.loads(Path(recipe.run.output_dir, "run.json").read_text())
    table = {row["component"]: row for row in record["components"] if row["trainable"]}
    groups = [(row["component"], row["parameters"], row["lr"]) for row in record["optimizer_groups"]]
    counts = {name: row["trainable"] for name, row in table.items()}
    assert list(table) == ["projector", "fusion"]
    if lr_groups == "single":
        assert groups == [("all", sum(counts.values()), 1e-3)]
        assert {row["lr"] for row in table.values()} == {1e-3}
    else:
        assert groups == [("projector", counts["projector"], 1e-3), ("fusion", counts["fusion"], 5e-5)]
        assert [row["lr"] for row in table.values()] == [1e-3, 5e-5]
