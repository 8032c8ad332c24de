import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import zipfile

import pyarrow
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pyarrow import parquet

from llava.cli import main
from llava.data.images import image_size, open_image
from llava.data.mixture import mixture_entries
from llava.errors import DataError, LlavaError
from llava.prepare_data import prepare as prepare_module
from llava.prepare_data.prepare import prepare
from llava.prepare_data.rules import MATHV360K_MISSING, RECAP_PROMPT, RULES, rules_of
from tests.paths import ROOT

IMAGE_TYPE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
TURN_TYPE = pyarrow.list_(pyarrow.struct([("from", pyarrow.string()), ("value", pyarrow.string())]))


def turns(question: str, answer: str = "An answer.") -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_parquet(file, rows: list[tuple], image_type=IMAGE_TYPE) -> None:
    """A file with the hub's columns. rows: (id, image, conversations)."""
    ids, images, conversations = zip(*rows)
    if image_type is IMAGE_TYPE:
        images = [image and {"bytes": image, "path": None} for image in images]
    table = {
        "id": pyarrow.array(ids, pyarrow.string()),
        "image": pyarrow.array(images, image_type),
        "conversations": pyarrow.array(conversations, TURN_TYPE),
        "data_source": pyarrow.array(["source"] * len(rows), pyarrow.string()),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(table), file)


def read(file) -> list[dict]:
    return json.loads(file.read_text())


@pytest.fixture
def picture(make_image):
    return encode(make_image(80, 60))


@pytest.fixture
def onevision(tmp_path, make_image, picture):
    """A snapshot in the form of LLaVA-OneVision-Data: a folder of parquet files per set, as `hf download` leaves it."""
    source = tmp_path / "snapshots/LLaVA-OneVision-Data"
    large, small = encode(make_image(520, 500), "JPEG"), encode(make_image(499, 900), "JPEG")
    write_parquet(
        source / "raven(cauldron)/train-00000-of-00002.parquet",
        [("raven/0", large, turns("Which?")), ("raven/1", small, turns("Is it?")), ("x/../y", large, turns("And?"))],
    )
    write_parquet(source / "raven(cauldron)/train-00001-of-00002.parquet", [("raven/0", large, turns("<image>Which?"))])
    write_parquet(
        source / "magpie_pro(l3_80b_st)/train-00000-of-00001.parquet",
        [("m1", None, turns("<image> in HTML?")), ("m2", None, turns("Hello."))],
        image_type=pyarrow.null(),
    )
    write_parquet(
        source / "mathqa/train-00000-of-00001.parquet",
        [("a", picture, turns("What?\n<image>")), ("b", b"no image", turns("What?")), ("c", None, [])],
    )
    hidden = source / ".cache/huggingface/download/mathqa"
    hidden.mkdir(parents=True)
    (hidden / "train.parquet").write_bytes(b"")
    (source / "README.md").write_text("card")
    return source


