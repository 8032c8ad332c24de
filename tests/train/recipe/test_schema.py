"""Recipes: the shipped files hold the paper's values, sources win in order, and every fault is reported at once."""

from pathlib import Path

import pytest
import yaml

from llava.errors import LlavaError
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.configs.none import NoneConfig
from llava.train.recipe.dotted import flatten, read_yaml
from llava.train.recipe.load import StageFile, load_recipe

RECIPES = "scripts/train/recipes/mllm"
STAGES = ("1", "1_5", "2")
ARMS = ("baseline", "manager", "grid", "grid_manager")
PATHS = {stage: f"{RECIPES}/stage{stage}.yaml" for stage in STAGES}
SEVEN_B = {stage: f"{RECIPES}/stage{stage}_7b.yaml" for stage in STAGES}


def load(stage="2", arm="baseline", overrides=(), **keys):
    return load_recipe(PATHS[stage], arm, overrides, {key.replace("__", "."): value for key, value in keys.items()})


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_the_four_arms(stage):
    assert set(ARMS) <= set(StageFile.read(PATHS[stage]).arms())
    for arm in ARMS:
        recipe = load(stage, arm)
        assert recipe.arm == arm
        assert recipe.fusion.method == ("manager" if "manager" in arm else "none")
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
    assert (optim.lr, components.vision_tower.lr, components.fusion.lr) == (lr, tower_lr, managers_lr)
    assert (optim.global_batch_size, optim.batch_size) == (512, batch)
    assert (optim.warmup, optim.schedule, optim.epochs, optim.weight_decay) == (0.03, "cosine", 1.0, 0.0)
    assert (recipe.data.max_length, recipe.data.template, recipe.data.label_rule) == (max_length, template, "answers")
    trained = {name for name in vars(components) if getattr(components, name).trained}
    assert trained == ({"projector", "fusion"} if stage == "1" else set(vars(components)))


@pytest.mark.parametrize("stage", STAGES)
def test_7b_is_the_same_but_for_the_model_and_its_states(stage):
    """Its rates too are the paper's for 0.5B."""
    small, large = (flatten(load_recipe(path, "grid").to_dict()) for path in (PATHS[stage], SEVEN_B[stage]))
    changed = {key for key in small if small[key] != large[key]}
    assert changed == {"model.sizes", "run.output_dir"} | (
        {"model.language_model"} if stage == "1" else {"model.start_from", "run.deepspeed"}
    )
    assert large["run.output_dir"] == small["run.output_dir"].replace(f"stage{stage}-", f"stage{stage}_7b-")
    assert Path(large["run.deepspeed"]).name == ("zero1.json" if stage == "1" else "zero3.json")


def test_each_7b_stage_starts_where_the_one_before_ended():
    stages = [load_recipe(SEVEN_B[stage], "grid_manager") for stage in STAGES]
    assert [stage.model.start_from for stage in stages[1:]] == [stage.run.output_dir for stage in stages[:-1]]


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
    recipe["base"] = f"{Path(RECIPES).absolute()}/base.yaml"
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
        (lambda: load(arm="none"), "unknown arm 'none'; there are baseline, "),
        (lambda: load(overrides=["absent.yaml"]), "absent.yaml: cannot be read"),
        (lambda: load_recipe("absent.yaml", "grid"), "absent.yaml: cannot be read"),
    ],
)
def test_one_clear_line(call, message):
    with pytest.raises(LlavaError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arm", ARMS)
def test_folders_follow_from_stage_and_arm(arm):
    """As the stages' files had them one by one."""
    first = "manager" if "manager" in arm else "baseline"
    folders = {stage: load(stage, arm).run.output_dir for stage in STAGES}
    assert folders == {
        "1": f"playground/checkpoints/stage1-{first}",
        "1_5": f"playground/checkpoints/stage1_5-{arm}",
        "2": f"playground/checkpoints/stage2-{arm}",
    }
    moved = load_recipe(PATHS["2"], arm, checkpoints="/data/mine")
    assert moved.run.output_dir == f"/data/mine/stage2-{arm}"
    assert moved.model.start_from == f"/data/mine/stage1_5-{arm}"
    given = {"run.output_dir": "out", "model.start_from": None, "model.vision_tower": "tower"}
    given = load_recipe(PATHS["2"], arm, keys=given)
    assert (given.run.output_dir, given.model.start_from, given.model.vision_tower) == ("out", None, "tower")


@pytest.fixture
def stages(tmp_path):
    """A function: {file: YAML} in a folder beside the shipped recipes' bases, to that folder."""

    def write(**files: str):
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text.replace("MLLM", str(Path(RECIPES).absolute())))
        return tmp_path

    return write


