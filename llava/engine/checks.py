"""What can be wrong before a model is loaded, found without importing torch."""

import json
import re
from pathlib import Path

from llava.constants import MODEL_TYPE, ONEVISION_MODEL_TYPE, REFERENCE_MODEL_TYPES
from llava.errors import LlavaError

DTYPE_NAMES = ("float32", "bfloat16", "float16")


def check_model_folder(path: str | Path) -> None:
    """Raises LlavaError unless `path` is a folder that holds a LLaVA-OV-Manager model; reads config.json only."""
    folder = Path(path)
    if not folder.is_dir():
        raise LlavaError(f"{folder}: {_why_no_folder(folder)}")
    if not (folder / "config.json").is_file():
        inside = sorted(file.parent.name for file in folder.glob("*/config.json"))
        hint = f"; name one of the folders in it: {', '.join(inside)}" if inside else ""
        raise LlavaError(f"{folder}: not a model folder (no config.json){hint}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
        found = config["model_type"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise LlavaError(f"{folder / 'config.json'}: not a model configuration ({error})") from error
    except OSError as error:
        raise LlavaError(f"{folder / 'config.json'} cannot be read: {error.strerror}") from None
    if found in (*REFERENCE_MODEL_TYPES, ONEVISION_MODEL_TYPE):
        raise LlavaError(f"{folder}: a checkpoint of type {found!r}; make one of this model of it: {_import(folder)}")
    if found != MODEL_TYPE:
        is_text_model = any(str(name).endswith("ForCausalLM") for name in config.get("architectures") or [])
        kind = "a text-only model" if is_text_model and "vision_config" not in config else "a model"
        raise LlavaError(f"{folder}: {kind} of type {found!r}; needed is {MODEL_TYPE!r}")


def _why_no_folder(path: Path) -> str:
    if path.exists():
        return "a file, not a model folder"
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(path)) and not path.parent.exists():
        return f"no such model folder; if it is a model on the hub: {_import(path)}"
    return "no such model folder"


def _import(source: Path) -> str:
    return f"llava convert import {source} --out DIR"


def check_dtype(name: str) -> None:
    """Raises LlavaError for a name that is neither `auto` nor a dtype that a model is loaded in."""
    if name not in ("auto", *DTYPE_NAMES):
        raise LlavaError(f"unknown dtype {name!r}; choose auto, {', '.join(DTYPE_NAMES)}")
