"""The two-tower model that a stage trains, from the folders that its recipe names.

The towers of the first stage are as their publishers save them; a later stage starts from the folder of the one before,
whose heads it drops where its task has others, and which it gives new ones. Either way the image tower's positions are
resized to the recipe's images, once. Which rank loads what is as for the MLLM, see llava/train/mllm/build.py.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from llava.checkpoint.compose import pixel_statistics
from llava.checkpoint.shards import read_tensors
from llava.data.pairs.mixture import read_pair_mixture
from llava.data.pairs.processor import PairProcessor, check_tokenizer
from llava.data.pairs.vocabulary import load_answers
from llava.errors import LlavaError
from llava.printable import one_line
from llava.train.loop.attention import attention_implementation, check_attention
from llava.train.recipe.dotted import read_yaml
from llava.train.two_tower.recipe import TwoTowerRecipe
from llava.train.two_tower.rules import check_bridge
from llava.two_tower.configuration import TwoTowerConfig
from llava.two_tower.modeling import TwoTowerForTask
from llava.two_tower.parts import IMAGE_TOWER
from llava.two_tower.tasks import TASKS
from llava.two_tower.towers import POSITIONS, fitted_positions

HEADS = "heads."
TYPES = "model.type_embedding.weight"  # (1 + images of an example, D)
# What a publisher's tower may have and this model does not: what its own pre-training needed.
IGNORED = (
    *("pooler.", "lm_head.", "cls.", "head.", "classifier."),
    *("visual_projection.", "text_projection.", "text_model.", "logit_scale"),
)
NEEDLESS = ("embeddings.mask_token", "position_ids")  # of DINOv2, for its own pre-training; a buffer


def model_config(recipe: TwoTowerRecipe, num_answers: int | None = None) -> TwoTowerConfig:
    """The configuration of the model to train: the towers' from the start, bridge and task from the recipe.

    num_answers: of VQA's answer set; None where there is none.
    Raises LlavaError where the start has another bridge than the recipe, both named, or layers do not fit.
    """
    folder = recipe.model.start_from
    if folder is None:
        towers = [tower_config(path) for path in (recipe.model.text_tower, recipe.model.vision_tower)]
        return _assembled(recipe, *towers, num_answers)
    check_bridge(recipe)
    start = TwoTowerConfig.from_pretrained(folder)
    return _assembled(recipe, start.text_config, start.vision_config, num_answers)


def tower_config(folder: str) -> PreTrainedConfig:
    """A tower's own configuration; of a whole CLIP that of its vision model."""
    config = AutoConfig.from_pretrained(folder)
    return getattr(config, "vision_config", config)


def expected_config(recipe: TwoTowerRecipe) -> TwoTowerConfig:
    """As model_config, for a dry run, which reads no answer set."""
    return model_config(recipe, _expected_answers(recipe))


def config_from_sizes(recipe: TwoTowerRecipe) -> TwoTowerConfig:
    """The configuration that `model.sizes` describes, for a dry run without any model folder."""
    sizes = read_yaml(recipe.model.sizes)
    towers = [AutoConfig.for_model(**sizes[tower]) for tower in ("text", "vision")]
    return _assembled(recipe, *towers, _expected_answers(recipe))


def _expected_answers(recipe: TwoTowerRecipe) -> int | None:
    return recipe.task.num_answers if TASKS[recipe.task.name].num_labels is None else None


def _assembled(
    recipe: TwoTowerRecipe, text: PreTrainedConfig, vision: PreTrainedConfig, num_answers: int | None
) -> TwoTowerConfig:
    vision.image_size = recipe.data.image_size
    task = recipe.task
    return TwoTowerConfig(
        text_config=text,
        vision_config=vision,
        **asdict(recipe.fusion),
        task=task.name,
        head_width=task.head_width,
        head_dropout=task.head_dropout,
        **({} if num_answers is None else {"num_answers": num_answers}),
    )


def build_on_meta(config: TwoTowerConfig, recipe: TwoTowerRecipe) -> TwoTowerForTask:
    """The model without weights, for counting."""
    with torch.device("meta"):
        return TwoTowerForTask(config)


def build(recipe: TwoTowerRecipe, with_weights: bool = True) -> tuple[TwoTowerForTask, PairProcessor]:
    """The model in float32, and its processor.

    Args:
        recipe: checked.
        with_weights: Whether the weights are loaded, on the CPU, and new ones drawn from torch's global generator; else
            the model is on the meta device.

    Raises:
        LlavaError: What the recipe starts from does not fit, or its attention cannot run here.
    """
    check_attention(recipe)
    answers = answers_of(recipe)
    config = model_config(recipe, None if answers is None else len(answers))
    processor = make_processor(recipe, config, answers)
    with torch.device("cpu" if with_weights else "meta"):
        model = TwoTowerForTask._from_config(
            config, dtype=torch.float32, attn_implementation=attention_implementation(recipe)
        )
    if with_weights:
        if recipe.model.start_from is None:
            load_tower(model.model.text_tower, recipe.model.text_tower, "model.text_tower")
            load_tower(model.model.image_tower, recipe.model.vision_tower, "model.vision_tower")
        else:
            load_start(model, recipe, processor)
    return model, processor


def answers_of(recipe: TwoTowerRecipe) -> tuple[str, ...] | None:
    """The vocabulary of a task that has one."""
    if TASKS[recipe.task.name].num_labels is not None:
        return None
    return load_answers(read_pair_mixture(recipe.data.mixture, TASKS[recipe.task.name].pairs))


