"""Which of the two families of models data are of: told by the mixture, or by the model beside it. Imports no torch."""

from pathlib import Path

from llava.checkpoint.folder import model_type_of
from llava.data.json_rows import SUFFIXES
from llava.data.mixture import mixture_content
from llava.two_tower.parts import MODEL_TYPE


def is_pair_data(data: str | Path, model: str | Path | None) -> bool:
    """Whether data are pairs of a two-tower model.

    Args:
        data: A mixture, which is one of pairs if it has splits, or a data file: arrow and parquet hold pairs, JSON what
            the model reads.
        model: A model folder.

    Raises:
        LlavaError: The mixture or the model's config.json cannot be read.
    """
    kind = Path(data).suffix.lower()
    if kind in (".arrow", ".parquet"):
        return True
    if kind in SUFFIXES:
        return model is not None and model_type_of(Path(model)) == MODEL_TYPE
    content = mixture_content(Path(data))
    return isinstance(content, dict) and "splits" in content
