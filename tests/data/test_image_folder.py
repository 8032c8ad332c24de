"""Which paths of a data file may lead out of the image folder: one rule for training, check and preview."""

import json
import os

import pytest

from llava.cli import main
from llava.data import indexing
from llava.data.dataset import SupervisedDataset
from llava.data.image_folder import ImageFolder
from llava.data.inspect import inspect_samples
from llava.data.inspect_store import inspect_store
from llava.data.mixture import load_mixture
from llava.data.workers import Workers
from llava.errors import DataError, OutsideError

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It."}]
# Each path, and the least that must be allowed for it.
PATHS = {
    "good.png": "refuse",
    "sub/../good.png": "refuse",
    "sub/inside.png": "refuse",
    "back/good.png": "refuse",
    "good..png": "refuse",
    "leak.png": "links",
    "away/secret.png": "links",
    "../secret.png": "any",
    "sub/../../secret.png": "any",
    "{tmp}/secret.png": "any",
    "{tmp}/images/good.png": "any",
}
RULES = ("refuse", "links", "any")


@pytest.fixture
def images(tmp_path, make_image):
    """An image folder in tmp_path, with links inside it and out of it."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for file in (folder / "good.png", folder / "good..png", tmp_path / "secret.png"):
        make_image(100, 70).save(file)
    (folder / "sub/inside.png").symlink_to(folder / "good.png")
    (folder / "back").symlink_to(folder)
    (folder / "leak.png").symlink_to(tmp_path / "secret.png")
    (folder / "away").symlink_to(tmp_path)
    return folder


def is_allowed(path: str, rule: str) -> bool:
    """Through links alone `..` is a way out, too, since what it means depends on where a link leads."""
    return RULES.index(PATHS[path]) <= RULES.index(rule) and not (rule == "links" and ".." in path.split("/"))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("path", PATHS)
def test_the_rule(tmp_path, images, path, rule):
    folder, name = ImageFolder(images, rule), path.format(tmp=tmp_path)
    if is_allowed(path, rule):
        assert folder.file(name) == images / name
        assert folder.status(name) == os.stat(images / name)
        return
    for ask in (folder.file, folder.status):
        with pytest.raises(OutsideError, match=r"is absolute|climbs out of|, outside the image folder") as error:
            ask(name)
        assert str(error.value).startswith(f"the path {name} ")
        assert str(error.value).endswith(" (see outside_paths)")


@pytest.mark.parametrize("way", ["away/../etc/passwd", "away/../../etc/passwd", "sub/../away/secret.png"])
def test_a_link_and_a_step_back(images, way):
    for rule in ("refuse", "links"):
        with pytest.raises(OutsideError):
            ImageFolder(images, rule).file(way)


def test_an_image_folder_that_is_a_link_or_relative(tmp_path, images, monkeypatch):
    (tmp_path / "link").symlink_to(images)
    monkeypatch.chdir(tmp_path)
    for folder in (ImageFolder.of(tmp_path / "link"), ImageFolder.of("images"), ImageFolder.of("./link/sub/..")):
        assert folder.status("good.png").st_size > 0
        with pytest.raises(OutsideError):
            folder.status("leak.png")


@pytest.mark.parametrize("kept", [False, True])
def test_training_check_and_preview_agree(tmp_path, images, tiny_model_dir, make_processor, monkeypatch, capsys, kept):
    """Also one after the other, when what was found under another rule is kept."""
    monkeypatch.setattr(indexing, "SMALL", 0 if kept else 1 << 18)
    paths = [path.format(tmp=tmp_path) for path in PATHS]
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"id": path, "image": path, "conversations": TURNS} for path in paths]))
    for rule in (*RULES, *reversed(RULES)):
        allowed = {path.format(tmp=tmp_path) for path in PATHS if is_allowed(path, rule)}
        folder, samples = ImageFolder(images, rule), load_mixture(file, 0).samples
        stored, plain = inspect_store(samples, folder, workers=Workers(1)), inspect_samples(list(samples), folder)
        assert stored.faults == plain.faults
        assert [list(map(tuple, sizes)) for sizes in stored.image_sizes] == plain.image_sizes
        assert [sizes == [(100, 70)] for sizes in plain.image_sizes] == [path in allowed for path in paths]
        dataset = SupervisedDataset(samples, make_processor(), image_folder=folder)
        for number, path in enumerate(paths):
            if path in allowed:
                assert dataset[number]["num_images"] == 1
            else:
                with pytest.raises(DataError, match=rf"^sample '{path}' .*: the path {path} "):
                    dataset[number]
        options = ["--image_folder", str(images), "--outside_paths", rule]
        assert main(["data", "check", str(file), *options, "--workers", "1"]) == (len(allowed) < len(paths))
        assert capsys.readouterr().err.count(" outside: the path ") == len(paths) - len(allowed)
        for number in (0, paths.index("leak.png"), paths.index("../secret.png")):
            command = ["data", "preview", "--model", str(tiny_model_dir), "--data", str(file), "--index", str(number)]
            assert main([*command, *options]) == (0 if paths[number] in allowed else 2)
            assert ("the path " in capsys.readouterr().err) == (paths[number] not in allowed)


def test_nothing_leads_out_by_default(images, make_processor, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"id": "0", "image": "../secret.png", "conversations": TURNS}]))
    samples = load_mixture(tmp_path / "a.json", 0).samples
    (fault,) = inspect_store(samples, images).faults
    assert "climbs out of the image folder" in fault
    with pytest.raises(DataError, match="climbs out of the image folder"):
        SupervisedDataset(samples, make_processor(), image_folder=images)[0]
