"""Writes the digit pages to disk: images, LLaVA JSON files with their mixtures, and the test set for lmms-eval.

FOLDER/images/*.png  stage1.json stage1_5.json stage2.json  stage1.yaml stage1_5.yaml stage2.yaml
FOLDER/test/README.md test.parquet  one question a row: question_id, image, question, answers, kind
FOLDER/example.png example.json     the first held-out page, its question and its answer
"""

import io
import json
from pathlib import Path

import yaml

from llava.demo.digit_pages import (
    CAPTION,
    KINDS,
    NOTE,
    PAGE,
    ask,
    ask_arithmetic,
    draw_numbers,
    draw_page,
    page_turns,
    read_page,
    rng_for,
)

STAGE1_5_SHARE = 0.4  # of the pages of stages 1.5 and 2
TEXT_SHARE = 0.08  # conversations without a page, in stages 1.5 and 2
README = """---
configs:
- config_name: default
  data_files:
  - split: test
    path: test.parquet
dataset_info:
  features:
  - {name: question_id, dtype: string}
  - {name: image, dtype: image}
  - {name: question, dtype: string}
  - {name: answers, sequence: string}
  - {name: kind, dtype: string}
---
Pages of handwritten digits that were not trained on, one question a row.
"""


def write_mixture(folder: Path, captions: int, pages: int, test_pages: int, seed: int) -> None:
    """Writes everything below `folder`; the same for the same numbers and seed."""
    (folder / "images").mkdir(parents=True)
    first_part = round(pages * STAGE1_5_SHARE)
    for stage, count in (("stage1", captions), ("stage1_5", first_part), ("stage2", pages - first_part)):
        records = [_record(folder, stage, index, seed) for index in range(count)]
        (folder / f"{stage}.json").write_text(json.dumps(records, indent=1))
        entries = [{"json_path": f"{stage}.json", "sampling_strategy": "all"}]
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump({"datasets": entries}))
    first = _write_test(folder / "test", test_pages, seed)
    (folder / "example.png").write_bytes(first["image"]["bytes"])
    (folder / "example.json").write_text(json.dumps({key: first[key] for key in ("question", "answers")}))


def _record(folder: Path, stage: str, index: int, seed: int) -> dict:
    rng = rng_for(seed, stage, index)
    if stage != "stage1" and rng.random() < TEXT_SHARE:
        question = ask_arithmetic(rng)
        return {"id": f"{stage}/{index}", "conversations": _turns(("human", question.text), ("gpt", question.answer))}
    numbers = draw_numbers(rng)
    image = f"images/{stage}_{index:05}.png"
    draw_page(rng, numbers, NOTE if stage == "stage1" else PAGE, test=False).save(folder / image)
    if stage == "stage1":
        turns = _turns(("human", f"<image>\n{CAPTION}"), ("gpt", read_page(numbers)))
    else:
        turns = _turns(*((turn.role, turn.text) for turn in page_turns(rng, numbers)))
    return {"id": f"{stage}/{index}", "image": image, "conversations": turns}


def _turns(*turns: tuple[str, str]) -> list[dict]:
    return [{"from": role, "value": text} for role, text in turns]


def _write_test(folder: Path, pages: int, seed: int) -> dict:
    """Two rows a page of held-out digits: a `place` question and one of the other kinds. Returns the first row."""
    import pyarrow
    from pyarrow import parquet

    rows = []
    for index in range(pages):
        rng = rng_for(seed, "test", index)
        numbers = draw_numbers(rng)
        png = io.BytesIO()
        draw_page(rng, numbers, PAGE, test=True).save(png, "PNG")
        for kind in ("place", KINDS[1 + index % (len(KINDS) - 1)]):
            question = ask(rng, numbers, kind)
            rows.append(
                {
                    "question_id": f"{index}-{kind}",
                    "image": {"bytes": png.getvalue(), "path": None},
                    "question": question.text,
                    "answers": [question.answer],
                    "kind": kind,
                }
            )
    folder.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "test.parquet")
    (folder / "README.md").write_text(README)
    return rows[0]
