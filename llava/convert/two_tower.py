"""Two-tower checkpoints of others as ours: the authors' .ckpt files, and transformers' BridgeTower folders.

ManagerTower, BridgeTower and METER of LooperXX/ManagerTower are Lightning files, {"state_dict", "hyper_parameters":
{"config"}}. transformers' BridgeTower is the same model by other names; what these become by the reference's names is
the first step, and the rest is shared.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from transformers import AutoConfig, BridgeTowerConfig, CLIPVisionConfig, PreTrainedConfig, RobertaConfig

from llava.checkpoint.compose import pixel_statistics
from llava.checkpoint.folder import has_tokenizer
from llava.checkpoint.lightning import read_lightning
from llava.checkpoint.match import Part, Rules, match_keys, read_matched
from llava.checkpoint.shards import tensor_shapes, write_shards
from llava.convert.output import check_room, dtype_name, new_folder, write_record
from llava.convert.parts import new_parameters
from llava.convert.source import read_config, read_tokenizer
from llava.convert.two_tower_names import (
    CLASSIFIERS,
    config_fields,
    pieces,
    reference_rules,
    text_config,
    vision_config,
)
from llava.data.pairs.processor import PairProcessor, check_tokenizer
from llava.errors import LlavaError
from llava.two_tower.configuration import TwoTowerConfig
from llava.two_tower.modeling import TwoTowerForTask
from llava.two_tower.parts import PREFIXES, TEXT_TOWER
from llava.two_tower.tasks import TASKS

Tensors = dict[str, torch.Tensor]
# Of a checkpoint's names, whose presence tells its bridge; METER has neither.
_BRIDGE_MARKS = {"manager": "_manager_tower.", "bridge_tower": "_link_tower."}
_HEAD_MARKS = {"mlm": "mlm_score.", "itm": "itm_score.", "itc": "itc_text_head."}
# transformers' names of BridgeTower by the reference's. The whole models' begin with `bridgetower.`
_TRANSFORMERS = Rules(
    (
        (r"text_model\.(.+)", r"text_transformer.\1"),
        (r"vision_model\.visual\.embeddings\.class_embedding", "vit_model.visual.class_embedding"),
        (r"vision_model\.visual\.embeddings\.position_embedding\.weight", "vit_model.visual.positional_embedding"),
        (r"vision_model\.visual\.embeddings\.patch_embedding\.weight", "vit_model.visual.conv1.weight"),
        (r"vision_model\.(.+)", r"vit_model.\1"),
        (r"itc_(text|image)_head\.(.+)", r"cross_modal_itc_\1_head.\2"),
        (r"logit_scale", "temperature"),
    )
)
# Fields of transformers' BridgeTower that change what it computes, and their values that this model has.
_SUPPORTED = {"share_cross_modal_transformer_layers": True, "link_tower_type": "add", "share_link_tower_layers": False}


@dataclass(frozen=True)
class TwoTowerSource:
    """A checkpoint to import, in our terms.

    Attributes:
        name: As the user gave it.
        kind: For the table and the record.
        part: Where the weights come from.
        config: Of the model.
        new_heads: Of the task, those that the checkpoint lacks.
        folders: Where a tokenizer and pixel statistics are looked for, in this order.
        notes: What the user should know about this source.
    """

    name: str
    kind: str
    part: Part
    config: TwoTowerConfig
    new_heads: tuple[str, ...]
    folders: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def ckpt_source(name: str, file: Path, text_tower: Path | None, task: str | None) -> TwoTowerSource:
    """The authors' .ckpt.

    Args:
        name: As the user gave it.
        file: The checkpoint.
        text_tower: Folder of the text tower's config.json and tokenizer; None where it is as roberta-base.
        task: Which of the heads are kept; None for the one task that they are of.

    Raises:
        LlavaError: The file is none, its settings are not supported, or its weights are of another bridge.
    """
    content = read_lightning(file)
    reference = content.get("hyper_parameters", {}).get("config")
    if not isinstance(reference, Mapping):
        raise LlavaError(f"{file}: has no hyper_parameters with a config, so that its sizes are not known")
    shapes = {key: tuple(tensor.shape) for key, tensor in content["state_dict"].items()}
    task = task_of(file, shapes, task)
    try:
        fields = config_fields(reference, task)
        _check_bridge(fields["bridge"], shapes)
        text = text_config(shapes) if text_tower is None else _read_text_config(text_tower)
        config = TwoTowerConfig(text_config=text, vision_config=vision_config(shapes), **fields)
    except LlavaError as error:
        raise LlavaError(f"{file}: {error}") from None
    except KeyError as error:
        raise LlavaError(f"{file}: its configuration or its weights have no {error.args[0]}") from None
    return TwoTowerSource(
        name=name,
        kind=f"{reference['model_type']} of LooperXX/ManagerTower ({task})",
        part=Part.open(file, reference_rules(config), apart=pieces(config)),
        config=config,
        new_heads=_new_heads(task, shapes),
        folders=(text_tower,) if text_tower is not None else (),
        notes=("padding is not masked in the fused query, as in the reference: mask_padding false",)
        if fields["bridge"] == "manager"
        else (),
    )


def bridgetower_source(name: str, folder: Path, task: str | None) -> TwoTowerSource:
    """transformers' BridgeTower folder; arguments and errors as of ckpt_source."""
    peer = read_config(BridgeTowerConfig, folder)
    shapes = tensor_shapes(folder)
    task = task_of(folder, shapes, task)
    try:
        config = transformers_config(peer, task)
    except LlavaError as error:
        raise LlavaError(f"{folder}: {error}") from None
    new_heads = _new_heads(task, shapes)
    notes = [
        f"LayerNorms of cross-modal layers add {config.layer_norm_eps} as where it was trained; transformers adds "
        f"{peer.layer_norm_eps}"
    ]
    if "itc" in TASKS[task].heads and "itc" not in new_heads:
        notes.append(
            "ITC embeds the image tower's own state, transformers the projected one: fine-tune before retrieval"
        )
    return TwoTowerSource(
        name=name,
        kind=f"BridgeTower of transformers ({task})",
        part=Part.open(folder, reference_rules(config), apart=_transformers_pieces(config)),
        config=config,
        new_heads=new_heads,
        folders=(folder,),
        notes=tuple(notes),
    )


