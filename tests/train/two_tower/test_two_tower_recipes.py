"""The shipped recipes of the two towers hold the paper's values, and its ablations."""

import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from llava.data.pairs.mixture import read_pair_mixture
from llava.errors import LlavaError
from llava.paper import CROSS_MODAL_LAYERS
from llava.train.recipe.checks import check_recipe
from llava.train.recipe.load import StageFile, load_recipe
from llava.train.two_tower.recipe import TaskRecipe, TwoTowerFusionRecipe, two_tower_keys
from llava.two_tower.configuration import CHOICES, TwoTowerConfig
from llava.two_tower.tasks import MIXTURES, SETS, TASKS
from tests.paths import ROOT

RECIPES = "scripts/train/recipes/two_tower"
STAGES = ("pretrain", "vqav2_no_vlp", "vqav2", "snli_ve", "nlvr2", "flickr30k_no_vlp", "flickr30k", "coco")
MANAGER = {"bridge": "manager", "manager_kind": "aaum", "query": "fused", "weight": "vector"}
SIX = {"text_layers": 6, "image_layers": 6, "cross_modal_layers": 6}


def load(stage: str, arm: str | None = None, **keys):
    return load_recipe(f"{RECIPES}/{stage}.yaml", arm, keys=keys)


def test_a_recipe_has_the_choices_and_defaults_of_the_models_configuration():
    config, hints = TwoTowerConfig(), get_type_hints(TwoTowerFusionRecipe)
    assert asdict(TwoTowerFusionRecipe()) == {name: getattr(config, name) for name in hints}
    for name in ("bridge", "manager_kind", "query", "weight"):
        assert get_args(hints[name]) == CHOICES[name]
    assert set(get_args(get_type_hints(TaskRecipe)["name"])) == set(CHOICES["task"])


def test_no_recipe_is_left_out():
    assert {path.stem for path in Path(RECIPES).glob("*.yaml")} == {*STAGES, "base", "sizes_base"}


@pytest.mark.parametrize(
    ("stage", "size", "lr", "batch", "length", "warmup", "decay", "heads", "head_width", "transform"),
    [
        ("pretrain", 288, 1e-5, 4096, 100_000, 0.1, 0.01, 5, 1, "center"),
        ("vqav2_no_vlp", 576, 2e-5, 512, 10, 0.1, 0.01, 50, 1, "randaug_no_flip"),
        ("vqav2", 576, 9e-6, 504, 10, 0.1, 0.06, 50, 2, "randaug_no_flip"),
        ("snli_ve", 384, 3e-6, 64, 4, 0.06, 0.01, 10, 2, "randaug_color"),
        ("nlvr2", 384, 1.4e-5, 256, 5, 0.1, 0.01, 10, 1, "randaug_color"),
        ("flickr30k", 384, 6e-6, 512, 20, 0.1, 0.01, 5, 1, "randaug_color"),
    ],
)
def test_the_papers_values(stage, size, lr, batch, length, warmup, decay, heads, head_width, transform):
    recipe = load(stage)
    optim, rates = recipe.optim, recipe.rates
    assert (recipe.data.image_size, recipe.data.transform, recipe.task.head_width) == (size, transform, head_width)
    assert (optim.lr, optim.global_batch_size, optim.warmup, optim.weight_decay) == (lr, batch, warmup, decay)
    assert (optim.max_steps or optim.epochs) == length
    assert (optim.schedule, optim.beta2, optim.max_grad_norm) == ("linear", 0.98, 0)
    assert (rates.towers, rates.cross_modal, rates.heads, recipe.run.precision) == (1, 5, heads, "fp32")
    assert {key: vars(recipe.fusion)[key] for key in MANAGER | SIX} == MANAGER | SIX
    task = TASKS[recipe.task.name]
    assert (recipe.data.transform, recipe.data.text_length) == (task.train_transform, task.text_length)
    assert recipe.task.head_dropout == 0
    check_recipe(recipe, 8, dry_run=True)


