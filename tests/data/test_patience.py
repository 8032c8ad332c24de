"""A read that fails for a reason that may pass is tried again; samples that fail or are not wanted train nothing."""

import errno
import json
import os

import pytest

from llava import files
from llava.data import images, index, indexing, video
from llava.data.dataset import SupervisedDataset
from llava.data.indexing import index_file
from llava.data.schema import parse_sample
from llava.data.workers import Workers
from llava.errors import DataError

PASSING = [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR]


@pytest.fixture
def dataset(make_processor, make_image, make_clip, tmp_path):
    make_image(100, 70).save(tmp_path / "a.png")
    make_clip(24, fps=8)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A car."}]
    records = [
        {"id": "image", "image": "a.png"},
        {"id": "video", "video": "clip.mp4"},
        {"id": "gone", "image": "b.png"},
    ]
    samples = [parse_sample(record | {"conversations": turns}, "d.json row 1") for record in records]
    return lambda **options: SupervisedDataset(samples, make_processor(), image_folder=tmp_path, **options)


@pytest.fixture
def fail(monkeypatch):
    """A function: module, function, number, times. Its first calls fail so often. Returns the pauses that were made."""

    def fail(module, name: str, number: int, times: int) -> list[float]:
        real, pauses, left = getattr(module, name), [], [times]

        def failing(*args):
            left[0] -= 1
            if left[0] >= 0:
                raise OSError(number, os.strerror(number))
            return real(*args)

        monkeypatch.setattr(module, name, failing)
        monkeypatch.setattr(files.time, "sleep", pauses.append)
        return pauses

    return fail


@pytest.mark.parametrize("number", PASSING, ids=errno.errorcode.get)
@pytest.mark.parametrize(("sample", "module"), [(0, images), (1, video)])
def test_a_visual_is_read_again(dataset, fail, number, sample, module):
    expected = dataset()[sample]["input_ids"]
    pauses = fail(module, "check_readable", number, times=3)
    assert dataset()[sample]["input_ids"] == expected
    assert pauses == [1, 5, 15]
    pauses = fail(module, "check_readable", number, times=4)
    with pytest.raises(DataError, match=f"cannot be read: {os.strerror(number)}$"):
        dataset()[sample]
    assert pauses == [1, 5, 15]


def test_what_will_not_pass_is_not_tried_again(dataset, fail):
    pauses = fail(images, "check_readable", errno.EACCES, times=1)
    for index_of, message in ((0, "Permission denied"), (2, "does not exist")):
        with pytest.raises(DataError, match=message):
            dataset()[index_of]
    assert pauses == []


def test_an_error_within_a_video_is_told_by_the_systems_words():
    assert (
        video._kind(RuntimeError("[10:00:00] video_reader.cc:151: a.mp4: Stale file handle")) is images.PassingReadError
    )
    assert video._kind(RuntimeError("[10:00:00] video_reader.cc:151: moov atom not found")) is DataError


def test_a_data_file_is_read_again_from_a_new_handle(tmp_path, fail, monkeypatch):
    monkeypatch.setattr(indexing, "SMALL", 0)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A car."}]
    (tmp_path / "a.json").write_text(json.dumps([{"id": "one", "conversations": turns}]))
    records, opened = index_file(tmp_path / "a.json", Workers(1)), []
    real = os.open
    monkeypatch.setattr(index.os, "open", lambda *args: opened.append(args) or real(*args))
    pauses = fail(index.os, "pread", errno.ESTALE, times=2)
    assert records.sample(0).id == "one"
    assert (pauses, len(opened)) == ([1, 5], 3)


def test_samples_named_or_faulty_train_nothing(dataset, fail):
    pauses = fail(images, "check_readable", errno.ESTALE, times=99)
    item = dataset(skip_ids=["image"])[0]
    assert (item["labels"], item["num_images"], pauses) == ([-100], 0, [])
    assert (item["sample"].skipped, item["sample"].id) == (True, "image")
    origin = dataset(notes_faults=True)[2]["sample"]
    assert (origin.skipped, origin.id) == (False, "gone")
    assert "sample 'gone' (d.json row 1): " in origin.fault
    assert dataset(notes_faults=True, on_bad_sample="skip")[2]["sample"].skipped
