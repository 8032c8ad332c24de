"""What ranks compare before a run, and the line in which they differ."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
from functools import partial
from pathlib import Path

import pytest

from llava.errors import LlavaError
from llava.train.ranks import hardware as hardware_module
from llava.train.ranks.fingerprint import code_hashes, data_hashes, start_hashes
from llava.train.ranks.hardware import choose_network, hardware, interface_to
from llava.train.ranks.preflight import describe, difference, hardware_table, preflight, report
from tests.ports import free_port

RECIPE = "scripts/train/recipes/mllm/stage1.yaml"


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)


def ranks(**fields: list[str]) -> list[dict]:
    """Reports of ranks on hosts of 8, whose compared fields have these values."""
    number = len(next(iter(fields.values())))
    return [
        {
            "rank": rank,
            "host": f"node-{rank // 8}",
            "fault": None,
            "device": "NVIDIA H100 80GB HBM3",
            "memory_gb": 85.0,
            "cpus": 96,
            "network": "eth0",
            "free_disk_gb": 1235.0 - rank / 2 if rank < 8 else 99.0,
            "compared": {name: values[rank] for name, values in fields.items() if values[rank] is not None},
        }
        for rank in range(number)
    ]


def test_a_nearly_full_disk_is_shown_in_its_unit():
    reports = ranks(**{"code llava": ["a"] * 2})
    shown = [describe([reports[0] | {"free_disk_gb": free}]).splitlines()[-1] for free in (0.03, 0.000004, 0.0, 2.5)]
    assert [line.split("eth0")[1].strip() for line in shown] == ["30.0 MB", "4.00 KB", "0 bytes", "2.50 GB"]


def test_ranks_that_were_given_the_same():
    assert difference(ranks(code=["a"] * 16, data=["b"] * 16)) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1"] * 8 + ["2"] * 8, "1 on ranks 0-7 (node-0), 2 on ranks 8-15 (node-1)"),
        (["1"] * 5 + ["2"] + ["1"] * 10, "1 on ranks 0-4, 6-15 (node-0, node-1), 2 on rank 5 (node-0)"),
        (["1"] * 15 + [None], "1 on ranks 0-14 (node-0, node-1), absent on rank 15 (node-1)"),
        (["a" * 64, "b" * 64], f"{'a' * 12} on rank 0 (node-0), {'b' * 12} on rank 1 (node-0)"),
        (["1", "2", "3"], "1 on rank 0 (node-0), 2 on rank 1 (node-0), 3 on rank 2 (node-0)"),
    ],
)
def test_the_line_names_field_ranks_and_values(values, expected):
    same = ["x"] * len(values)
    assert difference(ranks(first=same, second=values)) == f"ranks differ in second: {expected}"


def test_the_line_counts_what_else_differs():
    line = difference(ranks(a=["1", "2"], b=["1", "1"], c=["3", "4"], d=["5", "6"]))
    assert line == "ranks differ in a: 1 on rank 0 (node-0), 2 on rank 1 (node-0), and in 2 more, such as c"


def test_sixteen_ranks_are_a_table_of_two_rows():
    reports = ranks(**{"version torch": ["2.13.0"] * 16, "version deepspeed": ["not installed"] * 16})
    lines = describe(reports).splitlines()
    assert lines[0].startswith("preflight   16 processes: code ")
    assert lines[1] == "versions    torch 2.13.0"
    assert [line.split() for line in lines[3:]] == [
        ["ranks", "host", "device", "memory", "network", "free", "disk"],
        ["0-7", "node-0", *["NVIDIA", "H100", "80GB", "HBM3"], "85.0", "GB", "eth0", "1,231.5", "GB"],
        ["8-15", "node-1", *["NVIDIA", "H100", "80GB", "HBM3"], "85.0", "GB", "eth0", "99.0", "GB"],
    ]
    assert [row["ranks"] for row in hardware_table(reports)] == ["0-7", "8-15"]


def test_hashes_are_those_of_the_files(tiny_recipe, data_folder, start_folders):
    recipe = tiny_recipe("1")
    expected = {str(data_folder / name): sha256(data_folder / name) for name in ("captions.yaml", "captions.json")}
    assert data_hashes(recipe) == expected
    start = start_hashes(recipe)
    assert start[f"{start_folders}/siglip/model.safetensors"] == sha256(start_folders / "siglip/model.safetensors")
    assert {Path(name).name for name in start} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_code_is_every_source_file():
    found = code_hashes()
    listed = subprocess.check_output(["find", "llava", "-name", "*.py", "-o", "-name", "*.yaml"], text=True).split()
    assert set(found) == set(listed)
    assert len(found) > 50
    assert found["llava/cli.py"] == sha256(Path("llava/cli.py"))


def test_each_thing_that_must_agree_changes_its_field(tiny_recipe, data_folder, tmp_path):
    """Recipe, data, DeepSpeed file: a change of one is found, and called by its name."""
    shutil.copytree(data_folder, tmp_path / "data")
    config = tmp_path / "zero.json"
    shutil.copy("scripts/train/deepspeed/zero2.json", config)
    keys = {"data.mixture": f"{tmp_path}/data/captions.yaml", "run.deepspeed": str(config)}
    first = report(tiny_recipe("1", **keys))
    assert first["fault"] is None
    changed = report(tiny_recipe("1", **keys, **{"run.seed": 7}))
    assert "ranks differ in recipe run.seed: 42 on rank" in difference([first, changed])
    (tmp_path / "data/captions.json").write_text("[]")
    assert f"ranks differ in data {tmp_path}/data/captions.json: " in difference(
        [first, report(tiny_recipe("1", **keys))]
    )
    config.write_text("{}")
    assert f"ranks differ in recipe {config}: " in difference([first, report(tiny_recipe("1", **keys))])
    json.dumps(first)


def test_one_process_tells_what_it_sees(tiny_recipe, capsys):
    recipe = tiny_recipe("1")
    (own,) = preflight(recipe)
    printed = capsys.readouterr().out
    assert "preflight   1 processes: code " in printed
    row = next(line for line in printed.splitlines() if line.startswith("0 "))
    assert socket.gethostname() in row
    assert own["network"] is None
    assert own["free_disk_gb"] == pytest.approx(shutil.disk_usage("/tmp").free / 1e9, abs=1)


def test_a_file_that_cannot_be_read_is_a_fault(tiny_recipe, tmp_path):
    (tmp_path / "m.yaml").write_text("datasets: [{json_path: gone.json, sampling_strategy: all}]")
    with pytest.raises(LlavaError, match=r"No such file.*gone\.json"):
        preflight(tiny_recipe("1", **{"data.mixture": f"{tmp_path}/m.yaml"}))


def test_more_processes_than_gpus(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_RANK", "4")
    monkeypatch.setattr(hardware_module.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hardware_module.torch.cuda, "device_count", lambda: 4)
    with pytest.raises(LlavaError, match=r"process 4 of .* has no GPU: 4 are visible there"):
        hardware(str(tmp_path))


def test_one_process_on_several_gpus(monkeypatch, tmp_path):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(hardware_module.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hardware_module.torch.cuda, "device_count", lambda: 8)
    with pytest.raises(LlavaError, match=r"^8 GPUs are visible to one process: .*NPROC_PER_NODE=8.*CUDA_VISIBLE"):
        hardware(str(tmp_path))


def test_the_interface_that_reaches_an_address():
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("no.such.host.invalid") is None


@pytest.mark.parametrize(("local", "told", "expected"), [("1", None, "lo"), ("2", None, None), ("1", "eth7", "eth7")])
def test_gloo_is_told_the_interface_when_there_are_several_hosts(monkeypatch, local, told, expected):
    environment = {"LOCAL_WORLD_SIZE": local, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if told:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", told)
    choose_network()
    assert os.environ.get("GLOO_SOCKET_IFNAME") == expected


RANK = """
import json, sys
from torch import distributed
from llava import cli
from llava.train import stage

