"""The index of data files, compared with the plain loop over records that it stands for."""

import errno
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from llava.cli import main
from llava.data import content, indexing, ragged, record_store, sample_sizes, visuals
from llava.data import index as index_module
from llava.data import inspect_store as inspecting
from llava.data.dataset import BYTES_PER_TOKEN, SupervisedDataset
from llava.data.image_folder import ImageFolder
from llava.data.indexing import INDEX_FOLDER, data_file_hash, index_file
from llava.data.inspect import Fault, Inspection, inspect_samples
from llava.data.inspect_store import inspect_store
from llava.data.json_rows import iter_records
from llava.data.mixture import choose_rows, load_mixture, mixture_entries
from llava.data.record_store import RecordStore
from llava.data.schema import sample_of
from llava.data.workers import Workers
from llava.errors import DataError, LlavaError
from llava.train.recipe.load import load_recipe

TEXTS = ["What?", 'é\U0001f600\u2028 "quoted" \\ { [', "word " * 300, " ", "<image>\nWhat?", "a <image> b", "<video>"]
STRATEGIES = ["all", "first:7", "end:5", "end:0", "random:9", "random:33.3%", "first:12.5%", "end:50%"]


def make_records(count: int) -> list:
    """Records of every kind, sound and not, drawn by their numbers."""
    draw = np.random.default_rng(0)
    records = []
    for number in range(count):
        images, videos = (
            [["0.png"], ["0.png", "1.png"], [], ["gone.png"], "1.png", "cut.png"],
            ["clip.mp4", None, "no.mp4"],
        )
        image = images[draw.choice(6, p=[0.4, 0.1, 0.2, 0.1, 0.1, 0.1])]
        video = videos[draw.choice(3, p=[0.2, 0.7, 0.1])]
        shown = "<image>" * (len(image) if isinstance(image, list) else 1) + "<video>" * bool(video)
        first = shown + "\nWhat is it?" if draw.random() < 0.8 else str(draw.choice(TEXTS))
        turns = [{"from": "human", "value": first}]
        for turn in range(draw.integers(0, 4)):
            role = ("gpt", "human")[turn % 2] if draw.random() < 0.9 else str(draw.choice(["system", "tool", "gpt"]))
            turns.append({"from": role, "value": str(draw.choice(TEXTS[:4], p=[0.5, 0.2, 0.2, 0.1]))})
        record = {"id": f"id-{number // 2}", "image": image, "video": video, "conversations": turns}
        if draw.random() < 0.2:
            del record["id"]
        records.append(record if draw.random() < 0.95 else [{}, [], "text", {"id": "\ud83d"}][number % 4])
    return records


def write(file: Path, records: list, encoding: str = "utf-8", end: str = "\n") -> None:
    if file.suffix == ".jsonl":
        text = "".join(
            json.dumps(record, ensure_ascii=number % 2 == 0) + "\n\n" for number, record in enumerate(records)
        )
    else:
        text = json.dumps(records, indent=1)
    file.write_bytes(text.replace("\n", end).encode(encoding, "backslashreplace"))


def scan_blocks(monkeypatch, rows: int) -> None:
    """Passes over all samples know so many of them at a time."""
    for module in (inspecting, ragged, record_store, sample_sizes):
        monkeypatch.setattr(module, "SCAN", rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_image):
    """A folder with a mixture of files in every form, and their images."""
    folder = tmp_path_factory.mktemp("index")
    make_image(100, 70).save(folder / "0.png")
    make_image(60, 130).save(folder / "1.png")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:-300])
    records = make_records(240)
    forms = {
        "plain.json": ("utf-8", "\n"),
        "lines.jsonl": ("utf-8", "\n"),
        "marked.json": ("utf-8-sig", "\r\n"),
        "marked.jsonl": ("utf-8-sig", "\r\n"),
        "wide.json": ("utf-16", "\r\n"),
        "wide.jsonl": ("utf-32", "\n"),
        "mac.jsonl": ("utf-8", "\r"),
        "last.json": ("utf-8", "\n"),
    }
    entries = []
    for number, ((name, form), strategy) in enumerate(zip(forms.items(), STRATEGIES, strict=True)):
        write(folder / name, records[30 * number : 30 * (number + 1)], *form)
        entries.append({"json_path": name, "sampling_strategy": strategy})
    entries.append({"json_path": "plain.json", "sampling_strategy": "random:50%"})
    (folder / "mixture.yaml").write_text(json.dumps({"datasets": entries}))
    return folder