def test_parquet_sets_become_json_and_images(tmp_path, onevision, picture, capsys):
    out = tmp_path / "data"
    assert main(["data", "prepare", str(onevision), "--out", str(out)]) == 0
    folder = out / "LLaVA-OneVision-Data"
    assert sorted(path.name for path in folder.glob("*.json")) == [
        "magpie_pro(l3_80b_st).json",
        "mathqa.json",
        "raven(cauldron).json",
    ]
    (row,) = read(folder / "mathqa.json")
    assert row == {
        "id": "a",
        "image": "LLaVA-OneVision-Data/mathqa/train-00000-of-00001/000000.png",
        "conversations": turns("What?\n<image>"),
        "data_source": "source",
    }
    assert (out / row["image"]).read_bytes() == picture  # as it was, not encoded again
    ravens = read(folder / "raven(cauldron).json")
    assert [row["conversations"][0]["value"] for row in ravens] == ["<image>\nWhich?", "<image>\nAnd?", "<image>Which?"]
    assert len({row["image"] for row in ravens}) == 3  # ids that are not unique, or paths, name no file
    assert all(Image.open(out / row["image"]).size == (520, 500) for row in ravens)
    assert [row["conversations"][0]["value"] for row in read(folder / "magpie_pro(l3_80b_st).json")] == [
        "<image> in HTML?",
        "Hello.",
    ]
    assert all("image" not in row for row in read(folder / "magpie_pro(l3_80b_st).json"))
    printed = " ".join(capsys.readouterr().out.split())
    assert "raven(cauldron).json: 3 of 4 rows" in printed
    assert "0 changed 1 dropped raven_small:" in printed
    assert "2 changed 0 dropped image_placeholder:" in printed
    assert "mathqa.json: 1 of 3 rows" in printed
    assert "0 changed 1 dropped unreadable_image:" in printed
    assert "0 changed 1 dropped no_conversation:" in printed
    assert main(["data", "check", str(write_mixture(folder)), "--image_folder", str(out), "--decode"]) == 0
    words, duplicate = capsys.readouterr().err.splitlines()  # as it is on the hub, too
    assert "row 1 (id m1) words: turn 1 has <image>, but the sample has no image" in words
    assert "row 3 (id raven/0) duplicate_id" in duplicate


def write_mixture(folder):
    datasets = [{"json_path": path.name} for path in sorted(folder.glob("*.json"))]
    (folder / "mixture.yaml").write_text(json.dumps({"datasets": datasets}))
    return folder / "mixture.yaml"


@pytest.mark.parametrize("question", ["<image>", "<image>\n", f"<image>\n{RECAP_PROMPT}"])
def test_recaptioned_images_get_the_fixed_prompt(tmp_path, picture, question):
    source = tmp_path / "LLaVA-ReCap-118K"
    write_parquet(source / "data/train-00000-of-00001.parquet", [("000000000009", picture, turns(question))])
    (prepared,) = prepare(source, tmp_path / "data")
    assert prepared.file == tmp_path / "data/LLaVA-ReCap-118K/LLaVA-ReCap-118K.json"
    (row,) = read(prepared.file)
    assert row["conversations"][0]["value"] == f"<image>\n{RECAP_PROMPT}"
    assert prepared.tally.changed["recap_prompt"] == (RECAP_PROMPT not in question)


def test_the_hub_s_cache_tells_the_repository(tmp_path, picture):
    source = tmp_path / "datasets--lmms-lab--LLaVA-ReCap-558K/snapshots/0123abcd"
    blob = tmp_path / "datasets--lmms-lab--LLaVA-ReCap-558K/blobs/f00"
    write_parquet(blob, [("a", picture, turns("<image>"))])
    (source / "data").mkdir(parents=True)
    (source / "data/train-00000-of-00001.parquet").symlink_to(blob)
    (prepared,) = prepare(source, tmp_path / "data")
    assert prepared.file == tmp_path / "data/LLaVA-ReCap-558K/LLaVA-ReCap-558K.json"


@pytest.mark.parametrize("image_type", [pyarrow.binary(), pyarrow.string(), pyarrow.list_(IMAGE_TYPE)])
def test_other_forms_of_an_image_column(tmp_path, picture, image_type):
    source = tmp_path / "own"
    (source / "images").mkdir(parents=True)
    (source / "images/a.png").write_bytes(picture)
    given = {pyarrow.binary(): picture, pyarrow.string(): "images/a.png"}.get(image_type)
    rows = [("a", given or [{"bytes": picture, "path": "a.png"}] * 2, turns("What?"))]
    write_parquet(source / "train.parquet", rows, image_type)
    (prepared,) = prepare(source, tmp_path / "data")
    (row,) = read(prepared.file)
    paths = [row["image"]] if isinstance(row["image"], str) else row["image"]
    assert row["conversations"][0]["value"] == "<image>\n" * len(paths) + "What?"
    assert len(paths) == (1 if given else 2)
    assert all((tmp_path / "data" / path).read_bytes() == picture for path in paths)


