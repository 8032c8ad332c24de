"""Where a stage trains, or is to go on, nothing is converted to."""

import pytest

from llava.convert.output import new_folder
from llava.errors import LlavaError
from llava.train.folders.interim import checkpoints_folder
from llava.train.folders.stage_folder import working_folder


@pytest.mark.parametrize("place", [working_folder, checkpoints_folder])
def test_a_stage_keeps_its_folders(tmp_path, place):
    log = place(f"{tmp_path}/out") / "runs/log"
    log.parent.mkdir(parents=True)
    log.touch()
    with pytest.raises(LlavaError, match=r"/out\.\w+ is there: a stage trains, .*; choose another --out"):  # noqa: SIM117
        with new_folder(tmp_path / "out"):
            pass
    assert log.exists()
    with new_folder(tmp_path / "other") as folder:
        (folder / "config.json").touch()
        assert folder.name == "other.converting"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", log.parents[1].name]
