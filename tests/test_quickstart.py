"""The whole way at a smoke size: data, pretraining, three stages on two processes under ZeRO-3, evaluation, chat.

A machine with GPUs is pretended, and none of them is used.

What SEEDS adds, the order of things and going on, is seen with a `llava` and a `python` that only note what they are to
do; what they would print is that of `llava bench seeds` on runs that were made up.
"""

import fcntl
import json
import os
import subprocess
import sys

import pytest

from llava.train.recipe.load import load_recipe
from llava.train.two_tower.recipe import TwoTowerFusionRecipe
from tests.bench.test_seeds import save
from tests.paths import ROOT

GPUS = {"CUDA_VISIBLE_DEVICES": "0,1"}  # shown by the one who starts a quickstart, which hides them
STAGE2 = "scripts/train/recipes/mllm/stage2.yaml"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quickstart_at_smoke_size(forked_python, tmp_path):
    out = tmp_path / "quickstart"
    environment = os.environ | {"QUICKSTART_DIR": str(out), "QUICKSTART_SIZE": "smoke", "PATH": forked_python.path}
    environment |= GPUS
    del environment["DS_ACCELERATOR"]  # the suite's own
    look = [forked_python.command, "-c", "import torch; print(torch.cuda.is_available(), torch.cuda.device_count())"]
    assert subprocess.check_output(look, env=environment, text=True) == "True 2\n"
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    stages = [("stage1-manager", 2), ("stage1_5-grid_manager", 2), ("stage2-grid_manager", 2)]
    for name, steps in stages:
        run = json.loads((out / "checkpoints" / name / "run.json").read_text())
        assert run["steps"] == steps
        assert run["plan"]["processes"] == 2
        assert [row["device"][:3] for row in run["hardware"]] == ["CPU"]
        assert json.loads((ROOT / run["recipe"]["run"]["deepspeed"]).read_text())["zero_optimization"]["stage"] == 3
    report = json.loads((out / "eval" / "report.json").read_text())
    (place,) = [row for row in report["rows"] if row["metric"] == "exact_match_place"]
    assert set(place["scores"]) == {"grid_manager", "grid_manager_blind"}
    assert {score["documents"] for score in place["scores"].values()} == {6}
    assert "one question in the chat" in done.stdout
    assert "answer    " in done.stdout


LLAVA = """#!/usr/bin/env bash
[ -n "${CUDA_VISIBLE_DEVICES-all}" ] && echo "GPUs are not hidden" >&2 && exit 1
[ "$1" = bench ] && [ -n "${REAL:-}" ] && exec "$PYTHON" -m llava.cli "$@"
case "$1 $2" in
"demo pretrain" | "demo emoji_towers") what="$2 $(basename "$(dirname "$3")") $4 $5" ;;
*) what="$1 $2" ;;
esac
[ "$1" = eval ] && run=${9#"$QUICKSTART_DIR/"} && what=$run
[ "$what" = "$FAILS" ] && exit 1
echo "$what" >> "$CALLS"
[ "$1" = bench ] && exit
[ "$1" = eval ] || exec mkdir -p "$3"
mkdir -p "$9/${5##*,}" && touch "$9/${5##*,}/results.json"
[ ! -d "$MADE_UP/$run" ] || cp -r "$MADE_UP/$run/." "$9"
"""
PYTHON = """#!/usr/bin/env bash
arguments=" $* "
value() { local rest=${arguments#* --$1 }; echo "${rest%% *}"; }
stage=$(basename "$(value recipe)" .yaml) arm=$(value arm)
[ "$stage" = stage1 ] && arm=${arm#grid_}
folder=$(value checkpoints)/$stage-$arm
case $arguments in
*" --print "*) echo "$folder" ;;
*" --check "*) ;;
*)
    [ -n "${CUDA_VISIBLE_DEVICES-all}" ] && echo "GPUs are not hidden" >&2 && exit 1
    [ "$stage-$arm $(value run.seed)" = "$FAILS" ] && exit 1
    echo "$stage-$arm $(value run.seed)" >> "$CALLS"
    mkdir -p "$folder" && touch "$folder/run.json"
    ;;
esac
"""