def plain_samples(mixture: Path, seed: int) -> list:
    """Every record of every file, as objects."""
    samples = []
    for file, strategy, *_ in mixture_entries(mixture):
        records = list(iter_records(file))
        taken = choose_rows(len(records), strategy, f"{seed}/{file.name}", str(mixture))
        samples += [sample_of(records[row], f"{file} row {row + 1}") for row in taken]
    return samples


def plain_sizes(dataset: SupervisedDataset, samples: list, inspection: Inspection) -> np.ndarray:
    rows = []
    for sample, sizes, videos in zip(samples, inspection.image_sizes, inspection.videos):
        layouts = dataset._layouts(sizes, [len(video.times) for video in videos])
        text = sum(len(turn.text.encode()) for turn in sample.turns) // BYTES_PER_TOKEN
        answers = sum(len(turn.text.encode()) for turn in sample.turns if turn.role == "gpt") // BYTES_PER_TOKEN
        crops = sum(layout.num_crops for layout in layouts)
        visual = [layout.num_tokens for layout in layouts]
        asking = sum(len(turn.text.encode()) for turn in sample.turns if turn.role != "gpt")
        asking -= len("<image>") * (len(sample.images) + len(sample.videos))
        question = max(asking, 0) // max((len(sample.turns) + 1) // 2, 1) // BYTES_PER_TOKEN
        question = 0 if dataset.encoding["template"] == "plain" else question
        pairs = sum(tokens * tokens for tokens in visual)
        rows.append((crops, sum(visual) + text, answers, sum(visual), pairs, len(visual), question))
    return np.array(rows).T


def plain_over_long(dataset: SupervisedDataset, samples: list, inspection: Inspection) -> tuple[list, list]:
    faults, notes = [], []
    for sample, sizes, videos in zip(samples, inspection.image_sizes, inspection.videos):
        found = dataset.too_long(sample, sizes, videos)
        if found is not None:
            (faults if isinstance(found, Fault) else notes).append(f"{sample}: {found.message}")
    return faults, notes


@pytest.fixture
def keep_all(monkeypatch):
    """Small files are indexed as large ones are; a test need not survive a loss of power."""
    monkeypatch.setattr(indexing, "SMALL", 0)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def workers(request, monkeypatch):
    """Where the index is: in memory, kept, or kept and made by processes."""
    if request.param != "memory":
        request.getfixturevalue("keep_all")
    if request.param == "processes":
        for module in (index_module, indexing):
            monkeypatch.setattr(module, "BLOCK", 25)
    return Workers(2 if request.param == "processes" else 1)


@pytest.mark.parametrize(("workers", "seed"), [("memory", 0), ("kept", 1), ("processes", 2)], indirect=["workers"])
def test_a_mixture_is_what_the_plain_loop_reads(data, tmp_path, workers, seed):
    folder = shutil.copytree(data, tmp_path / "data")
    with workers:
        indexing.index_files([entry.file for entry in mixture_entries(folder / "mixture.yaml")], workers)
    store = load_mixture(folder / "mixture.yaml", seed).samples
    samples = plain_samples(folder / "mixture.yaml", seed)
    assert isinstance(store, RecordStore)
    assert list(store) == samples
    assert store == samples
    assert store != samples[1:]
    assert store[3:9] == samples[3:9]
    assert [store[number] for number in (0, -1, len(samples) - 1)] == [samples[0], samples[-1], samples[-1]]
    ids = [block.decode() for part in store.parts for block in part.index.ids(part.rows)]
    assert "\n".join(ids) == "\n".join(sample.id for sample in samples)
    assert list(pickle.loads(pickle.dumps(store))) == samples
    with pytest.raises(IndexError):
        store[len(samples)]
    kept = list(folder.glob(f"{INDEX_FOLDER}/*/*"))
    assert len(kept) == (0 if indexing.SMALL else 8)