def pack_tar(file, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "w:gz" if file.suffix == ".gz" else "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def pack_zip(file, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_json_with_tar_archives(tmp_path, picture, make_image):
    """LLaVA-OneVision-Mid-Data's form, with two sets that share their archives' folders."""
    source, other = tmp_path / "LLaVA-OneVision-Mid-Data", encode(make_image(50, 40))
    for name in ("synthdog_en", "ureader_tr", "evol_instruct"):
        (source / name).mkdir(parents=True)
    rows = [{"id": i, "image": f"docs/{i}.png", "conversations": turns("<image>\nRead.")} for i in range(3)]
    (source / "ureader_tr/ureader_tr_processed.json").write_text(json.dumps(rows))
    pack_tar(source / "ureader_tr/images_1.tar.gz", {"docs/0.png": picture, "./docs/1.png": other, "docs/9.png": other})
    pack_tar(source / "ureader_tr/images_2.tar", {"docs/2.png": picture})
    (source / "synthdog_en/synthdog_en_processed.jsonl").write_text(json.dumps(rows[0] | {"image": "dog/a/0.png"}))
    pack_zip(source / "synthdog_en/images.zip", {"images/dog/a/0.png": other})
    (source / "evol_instruct/evol_instruct_processed.json").write_text(json.dumps([{"conversations": turns("Hi.")}]))
    out = tmp_path / "data"
    prepared = list(prepare(source, out))
    assert [found.name for found in prepared] == ["evol_instruct", "synthdog_en", "ureader_tr"]
    images = {row["image"]: (out / row["image"]).read_bytes() for row in read(prepared[2].file)}
    prefix = "LLaVA-OneVision-Mid-Data/images"
    assert images == {f"{prefix}/docs/{i}.png": content for i, content in enumerate([picture, other, picture])}
    assert read(prepared[1].file)[0]["image"] == f"{prefix}/dog/a/0.png"
    assert (out / prefix / "dog/a/0.png").read_bytes() == other
    assert not (out / prefix / "docs/9.png").exists()  # no row names it
    assert read(prepared[0].file) == [{"conversations": turns("Hi.")}]


def test_json_with_a_zip_and_metadata_beside_it(tmp_path, picture, capsys):
    """LLaVA-Pretrain's form."""
    source = tmp_path / "LLaVA-Pretrain"
    source.mkdir()
    rows = [{"id": "004539375", "image": "00453/004539375.jpg", "conversations": turns("Describe.\n<image>")}]
    (source / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(rows))
    (source / "blip_laion_cc_sbu_558k_meta.json").write_text('[{"id": "004539375", "blip_caption": "a"}]')
    pack_zip(source / "images.zip", {"00453/": b"", "00453/004539375.jpg": picture})
    assert main(["data", "prepare", str(source), "--out", str(tmp_path / "data")]) == 0
    assert "558k_meta.json holds no conversations" in capsys.readouterr().out
    (row,) = read(tmp_path / "data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json")
    assert row["image"] == "LLaVA-Pretrain/images/00453/004539375.jpg"
    assert (tmp_path / "data" / row["image"]).read_bytes() == picture


def test_the_subsets_that_the_hub_lacks_come_from_mathv360k(tmp_path, picture):
    source = tmp_path / "MathV360K"
    source.mkdir()
    subsets = [*MATHV360K_MISSING, "FigureQA", "VQA2.0"]
    rows = [{"id": s, "image": f"{s}/images/1.png", "conversations": turns("<image>\nHint")} for s in subsets]
    (source / "train_samples_all_tuning.json").write_text(json.dumps(rows))
    pack_zip(source / "data_images.zip", {f"data_images/{s}/images/1.png": picture for s in subsets})
    prepared = list(prepare(source, tmp_path / "data"))
    assert [found.name for found in prepared] == sorted(f"{subset}(MathV360K)" for subset in MATHV360K_MISSING)
    for found in prepared:
        (row,) = read(found.file)
        assert found.name == f"{row['id']}(MathV360K)"
        assert (tmp_path / "data" / row["image"]).read_bytes() == picture
        assert found.tally.dropped == {"mathv360k_missing": 5}
    assert not (tmp_path / "data/MathV360K/images/FigureQA").exists()


def test_images_that_lie_unpacked(tmp_path, picture):
    source = tmp_path / "own"
    (source / "images/a").mkdir(parents=True)
    (source / "images/a/1.png").write_bytes(picture)
    (source / "own.jsonl").write_text(json.dumps({"image": ["a/1.png", "a/1.png"], "conversations": turns("Two?")}))
    (prepared,) = prepare(source, tmp_path / "data")
    (row,) = read(prepared.file)
    assert row["image"] == ["own/images/a/1.png"] * 2
    assert row["conversations"][0]["value"] == "<image>\n<image>\nTwo?"
    assert (tmp_path / "data/own/images/a/1.png").read_bytes() == picture


def test_a_missing_image_is_an_error_or_drops_its_row(tmp_path, picture):
    source, out = tmp_path / "own", tmp_path / "data"
    source.mkdir()
    rows = [{"image": f"{name}.png", "conversations": turns("<image>")} for name in ("here", "gone", "../../secret")]
    (source / "own.json").write_text(json.dumps(rows))
    (tmp_path / "secret.png").write_bytes(picture)
    pack_zip(source / "images.zip", {"here.png": picture, "../../secret.png": picture})
    with pytest.raises(DataError, match=r"files of 1 of 3 rows are in none .* first gone.png; .*--drop_missing"):
        list(prepare(source, out))
    assert not (out / "own/own.json").exists()
    (prepared,) = prepare(source, out, drop_missing=True)
    assert [row["image"] for row in read(prepared.file)] == ["own/images/here.png"]
    assert prepared.tally.dropped == {"missing_file": 1, "unsafe_path": 1}


def test_processes_prepare_what_one_prepares(tmp_path, onevision):
    for workers in (1, 2):
        list(prepare(onevision, tmp_path / f"by{workers}", workers=workers))
    files = {
        workers: {
            path.relative_to(tmp_path / f"by{workers}"): path.read_bytes()
            for path in sorted((tmp_path / f"by{workers}/LLaVA-OneVision-Data").rglob("*"))
            if path.is_file() and ".prepare" not in path.parts
        }
        for workers in (1, 2)
    }
    assert files[1] == files[2]
    assert len(files[1]) == 3 + 3 + 1


def test_a_complete_set_is_left_alone_and_a_changed_one_is_made_anew(tmp_path, onevision, picture):
    out = tmp_path / "data"
    first = {found.name: found for found in prepare(onevision, out, only=["mathqa"])}
    assert list(first) == ["mathqa"]
    assert not first["mathqa"].again
    written = first["mathqa"].file.stat()
    (second,) = prepare(onevision, out, only=["mathqa"])
    assert second.again
    assert second.tally == first["mathqa"].tally
    assert second.file.stat() == written
    write_parquet(onevision / "mathqa/train-00001-of-00002.parquet", [("d", picture, turns("What?"))])
    (third,) = prepare(onevision, out, only=["mathqa"])
    assert not third.again
    assert [row["id"] for row in read(third.file)] == ["a", "d"]


def test_a_file_of_someone_else_is_not_replaced(tmp_path, onevision):
    (tmp_path / "data/LLaVA-OneVision-Data").mkdir(parents=True)
    (tmp_path / "data/LLaVA-OneVision-Data/mathqa.json").write_text("[]")
    with pytest.raises(LlavaError, match=r"mathqa.json exists and was not written by this command"):
        list(prepare(onevision, tmp_path / "data"))


KILLED = """
import os, signal, sys
from llava.cli import main
from llava.prepare_data import rows
from llava.prepare_data import archives
from llava.prepare_data import snapshot
limit, written = int(sys.argv[1]), []
original = snapshot.write_whole
def write_and_die(target, content):
    if target.suffix in (".png", ".jpg"):
        if len(written) == limit:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.with_name(f".{target.name}.partial").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(target)
    original(target, content)
rows.write_whole = archives.write_whole = snapshot.write_whole = write_and_die
status = main(sys.argv[2:])
print(len(written))
sys.exit(status)
"""


@pytest.mark.parametrize("form", ["parquet", "tar"])
def test_a_killed_preparation_goes_on(tmp_path, picture, form):
    source, out = tmp_path / "own", tmp_path / "data"
    source.mkdir()
    for shard in range(4):
        names = [f"{shard}/{i}.png" for i in range(5)]
        if form == "parquet":
            write_parquet(source / f"data/{shard}.parquet", [(name, picture, turns("What?")) for name in names])
        else:
            pack_tar(source / f"{shard}.tar", dict.fromkeys(names, picture))
    rows = [
        {"id": f"{k}/{i}.png", "image": f"{k}/{i}.png", "conversations": turns("?")} for k in range(4) for i in range(5)
    ]
    if form == "tar":
        (source / "own.json").write_text(json.dumps(rows))

    def run(limit: int):
        command = [sys.executable, "-c", KILLED, str(limit), "data", "prepare", str(source), "--out", str(out)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run(12).returncode == -signal.SIGKILL  # in the third file
    assert not (out / "own/own.json").exists()
    assert run(5).returncode == -signal.SIGKILL
    done = run(100)
    assert done.returncode == 0, done.stderr
    # parquet: files are done again that were not finished. tar: only what does not exist is written.
    assert done.stdout.split()[-1] == ("5" if form == "parquet" else "3")
    prepared = read(out / "own/own.json")
    assert [row["id"] for row in prepared] == [row["id"] for row in rows]
    assert all((out / row["image"]).read_bytes() == picture for row in prepared)
    assert "own.json: 20 of 20 rows (was complete)" in run(0).stdout


def test_a_list_that_was_being_written_is_not_taken_for_a_whole_one(tmp_path, onevision, monkeypatch):
    out = tmp_path / "data"
    (whole,) = prepare(onevision, out, only=["mathqa"])
    content = whole.file.read_bytes()
    os.utime(onevision / "mathqa/train-00000-of-00001.parquet")

    replace = os.replace

    def full(source, target):
        if target == whole.file:
            raise OSError(28, "No space left on device", str(source))
        replace(source, target)

    monkeypatch.setattr(prepare_module.os, "replace", full)
    with pytest.raises(LlavaError, match="cannot be written: No space left on device"):
        list(prepare(onevision, out, only=["mathqa"]))
    monkeypatch.undo()
    assert whole.file.read_bytes() == content
    (again,) = prepare(onevision, out, only=["mathqa"])
    assert not again.again
    assert again.file.read_bytes() == content


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "is not a folder"),
        ({}, "holds no parquet, JSON or JSONL file with conversations"),
        ({"a/x.parquet": b"PAR1"}, "x.parquet is not a whole parquet file"),
        ({"a.json": b'[{"conversations": []}]', "b/a.json": b'[{"conversations": []}]'}, "two sets of the name a"),
        (
            {"a.json": json.dumps([{"image": "1.png", "conversations": turns("?")}]).encode(), "a.tar.gz": b"broken"},
            "a.tar.gz cannot be unpacked",
        ),
        ({"a.json": b'[{"conversations": []},\n{'}, "a.json line 2 is not JSON"),
    ],
)
def test_what_is_no_snapshot_is_told_in_one_line(tmp_path, capsys, files, message):
    for name, content in (files or {}).items():
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_bytes(content)
    if files == {}:
        (tmp_path / "own").mkdir()
    assert main(["data", "prepare", str(tmp_path / "own"), "--out", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_other_columns_are_named(tmp_path):
    (tmp_path / "own").mkdir()
    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "own/a.parquet")
    with pytest.raises(DataError, match=r"a.parquet has no column 'conversations'; found text"):
        list(prepare(tmp_path / "own", tmp_path / "data"))


def test_an_unknown_set_is_told_with_those_that_there_are(tmp_path, onevision, capsys):
    assert main(["data", "prepare", str(onevision), "--out", str(tmp_path / "data"), "--set", "mathqs"]) == 2
    assert "holds no set 'mathqs'; its sets are magpie_pro(l3_80b_st), mathqa, raven" in capsys.readouterr().err


def test_every_rule_is_for_a_set_of_the_mixtures():
    entries = [
        entry
        for stage in ("stage1", "stage1_5", "stage2")
        for entry in mixture_entries(ROOT / f"scripts/train/mixtures/{stage}.yaml")
    ]
    found = {rule for entry in entries for rule in rules_of(entry.hub.repo.split("/")[1], entry.file.stem)}
    assert found == set(RULES)
    assert {rule.name for rule in RULES} == {"mathv360k_missing", "raven_small", "image_placeholder", "recap_prompt"}


ROLE_TYPE = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))


