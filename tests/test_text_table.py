"""Columns of text."""

import pytest

from llava.text_table import text_table

ROWS = [("part", "size", "note"), ("a", "1,000", ""), ("long name", "1", "x y")]


def test_columns_begin_or_end_at_one_place():
    assert text_table(ROWS, right=[False, True, False]) == (
        "part        size  note\n"
        "a          1,000\n"
        "long name      1  x y"
    )  # fmt: skip


def test_the_last_side_holds_for_the_columns_behind():
    assert text_table(ROWS, right=[False, True]) == (
        "part        size  note\n"
        "a          1,000\n"
        "long name      1   x y"
    )  # fmt: skip


def test_rows_of_different_lengths_are_a_mistake():
    with pytest.raises(ValueError, match="shorter"):
        text_table([("a", "b"), ("c",)], right=[False])