@pytest.mark.parametrize(
    ("workers", "template", "time_instruction"),
    [
        ("memory", "qwen_1_5", False),
        ("kept", "qwen_1_5", True),
        ("kept", "plain", False),
        ("processes", "qwen_1_5", False),
    ],
    indirect=["workers"],
)
def test_an_inspection_is_what_the_plain_loop_finds(
    data, tmp_path, monkeypatch, workers, make_clip, make_processor, template, time_instruction
):
    scan_blocks(monkeypatch, 7)
    monkeypatch.setattr(visuals, "BLOCK", 13)
    folder = shutil.copytree(data, tmp_path / "data")
    shutil.copy(make_clip(24, fps=8), folder / "clip.mp4")
    samples = plain_samples(folder / "mixture.yaml", 0)
    expected = inspect_samples(samples, folder, template=template)
    assert len(expected.faults) > 20
    assert template == "plain" or len(expected.notes) > 3
    for _ in range(2):  # the second finds what the first kept
        store = load_mixture(folder / "mixture.yaml", 0).samples
        found = inspect_store(store, folder, template=template, workers=workers)
        assert found.faults == expected.faults
        assert found.notes == expected.notes
        assert list(found.image_sizes) == expected.image_sizes
        assert list(found.videos) == expected.videos
        assert found.told() == expected.told()
    for max_length, on_over_long in ((16384, "error"), (150, "error"), (60, "truncate")):
        options = {"max_length": max_length, "on_over_long": on_over_long, "time_instruction": time_instruction}
        plain = SupervisedDataset(samples, make_processor(), image_folder=folder, template=template, **options)
        dataset = SupervisedDataset(store, make_processor(), image_folder=folder, template=template, **options)
        assert np.array_equal(
            np.array(list(vars(dataset.sizes(found)).values())), plain_sizes(plain, samples, expected)
        )
        assert dataset.over_long(found) == plain_over_long(plain, samples, expected) == plain.over_long(expected)
        assert dataset.is_multimodal.tolist() == [bool(sample.images or sample.videos) for sample in samples]


def turns(question: str = "<image>\nWhat?") -> list:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": "A car."}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '[{"a": 1},\n{"b": ]'),
        ("a.json", '[{"a": 1}]\n]'),
        ("a.json", '[{"a": 1},\n{"a": 2},\n ]'),
        ("a.json", '[{"a": 1},\n{"b": {"c": 1,\n"c": 2}}]'),
        ("a.json", f'[{{"a": 1}},\n{"[" * 100_000}'),
        ("a.json", f'[{{"a": {"1" * 5000}}}]'),
        ("a.json", '{"a": 1}\n{"a": 2}'),
        ("a.json", '{"a": 1}'),
        ("a.json", "nothing"),
        ("a.json", '[{"a": "\x80"}]'),
        ("a.jsonl", '{"a": 1}\r\r{"a": }'),
        ("a.jsonl", '{"a": 1}\n{"b": 1, "b": 3}'),
        ("a.jsonl", '{"a": 1} {"a": 2}'),
        ("a.jsonl", "\n[1]"),
        ("a.jsonl", "\x80"),
        ("a.jsonl", f'{{"a": 1}}\n{"[" * 100_000}'),
    ],
)
@pytest.mark.parametrize("kept", [False, True])
def test_a_fault_of_a_file_is_told_as_the_plain_loop_tells_it(tmp_path, monkeypatch, name, text, kept):
    monkeypatch.setattr(indexing, "SMALL", 0 if kept else 1 << 20)
    file = tmp_path / name
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError) as expected:
        list(iter_records(file))
    with pytest.raises(DataError) as raised:
        index_file(file, Workers(1))
    assert str(raised.value) == str(expected.value)
    assert not list(tmp_path.rglob("*.unfinished"))