def write_columns(file, **columns) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), file)


def write_json(source, *rows) -> None:
    source.mkdir(parents=True, exist_ok=True)
    (source / "own.json").write_text(json.dumps(rows))


def test_image_structs_without_an_image(tmp_path, picture):
    """As other writers leave them: a row that shows one is dropped and counted, a text alone is a text."""
    structs = [{"bytes": picture, "path": None}, {"bytes": None, "path": None}, {"bytes": b"", "path": "gone.png"}]
    structs += [{"bytes": b"", "path": None}, {"bytes": None, "path": None}, None, {"bytes": None, "path": "a\0b"}]
    texts = ["<image>\nIt?"] * 4 + ["Hello."] + ["<image>\nIt?"] * 2
    conversations = pyarrow.array([turns(text) for text in texts], TURN_TYPE)
    write_columns(tmp_path / "own/a.parquet", image=pyarrow.array(structs, IMAGE_TYPE), conversations=conversations)
    with pytest.raises(DataError, match=r"files of 1 of 7 rows .*, first gone\.png; .*--drop_missing"):
        list(prepare(tmp_path / "own", tmp_path / "data"))
    (prepared,) = prepare(tmp_path / "own", tmp_path / "data", drop_missing=True)
    assert [row["conversations"][0]["value"] for row in read(prepared.file)] == ["<image>\nIt?", "Hello."]
    assert prepared.tally.dropped == {"placeholder": 2, "missing_file": 1, "unreadable_image": 1, "unsafe_path": 1}
    assert "row 2: " in prepared.tally.first["placeholder"]
    assert "row 4" in prepared.tally.first["unreadable_image"]
    assert prepared.tally.first["placeholder"] in str(prepared)


