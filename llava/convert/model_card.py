"""README.md of an exported folder, the model's card on the hub: what was trained, on what, what it scores, how to load.

Written from the checkpoint's config.json and run.json. Of paths it tells the last part alone. Imports no torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llava.checkpoint.folder import CONFIG, LOG, MANIFEST
from llava.convert.to_remote_code import task_class
from llava.errors import LlavaError
from llava.text_files import read_json
from llava.text_table import markdown_table
from llava.two_tower.parts import MODEL_TYPE as TWO_TOWER_TYPE
from llava.two_tower.tasks import TASKS

CARD = "README.md"
_TOLD_OF_PAIRS = ("data.split", "data.image_size", "data.text_length", "data.transform")
_UNFILTERED = "Nothing was measured but what stands under Scores. No filter stands before or behind the model."


@dataclass(frozen=True)
class _Family:
    """What of a card is a family's own.

    load: three lines of Python that give the model and what prepares its inputs. tag: the hub's name of what it does,
    where there is one. parts: of the model, by what they are. recipe_keys: what is told of run.json's recipe, sections
    and dotted keys. limits: in words.
    """

    load: str
    tag: str | None
    parts: Mapping[str, str]
    recipe_keys: tuple[str, ...]
    limits: str


def model_card(source: Path, name: str, remote_code: bool, scores: Path | None, licence: str | None) -> str:
    """The card of a checkpoint.

    Args:
        source: The checkpoint.
        name: What the card says to load: the folder's name, or a repository.
        remote_code: Whether it needs trust_remote_code.
        scores: What `llava eval report RUN --json` wrote of one run; None for a card without.
        licence: The hub's name of one, such as apache-2.0; None where none was told.

    Raises:
        LlavaError: run.json or the scores cannot be read.
    """
    run = read_json(source / MANIFEST) if (source / MANIFEST).is_file() else {}
    config = read_json(source / CONFIG)
    family = (_two_tower if config["model_type"] == TWO_TOWER_TYPE else _mllm)(config, name, remote_code)
    front = {"library_name": "transformers", "tags": ["llava-ov-manager"]}
    front |= {"pipeline_tag": family.tag} if family.tag is not None else {}
    front |= {"license": licence} if licence is not None else {}
    licensed = f"`{licence}`." if licence else "Not told by who exported it: that of its parts and data holds."
    sections = {
        "How to load": f"```python\n{family.load}\n```",
        "Recipe": _recipe(family, run) + _logged(source),
        "Data": _data(run),
        "Scores": _scores(scores),
        "Licence": licensed,
        "Limits": family.limits,
    }
    text = "".join(f"\n## {title}\n\n{content}\n" for title, content in sections.items())
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {name}\n{text}"


def _mllm(config: Mapping[str, Any], name: str, remote_code: bool) -> _Family:
    argument = ", trust_remote_code=True" if remote_code else ""
    return _Family(
        load="from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        f'processor = AutoProcessor.from_pretrained("{name}"{argument})\n'
        f'model = AutoModelForImageTextToText.from_pretrained("{name}"{argument})',
        tag="image-text-to-text",
        parts={
            "tower": _sizes(config.get("vision_config", {})),
            "language model": _sizes(config.get("text_config", {})),
            "fusion": (config.get("fusion") or {}).get("method", "none"),
        },
        recipe_keys=("stage", "arm", "fusion", "tiling", "components", "optim"),
        limits="Answers may be wrong and sound sure, above all about small print, counts and what a picture does not "
        f"show; they carry the biases of the training data. {_UNFILTERED}",
    )


def _two_tower(config: Mapping[str, Any], name: str, remote_code: bool) -> _Family:
    """It has no processor of its own: tokenizer and image processor are transformers'."""
    task, argument = config["task"], ", trust_remote_code=True" if remote_code else ""
    auto_class, bridge = task_class(task), config["bridge"]
    if bridge == "manager":
        bridge += f" ({config['manager_kind']}, query {config['query']}, weights {config['weight']})"
    return _Family(
        load=f"from transformers import AutoImageProcessor, {auto_class}, AutoTokenizer\n"
        f"kinds = AutoTokenizer, AutoImageProcessor, {auto_class}\n"
        f'tokenizer, image_processor, model = (kind.from_pretrained("{name}"{argument}) for kind in kinds)',
        tag="visual-question-answering" if task == "vqav2" else None,
        parts={
            "task": TASKS[task].title,
            "text tower": _sizes(config["text_config"]),
            "image tower": _sizes(config["vision_config"]),
            "bridge": bridge,
            "cross-modal layers": f"{config['cross_modal_layers']} of {config['hidden_size']}",
        },
        recipe_keys=("stage", "arm", "fusion", "task", *_TOLD_OF_PAIRS, "rates", "optim"),
        limits="Made for one text of a few dozen tokens and an image of one size. What it scores, chooses or ranks may "
        f"be wrong and carries the biases of the training data. {_UNFILTERED}",
    )