@pytest.fixture(scope="module")
def noted(tmp_path_factory):
    """A function: a quickstart's arguments to what it did, its status and what it printed. fails: what breaks off."""
    folder = tmp_path_factory.mktemp("noted")
    for name, content in (("llava", LLAVA), ("python", PYTHON)):
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    for seed in (1, 2):
        for index, arm in enumerate(("baseline", "manager", "manager_blind", "grid_manager", "grid_manager_blind")):
            save(folder / "eval" / arm / f"seed{seed}", (index / 5, 0.5), 10 * seed + index)
    environment = os.environ | {"PYTHON": sys.executable, "MADE_UP": str(folder), "CALLS": str(folder / "calls")}
    environment |= {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"} | GPUS

    def start(out, *arguments: str, fails: str = "nothing", script="quickstart", **changes):
        (folder / "calls").write_text("")
        done = subprocess.run(
            ["bash", f"scripts/{script}.sh", *arguments],
            cwd=ROOT,
            env=environment | {"QUICKSTART_DIR": str(out), "FAILS": fails} | changes,
            capture_output=True,
            text=True,
            check=False,
        )
        return (folder / "calls").read_text().splitlines(), done.returncode, done.stdout + done.stderr

    return start


def test_the_two_towers_go_on_where_they_were(noted, tmp_path):
    """Data once, towers and floor once a seed, every stage with the seed; then a table of each task and ranking."""

    def of_seed(seed: int) -> list[str]:
        calls = [f"emoji_towers seed{seed} --seed {seed}", "demo emoji_floor"]
        for arm in ("meter", "bridge_tower", "manager"):
            calls += [f"pretrain-{arm} {seed}", f"vqav2-{arm} {seed}", f"eval/questions/{arm}/seed{seed}"]
            calls += [f"flickr30k-{arm} {seed}", f"eval/ITC/{arm}/seed{seed}", f"eval/ITM/{arm}/seed{seed}"]
        return calls

    everything = ["demo emoji_pages", *of_seed(1), *of_seed(2), *["bench seeds"] * 7]
    out, broken = tmp_path / "towers", "flickr30k-bridge_tower 2"
    before, status, printed = noted(out, "all", "2", script="quickstart_two_tower", fails=broken)
    assert (before, status) == (everything[: everything.index(broken)], 1), printed
    rest, status, printed = noted(out, "all", "2", script="quickstart_two_tower")
    assert (before + rest, status) == (everything, 0), printed
    assert "== floors to beat, of the towers of seed 2 " in printed
    message = f"error: {out} was started with another QUICKSTART_SIZE; name another QUICKSTART_DIR\n"
    assert noted(out, "all", "2", script="quickstart_two_tower", QUICKSTART_SIZE="smoke") == ([], 2, message)


def of_seed(seed: int) -> list[str]:
    """What two arms of a seed take; grid_manager begins with the same stage 1 as manager."""
    stages = [f"stage1-manager {seed}", f"stage1_5-manager {seed}", f"stage2-manager {seed}"]
    tiles = [f"stage1_5-grid_manager {seed}", f"stage2-grid_manager {seed}"]
    runs = [f"eval/{arm}/seed{seed}" for arm in ("manager", "grid_manager", "grid_manager_blind")]
    return [f"pretrain seed{seed} --seed {seed}", *stages, runs[0], *tiles, *runs[1:]]


@pytest.mark.parametrize("fails", ["pretrain seed2 --seed 2", "stage2-manager 1", "eval/grid_manager/seed2"])
def test_several_seeds_go_on_where_they_were(noted, tmp_path, fails):
    """Pretraining and every stage with the seed, the data once; what is done is not done again."""
    everything = ["demo make", *of_seed(1), *of_seed(2), "bench seeds"]
    arms, out = "manager grid_manager", tmp_path / "seeds"
    before, status, _ = noted(out, arms, "2", fails=fails)
    assert (before, status) == (everything[: everything.index(fails)], 1)
    rest, status, printed = noted(out, arms, "2")
    assert (before + rest, status) == (everything, 0), printed
    done = sum(call.startswith("eval/") and "blind" not in call for call in before)
    assert f"4 models (manager grid_manager; 2 seeds): {done} are done, the rest takes about " in printed


def test_more_seeds_and_arms_and_the_table(noted, tmp_path):
    out = tmp_path / "seeds"
    noted(out, "manager", "1")
    calls, status, printed = noted(out, "baseline manager", "2", REAL="1")
    assert status == 0, printed
    baseline = [[f"{stage}-baseline {seed}" for stage in ("stage1", "stage1_5", "stage2")] for seed in (1, 2)]
    assert calls == [
        *[*baseline[0], "eval/baseline/seed1"],
        *["pretrain seed2 --seed 2", *baseline[1], "eval/baseline/seed2"],
        *(f"{stage}-manager 2" for stage in ("stage1", "stage1_5", "stage2")),
        *["eval/manager/seed2", "eval/manager_blind/seed2"],
    ]
    assert "== means over 2 seeds on held-out digits" in printed
    assert "\nall        manager " in printed
    assert list(json.loads((out / "seeds.json").read_text())["arms"]) == ["baseline", "manager", "manager_blind"]
    assert (out / "seeds.md").read_text().startswith("| questions | arm | n | exact match |")


def test_runs_of_other_settings_are_not_mixed(noted, tmp_path):
    out = tmp_path / "seeds"
    noted(out, "manager", "1", fails="stage1-manager 1")
    refused = f"error: {out} was started with another %s; name another QUICKSTART_DIR\n"
    assert noted(out, "manager", "1", QUICKSTART_SIZE="smoke") == ([], 2, refused % "QUICKSTART_SIZE")
    kept = (out / ".quickstart").read_text()
    recipe = "scripts/quickstart/stage2.yaml"
    assert f"  {recipe}\n" in kept
    (out / ".quickstart").write_text(kept.replace(f"  {recipe}\n", f"0  {recipe}\n"))
    assert noted(out, "manager", "1") == ([], 2, refused % recipe)
    message = f"error: {out} holds the runs of several seeds; remove it, or name another QUICKSTART_DIR\n"
    assert noted(out, "manager") == ([], 2, message)
    (out / ".quickstart").write_text("")
    message = f"error: {out} holds a quickstart without SEEDS; remove it, or name another QUICKSTART_DIR\n"
    assert noted(out, "manager", "1") == ([], 2, message)
    for seeds in ("0", "two", "-1"):
        message = f"error: SEEDS must be a whole number above 0, found {seeds}\n"
        assert noted(tmp_path / "new", "manager", seeds) == ([], 2, message)


def test_two_at_once_are_refused(noted, tmp_path):
    """The lock is held by what a killed quickstart left at work, too."""
    out = tmp_path / "seeds"
    noted(out, "manager", "1", fails="demo make")
    with (out / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        message = f"error: {out}: another quickstart is at work there\n"
        assert noted(out, "manager", "1") == ([], 2, message)


@pytest.mark.parametrize("stage", ["pretrain", "vqav2", "flickr30k"])
@pytest.mark.parametrize("arm", ["meter", "bridge_tower", "manager"])
def test_the_two_towers_stages_differ_in_the_bridge_alone(stage, arm):
    file, folder = f"scripts/train/recipes/two_tower/{stage}.yaml", "scripts/quickstart/two_tower"
    recipe = load_recipe(file, arm, overrides=[f"{folder}/model.yaml", f"{folder}/{stage}.yaml"])
    assert recipe.fusion == TwoTowerFusionRecipe(
        bridge=arm,
        cross_modal_layers=3,
        hidden_size=128,
        num_attention_heads=4,
        intermediate_size=512,
        initializer_range=0.1,
        noise=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    assert (recipe.data.image_size, recipe.data.transform, recipe.rates.towers) == (96, "center", 0)
    assert recipe.optim.max_steps is None
    assert recipe.task.name == {"flickr30k": "retrieval"}.get(stage, stage)


@pytest.mark.parametrize("script", ["quickstart", "quickstart_two_tower"])
def test_help_is_the_scripts_own_description(script):
    done = subprocess.run(
        ["bash", f"scripts/{script}.sh", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"bash scripts/{script}.sh [ARMS] [SEEDS]" in done.stdout
    assert "QUICKSTART_SIZE" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("arms", "changes", "message"),
    [
        ("grid_manager", {"QUICKSTART_SIZE": "tiny"}, "QUICKSTART_SIZE must be full or smoke, found tiny"),
        (
            "grid managers",
            {},
            f"{STAGE2}: unknown arm 'managers'; did you mean 'manager'? There are baseline, ",
        ),
        ("all", {"QUICKSTART_DIR": "{full}"}, "{full} is not empty and was not made by the quickstart"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, arms, changes, message):
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious.txt").touch()
    environment = {**os.environ, "QUICKSTART_DIR": str(tmp_path / "new")}
    environment |= {key: value.format(full=full) for key, value in changes.items()}
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh", arms], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message.format(full=full)}")
    assert done.stderr.count("\n") == 1
    assert (full / "precious.txt").exists()
