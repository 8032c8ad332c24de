"""What a field says of documents: kinds, their names and order."""

import pytest

from llava.errors import LlavaError
from llava.eval.kinds import DIMENSIONS, FIELDS, NO_KIND, ORDERS, field_names, no_such_field, read_kinds


def test_one_value_several_and_none():
    documents = [{"type": ["b", "a"]}, {"type": "a"}, {"type": []}, {"type": None}, {"type": " "}, {}]
    kinds = read_kinds("any", "type", documents)
    assert kinds.of_document == [["b", "a"], ["a"], [NO_KIND], [NO_KIND], [NO_KIND], [NO_KIND]]
    assert kinds.names == ["a", "b", NO_KIND]
    assert read_kinds("any", "kind", documents) is None


def test_numbers_stand_by_size_and_truth_values_are_words():
    assert read_kinds("any", "n", [{"n": 10}, {"n": 9.0}, {"n": "2"}]).names == ["2", "9", "10"]
    assert read_kinds("any", "n", [{"n": True}, {"n": False}]).names == ["False", "True"]


def test_names_are_the_datas_where_they_tell_them():
    """Else ours of SEED-Bench, else the numbers; a field beside that tells something else is no name."""
    numbered = [{"question_type_id": number} for number in (12, 1)]
    assert read_kinds("seedbench", "kind", numbered).names == [DIMENSIONS[0], DIMENSIONS[11]]
    assert read_kinds("other", "question_type_id", numbered).names == ["1", "12"]
    named = [document | {"question_type": f"Type {document['question_type_id']}"} for document in numbered]
    assert read_kinds("seedbench", "question_type_id", named).names == ["Type 1", "Type 12"]
    other = [{"question_type_id": 1, "question_type": text} for text in ("open", "closed")]
    assert read_kinds("other", "question_type_id", other).names == ["1"]


def test_parts_of_fields():
    documents = [{"metadata": {"task": "geometry", "skills": ["a", "b"]}, "a.b": "x"}, {"metadata": {"task": "word"}}]
    assert read_kinds("any", "metadata.task", documents).names == ["geometry", "word"]
    assert read_kinds("any", "metadata.skills", documents).of_document == [["a", "b"], [NO_KIND]]
    assert read_kinds("any", "a.b", documents).names == ["x", NO_KIND]
    assert field_names(documents) == ["metadata.task", "metadata.skills", "a.b"]


def test_what_is_no_kind_is_told():
    with pytest.raises(LlavaError, match=r"any document 1: field 'm' holds dicts; name a part: m\.x, m\.y"):
        read_kinds("any", "m", [{"m": None}, {"m": {"x": 1, "y": 2}}])
    with pytest.raises(LlavaError, match="any: field 'id' has 201 values; kinds are at most 200"):
        read_kinds("any", "id", [{"id": number} for number in range(201)])


def test_a_field_that_is_not_there_is_told_with_those_that_are():
    fields = {"docvqa_val": ["question", "question_types"], "gqa": []}
    assert no_such_field("question_typ", fields) == (
        "no document has a field 'question_typ'; did you mean question_types? "
        "(docvqa_val has question, question_types; gqa has none)"
    )


def test_ordered_fields_are_those_that_kind_stands_for():
    assert all(FIELDS[task] == field for task, field in ORDERS)
    assert [len(order) for order in ORDERS.values()] == [9, 10, 12]  # as the paper's figures say