def transformers_config(peer: BridgeTowerConfig, task: str) -> TwoTowerConfig:
    """Of transformers' BridgeTower in our terms. Raises LlavaError for a setting that this model does not have."""
    vision, text = peer.vision_config, peer.text_config
    settings = {name: peer.to_dict()[name] for name in _SUPPORTED}
    settings |= {"share_layernorm": vision.share_layernorm, "remove_last_layer": vision.remove_last_layer}
    for key, value in (_SUPPORTED | {"share_layernorm": True, "remove_last_layer": False}).items():
        if settings[key] != value:
            raise LlavaError(f"{key} {settings[key]!r} is not supported, only {value!r}")
    text_fields = {name: value for name, value in text.to_dict().items() if name in RobertaConfig().to_dict()}
    return TwoTowerConfig(
        text_config=RobertaConfig(**text_fields | {"model_type": "roberta"}),
        vision_config=CLIPVisionConfig(
            hidden_size=vision.hidden_size,
            intermediate_size=4 * vision.hidden_size,
            num_hidden_layers=vision.num_hidden_layers,
            num_attention_heads=max(vision.hidden_size // 64, 1),
            patch_size=vision.patch_size,
            image_size=vision.image_size,
            hidden_act="quick_gelu",
            layer_norm_eps=vision.layer_norm_eps,
        ),
        bridge="bridge_tower",
        cross_modal_layers=peer.num_hidden_layers,
        hidden_size=peer.hidden_size,
        num_attention_heads=peer.num_attention_heads,
        intermediate_size=4 * peer.hidden_size,
        task=task,
        itc_width=peer.to_dict().get("contrastive_hidden_size", 256),
    )


def _transformers_pieces(config: TwoTowerConfig) -> Callable[[str, torch.Tensor], Tensors]:
    apart = pieces(config)

    def renamed(name: str, tensor: torch.Tensor) -> Tensors:
        name = name.removeprefix("bridgetower.")
        if name == "logit_scale":  # of which the temperature is the inverse
            tensor = (-tensor).exp()
        return apart(_TRANSFORMERS.rename(name) or name, tensor)

    return renamed


def task_of(place: Path, names: Iterable[str], task: str | None) -> str:
    """The task whose heads a checkpoint has, or the one that is asked for.

    Raises LlavaError where heads of several tasks are there and none is asked for, or heads of none.
    """
    names = list(names)
    heads = {head for head, mark in _HEAD_MARKS.items() if any(mark in name for name in names)}
    tasks = [task for mark, task in CLASSIFIERS.items() if any(name.startswith(f"{mark}.") for name in names)]
    tasks += [name for name in ("pretrain", "retrieval") if heads >= set(TASKS[name].heads)]
    if task is not None:
        return task
    if tasks == ["pretrain", "retrieval"]:
        return "pretrain"  # as BridgeTower's pre-training, whose ITC no task needs
    if len(tasks) != 1:
        heads = f"heads of {', '.join(tasks)}" if tasks else "heads of no task"
        raise LlavaError(f"{place}: has {heads}; choose one: --task {'|'.join(TASKS)}")
    return tasks[0]


def _new_heads(task: str, names: Iterable[str]) -> tuple[str, ...]:
    """Of the task's heads, those of which a checkpoint has nothing."""
    marks = _HEAD_MARKS | {"classifier": next((f"{mark}." for mark, of in CLASSIFIERS.items() if of == task), "")}
    return tuple(head for head in TASKS[task].heads if not any(marks[head] in name for name in names))


def _check_bridge(bridge: str, names: Iterable[str]) -> None:
    marked = [of for of, mark in _BRIDGE_MARKS.items() if any(mark in name for name in names)] or ["meter"]
    if bridge not in marked:
        raise LlavaError(f"its weights are of the bridge {marked[0]}, but its configuration says {bridge}")


def _read_text_config(folder: Path) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise LlavaError(f"--text_tower {folder}: no configuration ({str(error).splitlines()[0]})") from None


def write(source: TwoTowerSource, out: Path, tokenizer_folder: Path | None, max_shard_bytes: int, seed: int) -> None:
    """Writes a source as a checkpoint of this package; arguments and errors as of llava.convert.write.convert."""
    config = source.config
    processor = make_processor(source, tokenizer_folder)
    with torch.device("meta"):
        model = TwoTowerForTask(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    new_heads = tuple(f"heads.{head}." for head in source.new_heads)
    match = match_keys((source.part,), expected, new_heads)
    print(f"{source.name}: {source.kind}\n{match.table(PREFIXES)}")
    match.check(source.name)
    config.dtype = match.dtype(f"{TEXT_TOWER}embeddings.word_embeddings.weight")
    config.architectures = [TwoTowerForTask.__name__]
    torch.manual_seed(seed)
    new = new_parameters(model, match, config.dtype, new_heads)
    check_room(out, source.name, [owner.infos[name] for owner, name in match.mapped.values()])
    with new_folder(out) as folder:
        config.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
        write_shards(folder, chain(new.items(), read_matched(match, (source.part,))), max_shard_bytes)
        write_record(folder, source.name, source.kind, (source.part,), match, config.dtype)
    notes = [*source.notes, *(f"head {head} is new: the checkpoint has none" for head in source.new_heads)]
    if processor is None:
        notes.append("no tokenizer; to train or evaluate, give its folder: --tokenizer DIR")
    for note in notes:
        print(f"note: {note}")
    print(f"{out}: {config.bridge}, {config.task}, {dtype_name(config.dtype)}")


def make_processor(source: TwoTowerSource, tokenizer_folder: Path | None) -> PairProcessor | None:
    """Of the first folder that has a tokenizer; None where none has. Raises LlavaError for another tower's."""
    folders = [tokenizer_folder] if tokenizer_folder is not None else source.folders
    folder = next((one for one in folders if has_tokenizer(one)), None)
    if folder is None:
        if tokenizer_folder is not None:
            raise LlavaError(f"--tokenizer {tokenizer_folder}: holds no tokenizer")
        return None
    text = source.config.text_config
    tokenizer = read_tokenizer(text, folder)
    check_tokenizer(tokenizer, text.vocab_size, text.pad_token_id, source.name)
    pixels = pixel_statistics(source.folders)
    statistics = {name: tuple(pixels[f"image_{name}"]) for name in ("mean", "std")} if pixels else {}
    length = TASKS[source.config.task].text_length
    return PairProcessor(tokenizer, source.config.vision_config.image_size, length, **statistics)
