import json

import pytest

from llava.data import json_rows
from llava.data.json_rows import iter_records
from llava.errors import DataError

ROWS = [{"id": str(i), "text": 'a "quoted" { [ é\u2028 \\ ' * (i % 5)} for i in range(40)] + [{}, [], "text"]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]


@pytest.mark.parametrize("block", [1, 7, 100, 1 << 20])
@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"ensure_ascii": False}])
def test_a_list_is_read_as_json_reads_it_wherever_blocks_end(tmp_path, monkeypatch, block, layout):
    monkeypatch.setattr(json_rows, "BLOCK", block)
    file = tmp_path / "a.json"
    file.write_text(f"\n {json.dumps(ROWS, **layout)}\r\n ", encoding="utf-8")
    assert list(iter_records(file)) == ROWS


@pytest.mark.parametrize("text", ["", " \n", "[]", "[ \n]"])
def test_an_empty_list(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert list(iter_records(tmp_path / "a.json")) == []


@pytest.mark.parametrize(
    ("text", "rows", "message"),
    [
        ('[\n{"a": 1},\n{"b": ]', 1, "line 3 is not JSON: Expecting value"),
        ('[{"a": 1},\n{"b": 2', 1, "line 2 is not JSON: Expecting ',' delimiter"),
        ('[{"a": 1}\n\n{"b": 2}]', 1, "line 3 is not JSON: Expecting ',' delimiter"),
        ('[{"a": 1}', 1, "line 1 is not JSON: Expecting ',' delimiter"),
        ('[{"a": 1},', 1, "line 1 is not JSON: Expecting value"),
        ('[{"a": 1},\n{"a": 2},\n ]', 2, "line 3 is not JSON: a comma stands before the list's end"),
        ('[{"a": 1},\n{"b": {"c": 1,\n"c": 2}}]', 1, "line 2 is not JSON: the key 'c' is there 2 times, in the record"),
        (f'[{{"a": 1}},\n\n{{"a": {"1" * 5000}}}]', 1, "line 3 is not JSON: Exceeds the limit .* has 5000 digits, in"),
        (f'[{{"a": 1}},\n{"[" * 100_000}', 1, "line 2 is not JSON: nested too deeply"),
        ('{"a": 1}\n{"a": 2}', 0, "holds one record after another, not a list; name it a.jsonl"),
        ('[{"a": 1}]\n]', 1, "line 2 is not JSON: Extra data"),
        ('{"a": 1}', 0, "must hold a list of records, found dict"),
        ("nothing", 0, "line 1 is not JSON: Expecting value"),
    ],
)
@pytest.mark.parametrize("block", [2, 1 << 20])
def test_a_fault_is_found_where_it_stands(tmp_path, monkeypatch, text, rows, message, block):
    monkeypatch.setattr(json_rows, "BLOCK", block)
    (tmp_path / "a.json").write_text(text)
    found = []
    with pytest.raises(DataError, match=f"a.json .*{message}"):
        found.extend(iter_records(tmp_path / "a.json"))  # what came before the fault stays in the list
    assert len(found) == rows


@pytest.mark.parametrize(
    ("text", "rows", "message"),
    [
        ('{"a": 1}\n\n{"a": ]', 1, "line 3 is not JSON: Expecting value"),
        ('{"a": 1},\n{"a": 2}', 0, "line 1 is not JSON: Extra data behind the record: ','"),
        ('{"a": 1} {"a": 2}', 0, "line 1 is not JSON: Extra data behind the record"),
        ('{"a": 1}\n{"b": 1, "c": 2, "b": 3}', 1, "line 2 is not JSON: the key 'b' is there 2 times$"),
        (f'{{"a": 1}}\n{"1" * 5000}', 1, "line 2 is not JSON: Exceeds the limit .* has 5000 digits$"),
        (f'{{"a": 1}}\n{"[" * 100_000}', 1, "line 2 is not JSON: nested too deeply"),
        ('\n[{"a": 1}]', 0, "holds a JSON list, not one record a line; name it a.json$"),
        ('[\n{"a": 1}\n]', 0, "holds a JSON list, not one record a line; name it a.json$"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL"])
def test_a_fault_is_found_in_its_line(tmp_path, text, rows, message, name):
    (tmp_path / name).write_text(text)
    found = []
    with pytest.raises(DataError, match=f"{name} .*{message}"):
        found.extend(iter_records(tmp_path / name))
    assert len(found) == rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_byte_order_marks_and_line_ends_of_other_systems(tmp_path, encoding, end):
    mark = "\ufeff" * encoding.endswith(("-le", "-be"))
    for name, text in (("a.json", json.dumps(ROWS, indent=2, ensure_ascii=False)), ("a.jsonl", "\n".join(LINES))):
        (tmp_path / name).write_bytes((mark + text.replace("\n", end)).encode(encoding))
        assert list(iter_records(tmp_path / name)) == ROWS


def test_joined_files_with_byte_order_marks(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\xef\xbb\xbf{"a": 2}\n')
    assert list(iter_records(tmp_path / "a.jsonl")) == [{"a": 1}, {"a": 2}]


def test_a_line_s_number_counts_other_systems_line_ends(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\r{"a": 2}\r\r{"a": }')
    with pytest.raises(DataError, match="line 4 is not JSON"):
        list(iter_records(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("name", ["a\0.json", "a\ud83d.jsonl", "gone.json", "folder.json", "n" * 300 + ".json"])
def test_a_name_that_cannot_be_opened(tmp_path, name):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match=r"data file .* cannot be read: "):
        list(iter_records(tmp_path / name))


def test_bytes_that_are_no_text(tmp_path):
    for content in ("[\u00e9]".encode("latin-1"), b"\xff\xfe[", b"[\x00"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(DataError, match=r"a.json (is not UTF-8 text|line 1 is not JSON)"):
            list(iter_records(tmp_path / "a.json"))