@pytest.mark.parametrize("name", ["gone.json", "folder.json", "a\0.json"])
def test_a_file_that_cannot_be_opened(tmp_path, name):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match=r"data file .* cannot be read: "):
        index_file(tmp_path / name, Workers(1))


@pytest.mark.parametrize("text", ["", "[]", "\n"])
def test_an_empty_file(tmp_path, keep_all, text):
    file = tmp_path / f"a.json{'l' * (text == chr(10))}"
    file.write_text(text)
    for _ in range(2):
        assert len(index_file(file, Workers(1))) == 0


def test_an_index_is_made_once_and_anew_for_another_file(tmp_path, keep_all, monkeypatch):
    file = tmp_path / "a.json"
    write(file, [{"id": str(number), "conversations": turns("What?")} for number in range(9)])
    first = index_file(file, Workers(1))
    (one,) = (tmp_path / INDEX_FOLDER / "a.json").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(indexing, "facts_of", None)
        assert index_file(file, Workers(1)).sample(8) == first.sample(8)
    file.write_text(file.read_text().replace('"8"', '"9"'))  # of the same size
    os.utime(file, ns=(0, 12345))
    assert index_file(file, Workers(1)).sample(8).id == "9"
    (other,) = (tmp_path / INDEX_FOLDER / "a.json").iterdir()
    assert other != one
    with pytest.raises(DataError, match=r"a\.json has changed since it was opened"):
        first.sample(0)


def test_an_indexed_file_is_not_read_for_its_hash(tmp_path, keep_all, monkeypatch):
    """Every rank of every start asks for it; the first start asks before it makes the index, which takes its answer."""
    file = tmp_path / "a.json"
    for changed, question in enumerate(("What?", "When?"), start=1):
        write(file, [{"id": "a", "conversations": turns(question)}])
        os.utime(file, ns=(0, changed))
        expected = hashlib.sha256(file.read_bytes()).hexdigest()
        assert data_file_hash(file) == expected
        with monkeypatch.context() as patched:
            patched.setattr(indexing, "file_hash", None)
            index_file(file, Workers(1))
            patched.setattr(indexing, "_HASHES", {})
            assert data_file_hash(file) == expected
        (kept,) = (tmp_path / INDEX_FOLDER).glob("*/*/sha256")
        assert kept.read_text() == expected


@pytest.mark.parametrize("name", ["rows", "ids", "paths", "path_ends", "sizes.json"])
@pytest.mark.parametrize("kept", [None, 0, 1 / 3])
def test_an_index_of_which_a_part_is_missing_is_made_again(tmp_path, keep_all, name, kept):
    """Rows that are cut off behind a record would be a smaller data set, without a word."""
    record = {"image": "0.png", "conversations": turns()}
    write(tmp_path / "a.json", [record | {"id": f"{number}"} for number in range(9)])
    samples = list(load_mixture(tmp_path / "a.json", 0).samples)
    (folder,) = (tmp_path / INDEX_FOLDER / "a.json").iterdir()
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / name).unlink()
    if kept is not None:
        (folder / name).write_bytes(whole[name][: int(len(whole[name]) * kept)])
    index_module.map_index.cache_clear()
    assert list(load_mixture(tmp_path / "a.json", 0).samples) == samples
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