def test_roles_and_contents_are_turns(tmp_path, picture):
    given = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "An answer."}]
    write_json(tmp_path / "own", {"id": 1, "image": "a.png", "conversations": given})
    (tmp_path / "own/a.png").write_bytes(picture)
    columns = {"image": pyarrow.array([picture]), "conversations": pyarrow.array([given], ROLE_TYPE)}
    write_columns(tmp_path / "own/set/0.parquet", **columns)
    for prepared in prepare(tmp_path / "own", tmp_path / "data"):
        (row,) = read(prepared.file)
        assert row["conversations"] == [
            {"from": "user", "value": "<image>\nWhat?"},
            {"from": "assistant", "value": "An answer."},
        ]


@pytest.mark.parametrize("as_bytes", [True, False])
def test_a_column_of_videos(tmp_path, as_bytes):
    content = b"\0\0\0\x18ftypmp42" + b"x" * 40
    (tmp_path / "own/clips").mkdir(parents=True)
    (tmp_path / "own/clips/c.mp4").write_bytes(content)
    videos = pyarrow.array([content]) if as_bytes else pyarrow.array(["clips/c.mp4"])
    conversations = pyarrow.array([turns("What happens?")], TURN_TYPE)
    write_columns(tmp_path / "own/0.parquet", video=videos, conversations=conversations)
    (prepared,) = prepare(tmp_path / "own", tmp_path / "data")
    (row,) = read(prepared.file)
    assert row["video"] == "own/own/0/000000.mp4"
    assert row["conversations"][0]["value"] == "<video>\nWhat happens?"
    assert (tmp_path / "data" / row["video"]).read_bytes() == content


