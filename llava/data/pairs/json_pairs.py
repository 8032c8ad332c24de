"""One record of a JSON file of pairs, in the columns that arrow files have: ours, and LLaVA's conversations."""

from typing import Any

from llava.constants import IMAGE_TOKEN
from llava.data.schema import parse_sample
from llava.errors import DataError
from llava.printable import brief

TEXTS: dict[str, tuple[str, ...]] = {
    "caption": ("caption", "captions"),
    "questions": ("question", "questions"),
    "sentences": ("sentence", "sentences"),
}
LISTS: dict[str, tuple[str, ...]] = {"question_id": ("question_id",), "labels": ("label", "labels")}
ANSWERS: tuple[str, ...] = ("answer", "answers")
KEYS = frozenset(
    key for keys in (*TEXTS.values(), *LISTS.values(), ANSWERS, ("image", "id", "answer_scores")) for key in keys
)


def row_of(record: Any) -> dict:
    """A record's row, see JSON_SCHEMA; what is wrong with the record stands in its `fault`.

    `{image, caption}`, `{image, question, answers}`, `{image: [left, right], sentence, label}`: image is a path or a
    list of two; each text may be a list of texts, and then answers, labels and question_id are lists of as many. Of
    `{image, conversations}` the human's turns are the questions, the model's the answers and the captions.
    """
    try:
        if not isinstance(record, dict):
            raise DataError(f"a record must be an object, found {type(record).__name__}")
        return _conversation(record) if "conversations" in record else _plain(record)
    except DataError as error:
        return {"fault": str(error)}


def _conversation(record: dict) -> dict:
    sample = parse_sample(record, "record")
    turns = [turn for turn in sample.turns if turn.role != "system"]
    questions = [turn.text.replace(IMAGE_TOKEN, "").strip() for turn in turns[::2]]
    answers = [turn.text.strip() for turn in turns[1::2]]
    if [turn.role for turn in turns] != ["human", "gpt"] * len(answers) or not answers:
        raise DataError("'conversations' must be questions of human and answers of gpt in turn")
    texts = {"caption": answers, "questions": questions, "answers": [[answer] for answer in answers]}
    return {**_images(list(sample.images)), **texts, "id": _text(record.get("id"))}


def _plain(record: dict) -> dict:
    unknown = [key for key in record if key not in KEYS]
    if unknown:
        raise DataError(f"unknown key {brief(unknown[0])}; a record of pairs may have {', '.join(sorted(KEYS))}")
    images = record.get("image")
    row = _images(images if isinstance(images, list) else [] if images is None else [images])
    count = 0
    for column, keys in TEXTS.items():
        texts = _listed(record, keys)
        if texts is not None:
            row[column] = [_required_text(text, keys[0]) for text in texts]
            count = len(texts)
    single = any(isinstance(record.get(keys[0]), str) for keys in TEXTS.values())
    for column, keys in LISTS.items():
        values = _listed(record, keys)
        if values is not None:
            row[column] = _as_many([_text(value) for value in values], count, column)
    for column, keys in (("answers", ANSWERS), ("answer_scores", ("answer_scores",))):
        values = _listed(record, keys)
        if values is not None:
            of_each = [values] if single else [value if isinstance(value, list) else [value] for value in values]
            row[column] = _as_many(of_each, count, column)
    _check_answers(row)
    return {**row, "id": _text(record.get("id"))}


def _images(paths: list) -> dict[str, Any]:
    if not all(isinstance(path, str) and path for path in paths) or len(paths) > 2:
        raise DataError(f"'image' must be a path or a list of two, found {brief(paths)}")
    return dict(zip(("image",) if len(paths) < 2 else ("image_0", "image_1"), paths))


def _listed(record: dict, keys: tuple[str, ...]) -> list | None:
    values = next((record[key] for key in keys if record.get(key) is not None), None)
    return values if values is None or isinstance(values, list) else [values]


def _as_many(values: list, count: int, column: str) -> list:
    if len(values) != count:
        raise DataError(f"{len(values)} {column} for {count} texts")
    return values


def _check_answers(row: dict) -> None:
    scores = row.get("answer_scores")
    answers = row.get("answers")
    if answers is not None and not all(isinstance(answer, str) for of_one in answers for answer in of_one):
        raise DataError(f"'answers' must be texts, found {brief(answers)}")
    if scores is None:
        return
    if not all(isinstance(score, int | float) for of_one in scores for score in of_one):
        raise DataError(f"'answer_scores' must be numbers, found {brief(scores)}")
    if answers is None or list(map(len, scores)) != list(map(len, answers)):
        raise DataError(f"{sum(map(len, scores))} answer_scores for {sum(map(len, answers or []))} answers")


def _required_text(text: Any, key: str) -> str:
    if not isinstance(text, str):
        raise DataError(f"{key!r} must be a text or a list of texts, found {brief(text)}")
    return text


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
