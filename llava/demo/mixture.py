"""Writes pages to disk: images, LLaVA JSON files with their mixtures, and the test set for lmms-eval.

FOLDER/images/*.png  stage1.json stage1_5.json stage2.json  stage1.yaml stage1_5.yaml stage2.yaml
FOLDER/test/README.md test.parquet  one question a row: question_id, image, question, answers, kind
FOLDER/example.png example.json     the first held-out page, its question and its answer
"""

import io
import json
from pathlib import Path

import yaml

from llava.demo.pages import Content, rng_for

STAGE1_5_SHARE = 0.4  # of the pages of stages 1.5 and 2
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
"""


def write_mixture(folder: Path, content: Content, captions: int, pages: int, test_pages: int, seed: int) -> None:
    """Writes everything below `folder`; the same for the same content, numbers and seed."""
    (folder / "images").mkdir(parents=True)
    first_part = round(pages * STAGE1_5_SHARE)
    for stage, count in (("stage1", captions), ("stage1_5", first_part), ("stage2", pages - first_part)):
        records = [_record(folder, content, stage, index, seed) for index in range(count)]
        (folder / f"{stage}.json").write_text(json.dumps(records, indent=1))
        entries = [{"json_path": f"{stage}.json", "sampling_strategy": "all"}]
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump({"datasets": entries}))
    first = _write_test(folder / "test", content, test_pages, seed)
    (folder / "example.png").write_bytes(first["image"]["bytes"])
    (folder / "example.json").write_text(json.dumps({key: first[key] for key in ("question", "answers")}))


def _record(folder: Path, content: Content, stage: str, index: int, seed: int) -> dict:
    image, turns = content.sample(rng_for(seed, stage, index), stage)
    record: dict = {"id": f"{stage}/{index}"}
    if image is not None:
        record["image"] = f"images/{stage}_{index:05}.png"
        image.save(folder / record["image"])
    return record | {"conversations": [{"from": turn.role, "value": turn.text} for turn in turns]}


def _write_test(folder: Path, content: Content, pages: int, seed: int) -> dict:
    """One row a question. Returns the first row."""
    import pyarrow
    from pyarrow import parquet

    rows = []
    for index in range(pages):
        image, questions = content.test(rng_for(seed, "test", index), index)
        png = io.BytesIO()
        image.save(png, "PNG")
        for question in questions:
            rows.append(
                {
                    "question_id": f"{index}-{question.kind}",
                    "image": {"bytes": png.getvalue(), "path": None},
                    "question": question.text,
                    "answers": [question.answer],
                    "kind": question.kind,
                }
            )
    folder.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "test.parquet")
    (folder / "README.md").write_text(f"{README}{content.description}\n")
    return rows[0]