@pytest.fixture
def cut_off(tmp_path, keep_all) -> Path:
    """The index of a.json, of which a third of the rows is left."""
    write(tmp_path / "a.json", [{"id": f"{number}", "conversations": turns()} for number in range(9)])
    load_mixture(tmp_path / "a.json", 0)
    (folder,) = (tmp_path / INDEX_FOLDER / "a.json").iterdir()
    os.truncate(folder / "rows", (folder / "rows").stat().st_size // 3)
    index_module.map_index.cache_clear()
    return folder


def test_an_index_that_is_cut_off_and_cannot_be_moved_is_refused(tmp_path, cut_off, monkeypatch):
    rename = Path.rename

    def refusing(path: Path, target: Path) -> Path:
        if path == cut_off:
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(LlavaError, match=f"the index {cut_off} lacks a part, or one is cut off"):
        load_mixture(tmp_path / "a.json", 0)


def test_an_index_that_another_process_has_made_again_meanwhile_stays(tmp_path, cut_off, monkeypatch):
    make = indexing._make

    def made_twice(files: dict, workers: Workers) -> dict:
        make(files, workers)
        made.append(cut_off.stat().st_ino)
        return make(files, workers)

    made: list[int] = []
    monkeypatch.setattr(indexing, "_make", made_twice)
    assert len(load_mixture(tmp_path / "a.json", 0).samples) == 9
    assert [cut_off.stat().st_ino] == made
    assert not list(cut_off.parent.glob(f"*{indexing.UNFINISHED}"))


def test_pages_of_a_mapped_array_are_given_back(tmp_path):
    np.arange(1 << 18).tofile(tmp_path / "array")
    mapped = index_module.map_array(tmp_path / "array", np.dtype(np.int64))

    def resident() -> str:
        _, mapping = Path("/proc/self/smaps").read_text().split(str(tmp_path / "array"))
        return mapping.partition("Rss:")[2].split()[0]

    total = mapped.sum()
    assert resident() != "0"
    index_module.give_back(mapped)
    assert resident() == "0"
    assert mapped.sum() == total == (1 << 17) * ((1 << 18) - 1)


def test_an_index_stands_in_the_cache_where_the_data_cannot_be_written(tmp_path, keep_all, monkeypatch):
    folder, cache = tmp_path / "data", tmp_path / "cache"
    folder.mkdir()
    write(folder / "a.json", [{"id": "a", "image": "0.png", "conversations": turns()}])
    (folder / INDEX_FOLDER).touch()  # root may write into a folder that is closed
    monkeypatch.setenv("LLAVA_INDEX_CACHE", str(cache))
    store = load_mixture(folder / "a.json", 0).samples
    assert store[0].id == "a"
    assert len(list(cache.rglob("rows"))) == 1
    assert sorted(path.name for path in folder.iterdir()) == [INDEX_FOLDER, "a.json"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLAVA_INDEX_CACHE", str(tmp_path / "file"))
    with pytest.raises(LlavaError, match=r"cannot be written \(.*; .*\); name a folder in LLAVA_INDEX_CACHE"):
        index_file(folder / "a.json", Workers(1))


def test_what_becomes_of_an_image_is_noticed_and_only_that_one_is_opened(tmp_path, keep_all, make_image, monkeypatch):
    for number in range(4):
        make_image(100 + number, 70).save(tmp_path / f"{number}.png")
    rows = [{"id": str(number), "image": f"{number}.png", "conversations": turns()} for number in range(5)]
    write(tmp_path / "a.json", rows)
    opened = []
    image_size = visuals.image_size
    monkeypatch.setattr(visuals, "image_size", lambda path: opened.append(Path(path).name) or image_size(path))

    def inspect() -> Inspection:
        opened.clear()
        samples = load_mixture(tmp_path / "a.json", 0).samples
        found, expected = inspect_store(samples, tmp_path), inspect_samples(list(samples), tmp_path)
        assert (list(found.image_sizes), found.faults) == (expected.image_sizes, expected.faults)
        return found

    assert list(inspect().image_sizes) == [[(100, 70)], [(101, 70)], [(102, 70)], [(103, 70)], []]
    assert len(opened) == 5
    inspect()
    assert opened == ["4.png"]
    make_image(50, 50).save(tmp_path / "1.png")
    (tmp_path / "2.png").unlink()
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:-300])
    make_image(60, 60).save(tmp_path / "4.png")
    found = inspect()
    assert list(found.image_sizes) == [[], [(50, 50)], [], [(103, 70)], [(60, 60)]]
    assert opened == ["0.png", "1.png", "2.png", "4.png"]
    assert len(found.faults) == 2
    inspect()
    assert opened == ["0.png", "2.png"]


