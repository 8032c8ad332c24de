import json

import pytest

from llava.cli import main
from llava.data.inspect import inspect_samples
from llava.data.mixture import (
    ExpectedRows,
    HubSource,
    MixtureEntry,
    choose_rows,
    expand_braces,
    load_mixture,
    missing_files,
    mixture_entries,
)
from llava.data.schema import Turn, parse_sample
from llava.errors import DataError


def write_rows(path, count: int) -> None:
    rows = [{"id": f"{path.stem}/{i}", "conversations": [{"from": "human", "value": str(i)}]} for i in range(count)]
    text = "\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows)
    path.write_text(text)


def write_mixture(folder, *entries) -> str:
    path = folder / "mixture.yaml"
    path.write_text(json.dumps({"datasets": [{"json_path": p, "sampling_strategy": s} for p, s in entries]}))
    return str(path)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_data_file_is_a_mixture_of_itself(tmp_path, name):
    write_rows(tmp_path / name, 3)
    assert [sample.id for sample in load_mixture(tmp_path / name, 0).samples] == ["rows/0", "rows/1", "rows/2"]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("all", list(range(10))),
        ("first:3", [0, 1, 2]),
        ("first:25%", [0, 1, 2]),
        ("end:2", [8, 9]),
        ("end:0", []),
        ("end:11%", [8, 9]),
    ],
)
def test_sampling_strategies(tmp_path, strategy, expected):
    write_rows(tmp_path / "a.json", 10)
    write_rows(tmp_path / "b.jsonl", 1)
    mixture = load_mixture(write_mixture(tmp_path, ("a.json", strategy), ("b.jsonl", "all")), seed=0)
    assert [sample.id for sample in mixture.samples] == [*(f"a/{i}" for i in expected), "b/0"]
    assert (mixture.table[0].rows, mixture.table[0].taken) == (10, len(expected))


@pytest.mark.parametrize(
    ("rows", "strategy", "taken"),
    [(3000, "first:1.1%", 33), (3001, "first:1.1%", 34), (1000, "end:0.7%", 7), (100, "random:7%", 7), (7, "all", 7)],
)
def test_a_percentage_is_as_exact_as_it_is_written(rows, strategy, taken):
    """In floating-point numbers 1.1% of 3,000 are a little more than 33."""
    assert len(choose_rows(rows, strategy, "0", "a.yaml")) == taken


def test_random_is_the_same_everywhere_and_changes_with_the_seed(tmp_path):
    write_rows(tmp_path / "a.json", 100)
    path = write_mixture(tmp_path, ("a.json", "random:20%"))
    first, again, other = (load_mixture(path, seed).samples for seed in (0, 0, 1))
    assert first == again != other
    assert len({sample.id for sample in first}) == 20


