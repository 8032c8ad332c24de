"""The command: what it refuses, in one line and with nothing left behind, and what it costs to run."""

import json
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.cli import main
from tests.convert.conftest import released_state


def test_help_imports_neither_torch_nor_transformers():
    script = (
        "import sys; from llava.cli import main\n"
        "for argv in (['convert', '--help'], ['convert', 'import', '--help']):\n"
        "    try: main(argv)\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--vision_tower" in done.stdout


def test_a_missing_key(make_released, tower_config, refused):
    state = released_state("base")
    del state["model.norm.weight"], state["model.image_newline"]
    source = make_released(state=state, mm_patch_merge_type="spatial_unpad")
    error = refused(source, "--vision_tower", tower_config)
    assert "2 missing (model.image_newline.weight, ...)" in error


def test_an_unexpected_key(make_released, tower_config, refused):
    state = released_state("base") | {"model.mm_projector.4.weight": torch.ones(2)}
    error = refused(make_released(state=state), "--vision_tower", tower_config)
    assert "1 unexpected (model.mm_projector.4.weight)" in error


def test_managers_that_the_config_does_not_know(make_released, tower_config, refused):
    source = make_released("base", state=released_state("static_zerouni"))
    assert "5 unexpected (model.manager" in refused(source, "--vision_tower", tower_config)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.norm.weight", (31,), "model.norm.weight: found (31,), expected (32,)"),
        ("model.manager.0.layer_scores", (1, 3, 1, 32), "layer_scores: found (3, 32), expected (2, 32)"),
        ("model.manager.0.layer_scores", (2, 2, 1, 32), "layer_scores: found (2, 2, 1, 32), expected (2, 32)"),
    ],
)
def test_a_wrong_shape_names_both(name, shape, message, make_released, tower_config, refused):
    state = released_state("static_zerouni") | {name: torch.ones(shape)}
    error = refused(make_released("static_zerouni", state=state), "--vision_tower", tower_config)
    assert f"1 of another shape ({name}: " in error
    assert message in error


def test_two_names_of_one_parameter(make_released, tower_config, refused):
    folder = make_released(layout="safetensors_sharded")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    doubled = folder / index["weight_map"]["model.norm.weight"]
    other = next(name for name in sorted(set(index["weight_map"].values())) if name != doubled.name)
    save_file(load_file(folder / other) | {"model.norm.weight": torch.ones(32)}, folder / other)
    assert "holds model.norm.weight, which model-0000" in refused(folder, "--vision_tower", tower_config)


def test_a_head_that_differs_although_tied(make_released, tower_config, refused):
    state = released_state("base")
    state["lm_head.weight"] = state["model.embed_tokens.weight"] * 1.001
    error = refused(make_released(state=state), "--vision_tower", tower_config)
    assert "tie_word_embeddings is true, but lm_head.weight differs from model.embed_tokens.weight" in error


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_a_truncated_file(layout, make_released, tower_config, refused):
    folder = make_released(layout=layout)
    file = next(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    file.write_bytes(file.read_bytes()[:-1000])
    assert f"{file.name}: not readable as weights" in refused(folder, "--vision_tower", tower_config)


def test_a_shard_that_is_not_there(make_released, tower_config, refused):
    folder = make_released(layout="safetensors_sharded")
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "1 of 3 files do not exist, first model-00002-of-00003" in refused(folder, "--vision_tower", tower_config)


def test_an_index_that_promises_too_much(make_released, tower_config, refused):
    folder = make_released(layout="bin_sharded")
    index = folder / "pytorch_model.bin.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.extra"] = content["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(content))
    assert "names 1 tensors that no file holds, first model.extra" in refused(folder, "--vision_tower", tower_config)


class Exploit:
    def __reduce__(self):
        return print, ("code ran",)


def test_a_pickle_with_code_is_not_run(make_released, tower_config, refused, capsys):
    folder = make_released(layout="bin")
    torch.save(released_state("base") | {"model.norm.weight": Exploit()}, folder / "pytorch_model.bin")
    error = refused(folder, "--vision_tower", tower_config)
    assert "pytorch_model.bin: not readable as weights: it holds more than tensors and might run code" in error
    assert "code ran" not in error + capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds more than named tensors"),
        ({"a": 1}, "holds more than named tensors"),
    ],
)
def test_a_bin_file_of_something_else(content, message, make_released, tower_config, refused):
    folder = make_released(layout="bin")
    torch.save(content, folder / "pytorch_model.bin")
    assert message in refused(folder, "--vision_tower", tower_config)