def test_an_image_that_samples_share_is_looked_at_once_in_a_start(tmp_path, keep_all, make_image, monkeypatch):
    make_image(100, 70).save(tmp_path / "shared.png")
    write(tmp_path / "a.json", [{"image": "shared.png", "conversations": turns()}] * 30)
    samples, looked = load_mixture(tmp_path / "a.json", 0).samples, []
    status = ImageFolder.status
    monkeypatch.setattr(ImageFolder, "status", lambda folder, path: looked.append(path) or status(folder, path))
    for expected in ([[(100, 70)]] * 30, [[(50, 50)]] * 30):
        looked.clear()
        assert list(inspect_store(samples, tmp_path).image_sizes) == expected
        assert looked == ["shared.png"]
        make_image(50, 50).save(tmp_path / "shared.png")


SLOW = """
import os, sys, time
from pathlib import Path
from llava.data import indexing, visuals
from llava.data.inspect_store import inspect_store
from llava.data.mixture import load_mixture
from llava.data.workers import Workers

indexing.SMALL = 0
place = sys.argv[2]

def slow(function):
    def call(*args):
        print("here", flush=True)
        time.sleep(60)
        return function(*args)
    return call

if place == "facts":
    indexing.facts_of = slow(indexing.facts_of)
elif place == "rename":
    indexing._place = slow(indexing._place)
elif place == "visuals":
    visuals._look = slow(visuals._look)
elif place == "keep":
    visuals.sync = slow(visuals.sync)
folder = Path(sys.argv[1])
inspect_store(load_mixture(folder / "a.json", 0).samples, folder, workers=Workers(1))
"""