def run_stage(recipe):
    stage.preflight(recipe)
    distributed.init_process_group("gloo")  # at the same address and port
    distributed.barrier()
    print("met")
    distributed.destroy_process_group()

stage.run_stage = run_stage
sys.exit(cli.main(["train", *json.loads(sys.argv[1])]))
"""


@pytest.fixture
def started_by_hand(forked_python):
    """A function: keys of each rank and how many ranks there should be to the ends of those that were started."""
    return partial(_started_by_hand, forked_python.command)


def _started_by_hand(python: Path, keys: list[dict], world_size: int) -> list[tuple[int, str]]:
    """(status, output) of ranks that find each other by RANK, WORLD_SIZE and MASTER_PORT alone, as under DeepSpeed."""
    port, processes = str(free_port()), []
    for number, own in enumerate(keys):
        facts = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, "MASTER_PORT": port, **{name: str(value) for name, value in facts.items()}}
        words = [word for key, value in own.items() for word in (f"--{key}", "none" if value is None else str(value))]
        command = [python, "-c", RANK, json.dumps(["--recipe", RECIPE, "--arm", "grid_manager", *words])]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        processes.append(subprocess.Popen(command, **streams, text=True, env=environment))
    try:
        return [(process.wait(timeout=120), process.stdout.read()) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.stdout.close()


def told(output: str) -> list[str]:
    """Lines that are not libraries' remarks."""
    return [line for line in output.splitlines() if line.startswith(("error: ", "Traceback", "met", "preflight "))]