def test_quantised_weights(make_released, tower_config, refused):
    state = released_state("base")
    state["model.layers.0.mlp.up_proj.weight"] = torch.ones(64, 32, dtype=torch.int8)
    error = refused(make_released(state=state), "--vision_tower", tower_config)
    assert "model.layers.0.mlp.up_proj.weight is torch.int8; quantised weights cannot be converted" in error


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_out_that_exists(kind, make_released, tower_config, tmp_path, refused):
    out = tmp_path / "taken"
    if kind == "folder":
        out.mkdir()
        out = out / "kept.txt"
    out.write_text("keep me")
    assert "exists and is not an empty folder" in refused(make_released(), "--vision_tower", tower_config, out="taken")
    assert out.read_text() == "keep me"


def test_an_empty_out_is_filled(make_released, tower_config, tmp_path, convert):
    (tmp_path / "empty").mkdir()
    folder, _ = convert(make_released(), "--vision_tower", tower_config, out="empty")
    assert (folder / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "released", "tiny-siglip"]


def test_a_failure_while_writing_leaves_nothing(make_released, tower_config, tmp_path, refused, monkeypatch):
    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("llava.convert.write.write_shards", full_disk)
    assert "could not be written: No space left on device" in refused(make_released(), "--vision_tower", tower_config)


@pytest.mark.parametrize("out", ["converted/", "new/deeper/converted"])
def test_ways_to_write_out(out, make_released, tower_config, tmp_path):
    assert (
        main(
            [
                "convert",
                "import",
                str(make_released()),
                "--vision_tower",
                str(tower_config),
                "--out",
                f"{tmp_path}/{out}",
            ]
        )
        == 0
    )
    assert (tmp_path / out / "config.json").is_file()
    assert not list(tmp_path.rglob("*.converting"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "llava_llama"},
            "unknown model_type 'llava_llama'; known: llava_qwen, llava_qwen_manager, llava",
        ),
        ({"model_type": "llava_ov_manager"}, "is a checkpoint of this model already and needs no conversion"),
        ({"model_type": "qwen2"}, "is a qwen2 model alone; give both parts"),
        ({"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}, "of architecture LlavaLlamaForCausalLM"),
        ({"mm_projector_type": "linear"}, "mm_projector_type 'linear' is not supported, only 'mlp2x_gelu'"),
        ({"mm_resampler_type": "qformer"}, "mm_resampler_type 'qformer' is not supported, only none"),
        ({"mm_manager_type": "static_zerouni", "mm_manager_residual": False}, "mm_manager_residual false is not"),
        ({"mm_manager_type": "dynamic"}, "unknown mm_manager_type 'dynamic'"),
        ({"image_aspect_ratio": "highres"}, "unknown image_aspect_ratio 'highres'"),
    ],
)
def test_configurations_that_are_not_understood(fields, message, make_released, tower_config, refused):
    assert message in refused(make_released(**fields), "--vision_tower", tower_config)


def test_an_index_without_its_map(make_released, tower_config, refused):
    folder = make_released(layout="safetensors_sharded")
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "model.safetensors.index.json: not readable as an index of weights" in refused(
        folder, "--vision_tower", tower_config
    )


def test_a_config_of_wrong_values(make_released, tower_config, refused):
    error = refused(make_released(hidden_size="wide"), "--vision_tower", tower_config)
    assert "config.json: no Qwen2Config" in error