def test_a_method_is_one_small_file(stages):
    """An arm of its own and one with tiles, in every stage, whose folders bear its name; nothing else names it."""
    folder = stages(
        first="base: MLLM/stage1.yaml\nmethods: methods\n",
        second="base: MLLM/stage2.yaml\nmethods: methods\nfollows: first.yaml\n",
        methods__none="fusion.method: none\n",
        methods__low="fusion: {method: manager, vision_start: 1, vision_end: 14}\n",
    )
    assert list(StageFile.read(f"{folder}/second.yaml").arms()) == ["baseline", "low", "grid", "grid_low"]
    recipe = load_recipe(f"{folder}/second.yaml", "grid_low")
    assert (recipe.fusion.vision_start, recipe.fusion.vision_end) == (1, 14)
    assert recipe.tiling == load("2", "grid").tiling
    assert recipe.optim == load("2", "grid").optim
    assert recipe.run.output_dir == "playground/checkpoints/second-grid_low"
    assert recipe.model.start_from == "playground/checkpoints/first-low"
    assert load_recipe(f"{folder}/second.yaml", "low").tiling.aspect_ratio == "square"
    assert load_recipe(f"{folder}/second.yaml", "baseline").fusion.method == "none"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"one": "base: two.yaml\n", "two": "base: one.yaml\n"}, "one.yaml: is its own base"),
        ({"one": "base: absent.yaml\n"}, "absent.yaml: cannot be read"),
        ({"one": "base: [1]\n"}, "one.yaml: base must be a path, found list"),
        ({"one": "base: MLLM/stage2.yaml\ngrid: 9\n"}, "one.yaml: grid must be a mapping of keys, found int"),
        ({"one": "base: MLLM/stage2.yaml\ngrid: {optim.lrr: 1}\n"}, "one.yaml: grid: unknown key 'optim.lrr'"),
        ({"one": "base: MLLM/stage2.yaml\nfollows: absent.yaml\n"}, "absent.yaml: cannot be read"),
        ({"one": "base: MLLM/stage2.yaml\nmethods: none_here\n"}, "none_here/none.yaml: cannot be read"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(stages, files, message):
    with pytest.raises(LlavaError) as caught:
        load_recipe(f"{stages(**files)}/one.yaml", "grid")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arm", "keys", "message"),
    [
        (
            "grid",
            {"fusion.interval": "2"},
            "unknown key 'fusion.interval' of the fusion method none; it is one of manager",
        ),
        ("manager", {"fusion.intervall": "2"}, "unknown key 'fusion.intervall'; did you mean 'fusion.interval'?"),
        ("manager", {"fusion.method": "managers"}, "fusion.method must be one of none, manager"),
        ("manager", {"fusion.layer_set": "none"}, "fusion.layer_set must be one of paper, released; found 'none'"),
        ("grid", {"managers.jitter": "none"}, r"unknown key 'managers.jitter'; managers.\* is called fusion.\* now"),
        ("grid", {"components.managers.lr": "1"}, r"components.managers.\* is called components.fusion.\* now"),
    ],
)
def test_keys_of_another_method_and_of_former_recipes_are_refused(arm, keys, message):
    with pytest.raises(LlavaError, match=message):
        load("1", arm, **keys)


def test_who_names_another_method_starts_from_its_defaults(tmp_path):
    """What a file before said was for the method before."""
    (tmp_path / "changes.yaml").write_text("fusion: {interval: 2, query: cross}\n")
    arguments = {"overrides": [str(tmp_path / "changes.yaml")]}
    assert load("1", "manager", **arguments).fusion == ManagerConfig(interval=2, query="cross")
    assert load("1", "manager", **arguments, **{"fusion.method": "none"}).fusion == NoneConfig()
