"""A JSON object from a file: of a model folder as transformers will read it, by hand as editors write it."""

import pytest

from llava.errors import LlavaError
from llava.text_files import read_json

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
BY_HAND_OR_NOT = pytest.mark.parametrize("by_hand", [False, True])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_files_from_other_editors(tmp_path, encoding):
    """Notepad and PowerShell write byte order marks."""
    (tmp_path / "a.json").write_text('{"n\u00e4me": [1]}', encoding=encoding)
    assert read_json(tmp_path / "a.json", by_hand=True) == {"n\u00e4me": [1]}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_model_folder_is_read_as_transformers_reads_it(tmp_path, encoding):
    from transformers import PretrainedConfig

    (tmp_path / "config.json").write_text('{"n\u00e4me": [1]}', encoding=encoding)
    if encoding == "utf-8":
        assert (
            read_json(tmp_path / "config.json") == {"n\u00e4me": [1]} == PretrainedConfig.get_config_dict(tmp_path)[0]
        )
        return
    with pytest.raises((OSError, UnicodeError)):
        PretrainedConfig.get_config_dict(tmp_path)
    with pytest.raises(LlavaError, match=r"config.json: not readable as JSON") as caught:
        read_json(tmp_path / "config.json")
    assert "\n" not in str(caught.value)


@BY_HAND_OR_NOT
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read \(No such file or directory\)"),
        (b"{", r"not readable as JSON \(Expecting .* line 1 column 2 \(char 1\)\)"),
        (b"\x80", r"not readable as JSON \('utf-8' codec can't decode byte 0x80 in position 0: invalid start byte\)"),
        (b"[]", "expected a JSON object, found list"),
        (b'{"a": ' + b"[" * 100_000, r"not readable as JSON \(nested too deeply\)"),
    ],
)
def test_an_error_is_one_line_that_names_the_file(tmp_path, content, message, by_hand):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(LlavaError, match=f"^{tmp_path}/a.json: {message}$"):
        read_json(tmp_path / "a.json", by_hand)
