"""The shell scripts: dry runs of every stage and arm, the processes they start, and how they fail."""

import os
import platform
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from llava import cli
from llava.data import mixture
from llava.errors import LlavaError
from llava.fusion.methods import METHODS
from llava.train import launch
from llava.train.main import main, recipe_keys
from tests.ports import free_port

SCRIPTS = Path("scripts/train")
STAGES = ("stage1", "stage1_5", "stage2")
LAUNCH = ("NPROC_PER_NODE", "NNODES", "HOSTFILE")
HEAVIEST = {"stage1": (16, 8192, 1), "stage1_5": (2, 16384, 5), "stage2": (2, 16384, 37)}  # samples, tokens, crops
ARMS = ("baseline", "manager", "grid", "grid_manager")


def of_no_method(keys: dict) -> dict:
    """The keys without those of managers, for the arm that there is without `--arm`."""
    return {key: value for key, value in keys.items() if not key.startswith("fusion.")}


def words(keys: dict) -> list[str]:
    return [word for key, value in keys.items() for word in (f"--{key}", "none" if value is None else str(value))]


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in LAUNCH} | environment
    command = ["bash", f"scripts/train/{script}.sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)


@pytest.fixture
def forks(forked_python, monkeypatch):
    """The scripts' python has imported everything, which a dry run takes longest for."""
    monkeypatch.setenv("PATH", forked_python.path)


def test_no_script_is_left_out():
    assert {path.stem for path in SCRIPTS.glob("*.s*")} == {*STAGES, "two_tower", "launch", "slurm"}
    assert {path.stem for path in (SCRIPTS / "mixtures").glob("*.yaml")} == set(STAGES)
    assert {path.stem for path in (SCRIPTS / "recipes").glob("*.yaml")} == {"model_0_5b", "model_7b"}
    recipes = {path.stem for path in (SCRIPTS / "recipes/mllm").glob("*.yaml")}
    assert recipes == {*STAGES, *(f"{stage}_7b" for stage in STAGES), "base", "all_trained"}


@pytest.mark.parametrize(("stage", "flag"), [*zip(STAGES, ("--dry_run", "--dry-run", "--dry_run"))])
def test_dry_run_of_every_script(stage, flag, request):
    """On a fresh clone: no data, no models, real sizes. What imports print is seen in stage 1, and alike in all."""
    if stage != "stage1":
        request.getfixturevalue("forks")
    done = run(stage, "--arm", "grid_manager", flag, "--optim.max_steps", "10", NPROC_PER_NODE="8", NNODES="2")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "samples     " in done.stdout
    accumulation = 2 if stage == "stage1" else 16
    batch = 16 if stage == "stage1" else 2
    assert f"batch       512 = {batch} x {accumulation} accumulated x 16 processes" in done.stdout
    assert "steps       10\n" in done.stdout
    assert "total           893,699,744" in done.stdout


def test_another_size_of_language_model():
    done = run("stage2", "--size", "7b", "--arm", "grid_manager", "--print", "run.output_dir")
    assert (done.returncode, done.stdout) == (0, "playground/checkpoints/stage2_7b-grid_manager\n"), done.stderr
    done = run("stage2", "--size=8b", "--print", "run.output_dir")
    assert done.returncode == 2
    assert done.stderr.startswith("error: scripts/train/recipes/mllm/stage2_8b.yaml: cannot be read")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("arm", ARMS)
def test_dry_run_of_every_arm(stage, arm, capsys):
    assert main(["--recipe", f"{SCRIPTS}/recipes/mllm/{stage}.yaml", "--arm", arm, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}
    assert rows["run.output_dir"][0].startswith(f"playground/checkpoints/{stage}-")
    assert (rows["fusion"] != ["none"]) == ("manager" in arm)
    assert rows["language_model"][1] == ("0" if stage == "stage1" else "494,032,768")
    assert rows["total"][0] == ("893,699,744" if "manager" in arm else "893,618,208")
    assert not re.search(r"\b0\.00\b", printed.partition("GB per GPU")[2])
    tokens = int(rows["tokens"][1].replace(",", ""))
    steps = int(rows["steps"][0].replace(",", ""))
    per_sample = tokens / steps / 512
    assert (per_sample > 2500) == ("grid" in arm and stage != "stage1")
    batch, length, most_crops = HEAVIEST[stage]
    heaviest = re.search(
        rf"^heaviest    about ([\d.]+) GB of activations for {batch} texts of {length:,} tokens, all supervised; "
        rf"([\d.]+) GB for {batch} images of {most_crops if 'grid' in arm else 1} crops; a start tells it of the data$",
        printed,
        re.MULTILINE,
    )
    of_texts, of_images = map(float, heaviest.groups())
    assert of_texts > 24 * batch * length * 896 * 2 / 1e9  # a state of each layer, in bfloat16
    assert (of_images > of_texts) == (most_crops == 37 and "grid" in arm)


# Millions of parameters beside the baseline's, those of methods as docs/fusion.md has them.
ADDED = {
    "cli_reconstruction": 4.18,
    "concat": 1.03,
    "cross_attention": 95.66,
    "dci": 2.06,
    "deepstack": 0,
    "deepstack_qwen3": 7.09,
    "igva": 28.34,
    "layer_select": 5.51,
    "layer_select_deep_to_early": 5.51,
    "manager": 0.08,
    "manager_first_layer": 0.02,
    "manager_in_order": 0.02,
    "manager_last": 0.08,
    "manager_permuted": 0.02,
    "mmfuser": 6.43,
    "sci": 2.06,
    "sti": 0,
    "tgif": 0.47,
    "wide_projector": 2.07,
}


def test_the_arms_of_fusion_are_known():
    recipes = {path.stem for path in (SCRIPTS / "recipes/fusion").glob("*.yaml")}
    assert recipes == {*ADDED, "none"}  # `none` is called baseline and grid


PARSED_ONCE = cache(mixture.mixture_content)


@pytest.fixture
def dry_run(monkeypatch, capsys):
    """A function: a stage and an arm of it to what the dry run prints. A mixture is parsed once, in all tests."""
    monkeypatch.setattr(mixture, "mixture_content", PARSED_ONCE)

    def dry_run(stage: str, arm: str) -> str:
        assert main(["--recipe", f"{SCRIPTS}/recipes/mllm/{stage}.yaml", "--dry_run", "--arm", arm]) == 0
        return capsys.readouterr().out

    return dry_run


def total_in(printed: str) -> int:
    return int(re.search(r"^total +([\d,]+)", printed, re.MULTILINE)[1].replace(",", ""))


def fitting_arm(method: str) -> str:
    """With tiles, where the method takes them."""
    return method if method == "sti" else f"grid_{method}"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("method", ADDED)
def test_dry_run_of_every_arm_of_fusion(method, stage, dry_run):
    printed = dry_run(stage, fitting_arm(method))
    assert round((total_in(printed) - 893_618_208) / 1e6, 2) == ADDED[method]
    assert re.search(r"^fusion +(\w+)", printed, re.MULTILINE)[1] != "none" or method == "wide_projector"
    trained = re.search(r"^language_model +494,032,768 +([\d,]+)", printed, re.MULTILINE)[1]
    assert trained == ("0" if stage == "stage1" else "494,032,768")


# Parameters beside the 7B baseline's, from the methods' equations: widths of the tower and of the language model, whose
# 28 layers have 7 places for blocks and gates.
TOWER, TEXT, PLACES = 1152, 3584, 7
ADDED_7B = {
    "cli_reconstruction": 13 * 64 * (TOWER + TEXT) + PLACES * (13 * TEXT + (2 * TEXT + 1) * TEXT // 4 + TEXT // 4 + 1),
    "concat": TOWER * TEXT,
    "cross_attention": 6 * TOWER * TEXT
    + TEXT
    + PLACES * (2 * TEXT * (TEXT + 512) + 3 * TEXT * 18_944 + 2 * TEXT + 2 * 128 + 2),
    "dci": 2 * TOWER * TEXT,
    "deepstack": 0,
    "deepstack_qwen3": 3 * (2 * TOWER + (TOWER + 1) * TOWER + (TOWER + 1) * TEXT),
    "igva": 28_342_276 + (TEXT - 896) * (TOWER + 1024),
    "layer_select": 3 * ((TOWER + 1) * TEXT + (TEXT + 1) * TEXT),
    "manager": 13 * TEXT * (1 + PLACES),
    "mmfuser": 6_429_120,
    "sci": 2 * TOWER * TEXT,
    "sti": 0,
    "tgif": (TEXT + 1) * 512 + (512 + 1) * 26 + 2 * TOWER,
}


def test_every_method_has_a_number_of_parameters_with_7b():
    assert {"none", *ADDED_7B} == METHODS.keys()


@pytest.mark.parametrize(
    ("method", "stage"), [(method, f"{STAGES[number % 3]}_7b") for number, method in enumerate(ADDED_7B)]
)
def test_dry_run_of_every_method_with_7b(method, stage, dry_run):
    """In one of the stages each, in turn."""
    assert total_in(dry_run(stage, fitting_arm(method))) == 8_030_348_832 + ADDED_7B[method]


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("grid_sti", "sti takes one crop an image, tiling.aspect_ratio anyres(_max_9)? adds tiles"),
        (
            "deepstack",
            "deepstack adds an image's tiles, tiling.aspect_ratio square makes none: it would train what none",
        ),
    ],
    ids=["sti", "deepstack"],
)
@pytest.mark.parametrize("stage", STAGES)
def test_an_arm_that_does_not_fit_its_tiling_is_refused_but_in_stage_1(arm, message, stage, dry_run):
    """That is square for all."""
    if stage == "stage1":
        assert re.search(r"^tiling.aspect_ratio +square$", dry_run(stage, arm), re.MULTILINE)
        return
    with pytest.raises(LlavaError, match=rf"^fusion.method {message}"):
        dry_run(stage, arm)


def test_dry_run_counts_the_data_when_it_is_there(tiny_keys, capsys):
    arguments = words(tiny_keys("1", **{"optim.epochs": 3}))
    assert main(["--recipe", f"{SCRIPTS}/recipes/mllm/stage1.yaml", "--arm", "manager", "--dry_run", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "samples     16 x 3 epochs" in printed
    assert "steps       12\n" in printed
    assert "note:" not in printed


@pytest.mark.parametrize("content", [None, '{"model_type": "qwen2"}'])
def test_dry_run_does_not_pass_over_a_wrong_folder(tiny_keys, tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    arguments = words(of_no_method(tiny_keys("2", **{"model.start_from": tmp_path})))
    with pytest.raises(LlavaError, match=f"model.start_from {tmp_path}: "):
        main(["--recipe", f"{SCRIPTS}/recipes/mllm/stage2.yaml", "--dry_run", *arguments])


def test_a_user_error_is_one_line_and_starts_nothing():
    done = run("stage2", "--arm", "grid", "--optim.max_stesp", "10")
    assert done.returncode == 2
    assert done.stdout == ""
    expected = "error: command line: unknown key 'optim.max_stesp'; did you mean 'optim.max_steps'?\n"
    assert done.stderr == expected


def test_one_value_of_a_recipe_is_printed(capsys):
    recipe = ["train", "--recipe", f"{SCRIPTS}/recipes/mllm/stage2.yaml"]
    assert cli.main([*recipe, "--arm", "grid", "--print", "run.output_dir"]) == 0
    assert cli.main([*recipe, "--checkpoints", "mine", "--print", "model.start_from"]) == 0
    assert cli.main([*recipe, "--optim.max_steps", "7", "--print", "optim.max_steps"]) == 0
    assert capsys.readouterr().out == "playground/checkpoints/stage2-grid\nmine/stage1_5-baseline\n7\n"
    assert cli.main([*recipe, "--print", "run.output"]) == 2
    assert capsys.readouterr().err == "error: unknown key 'run.output'; did you mean 'run.output_dir'?\n"


def test_help():
    assert "--dry_run" in run("stage1", "--help").stdout


@pytest.fixture
def stand_ins(tmp_path):
    """A function: {command: shell lines} to a PATH on which these come first. `real` in them is the true python."""

    def make(**commands: str) -> str:
        folder = tmp_path / "stand_ins"
        folder.mkdir()
        for name, lines in commands.items():
            (folder / name).write_text(f"#!/bin/bash\nreal={sys.executable}\n{lines}\n")
            (folder / name).chmod(0o755)
        return f"{folder}:{os.environ['PATH']}"

    return make


TELLS_LAUNCH = 'if [ "$2" = llava.train.launch ]; then shift 2; echo "$@"; else exec "$real" "$@"; fi'


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "--standalone --nproc_per_node 1"),
        ({"NPROC_PER_NODE": "2"}, "--standalone --nproc_per_node 2"),
        (
            {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234", "JOIN_TIMEOUT": "9"},
            "--nnodes 2 --node_rank 1 --rdzv_conf timeout=9 --master_addr 10.0.0.1 --master_port 1234 "
            "--nproc_per_node 1",
        ),
        (
            {"NNODES": "2"},
            "--nnodes 2 --node_rank 0 --rdzv_conf timeout=1800 --master_addr 127.0.0.1 --master_port 29500 "
            "--nproc_per_node 1",
        ),
    ],
)
def test_the_processes_that_are_started(tiny_keys, stand_ins, environment, expected):
    """With a stand-in for the launcher that prints how it was called."""
    path = stand_ins(python=TELLS_LAUNCH, **{"nvidia-smi": "exit 1"})
    done = run("stage1", *words(of_no_method(tiny_keys("1"))), **environment, PATH=path)
    assert done.stderr == ""
    assert done.stdout.startswith(
        f"{expected} -m llava.train.rank --recipe scripts/train/recipes/mllm/stage1.yaml --model."
    )
    arguments = done.stdout.split()[expected.count(" ") + 1 :]
    assert launch.run.parse_args([*expected.split(), *arguments]).training_script == "llava.train.rank"


HOSTS = """# two nodes
10.0.0.1 slots=2

10.0.0.2 slots=2  # the other one
"""


@pytest.mark.parametrize(
    ("environment", "address"), [({}, "10.0.0.1:29500"), ({"MASTER_ADDR": "a", "MASTER_PORT": "7"}, "a:7")]
)
def test_a_hostfile_goes_to_deepspeed(tiny_keys, stand_ins, tmp_path, environment, address):
    """With a stand-in for pdsh, which DeepSpeed starts; the shell of each host reads what it is given."""
    (tmp_path / "hosts").write_text(HOSTS)
    tells = 'while [ "$1" != -w ]; do shift; done; hosts=$2; shift 2; echo "$hosts" "$@" | grep -v "^$"'
    path = stand_ins(pdsh=tells, ssh="exit 0", **{"nvidia-smi": "exit 1"})
    keys = of_no_method(tiny_keys("1", **{"run.output_dir": f"{tmp_path}/a folder", "optim.global_batch_size": 8}))
    done = run("stage1", *words(keys), HOSTFILE=f"{tmp_path}/hosts", PATH=path, **environment)
    assert done.returncode == 0, done.stderr
    (command,) = (line for line in done.stdout.splitlines() if line.startswith("10.0.0.1,10.0.0.2 "))
    (started,) = (part for part in command.split(";") if "deepspeed.launcher.launch" in part)
    read = shlex.split(subprocess.check_output(["bash", "-c", f"printf '%q ' {started}"], text=True))
    host, _, port = address.partition(":")
    assert {f"--master_addr={host}", f"--master_port={port}", "--node_rank=%n", "--no_local_rank"} <= set(read)
    assert read[read.index("llava.train.rank") :] == [
        *("llava.train.rank", "--recipe", "scripts/train/recipes/mllm/stage1.yaml"),
        *words(keys),
    ]


PDSH = """while [ "$1" != -w ]; do shift; done
node=0
for host in ${2//,/ }; do
    given="${@:3}"
    given=${given/llava.train.rank/tests.train.rank_on_cpu}
    bash -c "${given//%n/$node}" & pids="$pids $!"
    node=$((node + 1))
done
for pid in $pids; do wait "$pid" || status=$?; done
exit ${status:-0}"""


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_deepspeeds_launcher_trains_on_the_hosts_of_a_file(tiny_keys, stand_ins, tmp_path):
    """Both hosts are this machine, and the stand-in for pdsh starts what each is given, on the CPU."""
    (tmp_path / "hosts").write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    forked = 'exec python -m deepspeed.launcher.runner "$@"'  # all that the true command does
    path = stand_ins(pdsh=PDSH, ssh="exit 0", deepspeed=forked, **{"nvidia-smi": "exit 1"})
    keys = {"run.deepspeed": "scripts/train/deepspeed/zero3.json", "optim.max_steps": 1}
    arguments = words(tiny_keys("1", **keys, **{"run.output_dir": f"{tmp_path}/out"}))
    environment = {"HOSTFILE": f"{tmp_path}/hosts", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    done = run("stage1", "--arm", "manager", *arguments, **environment, PYTHONPATH=os.getcwd(), PATH=path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "preflight   2 processes: " in done.stdout
    assert "batch       4 = 2 x 1 accumulated x 2 processes" in done.stdout
    assert (tmp_path / "out/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "None"),
    ],
)
def test_a_rank_lets_segments_grow_before_torch_is_there(given, expected):
    """On whatever host: the rank itself does."""
    rank = """
import os, runpy, sys
import llava.cli
llava.cli.main = lambda arguments: print(os.environ.get("PYTORCH_ALLOC_CONF"), "torch" in sys.modules)
runpy.run_module("llava.train.rank", run_name="__main__")
"""
    unset = {key: value for key, value in os.environ.items() if not key.startswith("PYTORCH_")}
    done = subprocess.run([sys.executable, "-c", rank], capture_output=True, text=True, check=True, env=unset | given)
    assert done.stdout == f"{expected} False\n"


@pytest.mark.usefixtures("forks")
def test_a_hostfile_counts_its_processes(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text(HOSTS)
    for given, environment in (([], {"HOSTFILE": f"{hosts}"}), (["--hostfile", f"{hosts}"], {"HOSTFILE": "another"})):
        done = run("stage1", "--arm", "manager", *given, "--dry_run", **environment)
        assert "batch       512 = 16 x 8 accumulated x 4 processes" in done.stdout
    done = run("stage1", f"--hostfile={tmp_path}/none", "--dry_run")
    assert (done.returncode, done.stderr) == (2, f"error: the hostfile {tmp_path}/none cannot be read\n")


@pytest.mark.usefixtures("forks")
def test_slurm_runs_the_script_once_on_each_node(stand_ins):
    """With stand-ins for SLURM's commands; what SLURM would set is set here; scontrol is left to end."""
    path = stand_ins(
        scontrol="[ \"$*\" = 'show hostnames gpu[1-2]' ] && echo gpu1 && sleep 0.5 && echo gpu2",
        srun='while [[ $1 == --* ]]; do shift; done; for n in 0 1; do SLURM_NODEID=$n "$@"; done',
        bash='if [ "$1" = scripts/train/stage2.sh ]; then '
        'echo $(env | grep -E "^(NN|NODE_R|MASTER_|SRUN_)" | sort); fi; exec /bin/bash "$@"',
    )
    slurm = {"SLURM_JOB_NODELIST": "gpu[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "1234567"}
    slurm |= {"SLURM_CPUS_PER_TASK": "64"}
    command = ["/bin/bash", "scripts/train/slurm.sbatch", "stage2", "--arm", "grid_manager", "--dry_run"]
    environment = {**os.environ, **slurm, "PATH": path, "NPROC_PER_NODE": "8"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    started = [line for line in done.stdout.splitlines() if line.startswith("MASTER_ADDR")]
    assert started == [
        f"MASTER_ADDR=gpu1 MASTER_PORT=24567 NNODES=2 NODE_RANK={node} SRUN_CPUS_PER_TASK=64" for node in range(2)
    ]
    assert done.stdout.count("batch       512 = 2 x 16 accumulated x 16 processes") == 2


def test_slurm_signals_ten_minutes_before_the_end():
    """As its comment says; without `B:` the signal goes to what srun started, which saves."""
    options = [line for line in (SCRIPTS / "slurm.sbatch").read_text().splitlines() if line.startswith("#SBATCH")]
    assert [option for option in options if "signal" in option] == ["#SBATCH --signal=TERM@600"]


@pytest.mark.parametrize("script", sorted(str(path) for path in SCRIPTS.glob("*.s*")))
def test_the_shell_can_read_every_script(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_script_can_be_started_by_its_name():
    scripts = [*SCRIPTS.parent.glob("*.sh"), *SCRIPTS.parent.glob("*/*.s*")]
    assert {path.parent.name for path in scripts} == {"scripts", "train", "eval"}
    assert [str(path) for path in scripts if not os.access(path, os.X_OK)] == []
    done = subprocess.run([SCRIPTS / "stage2.sh", "--help"], capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("ending", "status", "told"),
    [
        ("sys.exit(0)", 0, ""),
        ("sys.exit(2)", 2, ""),
        ("sys.exit(3)", 3, "error: rank 1 on {host} (process {pid}) failed; all processes of this host were stopped\n"),
        (
            "os.kill(os.getpid(), 9)",
            137,
            "error: rank 1 on {host} (process {pid}) was killed by SIGKILL; all processes of this host were stopped\n",
        ),
    ],
)
def test_the_launcher_names_the_rank_that_ended_the_run(tmp_path, ending, status, told):
    (tmp_path / "rank.py").write_text(
        "import os, sys, time\n"
        f"if os.environ['RANK'] == '1':\n    print(os.getpid(), flush=True)\n    {ending}\n"
        f"time.sleep({60 if told else 0})\n"
    )
    command = [sys.executable, "-m", "llava.train.launch", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*command, f"{tmp_path}/rank.py"], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == status
    assert done.stderr == told.format(host=platform.node(), pid=done.stdout.strip())


WAITS = """
import sys
from llava.train import launch
launch.PATIENCE = int(sys.argv[1])
sys.exit(launch.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGTERM, 143), (None, 0)])
def test_a_launcher_does_not_wait_for_a_host_that_never_ends(forked_python, tmp_path, stop, status):
    """The ranks of the first host have ended well; the other host's goes on, as if its launcher were gone."""
    (tmp_path / "rank.py").write_text(
        "import os, pathlib, sys, time\n"
        "time.sleep(600 if os.environ['RANK'] == '1' else 2)\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
    )
    port, patience, launchers = str(free_port()), "600" if stop else "3", []
    for node in range(2):
        meeting = ["--nnodes", "2", "--node_rank", str(node), "--master_addr", "127.0.0.1", "--master_port", port]
        command = [
            forked_python.command,
            "-c",
            WAITS,
            patience,
            *meeting,
            "--nproc_per_node",
            "1",
            f"{tmp_path}/rank.py",
        ]
        launchers.append(subprocess.Popen([*command, f"{tmp_path}/ended"], stderr=subprocess.PIPE, text=True))
    try:
        wait_until((tmp_path / "ended").exists)
        if stop is not None:
            time.sleep(1)  # torchrun looks at its ranks ten times a second, then waits
            launchers[0].send_signal(stop)
        assert launchers[0].wait(100) == status
        waited = "this host's processes have ended; the other hosts' launchers did not within 3 s\n"
        assert launchers[0].stderr.read() == ("" if stop else waited)
    finally:
        for launcher in launchers:
            launcher.terminate()
            launcher.wait(60)


@pytest.mark.parametrize(("node", "stop"), [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_launcher_that_waits_for_a_host_ends_at_a_signal(forked_python, node, stop):
    """The other host never comes: the first host's launcher waits for it to join, the second's to listen."""
    port = free_port()
    if node == 1:
        host = socket.create_server(("127.0.0.1", port))  # in place of the first host's: it hears, and never answers
    meeting = ["--nnodes", "2", "--node_rank", str(node), "--master_addr", "127.0.0.1", "--master_port", str(port)]
    command = [forked_python.command, "-m", "llava.train.launch", *meeting, "--nproc_per_node", "1", "rank.py"]
    launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        if node == 0:
            wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        else:
            _held = host.accept()
        launcher.send_signal(stop)
        assert launcher.wait(60) in (128 + stop, -stop)  # shells tell both alike
        assert launcher.stderr.read() == ""
    finally:
        if node == 1:
            host.close()
        launcher.kill()
        launcher.wait()


ENDS = {
    "return 0": (0, ""),
    "return 2": (2, ""),
    "sys.exit(2)": (2, ""),
    "sys.exit('why')": (1, "why\n"),
    "raise KeyboardInterrupt": (130, ""),
    "raise ValueError('why')": (1, "ValueError: why\n"),
}


@pytest.mark.parametrize("ending", ENDS)
def test_a_rank_ends_as_python_does_and_before_pythons_shutdown(tmp_path, ending):
    """A thread whose lock Python takes away while it shuts down would abort the process from within torch's C++."""
    status, told = ENDS[ending]
    (tmp_path / "rank.py").write_text(
        "import atexit, sys\nfrom llava.train.rank import end_with\n"
        "class Shutdown:\n    def __del__(self): print('Python shut down')\n"
        f"kept = Shutdown()\natexit.register(print, 'told at exit')\ndef main():\n    print('ran')\n    {ending}\n"
        "end_with(main)\n"
    )
    done = subprocess.run([sys.executable, f"{tmp_path}/rank.py"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, "ran\ntold at exit\n")
    assert done.stderr.endswith(told)
    assert ("Traceback" in done.stderr) == told.startswith("ValueError")


def wait_until(condition, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s"
        time.sleep(0.1)


def test_recipe_keys():
    assert recipe_keys(["--a.b", "1", "--c=2", "--d", "-1"]) == {"a.b": "1", "c": "2", "d": "-1"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--a"], "--a has no value"),
        (["--a", "--b", "1"], "--a has no value"),
        (["a"], "unexpected argument 'a'"),
        (["--=1"], "unexpected argument '--=1'"),
    ],
)
def test_wrong_arguments(given, message):
    with pytest.raises(LlavaError, match=message):
        recipe_keys(given)


@pytest.mark.parametrize("number", ["0", "-1", "nan", "inf", "fast"])
def test_a_speed_that_cannot_be(number, capsys):
    words = ["train", "--recipe", f"{SCRIPTS}/recipes/mllm/stage1.yaml", "--dry_run", "--tokens_per_second", number]
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: --tokens_per_second must be ")
    assert number in printed.err


@pytest.mark.parametrize("variable", ["NPROC_PER_NODE", "NNODES", "WORLD_SIZE"])
@pytest.mark.parametrize("count", ["0", "-1", "two", "", "1.5"])
def test_a_number_of_processes_that_cannot_be(variable, count, monkeypatch, capsys):
    monkeypatch.setenv(variable, count)
    assert cli.main(["train", "--recipe", f"{SCRIPTS}/recipes/mllm/stage1.yaml", "--dry_run"]) == 2
    line = f"error: the environment's {variable} must be a whole number of at least 1; found {count!r}\n"
    assert capsys.readouterr().err == line


def test_the_llava_command_trains_too(capsys):
    assert cli.main(["train", "--recipe", "absent.yaml"]) == 2
    assert capsys.readouterr().err == "error: absent.yaml: cannot be read (No such file or directory)\n"
