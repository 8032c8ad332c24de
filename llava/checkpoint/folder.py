"""The format of a model folder, and what can be wrong with one before anything heavy is loaded. Imports no torch.

FOLDER/config.json                     sizes and kind of the model, `model_type` among them
FOLDER/model.safetensors               the weights; or several files and model.safetensors.index.json
FOLDER/processor_config.json           of the image processor and what joins it to the tokenizer
FOLDER/tokenizer.json, ...             see TOKENIZER_FILES
FOLDER/generation_config.json          where answers end
FOLDER/adapter/                        of a model that was trained with LoRA: ADAPTER_FILES, as peft writes them
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from llava.constants import ADAPTER_FOLDER, MODEL_TYPE, ONEVISION_MODEL_TYPE, RELEASED_MODEL_TYPES, TOWER_TYPES
from llava.errors import LlavaError
from llava.files import file_hash
from llava.text_files import read_json

CONFIG = "config.json"
MANIFEST = "run.json"  # of a model that a stage trained
LOG, TENSORBOARD = "log.csv", "runs"  # what it logged: a table, and a folder where run.report_to asked for one
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# What a folder may hold, in the order in which transformers looks: (single file, index of several).
LAYOUTS = ((WEIGHTS, INDEX), ("pytorch_model.bin", "pytorch_model.bin.index.json"))
ADAPTER_CONFIG, ADAPTER_WEIGHTS = ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
PROCESSOR_CONFIG, IMAGE_PROCESSOR_CONFIG = "processor_config.json", "preprocessor_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
VOCABULARIES = ("tokenizer.json", "vocab.json")  # a folder with one of them has a tokenizer
CHAT_TEMPLATE, GENERATION_CONFIG = "chat_template.jinja", "generation_config.json"
NEEDED_TOKENIZER_FILES = ("tokenizer.json", TOKENIZER_CONFIG)
NEEDED_PROCESSOR_FILES = (PROCESSOR_CONFIG, *NEEDED_TOKENIZER_FILES)
# What a model's answers depend on: weights, adapters, sizes, tiling, and text to tokens.
IDENTITY = (
    "*.safetensors",
    f"{ADAPTER_FOLDER}/*.safetensors",
    f"{ADAPTER_FOLDER}/{ADAPTER_CONFIG}",
    CONFIG,
    IMAGE_PROCESSOR_CONFIG,
    PROCESSOR_CONFIG,
    "answers.json",  # of a two-tower model of questions
    *TOKENIZER_FILES,
)
STAGE_WORKING, STAGE_CHECKPOINTS = ".unfinished", ".checkpoints"  # behind the name of what a stage trains to
OTHER_BYTES = 100 * 2**20  # of all that stands beside the weights: tokenizer, processor, logs
TOWER_FOLDER_TYPES = (*TOWER_TYPES, "siglip", "clip")  # the last two hold a text tower, too


def model_type_of(folder: Path) -> str | None:
    """What kind of model a folder says to hold; None where it says nothing, or has no config.json.

    Raises:
        LlavaError: config.json cannot be read.
    """
    return read_json(folder / CONFIG).get("model_type") if (folder / CONFIG).is_file() else None


def check_folder(
    path: str | Path,
    key: str = "",
    model_types: Sequence[str] = (MODEL_TYPE,),
    files: Sequence[str] = (),
    weights: bool = False,
) -> None:
    """Checks that a folder holds a model of one of these types.

    Args:
        path: The folder.
        key: What the user calls it, such as `model.start_from`; errors begin with it.
        model_types: Of config.json's `model_type`.
        files: Names of files that must be there besides.
        weights: Whether weights and adapters must be whole, too. Their headers are read, and compared with the sizes.

    Raises:
        LlavaError: The first fault, and the way on where there is one.
    """
    folder, place = Path(path), f"{key} {path}".lstrip()
    if not folder.is_dir():
        raise LlavaError(f"{place}: {_why_no_folder(folder, MODEL_TYPE in model_types)}")
    if not (folder / CONFIG).is_file():
        raise LlavaError(f"{place}: not a model folder (no {CONFIG}){models_inside(folder)}")
    _check_model_type(folder, place, model_types)
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise LlavaError(f"{place}: incomplete, it has no {', '.join(missing)}")
    if weights:
        _check_weights(folder, place)


def _why_no_folder(path: Path, importable: bool) -> str:
    if path.exists():
        return "a file, not a model folder"
    if importable and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(path)) and not path.parent.exists():
        return f"no such model folder; if it is a model on the hub: {_import_command(path)}"
    return "no such model folder"


def _import_command(source: Path) -> str:
    return f"llava convert import {source} --out DIR"


def models_inside(folder: Path) -> str:
    """How a message about a folder without a model ends: with the folders in or around it that have one."""
    if (folder / ADAPTER_CONFIG).is_file():
        return f"; it holds adapters alone, their model is {folder.absolute().parent}"
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    return f"; name one of the folders in it: {', '.join(inside)}" if inside else ""


def _check_model_type(folder: Path, place: str, expected: Sequence[str]) -> None:
    config = read_json(folder / CONFIG)
    if "model_type" not in config:
        raise LlavaError(f"{folder / CONFIG}: not a model configuration (no model_type)")
    model_type = config["model_type"]
    if model_type in expected:
        return
    importable = MODEL_TYPE in expected and model_type in (*RELEASED_MODEL_TYPES, ONEVISION_MODEL_TYPE)
    way_on = f"; {_import_command(folder)} makes one of it" if importable else ""
    is_text_model = any(str(name).endswith("ForCausalLM") for name in config.get("architectures") or ())
    kind = "a text-only model" if is_text_model and "vision_config" not in config and not importable else "a model"
    raise LlavaError(f"{place}: holds {kind} of type {model_type!r}; expected {' or '.join(expected)}{way_on}")


def _check_weights(folder: Path, place: str) -> None:
    from safetensors import SafetensorError, safe_open

    for file in _expected_weights(folder, place) + _expected_adapters(folder, place):
        try:
            with safe_open(file, framework="numpy"):
                pass  # reads the header and compares it with the file's size
        except (OSError, SafetensorError) as error:
            raise LlavaError(f"{place}: {file.name} is missing or cut off ({error})") from error


def _expected_weights(folder: Path, place: str) -> list[Path]:
    if (folder / INDEX).is_file():
        return [folder / name for name in indexed_files(folder / INDEX)]
    if not (folder / WEIGHTS).is_file():
        raise LlavaError(f"{place}: incomplete, it has no {WEIGHTS}")
    return [folder / WEIGHTS]


def _expected_adapters(folder: Path, place: str) -> list[Path]:
    if not has_adapters(folder):
        return []
    adapter = folder / ADAPTER_FOLDER
    missing = [name for name in ADAPTER_FILES if not (adapter / name).is_file()]
    if missing:
        raise LlavaError(f"{place}: incomplete, its {ADAPTER_FOLDER} has no {', '.join(missing)}")
    return [adapter / ADAPTER_WEIGHTS]


def has_adapters(folder: str | Path) -> bool:
    """Whether LoRA adapters stand beside the folder's weights."""
    return (Path(folder) / ADAPTER_FOLDER).is_dir()


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a tokenizer of one of the known kinds."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def has_weights(folder: Path) -> bool:
    """Whether the folder holds a model's weights in one of the known layouts."""
    return any((folder / name).is_file() for layout in LAYOUTS for name in layout)


