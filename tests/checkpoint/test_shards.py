"""Streaming weights in and out, against transformers' and torch's own files."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.checkpoint.shards import INDEX, read_tensors, tensor_shapes, weight_files, write_shards
from llava.convert.output import new_folder
from llava.errors import LlavaError


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    kinds = [torch.float32, torch.bfloat16, torch.float16, torch.int64]
    return {f"layer.{i}.weight": torch.randn(4, 3 + i, generator=generator).to(kinds[i % 4]) for i in range(8)}


def assert_same(found, expected):
    found = dict(found)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def write_reference(folder, weights, kind):
    """The same weights in each layout that a checkpoint can have, without the code under test."""
    names = sorted(weights)
    halves = [{name: weights[name] for name in names[:3]}, {name: weights[name] for name in names[3:]}]
    suffix, save = (".safetensors", save_file) if kind.startswith("safetensors") else (".bin", torch.save)
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    if kind.endswith("single"):
        save(weights, folder / f"{stem}{suffix}")
        return
    for number, half in enumerate(halves, start=1):
        save(half, folder / f"{stem}-{number}-of-2{suffix}")
    weight_map = {name: f"{stem}-{n}-of-2{suffix}" for n, half in enumerate(halves, start=1) for name in half}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("kind", ["safetensors_single", "safetensors_sharded", "bin_single", "bin_sharded"])
def test_every_layout_is_read(tmp_path, weights, kind):
    write_reference(tmp_path, weights, kind)
    assert_same(read_tensors(tmp_path), weights)
    assert tensor_shapes(tmp_path) == {name: tuple(tensor.shape) for name, tensor in weights.items()}
    files = weight_files(tmp_path)
    assert len(files) == (1 if kind.endswith("single") else 2)
    if len(files) == 1:
        assert_same(read_tensors(files[0]), weights)  # a file given by itself, as mm_projector.bin is


def test_a_bin_file_from_before_zip_archives(tmp_path, weights):
    torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_same(read_tensors(tmp_path), weights)


@pytest.mark.parametrize("limit", [10**9, 100, 1])
def test_shards_are_what_transformers_expects(tmp_path, weights, limit):
    index = write_shards(tmp_path, weights.items(), max_shard_bytes=limit)
    files = sorted(tmp_path.glob("*.safetensors"))
    parts = {file.name: load_file(file) for file in files}
    assert_same({name: part[name] for part in parts.values() for name in part}, weights)
    assert index["weight_map"] == {name: file for file, part in sorted(parts.items()) for name in part}
    assert index["metadata"] == {
        "total_parameters": sum(t.numel() for t in weights.values()),
        "total_size": sum(t.nbytes for t in weights.values()),
    }
    if limit == 10**9:
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    else:
        assert json.loads((tmp_path / INDEX).read_text()) == index
        assert {path.name for path in tmp_path.iterdir()} == {*parts, INDEX}
        assert all(sum(t.nbytes for t in part.values()) <= limit or len(part) == 1 for part in parts.values())
        assert len(parts) == {1: len(weights)}.get(limit, len(parts)) > 1
    assert_same(read_tensors(tmp_path), weights)


def test_one_tensor_at_a_time_is_read_and_one_shard_is_held(tmp_path, weights):
    """The writer asks for the next tensor only when the shards before it are on disk."""

    def source():
        for position, item in enumerate(weights.items()):
            written = list(tmp_path.glob("part-*"))
            assert len(written) == max(position - 1, 0)  # limit 1: each tensor is flushed when the next one comes
            yield item

    write_shards(tmp_path, source(), max_shard_bytes=1)


def test_tied_tensors_of_a_bin_file_are_written_in_full(tmp_path):
    shared = torch.arange(12.0).reshape(3, 4)
    torch.save({"head": shared, "embed": shared, "row": shared[1]}, tmp_path / "pytorch_model.bin")
    (tmp_path / "out").mkdir()
    write_shards(tmp_path / "out", read_tensors(tmp_path))
    assert_same(load_file(tmp_path / "out/model.safetensors"), {"head": shared, "embed": shared, "row": shared[1]})


def test_damaged_checkpoints_are_named(tmp_path, weights):
    def refuse(message, change):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        change(folder)
        with pytest.raises(LlavaError, match=message):
            list(read_tensors(folder))

    def index(folder, weight_map):
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    def cut_off(folder):
        save_file(weights, folder / "model.safetensors")
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[:-5])

    def bad_bin(folder, content):
        torch.save(content, folder / "pytorch_model.bin")

    def two_of_a_name(folder):
        for file in "ab":
            save_file({"x": torch.zeros(1)}, folder / f"{file}.safetensors")
        index(folder, {"x": "a.safetensors", "y": "b.safetensors"})

    def one_too_few(folder):
        for name in "ab":
            save_file({name: torch.zeros(1)}, folder / f"{name}.safetensors")
        index(folder, {"a": "a.safetensors", "b": "b.safetensors", "c": "b.safetensors"})

    refuse("no weights, found none of model.safetensors", lambda folder: None)
    refuse(
        "2 of 2 files do not exist, first a.safetensors", lambda folder: index(folder, {"a": "a.safetensors", "b": "b"})
    )
    refuse("not a file of the same folder", lambda folder: index(folder, {"a": "../a.safetensors"}))
    refuse("not readable as an index", lambda folder: (folder / INDEX).write_text("{}"))
    refuse("model.safetensors: not readable as weights", cut_off)
    refuse("holds more than named tensors", lambda folder: bad_bin(folder, {"x": 1}))
    refuse("not readable as weights", lambda folder: (folder / "pytorch_model.bin").write_bytes(b"no pickle"))
    refuse("b.safetensors: holds x, which a.safetensors holds too", two_of_a_name)
    refuse("names 1 tensors that no file holds, first c", one_too_few)
    with pytest.raises(LlavaError, match="no such file or folder"):
        list(read_tensors(tmp_path / "nowhere"))


def test_code_in_a_bin_file_is_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    torch.save({"x": Harmful()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(LlavaError, match="not readable as weights"):
        list(read_tensors(tmp_path))
    assert not (tmp_path / "made").exists()


def test_nothing_and_twice_are_refused(tmp_path):
    with pytest.raises(LlavaError, match="no tensors to write"):
        write_shards(tmp_path, [])
    for limit in (1, 10**9):
        with pytest.raises(LlavaError, match="the tensor a comes twice"):
            write_shards(tmp_path, [("a", torch.zeros(1)), ("b", torch.zeros(1)), ("a", torch.zeros(1))], limit)


def test_the_folder_is_there_when_complete(tmp_path):
    out = tmp_path / "out"
    with new_folder(out) as working:
        (working / "file").write_text("whole")
        assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "file").read_text() == "whole"
    with pytest.raises(LlavaError, match="out exists and is not an empty folder"), new_folder(out):
        pass
    assert (out / "file").read_text() == "whole"


def test_a_failure_leaves_nothing_behind(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LlavaError, match="comes twice"), new_folder(tmp_path / "empty") as working:
        write_shards(working, [("a", torch.zeros(1)), ("b", torch.zeros(1)), ("a", torch.zeros(1))], max_shard_bytes=1)
    assert list((tmp_path / "empty").iterdir()) == []
    with new_folder(tmp_path / "empty") as working:  # an empty folder may be given
        (working / "file").write_text("whole")
    assert [path.name for path in tmp_path.rglob("*")] == ["empty", "file"]
    (tmp_path / "a file").write_text("")
    with pytest.raises(LlavaError, match="a file exists"), new_folder(tmp_path / "a file"):
        pass
    with pytest.raises(LlavaError, match="could not be written"), new_folder(tmp_path / "a file" / "below"):
        pass
