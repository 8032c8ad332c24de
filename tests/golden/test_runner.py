"""The runner itself: what it does with folders that are not as they should be."""

import json
import shutil
import subprocess
from functools import partial

import pytest

from llava.errors import LlavaError
from tests.golden.two_tower_case import ModelCase, is_two_tower, list_cases
from tests.paths import GOLDEN_DIR, ROOT, TWO_TOWER_GOLDEN_DIR


@pytest.fixture
def folder(tmp_path):
    """A golden folder with a single case, a1_base_square_list."""
    for name in ("weights", "pixels.safetensors"):
        (tmp_path / name).symlink_to(GOLDEN_DIR / name)
    (tmp_path / "cases").mkdir()
    for suffix in ("json", "safetensors"):
        shutil.copy(GOLDEN_DIR / "cases" / f"a1_base_square_list.{suffix}", tmp_path / "cases")
    return tmp_path


@pytest.fixture
def run_cases(forked_python):
    """A function: a folder to the status and output of its cases' run."""
    return partial(_run_cases, forked_python.command)


def _run_cases(python, folder, files=("tests/golden/test_cases.py",)) -> tuple[int, str]:
    command = [python, "-m", "pytest", "-q", *files, "--golden-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_a_folder_elsewhere_is_run_and_counted(run_cases, folder):
    status, output = run_cases(folder)
    assert status == 0, output
    assert "family a:  1 cases ran" in output
    assert "1 of 1 cases ran" in output


def test_an_unknown_family_and_an_unreadable_case_fail(run_cases, folder):
    case = folder / "cases" / "a1_base_square_list.json"
    (folder / "cases" / "z_new.json").write_text(case.read_text().replace('"family":"a"', '"family":"z"'))
    (folder / "cases" / "broken.json").write_text("{")
    status, output = run_cases(folder)
    assert status == 1
    assert "z_new: unknown family 'z'" in output
    assert "broken: unknown family 'unreadable'" in output
    assert "1 of 3 cases ran" in output


def test_a_case_without_tensors_fails(run_cases, folder):
    (folder / "cases" / "a1_base_square_list.safetensors").unlink()
    status, output = run_cases(folder)
    assert status == 1
    assert "0 of 1 cases ran" in output


def test_an_empty_folder_fails(run_cases, tmp_path):
    status, output = run_cases(tmp_path)
    assert status == 1
    assert "no cases in" in output


def test_a_part_of_two_tower_data_is_run_and_counted(run_cases, tmp_path):
    described = json.loads((TWO_TOWER_GOLDEN_DIR / "managers.json").read_text())
    described["cases"] = {name: described["cases"][name] for name in ("link_tower", "saum_scalar_layer2")}
    (tmp_path / "managers.json").write_text(json.dumps(described))
    (tmp_path / "managers.safetensors").symlink_to(TWO_TOWER_GOLDEN_DIR / "managers.safetensors")
    status, output = run_cases(tmp_path, files=("tests/golden/test_cases.py", "tests/golden/test_two_tower.py"))
    assert status == 0, output
    assert "family managers:  2 cases ran" in output
    assert "2 of 2 cases ran" in output


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        ("config", "manager_learnable", False, "manager_learnable False is not supported, only True"),
        ("config", "image_size", 64, "image_size is 64, but its weights or this model have 32"),
        ("config", "mlp_ratio", 4, "cross.intermediate is 96, but its weights or this model have 192"),
        ("cross", "act", "relu", "cross.act is 'relu', but its weights or this model have 'gelu'"),
        ("image_tower", "mlp", 64, "image_tower.mlp is 64, but its weights or this model have 512"),
        ("text_tower", "position_embedding_type", "relative_key", "is 'relative_key', but"),
    ],
)
def test_a_setting_that_is_not_the_models_is_refused(place, key, value, message):
    case = ModelCase(TWO_TOWER_GOLDEN_DIR, "A", "mt_aaue_vector")
    (case.spec["config"] if place == "config" else case.models[place])[key] = value
    with pytest.raises((ValueError, LlavaError), match=message):
        case.config("vqav2")


def test_settings_that_no_weight_tells_are_taken():
    case = ModelCase(TWO_TOWER_GOLDEN_DIR, "A", "mt_aaue_vector")
    case.models["image_tower"] |= {"heads": 4, "act": "gelu", "eps": 1e-3}
    case.models["cross"] |= {"layer_norm_eps": 1e-3}
    config = case.config("vqav2")
    tower = config.vision_config
    assert (tower.num_attention_heads, tower.hidden_act, tower.layer_norm_eps) == (4, "gelu", 1e-3)
    assert config.layer_norm_eps == 1e-3


def test_models_of_any_family_are_listed(tmp_path):
    (tmp_path / "models_C.json").write_text('{"models": {"mt_new": {}}}')
    assert is_two_tower(tmp_path)
    assert list_cases(tmp_path)["models"] == ["C/mt_new"]