def _sizes(part: Mapping[str, Any]) -> str:
    return f"{part.get('model_type')}, {part.get('num_hidden_layers')} layers of {part.get('hidden_size')}"


def _read_scores(path: Path) -> list[list[str]]:
    """Rows of task, metric, score with its interval, and documents, from what `llava eval report RUN --json` wrote.

    Raises:
        LlavaError: It is no such file, or holds several runs.
    """
    rows = read_json(path).get("rows")
    try:
        runs = {run for row in rows for run in row["scores"]}
        if len(runs) != 1:
            names = ", ".join(sorted(runs)) or "none"
            raise LlavaError(f"--scores {path}: a card tells the scores of one run; found {len(runs)}: {names}")
        (run,) = runs
        return [[row["task"], row["metric"], *_cells(row["scores"][run])] for row in rows if run in row["scores"]]
    except (TypeError, KeyError, ValueError) as error:
        raise LlavaError(f"--scores {path}: not what llava eval report --json writes ({error!r})") from error


def _cells(score: Mapping[str, Any]) -> list[str]:
    style = ".1f" if score["percent"] else ".4g"
    if not all(math.isfinite(score[key]) for key in ("value", "low", "high") if score[key] is not None):
        raise ValueError("a score that is not finite")
    interval = "" if score["low"] is None else f" [{score['low']:{style}}, {score['high']:{style}}]"
    return [f"{score['value']:{style}}{interval}", f"{score['documents']:,}"]


def _recipe(family: _Family, run: Mapping[str, Any]) -> str:
    lines = [f"- {part}: {what}" for part, what in family.parts.items()]
    if not run:
        return "\n".join([*lines, "- trained elsewhere: the checkpoint has no run.json"])
    recipe = _without_paths(_chosen(run.get("recipe", {}), family.recipe_keys))
    for key, title in (("steps", "steps"), ("tokens_seen", "tokens seen"), ("train_loss", "mean training loss")):
        if key in run:
            lines.append(f"- {title}: {run[key]:.4g}" if key == "train_loss" else f"- {title}: {run[key]:,}")
    versions = ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items())
    lines += [f"- with {versions}"] if versions else []
    return "\n".join([*lines, "", "```yaml", yaml.safe_dump(recipe, sort_keys=False).rstrip(), "```"])


def _logged(source: Path) -> str:
    return f"\n\nWhat was logged as it was trained, step by step: [{LOG}]({LOG})." if (source / LOG).is_file() else ""


def _chosen(recipe: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Of a recipe these sections, and single fields by their dotted names, where it has them."""
    dotted = {f"data.{key}": value for key, value in recipe.get("data", {}).items()}
    fields = {**recipe, **dotted}
    return {key: fields[key] for key in keys if key in fields}


def _without_paths(value: Any) -> Any:
    """The same, of paths the last part, without what is None."""
    if isinstance(value, dict):
        return {key: _without_paths(one) for key, one in value.items() if one is not None}
    return value.rsplit("/", 1)[-1] if isinstance(value, str) else value


def _data(run: Mapping[str, Any]) -> str:
    if "mixture" not in run:
        return "Not known: the checkpoint's run.json does not tell."
    rows = [
        [_without_paths(row["json_path"]), row["sampling_strategy"], f"{row['rows']:,}", f"{row['taken']:,}"]
        for row in run["mixture"]
    ]
    table = markdown_table([["file", "taken by", "rows", "taken"], *rows])
    return f"Of the last stage:\n\n{table}"


def _scores(path: Path | None) -> str:
    if path is None:
        return "None were told: llava eval, llava eval report RUN --json FILE, llava convert export --scores FILE."
    table = markdown_table([["task", "metric", "score [95% interval]", "documents"], *_read_scores(path)])
    return f"{table}\n\nPercentages where the metric is one."