def test_line_separators_inside_a_json_string_do_not_end_a_row(tmp_path):
    row = {"conversations": [{"from": "human", "value": "a\u2028b"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    (sample,) = load_mixture(write_mixture(tmp_path, ("a.jsonl", "all")), 0).samples
    assert sample.turns[0].text == "a\u2028b"


def test_brace_lists_are_expanded(tmp_path):
    assert expand_braces("x/{a, b}_{1,2}.json") == ["x/a_1.json", "x/a_2.json", "x/b_1.json", "x/b_2.json"]
    write_rows(tmp_path / "a1.json", 1)
    write_rows(tmp_path / "a2.json", 2)
    assert len(load_mixture(write_mixture(tmp_path, ("a{1,2}.json", "all")), 0).samples) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("datasets: []", "has no entries"),
        ("other: 1", "has no entries"),
        ("datasets: [{json_path: a.json, sampling_strategy: some}]", "unknown sampling_strategy 'some'"),
        ("datasets: [{json_path: a.json, sampling_strategy: 'first:1.5'}]", "unknown sampling_strategy 'first:1.5'"),
        ("datasets: [{json_path: a.json, sampling_strategy: 'first:11'}]", "asks for 11 rows, but there are 10"),
        ("datasets: [{path: a.json}]", "entry 1 must have json_path"),
        ("datasets: [{json_path: none.json}]", "none.json cannot be read"),
        ("datasets: [{json_path: a.json, sampling_strategy: 'end:0'}]", "is empty: its 1 data files give 0 samples"),
        ("datasets: [{json_path: broken.jsonl}]", "broken.jsonl line 2 is not JSON"),
        ("datasets: [{json_path: object.json}]", "must hold a list of records, found dict"),
        ("datasets: [", "is not YAML: line 1: "),
        ("- json_path: a.json", "has no entries; it needs 'datasets"),
        ("datasets:\n- json_path: a.json\n\tsampling_strategy: all", "is not YAML: line 3: .*character '.t'"),
        ("datasets:\n- {json_path: a.json}\ndatasets:\n", "line 3: the key 'datasets' was given on line 1 already"),
        (
            "datasets: [{json_path: a.json, json_path: b.json}]",
            "line 1: the key 'json_path' was given on line 1 already",
        ),
        ("datasets: [{json_path: a.json, sampling_strategy: 'random:150%'}]", "'random:150%' asks for more than 100%"),
        (f"datasets: [{{json_path: a.json, sampling_strategy: 'first:{'1' * 5000}'}}]", "unknown sampling_strategy"),
        (f"datasets: [{{json_path: a.json, expected_rows: '{'1' * 5000}'}}]", "expected_rows must be a number"),
        ("datasets: [{json_path: '*.json'}]", r"entry 1: json_path '\*.json' is a pattern"),
        ("datasets: [{json_path: '{a,{b,c}}.json'}]", "is a pattern, of which {a,b} alone is expanded, and not within"),
        ("datasets: [{json_path: '{a,b.json'}]", "is a pattern"),
        ('datasets: [{json_path: "a\\0.json"}]', "cannot be read: "),
        ('datasets: [{json_path: "a\\ud83d.json"}]', "cannot be read: "),
        ("root: [a]\ndatasets: [{json_path: a.json}]", r"mixture.yaml: root must be a folder, found \['a'\]"),
        ('root: "a\\0"\ndatasets: [{json_path: a.json}]', "mixture.yaml: root: .* cannot be read: no file has such"),
        ("root: b\ndatasets: [{json_path: a.json}]", "b/a.json cannot be read: No such file"),
        ("root: b\ndatasets: [{json_path: '*.json'}]", r"mixture.yaml entry 1: json_path '\*.json' is a pattern"),
        ("datasets: [{json_path: 5}]", "entry 1 must have json_path"),
        ("datasets: [{json_path: latin.json}]", "latin.json is not UTF-8 text"),
        ("datasets: [{json_path: a.json, rows: 10}]", "may have expected_rows and hub; found .*'rows': 10"),
        ("datasets: [{json_path: a.json, expected_rows: many}]", "must be a number or 'about N', found 'many'"),
        ("datasets: [{json_path: a.json, expected_rows: true}]", "must be a number or 'about N', found True"),
        ("datasets: [{json_path: 'a{1,2}.json', expected_rows: 3}]", "is for one file, but json_path names 2"),
        ("datasets: [{json_path: a.json, hub: name}]", "hub must be {repo: OWNER/NAME, config: FOLDER}"),
        ("datasets: [{json_path: a.json, hub: {repo: a/b, folder: c}}]", "hub must be .*'folder': 'c'"),
        ("datasets: [{json_path: a.json, hub: {config: c}}]", "hub must be .*'config': 'c'"),
    ],
)
def test_faults_of_a_mixture_are_named(tmp_path, content, message):
    write_rows(tmp_path / "a.json", 10)
    (tmp_path / "broken.jsonl").write_text('{"conversations": [{"from": "human", "value": "a"}]}\n{"conv')
    (tmp_path / "object.json").write_text("{}")
    (tmp_path / "latin.json").write_bytes('["caf\u00e9"]'.encode("latin-1"))
    (tmp_path / "mixture.yaml").write_text(content)
    with pytest.raises(DataError, match=message):
        load_mixture(tmp_path / "mixture.yaml", 0)


def test_where_a_set_comes_from_and_how_many_rows_it_should_have(tmp_path):
    (tmp_path / "mixture.yaml").write_text(
        "datasets:\n"
        "- {json_path: a.json, expected_rows: 5290, hub: {repo: owner/name, config: 'a(b,c)'}}\n"
        "- {json_path: b.json, sampling_strategy: 'first:5%', expected_rows: about 1000, hub: {repo: owner/name}}\n"
        "- {json_path: c.json}\n"
    )
    exact, rounded, unknown = mixture_entries(tmp_path / "mixture.yaml")
    assert exact == MixtureEntry(
        tmp_path / "a.json", "all", ExpectedRows(5290, False), HubSource("owner/name", "a(b,c)")
    )
    assert (rounded.sampling_strategy, rounded.hub) == ("first:5%", HubSource("owner/name", None))
    assert unknown == MixtureEntry(tmp_path / "c.json", "all", None, None)
    assert [exact.expected_rows.fits(n) for n in (5289, 5290, 5291)] == [False, True, False]
    assert [rounded.expected_rows.fits(n) for n in (979, 980, 1020, 1021)] == [False, True, True, False]
    assert [str(entry.expected_rows) for entry in (exact, rounded)] == ["5,290", "about 1,000"]


def test_a_path_from_the_user_s_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    write_rows(tmp_path / "home/a1.json", 2)
    write_rows(tmp_path / "home/a2.json", 1)
    assert len(load_mixture(write_mixture(tmp_path, ("~/a{1,2}.json", "all")), 0).samples) == 3


@pytest.mark.parametrize("root", ["../sets", "{tmp_path}/sets", "~/sets", "../sets/"])
def test_paths_count_from_the_root_that_a_mixture_names(tmp_path, monkeypatch, root):
    """The root counts from the mixture's folder; a path that is whole needs none."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("mixtures", "sets/one", "other"):
        (tmp_path / folder).mkdir(parents=True)
    for number, name in enumerate(("sets/one/a.json", "sets/b1.json", "sets/b2.json", "other/c.json"), start=1):
        write_rows(tmp_path / name, number)
    entries = [{"json_path": name} for name in ("one/a.json", "b{1,2}.json", f"{tmp_path}/other/c.json")]
    content = {"root": root.format(tmp_path=tmp_path), "datasets": entries}
    (tmp_path / "mixtures/mixture.yaml").write_text(json.dumps(content))
    assert [row.rows for row in load_mixture(tmp_path / "mixtures/mixture.yaml", 0).table] == [1, 2, 3, 4]
    assert missing_files(tmp_path / "mixtures/mixture.yaml") == []
    (tmp_path / "sets/b2.json").unlink()
    (missing,) = missing_files(tmp_path / "mixtures/mixture.yaml")
    assert missing.resolve() == tmp_path / "sets/b2.json"


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    folder = tmp_path / "a*{b"
    folder.mkdir()
    write_rows(folder / "what?[1].json", 2)
    assert len(load_mixture(write_mixture(folder, ("what?[1].json", "all")), 0).samples) == 2


def test_a_file_that_is_named_twice_is_taken_twice_and_told(tmp_path, capsys):
    write_rows(tmp_path / "a.json", 4)
    write_rows(tmp_path / "b.json", 1)
    path = write_mixture(tmp_path, ("a.json", "all"), ("b.json", "first:0%"), ("./a.json", "random:50%"))
    mixture = load_mixture(path, 0)
    assert [row.taken for row in mixture.table] == [4, 0, 2]
    told = f"{tmp_path}/a.json is in the mixture 2 times; each takes its rows again"
    assert told in str(mixture)
    main(["data", "check", path, "--image_folder", str(tmp_path), "--workers", "1"])
    assert f"warning: {told}\n" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(tmp_path, encoding):
    (tmp_path / "mixture.yaml").write_text("datasets: [{json_path: a.json}]", encoding=encoding)
    (tmp_path / "a.json").write_text('[{"conversations": [{"from": "human", "value": "a"}]}]', encoding=encoding)
    (sample,) = load_mixture(tmp_path / "mixture.yaml", 0).samples
    assert sample.turns == (Turn("human", "a"),)


def test_the_mixture_that_llava_onevision_published(tmp_path):
    """Its form: absolute paths, blanks in braces, shares of a file."""
    for name in ("single", "multi_1", "multi_2"):
        write_rows(tmp_path / f"{name}.json", 10)
    (tmp_path / "onevision.yaml").write_text(
        f"datasets:\n  - json_path: {tmp_path}/single.json # released\n    sampling_strategy: 'first:100%'\n"
        f'  - json_path: "{tmp_path}/multi_{{1, 2}}.json"\n    sampling_strategy: random:30%\n'
    )
    assert [row.taken for row in load_mixture(tmp_path / "onevision.yaml", 0).table] == [10, 3, 3]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "must be an object, found list"),
        ({"conversations": []}, "'conversations' must be a list of turns"),
        ({"conversations": [{"from": "human"}]}, "turn 1: a turn needs the texts"),
        ({"image": 3, "conversations": [{"from": "human", "value": "a"}]}, "'image' must be a path"),
        ({"images": ["a.png"], "conversations": [{"from": "human", "value": "a"}]}, "'images' is not supported"),
        ({"videos": ["a.mp4"], "conversations": [{"from": "human", "value": "a"}]}, "'videos' is not supported"),
        ({"video": {}, "conversations": [{"from": "human", "value": "a"}]}, "'video' must be a path"),
    ],
)
def test_faults_of_a_record_are_named(record, message):
    with pytest.raises(DataError, match=f"data.json row 4.*{message}"):
        parse_sample(record, "data.json row 4")


def test_roles_and_images_of_a_record():
    record = {
        "id": 5,
        "image": None,
        "conversations": [{"role": "user", "content": "a"}, {"from": "tool", "value": "b"}],
    }
    sample = parse_sample(record, "x")
    assert (sample.id, sample.images, sample.turns) == ("5", (), (Turn("human", "a"), Turn("tool", "b")))


def test_check_finds_every_fault_before_training(tmp_path, make_image, capsys):
    make_image().save(tmp_path / "good.png")
    make_image().save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-300])
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a"}]
    rows = [{"id": name, "image": f"{name}.png", "conversations": turns} for name in ("good", "cut", "gone")]
    rows.append({"id": "two", "image": ["good.png", "good.png"], "conversations": turns})
    rows.append({"id": "mute", "conversations": turns[:1]})
    (tmp_path / "a.json").write_text(json.dumps(rows))
    path = write_mixture(tmp_path, ("a.json", "all"))
    inspection = inspect_samples(load_mixture(path, 0).samples, tmp_path)
    assert inspection.image_sizes == [[(100, 70)], [], [], [], []]
    assert len(inspection.faults) == 4
    with pytest.raises(DataError, match="4 of 5 samples are unusable") as raised:
        inspection.raise_faults()
    for text in (
        "sample 'cut'",
        "cut.png cannot be decoded",
        "gone.png does not exist",
        "found 1 <image> placeholders but 2",
        "sample 'mute' (",
    ):
        assert text in str(raised.value)
    assert main(["data", "check", path, "--image_folder", str(tmp_path)]) == 1
    assert "4 of 5 samples are unusable" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a\\0.json", "a\\ud83d.json", "x" * 300 + ".json"], ids=["nul", "half", "long"])
@pytest.mark.parametrize("out", [False, True])
def test_a_name_that_no_file_has_is_one_line_in_check(tmp_path, capsys, name, out):
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(f'datasets: [{{json_path: "{name}"}}]')
    assert main(["data", "check", str(mixture), *(["--out", str(tmp_path / "out")] if out else [])]) != 0
    told = capsys.readouterr().err
    assert "entry 1: " in told
    assert "cannot be read: no file has such a name" in told
    assert (told.count("\n"), told.isascii()) == (1, True)
