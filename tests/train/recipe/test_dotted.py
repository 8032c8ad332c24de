"""Dotted keys: what each type accepts, in YAML and from the command line."""

from dataclasses import dataclass
from typing import Literal

import pytest

from llava.errors import LlavaError
from llava.train.recipe.dotted import assemble, coerce, dotted_keys, flatten, read_yaml, suggestion


@dataclass(frozen=True)
class Inner:
    rate: float
    steps: int | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner


@pytest.mark.parametrize(
    ("value", "expected", "result"),
    [
        ("1e-3", float, 0.001),
        (1, float, 1.0),
        ("10", int, 10),
        ("true", bool, True),
        ("007", str, "007"),
        (1.5, str, "1.5"),
        ("none", int | None, None),
        (None, int | None, None),
        ("3", int | None, 3),
        ("[1, 2]", list[int] | None, [1, 2]),
        ([[1, 2], [3, 4]], list[list[int]] | str | None, [[1, 2], [3, 4]]),
        ("[[1, 2]]", list[list[int]] | str | None, [[1, 2]]),
        ("(1x1),...,(6x6)", list[list[int]] | str | None, "(1x1),...,(6x6)"),
        ("a", Literal["a", "b"], "a"),
    ],
)
def test_accepted(value, expected, result):
    found = coerce(value, expected)
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(
    ("value", "expected", "message"),
    [
        ("fast", float, "must be a number; found 'fast'"),
        (True, float, "must be a number; found True"),
        (True, int, "must be a whole number; found True"),
        ("1.5", int, "must be a whole number; found '1.5'"),
        (1, bool, "must be true or false; found 1"),
        (None, str, "must be a text; found None"),
        ("c", Literal["a", "b"], "must be one of a, b; found 'c'"),
        ("x", list[int] | None, "must be a list, each item a whole number; found 'x'"),
        (["x"], list[int], "must be a whole number; found 'x'"),
        ("[", int, "must be a whole number; found '['"),
    ],
)
def test_refused(value, expected, message):
    with pytest.raises(ValueError) as caught:
        coerce(value, expected)
    assert str(caught.value) == message


def test_nested_dataclasses_become_dotted_keys_and_back():
    assert list(dotted_keys(Outer)) == ["name", "inner.rate", "inner.steps"]
    assert [key for key, field in dotted_keys(Outer).items() if field.required] == ["name", "inner.rate"]
    assert flatten({"inner": {"rate": 1}, "inner.steps": 2}) == {"inner.rate": 1, "inner.steps": 2}
    assert assemble(Outer, {"name": "a", "inner.rate": 0.5}) == Outer("a", Inner(0.5))


@pytest.mark.parametrize(
    ("key", "expected"),
    [("steps", "; did you mean 'inner.steps'?"), ("inner.stpes", "; did you mean 'inner.steps'?"), ("zzz", "")],
)
def test_suggestion(key, expected):
    assert suggestion(key, dotted_keys(Outer)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("a: [", "not valid YAML"),
        ("- 1", "expected a mapping"),
        ("", "expected a mapping"),
        ("optim:\n  lr: 1\n  lr: 2\n", r"not valid YAML \(line 3: the key 'lr' was given on line 2 already\)"),
        ("optim: {lr: 1}\n\noptim: {epochs: 2}\n", r"line 3: the key 'optim' was given on line 1 already"),
        ("a: 1\n\tb: 2", r"not valid YAML \(line 2: "),
        ("a: 2026-13-45", "not valid YAML .*month"),
        (f"a: {'1' * 5000}", "not valid YAML .*5000 digits"),
        ("[" * 1000, "not valid YAML .*nested too deeply"),
        ("a: !!python/name:os.system", "not valid YAML"),
    ],
)
def test_unreadable_yaml(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(LlavaError, match=message) as caught:
        read_yaml(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_files_from_other_editors(tmp_path, encoding):
    """Notepad and PowerShell write byte order marks."""
    (tmp_path / "a.yaml").write_text(
        "base: &base {n\u00e4me: 1}\r\nother: {<<: *base, n\u00e4me: 2}\r\n", encoding=encoding
    )
    assert read_yaml(str(tmp_path / "a.yaml")) == {"base": {"n\u00e4me": 1}, "other": {"n\u00e4me": 2}}


def test_a_key_that_is_given_with_a_dot_and_in_its_section():
    with pytest.raises(LlavaError, match=r"the key 'inner\.steps' is given twice"):
        flatten({"inner": {"rate": 1, "steps": 3}, "inner.steps": 2})
