"""Recipes: the shipped files hold the paper's values, sources win in order, and every fault is reported at once."""

import pytest
import yaml

from llava.errors import LlavaError
from llava.train.recipe.dotted import read_yaml
from llava.train.recipe.load import load_recipe

RECIPES = "scripts/train/recipes"
STAGES = ("1", "1_5", "2")
ARMS = ("baseline", "manager", "grid", "grid_manager")
PATHS = {stage: f"{RECIPES}/stage{stage}.yaml" for stage in STAGES}


def load(stage="2", arm="baseline", overrides=(), **keys):
    return load_recipe(PATHS[stage], arm, overrides, {key.replace("__", "."): value for key, value in keys.items()})


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_the_four_arms(stage):
    assert tuple(sorted(read_yaml(PATHS[stage])["arms"])) == tuple(sorted(ARMS))
    for arm in ARMS:
        recipe = load(stage, arm)
        assert recipe.arm == arm
        assert recipe.managers.layer_set == ("paper" if "manager" in arm else "none")
        assert recipe.tiling.aspect_ratio.startswith("anyres") == ("grid" in arm and stage != "1")


@pytest.mark.parametrize(
    ("stage", "lr", "tower_lr", "managers_lr", "batch", "max_length", "template"),
    [
        ("1", 1e-3, None, 1e-3, 16, 8192, "plain"),
        ("1_5", 1e-5, 2e-6, 5e-5, 2, 16384, "qwen_1_5"),
        ("2", 1e-5, 2e-6, 5e-5, 2, 16384, "qwen_1_5"),
    ],
)
def test_the_papers_values(stage, lr, tower_lr, managers_lr, batch, max_length, template):
    recipe = load(stage, "grid_manager")
    components, optim = recipe.components, recipe.optim
    assert (optim.lr, components.vision_tower.lr, components.managers.lr) == (lr, tower_lr, managers_lr)
    assert (optim.global_batch_size, optim.batch_size) == (512, batch)
    assert (optim.warmup, optim.schedule, optim.epochs, optim.weight_decay) == (0.03, "cosine", 1.0, 0.0)
    assert (recipe.data.max_length, recipe.data.template, recipe.data.label_rule) == (max_length, template, "answers")
    trained = {name for name in vars(components) if getattr(components, name).trained}
    assert trained == ({"projector", "managers"} if stage == "1" else set(vars(components)))


def test_the_tiling_of_the_grid_arms():
    assert load("1_5", "grid").tiling.pinpoints == [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]]
    stage2 = load("2", "grid_manager").tiling
    assert (stage2.aspect_ratio, stage2.merge, stage2.pinpoints) == ("anyres_max_9", "spatial_unpad", "(1x1),...,(6x6)")


@pytest.mark.parametrize("arm", ARMS)
def test_each_stage_starts_where_the_one_before_ended(arm):
    stages = [load(stage, arm) for stage in STAGES]
    assert [stage.model.start_from for stage in stages[1:]] == [stage.run.output_dir for stage in stages[:-1]]
    assert stages[0].model.start_from is None


def test_partners_share_stage_1():
    for one, other in (("baseline", "grid"), ("manager", "grid_manager")):
        first, second = load("1", one).to_dict(), load("1", other).to_dict()
        assert first.pop("arm") != second.pop("arm")
        assert first == second


def test_later_sources_win(tmp_path):
    files = []
    for number, content in enumerate(({"optim": {"lr": 1, "batch_size": 8}}, {"optim.lr": "2e-1"})):
        files.append(str(tmp_path / f"{number}.yaml"))
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(content))
    assert load(overrides=files[:1]).optim.lr == 1.0
    recipe = load(overrides=files, optim__batch_size="4")
    assert (recipe.optim.lr, recipe.optim.batch_size) == (0.2, 4)
    assert load(arm="grid", tiling__merge="flat").tiling.merge == "flat"


def test_every_fault_is_listed(tmp_path):
    override = tmp_path / "mine.yaml"
    override.write_text(yaml.safe_dump({"data": {"workers": "many"}, "optim": {"max_step": 3}}))
    with pytest.raises(LlavaError) as caught:
        load(overrides=[str(override)], max_steps="3", run__report_to="slack", zzz="1")
    assert str(caught.value).splitlines() == [
        f"{PATHS['2']} has 5 faults:",
        f"  - {override}: data.workers must be a whole number; found 'many'",
        f"  - {override}: unknown key 'optim.max_step'; did you mean 'optim.max_steps'?",
        "  - command line: unknown key 'max_steps'; did you mean 'optim.max_steps'?",
        "  - command line: run.report_to must be one of none, tensorboard, wandb; found 'slack'",
        "  - command line: unknown key 'zzz'",
    ]


def test_a_missing_key_is_named_and_a_wrong_one_is_not_also_missing(tmp_path):
    recipe = read_yaml(PATHS["1"])
    del recipe["data"]["template"]
    recipe["optim"]["lr"] = "fast"
    path = tmp_path / "stage.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(LlavaError) as caught:
        load_recipe(str(path), "baseline")
    assert str(caught.value).splitlines()[1:] == [
        f"  - {path}: optim.lr must be a number; found 'fast'",
        f"  - {path}: data.template is missing",
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load(arm="gird"), "unknown arm 'gird'; did you mean 'grid'?"),
        (lambda: load(overrides=["absent.yaml"]), "absent.yaml: cannot be read"),
        (lambda: load_recipe("absent.yaml", "grid"), "absent.yaml: cannot be read"),
    ],
)
def test_one_clear_line(call, message):
    with pytest.raises(LlavaError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
