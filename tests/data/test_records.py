import json

import pytest

from llava.data import records
from llava.data.records import iter_records
from llava.errors import DataError

ROWS = [{"id": str(i), "text": 'a "quoted" { [ é\u2028 \\ ' * (i % 5)} for i in range(40)] + [{}, [], "text"]


@pytest.mark.parametrize("block", [1, 7, 100, 1 << 20])
@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"ensure_ascii": False}])
def test_a_list_is_read_as_json_reads_it_wherever_blocks_end(tmp_path, monkeypatch, block, layout):
    monkeypatch.setattr(records, "BLOCK", block)
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
        ('[{"a": 1}]\n]', 1, "line 2 is not JSON: Extra data"),
        ('{"a": 1}', 0, "must hold a list of records, found dict"),
        ("nothing", 0, "line 1 is not JSON: Expecting value"),
    ],
)
@pytest.mark.parametrize("block", [2, 1 << 20])
def test_a_fault_is_found_where_it_stands(tmp_path, monkeypatch, text, rows, message, block):
    monkeypatch.setattr(records, "BLOCK", block)
    (tmp_path / "a.json").write_text(text)
    found = []
    with pytest.raises(DataError, match=f"a.json .*{message}"):
        found.extend(iter_records(tmp_path / "a.json"))  # what came before the fault stays in the list
    assert len(found) == rows
