"""README.md of an exported folder, the model's card on the hub: what was trained, on what, what it scores, how to load.

Written from the checkpoint's config.json and run.json. Of paths it tells the last part alone. Imports no torch.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from llava.checkpoint.folder import CONFIG, read_json
from llava.errors import LlavaError
from llava.text_table import markdown_table

CARD, RUN = "README.md", "run.json"
RECIPE_KEYS = ("stage", "arm", "fusion", "tiling", "components", "optim")
LIMITS = (
    "Answers may be wrong and sound sure, above all about small print, counts and what a picture does not show; they "
    "carry the biases of the training data. Nothing was measured but what stands under Scores. No filter stands before "
    "or behind the model."
)


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
    run = read_json(source / RUN) if (source / RUN).is_file() else {}
    front = {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": ["llava-ov-manager"]}
    front |= {"license": licence} if licence is not None else {}
    licensed = f"`{licence}`." if licence else "Not told by who exported it: that of its parts and data holds."
    sections = {
        "How to load": f"```python\n{load_lines(name, remote_code)}\n```",
        "Recipe": _recipe(source, run),
        "Data": _data(run),
        "Scores": _scores(scores),
        "Licence": licensed,
        "Limits": LIMITS,
    }
    text = "".join(f"\n## {title}\n\n{content}\n" for title, content in sections.items())
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {name}\n{text}"


def load_lines(name: str, remote_code: bool) -> str:
    """Three lines of Python that give processor and model."""
    argument = ", trust_remote_code=True" if remote_code else ""
    return (
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        f'processor = AutoProcessor.from_pretrained("{name}"{argument})\n'
        f'model = AutoModelForImageTextToText.from_pretrained("{name}"{argument})'
    )


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


def _recipe(source: Path, run: Mapping[str, Any]) -> str:
    config = read_json(source / CONFIG)
    method = (config.get("fusion") or {}).get("method", "none")
    tower, language_model = (config.get(part, {}) for part in ("vision_config", "text_config"))
    lines = [
        f"- tower: {tower.get('model_type')}, {tower.get('num_hidden_layers')} layers of {tower.get('hidden_size')}",
        f"- language model: {language_model.get('model_type')}, {language_model.get('num_hidden_layers')} layers of "
        f"{language_model.get('hidden_size')}",
        f"- fusion: {method}",
    ]
    if not run:
        return "\n".join([*lines, "- trained elsewhere: the checkpoint has no run.json"])
    recipe = run.get("recipe", {})
    told = _without_paths({key: recipe[key] for key in RECIPE_KEYS if key in recipe})
    for key, title in (("steps", "steps"), ("tokens_seen", "tokens seen"), ("train_loss", "mean training loss")):
        if key in run:
            lines.append(f"- {title}: {run[key]:.4g}" if key == "train_loss" else f"- {title}: {run[key]:,}")
    versions = ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items())
    lines += [f"- with {versions}"] if versions else []
    return "\n".join([*lines, "", "```yaml", yaml.safe_dump(told, sort_keys=False).rstrip(), "```"])


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