@pytest.mark.parametrize("name", sorted({of_set.mixture for of_set in SETS.values()}))
def test_every_data_set_of_a_mixture_says_how_many_rows_it_has(name):
    mixture = read_pair_mixture(f"{MIXTURES}/{name}")
    lacking = {
        split: entry.name
        for split, entries in mixture.splits.items()
        for entry in entries
        if entry.expected_rows is None
    }
    assert lacking == {}
    assert {path.name for path in Path(MIXTURES).iterdir()} == {of_set.mixture for of_set in SETS.values()}


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_has_its_set_and_starts_where_pretraining_ends(stage):
    recipe, of_set = load(stage, "bridge_tower"), SETS[stage.removesuffix("_no_vlp")]
    assert recipe.data.mixture == f"{MIXTURES}/{of_set.mixture}"
    assert (recipe.task.name, recipe.data.split, recipe.eval.split) == (of_set.task, of_set.train, of_set.val)
    assert of_set.reranked in (None, recipe.eval.rerank)
    starts = None if stage in ("pretrain", "vqav2_no_vlp", "flickr30k_no_vlp") else load("pretrain", "bridge_tower")
    assert recipe.model.start_from == (starts and starts.run.output_dir)
    assert (recipe.model.text_tower is None) == (starts is not None)
    assert recipe.run.output_dir == f"playground/checkpoints/{stage}-bridge_tower"


def test_the_arms_are_the_papers_ablations():
    """Table I by kind, query and weight; Table II by L_C, of both models; Figure 5 by N, of three layers."""
    arms = {arm: asdict(load("vqav2_no_vlp", arm).fusion) for arm in StageFile.read(f"{RECIPES}/pretrain.yaml").arms()}
    of_six = {name: fusion for name, fusion in arms.items() if {key: fusion[key] for key in SIX} == SIX}
    kinds = {
        (one["manager_kind"], one["query"], one["weight"]) for one in of_six.values() if one["bridge"] == "manager"
    }
    static = {(kind, "fused", weight) for kind in ("sam", "sam_split", "saum") for weight in ("scalar", "vector")}
    adaptive = {
        (kind, query, "vector")
        for kind in ("aaum", "concat_attention", "cross_attention")
        for query in ("own", "fused")
    }
    assert kinds == static | adaptive
    for bridge in ("manager", "bridge_tower"):
        layers = {
            one["cross_modal_layers"] for one in arms.values() if one["bridge"] == bridge and one["text_layers"] == 6
        }
        assert layers == set(CROSS_MODAL_LAYERS), bridge
    experts = [(one["text_layers"], one["image_layers"]) for name, one in arms.items() if name.startswith("experts_")]
    assert sorted(experts) == [(n, n) for n in range(2, 9)]
    assert all(arms[f"experts_{n}"]["cross_modal_layers"] == 3 for n in range(2, 9))
    assert {"meter", "meter_gated"} <= arms.keys()
    assert len(arms) == 30


def test_keys_of_the_other_family_are_unknown():
    with pytest.raises(LlavaError, match=r"unknown key 'tiling\.merge'"):
        load("pretrain", **{"tiling.merge": "flat"})
    with pytest.raises(LlavaError, match=r"unknown arm 'managr'; did you mean 'manager'\?"):
        load("pretrain", "managr")
    with pytest.raises(LlavaError, match=r"unknown key 'rates\.heads'"):
        load_recipe("scripts/train/recipes/mllm/stage2.yaml", "grid", keys={"rates.heads": 5})


def test_every_number_has_bounds():
    unbounded = {key for key, field in two_tower_keys().items() if field.type in (int, float) and field.bounds is None}
    assert unbounded == set()


def test_the_script_names_its_stages():
    script = f"{ROOT}/scripts/train/two_tower.sh"
    done = subprocess.run(["bash", script, "pretrian"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert all(stage in done.stderr for stage in STAGES)
    words = ["bash", script, "vqav2", "--arm", "saum_vector", "--print", "run.output_dir"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "playground/checkpoints/vqav2-saum_vector\n"), done.stderr
