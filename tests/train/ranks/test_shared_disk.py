"""Hosts that do not share a disk are told before anything is loaded, unless no checkpoint is to be kept."""

import json
import os
import platform
from pathlib import Path

from llava.train.folders import interim
from llava.train.ranks.shared_disk import shared_disk_fault
from llava.train.recipe.running import RunRecipe
from tests.train.run_ranks import run_ranks

SECONDS = 60


def ask(folder: Path) -> None:
    """One rank on a "host" of its own, whose working folder is its disk."""
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    interim.STALE = 2
    own = folder / f"host-{os.environ['RANK']}"
    own.mkdir()
    os.chdir(own)
    runs = {
        "own": RunRecipe("stage/out"),
        "shared": RunRecipe(f"{folder}/new/out"),
        "without": RunRecipe("stage/out", save_steps=None, save_minutes=None),
        "behind a file": RunRecipe("/dev/null/folder/out"),
    }
    facts = {name: shared_disk_fault(run, SECONDS) for name, run in runs.items()}
    Path(folder, f"facts-{os.environ['RANK']}.json").write_text(json.dumps(facts))


def test_hosts_without_a_shared_disk_are_told_unless_no_checkpoint_is_kept(tmp_path):
    run_ranks(ask, tmp_path, processes=2, folder=tmp_path, timeout=120)
    facts = [json.loads((tmp_path / f"facts-{rank}.json").read_text()) for rank in range(2)]
    assert facts[0] == facts[1]
    own, behind = facts[0].pop("own"), facts[0].pop("behind a file")
    assert facts[0] == {"shared": None, "without": None}
    assert own.startswith(f"run.output_dir stage/out: {platform.node()} does not see what rank 0 writes there")
    assert own.endswith("--run.save_steps none --run.save_minutes none")
    assert "\n" not in own
    assert behind == "run.output_dir /dev/null/folder/out: /dev/null/folder cannot be written to: Not a directory"
    assert not list((tmp_path / "new").iterdir())
    assert not list((tmp_path / "host-0/stage").iterdir())