@pytest.mark.parametrize("place", ["facts", "rename", "visuals", "keep"])
def test_a_kill_leaves_nothing_half_made(tmp_path, keep_all, make_image, place):
    make_image(100, 70).save(tmp_path / "0.png")
    rows = [{"id": str(number), "image": "0.png", "conversations": turns()} for number in range(9)]
    write(tmp_path / "a.json", rows)
    process = subprocess.Popen([sys.executable, "-c", SLOW, tmp_path, place], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert bool(list(tmp_path.rglob("*.unfinished"))) == (place != "visuals")
    samples = load_mixture(tmp_path / "a.json", 0).samples
    assert list(inspect_store(samples, tmp_path).image_sizes) == [[(100, 70)]] * 9
    (home,) = (tmp_path / INDEX_FOLDER / "a.json").iterdir()
    assert sorted(path.name.partition("-")[0] for path in home.iterdir()) == [
        "ids",
        "path_ends",
        "paths",
        "rows",
        "sha256",
        "sizes.json",
        "visuals",
    ]


def test_processes_end_with_the_one_that_started_them():
    script = """
import os, time
from llava.data.workers import Workers
with Workers(2) as workers:
    for number in workers.map(os.getpid, [()] * 4, alone=False):
        print(number, flush=True)
        time.sleep(0.1)
    print("all", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    numbers = set()
    while (line := process.stdout.readline()) != "all\n":
        numbers.add(int(line))
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(is_running(number) for number in numbers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert numbers


def test_what_a_process_raises_is_raised_and_one_that_dies_is_told(capfd):
    with Workers(2) as workers:
        with pytest.raises(ZeroDivisionError):
            list(workers.map(divmod, [(1, 1), (1, 0)], alone=False))
        assert list(workers.map(divmod, [(number, 3) for number in range(40)], alone=False))[39] == (13, 0)
        list(workers.map(print, [("word",)], alone=False))
        with pytest.raises(LlavaError, match="a process that reads data died"):
            list(workers.map(os._exit, [(1,)], alone=False))
    assert capfd.readouterr() == ("", "word\n")


def is_running(number: int) -> bool:
    try:
        return (
            "(python" in Path(f"/proc/{number}/stat").read_text()
            and ") Z " not in Path(f"/proc/{number}/stat").read_text()
        )
    except OSError:
        return False


@pytest.mark.parametrize(("workers", "inline"), [("memory", True), ("kept", False)], indirect=["workers"])
def test_the_content_s_hash_is_the_plain_loop_s(data, workers, inline, tmp_path, monkeypatch):
    folder = shutil.copytree(data, tmp_path / "data")
    if not inline:
        monkeypatch.setattr(content, "BLOCK", 10)
    store, costs = load_mixture(folder / "mixture.yaml", 0).samples, None
    samples = plain_samples(folder / "mixture.yaml", 0)
    for costs in (np.arange(len(samples)), np.arange(len(samples))[::-1] ** 5):
        digest = hashlib.sha256()
        for sample, cost in zip(samples, costs, strict=True):
            digest.update(repr((sample.id, sample.turns, sample.images, sample.videos, int(cost))).encode())
        assert content.content_digest(samples, costs) == digest.hexdigest()
        assert content.content_digest(store, costs) == digest.hexdigest()
        with monkeypatch.context() as patched:  # the second time it is known, where there is an index
            patched.setattr(content, "_content", lambda *_: b"")
            assert (content.content_digest(store, costs) == digest.hexdigest()) == (not inline)
    other = load_mixture(folder / "mixture.yaml", 1).samples
    assert content.content_digest(other, costs) != content.content_digest(store, costs)


def test_check_and_prepare_leave_an_index_that_a_start_uses(
    tmp_path, keep_all, make_image, make_clip, monkeypatch, capsys
):
    """Also of a file that names a video; `prepare` leaves that to the start, and needs no decoder."""
    source, out = tmp_path / "owner--set", tmp_path / "out"
    source.mkdir()
    make_image(100, 70).save(source / "0.png")
    shutil.copy(make_clip(24, fps=8), source / "clip.mp4")
    rows = [{"id": str(number), "image": "0.png", "conversations": turns()} for number in range(3)]
    rows.insert(1, {"id": "v", "video": "clip.mp4", "conversations": turns("<video>\nWhat?")})
    write(source / "rows.json", rows)
    assert main(["data", "check", str(source / "rows.json"), "--image_folder", str(source), "--workers", "1"]) == 0
    with monkeypatch.context() as patched:
        patched.setattr(visuals, "probe_video", None)
        assert main(["data", "prepare", str(source), "--out", str(out)]) == 0
    prepared = next(path for path in out.rglob("*.json") if ".prepare" not in path.parts)
    sampling = load_recipe("scripts/train/recipes/mllm/stage2.yaml", "grid_manager").data.video_sampling()
    monkeypatch.setattr(visuals, "image_size", None)
    monkeypatch.setattr(indexing, "facts_of", None)
    for file, folder in ((source / "rows.json", source), (prepared, out)):
        found = inspect_store(load_mixture(file, 0).samples, folder, sampling)
        assert (list(found.image_sizes), found.faults) == ([[(100, 70)], [], [(100, 70)], [(100, 70)]], [])
        assert found.frames_table().counts.tolist() == [0, 1, 0, 0]


def test_a_pass_over_all_samples_holds_few_bytes_of_each(tmp_path, keep_all, monkeypatch, make_image, make_processor):
    """A rank of a start with millions of samples: an array of 8 bytes of each that is not needed is 32 MB of 4 million.

    What is held in the end, and at most meanwhile, beside what is mapped; blocks are small, so that they do not count.
    """
    count = 6000
    scan_blocks(monkeypatch, 200)
    make_image(100, 70).save(tmp_path / "0.png")
    write(tmp_path / "a.json", [{"id": "a", "image": "0.png", "conversations": turns()}] * count)
    for is_traced in (False, True):  # the first makes the index and finds the image, and imports what is imported
        store = load_mixture(tmp_path / "a.json", 0).samples
        dataset = SupervisedDataset(store, make_processor(), image_folder=tmp_path)
        if is_traced:
            tracemalloc.start()
        inspection = inspect_store(store, tmp_path, workers=Workers(1))
        sizes = dataset.sizes(inspection)
        costs, shown = sizes.costs(lambda crops, tokens, *_, **__: crops * tokens), dataset.is_multimodal
        held, peak = (taken / count for taken in tracemalloc.get_traced_memory())
        tracemalloc.stop()
    assert (len(costs), shown.all()) == (count, True)
    print(f"{held:.1f} bytes of each are held, {peak:.1f} at most")
    assert 40 < held < 60
    assert peak < 80