def test_ranks_without_torchrun(started_by_hand, tiny_keys):
    keys = tiny_keys("1")
    (first, output), (second, silent) = started_by_hand([keys] * 2, 2)
    assert (first, second, told(silent)) == (0, 0, ["met"])
    assert told(output)[0].startswith("preflight   2 processes: ")
    assert [line.split()[0] for line in output.splitlines() if line[:1].isdigit()] == ["0-1"]


def test_ranks_without_torchrun_that_differ(started_by_hand, tiny_keys):
    keys = tiny_keys("1", **{"optim.global_batch_size": 6})
    ends = started_by_hand([keys, keys, keys | {"data.max_length": 99}], 3)
    host = socket.gethostname()
    line = f"error: ranks differ in recipe data.max_length: 512 on ranks 0-1 ({host}), 99 on rank 2 ({host})"
    assert [(status, told(output)) for status, output in ends] == [(2, [line]), (2, []), (2, [])]


def test_a_mistake_that_one_rank_finds_before_is_told_to_all(started_by_hand, tiny_keys):
    keys = tiny_keys("1")
    ends = started_by_hand([keys, keys | {"data.image_folder": "gone"}], 2)
    line = f"error: rank 1 on {socket.gethostname()}: data.image_folder gone is not a folder"
    assert [(status, told(output)) for status, output in ends] == [(2, [line]), (2, [])]


def test_a_mistake_of_all_ranks_names_none(started_by_hand, tiny_keys):
    keys = tiny_keys("1", **{"data.image_folder": "gone"})
    ends = started_by_hand([keys] * 2, 2)
    assert [told(output) for _, output in ends] == [["error: data.image_folder gone is not a folder"], []]


def test_a_rank_that_never_comes_is_waited_for_in_vain(started_by_hand, tiny_keys):
    keys = tiny_keys("1", **{"run.startup_timeout": 6, "optim.global_batch_size": 6})
    ends = started_by_hand([keys] * 2, 3)
    assert [status for status, _ in ends] == [2, 2]
    (line,) = told(ends[0][1])
    assert line.startswith("error: rank 0 on ")
    assert " in 6 s: " in line
