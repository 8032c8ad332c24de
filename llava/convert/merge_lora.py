"""`llava convert merge-lora`: a checkpoint with LoRA adapters becomes a plain one, equal in what it computes."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import llava
from llava.arguments import ArgumentParser
from llava.checkpoint.folder import ADAPTER_CONFIG, NEEDED_PROCESSOR_FILES, check_folder, has_adapters
from llava.constants import ADAPTER_FOLDER
from llava.convert.output import RECORD, check_free, check_room, new_folder
from llava.errors import LlavaError
from llava.text_files import read_json


def add_arguments(parser: ArgumentParser) -> None:
    """CHECKPOINT and --out."""
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint folder of a stage trained with LoRA"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder to write; must not exist, or be empty"
    )


def run(arguments: Namespace) -> int:
    """Merges and prints what was written; LlavaError for a checkpoint without adapters and for a taken --out."""
    source, out = arguments.checkpoint, arguments.out
    check_free(out)
    check_folder(source, "CHECKPOINT", files=NEEDED_PROCESSOR_FILES, weights=True)
    if not has_adapters(source):
        raise LlavaError(f"CHECKPOINT {source}: has no LoRA adapters (no folder {ADAPTER_FOLDER}); it is plain already")
    import torch

    from llava.checkpoint.loading import load_model
    from llava.checkpoint.shards import tensor_infos, write_shards
    from llava.mllm.former_names import current_name

    check_room(out, str(source), tensor_infos(source).values())
    # Sums are taken in float32 and rounded once, to what the checkpoint is saved in.
    dtypes = {current_name(name): info.dtype for name, info in tensor_infos(source).items()}
    weights = load_model(source, dtype=torch.float32).state_dict()
    with new_folder(out) as folder:
        _carry(source, folder)
        write_shards(folder, ((name, weights[name].to(dtype)) for name, dtype in dtypes.items()))
        adapter = read_json(source / ADAPTER_FOLDER / ADAPTER_CONFIG)
        record = {"source": str(source), "kind": "merged LoRA", "adapter": adapter, "llava": llava.__version__}
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    kind = "DoRA" if adapter["use_dora"] else "LoRA"
    print(f"{out}: {kind} of rank {adapter['r']} merged, {len(dtypes)} weights, no adapters left")
    return 0


def _carry(source: Path, folder: Path) -> None:
    """Everything but weights and adapters is the checkpoint's own: configuration, processor, tokenizer, manifest."""
    for path in source.iterdir():
        if path.is_file() and ".safetensors" not in path.name:
            shutil.copyfile(path, folder / path.name)