def weight_files(path: str | Path) -> list[Path]:
    """The files that hold a checkpoint's weights: of a folder, or the one .safetensors, .bin or .ckpt file itself.

    Raises:
        LlavaError: There is none, an index cannot be read, or it names a file that does not exist.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise LlavaError(f"{path}: no such file or folder")
    for single, index in LAYOUTS:
        if (path / single).is_file():
            return [path / single]
        if (path / index).is_file():
            return _existing_files(path / index)
    names = ", ".join(name for layout in LAYOUTS for name in layout)
    raise LlavaError(f"{path}: no weights, found none of {names}")


def read_index(index: Path) -> dict[str, str]:
    """{parameter: name of the file that holds it}, as an index of weights has it.

    Raises:
        LlavaError: It cannot be read as one.
    """
    try:
        weight_map = read_json(index, by_hand=True)["weight_map"]
        return {name: str.__str__(file) for name, file in weight_map.items()}
    except (KeyError, AttributeError, TypeError) as error:
        raise LlavaError(f"{index}: not readable as an index of weights ({error!r})") from None


def indexed_files(index: Path) -> list[str]:
    """Names of the files that an index of weights names. Raises LlavaError as read_index does."""
    return sorted(set(read_index(index).values()))


def _existing_files(index: Path) -> list[Path]:
    names = indexed_files(index)
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise LlavaError(f"{index}: names {outside[0]!r}, which is not a file of the same folder")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise LlavaError(f"{index}: {len(missing)} of {len(names)} files do not exist, first {missing[0]}")
    return [index.parent / name for name in names]


def identity_files(folder: Path) -> list[Path]:
    """The files of a model folder by which it is known, see IDENTITY; sorted, and only those that are there."""
    return sorted(file for pattern in IDENTITY for file in folder.glob(pattern))


def weights_id(folder: Path) -> str:
    """The first 12 hex digits of the SHA-256 of names and contents of the model's files, wherever the folder lies."""
    digest = hashlib.sha256()
    for file in identity_files(folder):
        digest.update(f"{file.relative_to(folder).as_posix()} {file_hash(file)}\n".encode())
    return digest.hexdigest()[:12]