def test_a_set_of_which_nothing_is_left_is_an_error_and_the_others_are_made(tmp_path, picture, capsys):
    write_parquet(tmp_path / "own/a/0.parquet", [("a", None, []), ("b", None, [])])
    write_parquet(tmp_path / "own/b/0.parquet", [("c", picture, turns("What?"))])
    assert main(["data", "prepare", str(tmp_path / "own"), "--out", str(tmp_path / "data")]) == 2
    printed = capsys.readouterr()
    assert "b.json: 1 of 1 rows" in printed.out
    assert "no row of these sets can be used, and none is written: a: 2 rows, 2 dropped by no_conversation, first" in (
        printed.err
    )
    assert printed.err.count("\n") == 1
    assert [path.name for path in (tmp_path / "data/own").glob("*.json")] == ["b.json"]


@pytest.mark.parametrize("pack", [pack_tar, pack_zip])
@pytest.mark.parametrize("same", [True, False])
def test_two_members_of_one_name(tmp_path, picture, make_image, pack, same):
    write_json(tmp_path / "own", {"image": "a.png", "conversations": turns("<image>")})
    other = picture if same else encode(make_image(50, 40))
    suffix = "tar" if pack is pack_tar else "zip"
    pack(tmp_path / f"own/x.{suffix}", {"images/a.png": picture, "./images/a.png": other, "b/a.png": picture})
    if same:
        (prepared,) = prepare(tmp_path / "own", tmp_path / "data")
        assert prepared.tally.written == 1
        return
    with pytest.raises(
        DataError, match=rf"x.{suffix} holds ./images/a.png with another content than images/a.png of x"
    ):
        list(prepare(tmp_path / "own", tmp_path / "data"))
    assert not (tmp_path / "data/own/images/a.png").exists()
    pack(tmp_path / f"own/x.{suffix}", {"a.png": other})
    (prepared,) = prepare(tmp_path / "own", tmp_path / "data")
    assert (tmp_path / "data" / read(prepared.file)[0]["image"]).read_bytes() == other


