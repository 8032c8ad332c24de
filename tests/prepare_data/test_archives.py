"""Archives and parquet files that nobody vouches for: what is unpacked of them, and what is refused in a line."""

import io
import json
import os
import re
import shutil
import tarfile
import zipfile
from collections import namedtuple

import pytest

from llava.cli import main
from llava.constants import FILE_LIMITS
from llava.errors import DataError
from llava.files import whole_file
from llava.prepare_data.archives import left_archives
from llava.prepare_data.prepare import prepare
from tests.prepare_data.test_prepare import encode, read, turns, write_parquet

MEBIBYTE = 2**20
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def picture(make_image):
    return encode(make_image(80, 60))


def pack(file, members: dict[str, bytes]) -> None:
    """An archive, compressed as its name says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix.lower() == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return
    kind = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(file.suffix.lower(), "w")
    with tarfile.open(file, kind) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_records(source, *names: str, key: str = "image", file: str = "own.json") -> None:
    source.mkdir(exist_ok=True)
    rows = [{"image": name} if key == "image" else {key: name} for name in names]
    (source / file).write_text(json.dumps([row | {"conversations": turns(f"<{key}>")} for row in rows]))


@pytest.fixture(scope="module")
def bomb(tmp_path_factory) -> bytes:
    """400 MiB of zeros in a zip of 400 KB, and a picture that stays."""
    file = tmp_path_factory.mktemp("bomb") / "x.zip"
    compressed = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9)
    with compressed as archive, archive.open("a.png", "w") as member:
        for _ in range(400):
            member.write(bytes(MEBIBYTE))
    assert file.stat().st_size < 420_000
    return file.read_bytes()


def test_a_bomb_is_refused_in_a_line(tmp_path, bomb, picture, capsys):
    """Also by the same command again, which does not open the archive once more."""
    source, out = tmp_path / "own", tmp_path / "data"
    write_records(source, "a.png", "b.png")
    (source / "bomb.zip").write_bytes(bomb)
    pack(source / "good.zip", {"b.png": picture})
    line = f"{source}/bomb.zip holds a.png of 400.0 MiB; 64 MiB of one image are taken at most"
    for again in (False, True):
        assert main(["data", "prepare", str(source), "--out", str(out)]) == 0
        printed = capsys.readouterr()
        assert (f"refused: {line}" in printed.err) is not again
        assert "1 of 2 rows" in printed.out
        assert f"first {source}/own.json row 1: {line}" in printed.out
        assert [row["image"] for row in read(out / "own/own.json")] == ["own/images/b.png"]
        assert sum(path.stat().st_size for path in out.rglob("*")) < MEBIBYTE
        (out / "own/own.json").unlink()


@pytest.mark.parametrize(
    ("kind", "limit", "form"),
    [
        *(("image", 64, form) for form in ("zip", "tar.gz", "parquet")),
        *(("video", 1024, form) for form in ("zip", "tar.gz")),
    ],
)
def test_the_limits_of_one_file(tmp_path, picture, monkeypatch, capsys, kind, limit, form):
    assert FILE_LIMITS[kind] == limit * MEBIBYTE
    monkeypatch.setitem(FILE_LIMITS, kind, MEBIBYTE)
    most, more = picture + bytes(MEBIBYTE - len(picture)), picture + bytes(MEBIBYTE + 1 - len(picture))
    source, out = tmp_path / "own", tmp_path / "data"
    name = {"image": "png", "video": "mp4"}[kind]
    if form == "parquet":
        write_parquet(source / "own.parquet", [("0", most, turns("?")), ("1", more, turns("?"))])
    else:
        write_records(source, f"most.{name}", f"more.{name}", key=kind)
        pack(source / f"x.{form}", {f"most.{name}": most, f"more.{name}": more})
    (prepared,) = prepare(source, out)
    assert (prepared.tally.written, prepared.tally.dropped) == (1, {"refused_file": 1})
    where = f"own.parquet row 2 holds {kind}" if form == "parquet" else f"x.{form} holds more.{name}"
    assert capsys.readouterr().err.count(f"{where} of 1.0 MiB; 1 MiB of one {kind} are taken at most\n") == 1


@pytest.mark.parametrize("form", ["zip", "tar", "parquet"])
def test_what_does_not_fit_on_the_disk_is_not_begun(tmp_path, make_image, monkeypatch, form):
    """The sum of what is wanted, against what is free; a tar tells its sizes one by one."""
    source, out = tmp_path / "own", tmp_path / "data"
    members = {f"{number}.png": encode(make_image(100, 100, number)) for number in range(4)}
    size = sum(map(len, members.values()))
    if form == "parquet":
        write_parquet(source / "own.parquet", [(name, content, turns("?")) for name, content in members.items()])
    else:
        write_records(source, *members)
        pack(source / f"x.{form}", members | {"unwanted.png": bytes(10 * MEBIBYTE)})

    def usage(_):
        written = sum(path.stat().st_size for path in out.rglob("*.png"))
        return Usage(0, 0, size - 1 - written)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", usage)
        with pytest.raises(DataError, match=r"(x|own)\.\w+ has [\d.]+ KB unpacked, but [\d.]+ KB are free for /\S+$"):
            list(prepare(source, out))
    assert len(list(out.rglob("*.png"))) == (3 if form == "tar" else 0)
    (prepared,) = prepare(source, out)
    assert prepared.tally.written == 4


@pytest.mark.parametrize("form", ["tar.xz", "tar.bz2", "TAR", "TGZ", "ZIP", "Zip"])
def test_archives_of_every_name(tmp_path, picture, form):
    write_records(tmp_path / "own", "a.png", file="own.JSON")
    pack(tmp_path / f"own/x.{form}", {"a.png": picture})
    (prepared,) = prepare(tmp_path / "own", tmp_path / "data")
    assert (prepared.name, prepared.tally.written) == ("own", 1)


def test_a_parquet_file_in_capitals(tmp_path, picture):
    write_parquet(tmp_path / "own/A.PARQUET", [("a", picture, turns("?"))])
    (prepared,) = prepare(tmp_path / "own", tmp_path / "data")
    assert prepared.tally.written == 1


SPLIT = ("x.zip.001", "x.tar.gz.aa", "x.tar.gz.part-ab", "x.tar.part_00", "x.part1.rar", "x.z01", "x.tgz00")
OTHERS = ("x.rar", "x.7z", "x.tar.zst")


def test_archives_that_are_not_read_are_told(tmp_path, picture, capsys):
    source = tmp_path / "own"
    write_records(source, "a.png")
    pack(source / "a.zip", {"a.png": picture})
    for name in (*SPLIT, *OTHERS, "x.zip.md", "x.tar.txt", "x.zip.sha256", "b.tar.md5", "README.md", "x.json.gz"):
        (source / name).write_bytes(b"")
    told = sorted(left_archives(source))
    assert sorted(SPLIT + OTHERS) == [line.split(" is ")[0].removeprefix(f"{source}/") for line in told]
    assert main(["data", "prepare", str(source), "--out", str(tmp_path / "data")]) == 0
    printed = capsys.readouterr().out
    assert f"left: {source}/x.zip.001 is a part of a split archive; join the parts, in their order, to one" in printed
    assert f"left: {source}/x.tar.zst is an archive of a form that is not read" in printed


@pytest.mark.parametrize("form", ["zip", "tar"])
@pytest.mark.parametrize(
    ("names", "kept", "reason"),
    [
        (("a.png", "a.png/b.png"), "a.png", "holds a.png/b.png, but .*/images/a.png is a file, another member"),
        (("a.png/b.png", "a.png"), "a.png/b.png", "holds a.png, but .*/images/a.png is a folder, of other members"),
        (("a.png", "a.png/c/b.png"), "a.png", "holds a.png/c/b.png, but .*/images/a.png is a file, another member"),
    ],
)
def test_members_that_are_in_each_other_s_way(tmp_path, picture, form, names, kept, reason):
    write_records(tmp_path / "own", *names)
    pack(tmp_path / f"own/x.{form}", dict.fromkeys(names, picture))
    (prepared,) = prepare(tmp_path / "own", tmp_path / "data")
    assert [row["image"] for row in read(prepared.file)] == [f"own/images/{kept}"]
    assert prepared.tally.dropped == {"refused_file": 1}
    assert re.search(reason, prepared.tally.first["refused_file"])


@pytest.mark.parametrize("length", [246, 247, 251, 255])
def test_the_longest_names(tmp_path, picture, length):
    """Of a file, which is written under another name first, of the file of records, and of an archive in folders."""
    image, name, folder = "é" * 20 + "n" * (length - 44) + ".png", "r" * (length - 5), "f" * 200
    write_records(tmp_path / "own", image, file=f"{name}.json")
    pack(tmp_path / f"own/{folder}/{folder}/x.zip", {image: picture})
    (prepared,) = prepare(tmp_path / "own", tmp_path / "data")
    assert [row["image"] for row in read(prepared.file)] == [f"own/images/{image}"]
    assert (tmp_path / "data/own/images" / image).read_bytes() == picture
    write_parquet(tmp_path / f"sets/{folder}/{folder}/{folder}/a.parquet", [("a", picture, turns("?"))])
    (prepared,) = prepare(tmp_path / "sets", tmp_path / "data")
    assert os.path.isfile(tmp_path / "data" / read(prepared.file)[0]["image"])


def test_a_name_that_no_file_can_have(tmp_path, picture):
    write_records(tmp_path / "own", "n" * 256, "a.png")
    pack(tmp_path / "own/x.zip", {"n" * 256: picture, "a.png": picture})
    (prepared,) = prepare(tmp_path / "own", tmp_path / "data")
    assert (prepared.tally.written, prepared.tally.dropped) == (1, {"refused_file": 1})
    assert "a name of 256 bytes, which is too long for a file here" in prepared.tally.first["refused_file"]


def test_a_long_name_is_whole_or_not_there(tmp_path):
    path = tmp_path / ("n" * 255)
    with pytest.raises(TypeError), whole_file(path) as stream:
        stream.write(None)
    assert list(tmp_path.iterdir()) == []
    with whole_file(path) as stream:
        stream.write("whole")
    assert path.read_text() == "whole"


def test_a_zip_that_lies_about_a_size(tmp_path, picture):
    """Nothing of more than it tells is written."""
    write_records(tmp_path / "own", "a.png")
    pack(tmp_path / "own/x.zip", {"a.png": picture + bytes(MEBIBYTE)})
    content = (tmp_path / "own/x.zip").read_bytes()
    told, lie = ((len(picture) + extra).to_bytes(4, "little") for extra in (MEBIBYTE, 0))
    assert content.count(told) == 2
    (tmp_path / "own/x.zip").write_bytes(content.replace(told, lie))
    with pytest.raises(DataError, match=r"x.zip cannot be unpacked: Bad CRC-32 for file 'a.png'"):
        list(prepare(tmp_path / "own", tmp_path / "data"))
    assert not list((tmp_path / "data").rglob("*.png"))


def test_an_image_s_header_is_read_without_decoding(tmp_path, picture):
    """As of parquet: with --headers, too, what is no image is dropped."""
    write_records(tmp_path / "own", "a.png", "b.png")
    pack(tmp_path / "own/x.zip", {"a.png": bytes(1000), "b.png": picture})
    (prepared,) = prepare(tmp_path / "own", tmp_path / "data", decode=False)
    assert (prepared.tally.written, prepared.tally.dropped) == (1, {"unreadable_image": 1})