def make_processor(recipe: TwoTowerRecipe, config: TwoTowerConfig, answers: tuple[str, ...] | None) -> PairProcessor:
    """Tokenizer and colours of the start, sizes of the recipe.

    Raises LlavaError for a tokenizer that is not the text tower's.
    """
    model, data = recipe.model, recipe.data
    if model.start_from is not None:
        start = PairProcessor.from_pretrained(model.start_from)
        tokenizer, statistics = start.tokenizer, {"mean": start.mean, "std": start.std}
        tower = model.start_from
    else:
        tokenizer, tower = AutoTokenizer.from_pretrained(model.text_tower), model.text_tower
        pixels = pixel_statistics((Path(model.vision_tower),))
        statistics = {name: tuple(pixels[f"image_{name}"]) for name in ("mean", "std")} if pixels else {}
    text = config.text_config
    check_tokenizer(tokenizer, text.vocab_size, text.pad_token_id, tower)
    return PairProcessor(tokenizer, data.image_size, data.text_length, answers=answers, **statistics)


def load_tower(tower: PreTrainedModel, folder: str, key: str) -> None:
    """Loads a publisher's tower, with or without the rest of its model around it; transformers knows what names it has.

    key: of the recipe, for messages.
    Raises LlavaError where a weight is missing, unknown or of another shape.
    """
    place = f"{key} {folder}"
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}  # told below
    try:
        loaded, loading = type(tower).from_pretrained(folder, config=tower_config(folder), **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise LlavaError(f"{place}: its weights cannot be loaded: {one_line(str(error))}") from error
    shapes = [
        f"{name}: found {tuple(saved)}, expected {tuple(expected)}"
        for name, saved, expected in loading["mismatched_keys"]
    ]
    faults = {"missing": loading["missing_keys"], "unexpected": loading["unexpected_keys"], "of another shape": shapes}
    for fault, names in faults.items():
        names = sorted(name for name in names if not name.startswith(IGNORED) and not name.endswith(NEEDLESS))
        if names:
            raise LlavaError(f"{place}: {len(names)} weights are {fault}, first {names[0]}")
    state = {name: tensor for name, tensor in loaded.state_dict().items() if not name.startswith(IGNORED)}
    _load(tower, _fitted(state, tower.config), place)


def load_start(model: TwoTowerForTask, recipe: TwoTowerRecipe, processor: PairProcessor) -> None:
    """Loads the folder of an earlier stage: all but the heads, and those of the task's heads that it has alike.

    A new task may have more images of an example, whose types begin as that of the first.
    Raises LlavaError where a weight is missing, unknown or of another shape.
    """
    folder = recipe.model.start_from
    state, wanted = dict(read_tensors(folder)), model.state_dict()
    kept = _kept_heads(recipe, processor)
    for name in [name for name in state if name.startswith(HEADS) and not name.startswith(kept)]:
        del state[name]
    new = {name: tensor for name, tensor in wanted.items() if name.startswith(HEADS) and not name.startswith(kept)}
    if len(state.get(TYPES, ())) != len(wanted[TYPES]):
        state[TYPES] = _types(state[TYPES], len(wanted[TYPES]))
    _load(model, _fitted(state, model.config.vision_config, IMAGE_TOWER) | new, f"model.start_from {folder}")


def _kept_heads(recipe: TwoTowerRecipe, processor: PairProcessor) -> tuple[str, ...]:
    """Beginnings of names of the heads that go on: those of the same task; of another one what is called alike.

    A classification head belongs to its task, its width and its answers; it is told where one of these two differs.
    """
    start = TwoTowerConfig.from_pretrained(recipe.model.start_from)
    shared = set(TASKS[start.task].heads) & set(TASKS[recipe.task.name].heads)
    if start.task != recipe.task.name:
        shared.discard("classifier")
    elif "classifier" in shared and (difference := _head_difference(start, recipe, processor)) is not None:
        print(f"note: the classifier begins anew: {difference}", flush=True)
        shared.discard("classifier")
    return tuple(f"{HEADS}{name}." for name in sorted(shared))


def _head_difference(start: TwoTowerConfig, recipe: TwoTowerRecipe, processor: PairProcessor) -> str | None:
    """What keeps the classifier of a start of the same task from going on, with both numbers; None for nothing."""
    place, width, answers = f"model.start_from {recipe.model.start_from}", recipe.task.head_width, processor.answers
    if start.head_width != width:
        return f"{place} has head_width {start.head_width}, the recipe {width}"
    if answers is None:
        return None
    before = PairProcessor.from_pretrained(recipe.model.start_from).answers or ()
    if before == answers:
        return None
    alike = sum(one == other for one, other in zip(before, answers))
    return f"{place} has {len(before):,} answers, the data {len(answers):,}; {alike:,} stand at the same place"


def _types(table: torch.Tensor, rows: int) -> torch.Tensor:
    """Embeddings of types for so many: of further images that of the first; of fewer the first ones."""
    return torch.cat([table, table[1:2].expand(max(rows - len(table), 0), -1)])[:rows]


def _fitted(state: dict[str, torch.Tensor], tower: PreTrainedConfig, prefix: str = "") -> dict[str, torch.Tensor]:
    return fitted_positions(state, tower, prefix) if tower.model_type in POSITIONS else state


def _load(module: nn.Module, state: dict[str, torch.Tensor], place: str) -> None:
    """Copies a whole state into a module. Raises LlavaError for the first of its faults."""
    model_shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    file_shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    names = model_shapes.keys() | file_shapes.keys()
    differing = sorted(name for name in names if model_shapes.get(name) != file_shapes.get(name))
    if differing:
        name = differing[0]
        raise LlavaError(
            f"{place}: {len(differing)} weights do not fit the model, first {name}: "
            f"{file_shapes.get(name, 'absent')} in the file, {model_shapes.get(name, 'absent')} in the model"
        )
    module.load_state_dict(state)