def test_types_of_other_writers(tmp_path, picture):
    turn_type = pyarrow.large_list(
        pyarrow.struct([("from", pyarrow.large_string()), ("value", pyarrow.large_string())])
    )
    write_columns(
        tmp_path / "own/a/0.parquet",
        id=pyarrow.array([7.0, float("nan")]),
        image=pyarrow.array([picture, picture], pyarrow.large_binary()),
        conversations=pyarrow.array([turns("<image>It?")] * 2, turn_type),
    )
    write_columns(
        tmp_path / "own/b/0.parquet",
        id=pyarrow.array(["x", "x"]).dictionary_encode(),
        conversations=pyarrow.array([json.dumps(turns("Hello.")), "no JSON"]),
    )
    a, b = prepare(tmp_path / "own", tmp_path / "data")
    assert [row.get("id") for row in read(a.file)] == ["7.0", None]
    assert read(b.file) == [{"id": "x", "conversations": turns("Hello.")}]
    assert b.tally.dropped == {"no_conversation": 1}


def test_half_characters_and_nul_bytes_are_counted(tmp_path, picture):
    bad = [{"conversations": turns("Cut \ud83d")}, {"id": "\ud83d", "conversations": turns("a")}]
    bad += [{"image": name, "conversations": turns("<image>")} for name in ("a\0.png", "\ud83d.png", "n" * 300)]
    write_json(tmp_path / "own", *bad, {"data_source": "\ud83d", "id": float("nan"), "conversations": turns("Good.")})
    (prepared,) = prepare(tmp_path / "own", tmp_path / "data", drop_missing=True)
    assert read(prepared.file) == [{"conversations": turns("Good.")}]
    assert prepared.tally.dropped == {"no_conversation": 2, "unsafe_path": 2, "missing_file": 1}