def test_a_config_without_sizes(make_released, tower_config, refused):
    folder = make_released()
    config = json.loads((folder / "config.json").read_text())
    del config["hidden_size"], config["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config))
    assert "config.json: has no vocab_size, hidden_size" in refused(folder, "--vision_tower", tower_config)


def test_a_tower_of_unknown_sizes(make_released, refused):
    error = refused(make_released())
    assert "the sizes of its mm_vision_tower 'tiny-siglip' are not known" in error
    assert "--vision_tower DIR" in error


def test_a_tower_of_wrong_sizes(make_released, refused):
    error = refused(make_released(mm_vision_tower="google/siglip-so400m-patch14-384"))
    assert "mm_projector.0.weight: found (32, 32), expected (32, 1152)" in error


def test_folders_that_hold_no_checkpoint(make_released, tmp_path, refused):
    (tmp_path / "nothing").mkdir()
    assert "it has neither config.json nor mm_projector.bin" in refused(tmp_path / "nothing")
    assert "no such file or folder" in refused(tmp_path / "absent")
    assert "both --vision_tower DIR and --language_model DIR are needed" in refused()
    assert "nothing: not a model folder (no config.json)" in refused("--vision_tower", tmp_path / "nothing")
    folder = make_released()
    assert "holds a model of type 'llava_qwen'; expected qwen2" in refused("--language_model", folder)
    (folder / "config.json").write_text("{")
    assert "config.json: not readable as JSON" in refused(folder)


def test_a_source_with_a_broken_tokenizer(make_released, tower_config, refused):
    folder = make_released()
    (folder / "tokenizer.json").write_text("{")
    assert f"{folder}: its tokenizer cannot be loaded" in refused(folder, "--vision_tower", tower_config)


def test_a_source_without_tokenizer(make_released, tower_config, tmp_path, refused, convert):
    folder = make_released()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
        (folder / name).unlink()
    assert "no tokenizer (tokenizer.json or vocab.json)" in refused(folder, "--vision_tower", tower_config)
    convert(folder, "--vision_tower", tower_config, "--tokenizer", tmp_path)


def test_a_source_without_weights(make_released, tower_config, refused):
    folder = make_released()
    (folder / "model.safetensors").unlink()
    assert "no weights, found none of model.safetensors" in refused(folder, "--vision_tower", tower_config)


def test_a_hub_id_offline_is_one_clear_line(refused):
    error = refused("lmms-lab/llava-onevision-qwen2-0.5b-ov")
    assert "SOURCE lmms-lab/llava-onevision-qwen2-0.5b-ov: no local folder, and not to be had from the hub" in error


@pytest.fixture
def hub(make_released, tmp_path, monkeypatch):
    """A repository of two folders, one of .bin weights, as the hub would hand it out; which patterns were asked for."""
    repository, asked = tmp_path / "repository", []
    released = make_released()
    for name in ("Baseline", "Baseline+Grid"):
        shutil.copytree(released, repository / name)
    weights = load_file(repository / "Baseline+Grid" / "model.safetensors")
    torch.save(weights, repository / "Baseline+Grid" / "pytorch_model.bin")
    (repository / "Baseline+Grid" / "model.safetensors").unlink()

    def snapshot_download(name, allow_patterns, ignore_patterns=()):
        assert name == "owner/several"
        local = tmp_path / "cache"
        asked.append((allow_patterns, list(ignore_patterns)))
        for file in filter(Path.is_file, repository.rglob("*")):
            path = str(file.relative_to(repository))
            wanted = any(fnmatch(path, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch(path, pattern) for pattern in ignore_patterns):
                (local / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, local / path)
        return str(local)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("name", "weights"), [("Baseline", "model.safetensors"), ("Baseline+Grid", "pytorch_model.bin")]
)
def test_one_of_several_checkpoints_in_a_hub_repository(name, weights, hub, tower_config, convert):
    folder, _ = convert(f"owner/several/{name}", "--vision_tower", tower_config)
    assert (folder / "model.safetensors").is_file()
    fetched = [path for path in hub.rglob("*") if path.suffix in (".safetensors", ".bin")]
    assert fetched == [hub / name / weights]


def test_a_hub_repository_of_several_checkpoints_names_them(hub, tower_config, capsys, tmp_path):
    assert main(["convert", "import", "owner/several", "--out", str(tmp_path / "out")]) == 2
    assert "name one of the folders in it: Baseline, Baseline+Grid" in capsys.readouterr().err
    assert not list(hub.rglob("*.safetensors"))


def test_sizes_of_shards(capsys):
    from llava.convert.importer import parse_size

    assert [parse_size(text) for text in ("5GB", "200 mb", "1KB", "17")] == [5 * 10**9, 2 * 10**8, 1000, 17]
    assert main(["convert", "import", "x", "--out", "y", "--max_shard_size", "5 apples"]) == 2
    assert capsys.readouterr().err.startswith("error: --max_shard_size: '5 apples' is no size such as 5GB")