@pytest.mark.parametrize("form", ["parquet", "json"])
def test_damage_in_the_middle_is_found_unless_headers_are_trusted(tmp_path, picture, make_image, form):
    whole = encode(make_image(80, 60))
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes(40) + whole[middle + 40 :]
    if form == "parquet":
        write_parquet(tmp_path / "own/0.parquet", [("a", damaged, turns("It?")), ("b", picture, turns("It?"))])
    else:
        rows = [{"id": name, "image": f"{name}.png", "conversations": turns("<image>It?")} for name in "ab"]
        write_json(tmp_path / "own", *rows)
        (tmp_path / "own/a.png").write_bytes(damaged)
        (tmp_path / "own/b.png").write_bytes(picture)
    (prepared,) = prepare(tmp_path / "own", tmp_path / "data")
    assert [row["id"] for row in read(prepared.file)] == ["b"]
    assert prepared.tally.dropped == {"unreadable_image": 1}
    (prepared,) = prepare(tmp_path / "own", tmp_path / "data", decode=False)
    assert prepared.tally.written == 2


def test_a_sound_png_with_a_long_text_is_read_everywhere(tmp_path, make_image):
    """Two megabytes of workflow, as image generators store it; beyond Pillow's limit of one."""
    texts = PngInfo()
    texts.add_text("workflow", "x" * (2 << 20), zip=True)
    make_image(80, 60).save(tmp_path / "long.png", pnginfo=texts)
    assert image_size(tmp_path / "long.png") == open_image(tmp_path / "long.png").size == (80, 60)
    texts.add_text("bomb", "x" * (65 << 20), zip=True)
    make_image(80, 60).save(tmp_path / "bomb.png", pnginfo=texts)
    with pytest.raises(DataError, match=r"bomb.png cannot be decoded: .*too large"):
        open_image(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (pyarrow.array([10**8], pyarrow.date32()), "'id', date32"),
        (pyarrow.array([2**62], pyarrow.timestamp("us")), "'id', timestamp"),
        (pyarrow.array([1], pyarrow.timestamp("us", "Europe/Nowhere")), "Nowhere"),
        (pyarrow.StructArray.from_arrays([pyarrow.array(["a"])] * 2, names=["x", "x"]), "duplicate field names"),
    ],
    ids=["date", "timestamp", "zone", "key-twice"],
)
def test_values_that_python_does_not_have_name_their_column(tmp_path, picture, values, reason):
    write_columns(tmp_path / "own/a.parquet", id=values, image=[picture], conversations=[turns("<image>")])
    with pytest.raises(DataError, match=r"a\.parquet: the column 'id', .* cannot be read: ") as told:
        list(prepare(tmp_path / "own", tmp_path / "out"))
    assert reason in str(told.value)
    assert "\n" not in str(told.value)


def test_text_behind_turns_written_as_json_is_not_left_out(tmp_path, picture):
    whole = json.dumps(turns("<image>"))
    write_columns(tmp_path / "own/a.parquet", image=[picture] * 3, conversations=[whole, whole + whole, f" {whole}\n"])
    (made,) = prepare(tmp_path / "own", tmp_path / "out")
    assert (made.tally.written, dict(made.tally.dropped)) == (2, {"no_conversation": 1})
    assert "a.parquet row 2: 'conversations' must be a list of turns" in made.tally.first["no_conversation"]


@pytest.mark.parametrize("first", [None, {"id": "odd"}, "text"])
def test_a_set_whose_first_record_is_odd_is_a_set(tmp_path, capsys, first):
    source = tmp_path / "snapshot"
    source.mkdir()
    record = {"id": "whole", "conversations": turns("Why?")}
    (source / "words.json").write_text(json.dumps([first, record]))
    assert main(["data", "prepare", str(source), "--out", str(tmp_path / "out")]) == 0
    assert "words.json: 1 of 2 rows" in capsys.readouterr().out
    (prepared,) = json.loads((tmp_path / "out/snapshot/words.json").read_text())
    assert prepared["id"] == "whole"
