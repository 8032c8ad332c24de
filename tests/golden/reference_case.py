"""Reads golden cases and runs them through the model. See data/README.md for the layout of the files."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import Qwen2Config, SiglipVisionConfig

from llava.anyres import image_layout
from llava.convert.from_released import RULES, convert_tensor, fusion_from_released, tiling_from_released
from llava.mllm import LlavaOVManagerConfig, LlavaOVManagerForConditionalGeneration

REFERENCE_PLACEHOLDER = -200
IMAGE_TOKEN_ID = 511  # unused by the tiny tokenizer; its embedding is replaced by image features
TEXT_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta"),
    "tie_word_embeddings",
)


@dataclass
class Case:
    """One golden case: its description, its tensors, and the model and inputs that belong to it.

    images: which of the case's images have a placeholder (the others are dummies of text-only samples).
    crops_of_images: the number of crops of each of those.
    attended: (B, L) booleans, the expected tensors' positions that are not padding.
    """

    name: str
    spec: dict
    tensors: dict[str, torch.Tensor]
    model: LlavaOVManagerForConditionalGeneration
    inputs: dict[str, torch.Tensor]
    images: list[int]
    crops_of_images: list[int]

    def __post_init__(self):
        self.attended = self._attended()
        kept, ours = self.attended.sum(1), self.inputs["attention_mask"].bool()
        longest = self.spec["config"].get("tokenizer_model_max_length") or ours.shape[1]
        assert torch.equal(kept, ours.sum(1).clamp(max=longest)), (
            f"{self.name}: rows of {kept.tolist()} tokens expected"
        )
        self._columns = torch.zeros(self.attended.shape, dtype=torch.int64)
        for row, positions in enumerate(ours):
            self._columns[row, self.attended[row]] = positions.nonzero()[: kept[row], 0]

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def aligned(self, tensor: torch.Tensor) -> torch.Tensor:
        """(B, our length, ...) as (B, L, ...): rows that the reference truncated end early, wherever the padding is."""
        return tensor[torch.arange(len(tensor))[:, None], self._columns]

    def _attended(self) -> torch.Tensor:
        if "out.attention_mask" in self.tensors:
            return self.tensors["out.attention_mask"].bool()
        ours = self.inputs["attention_mask"].bool()  # the reference gives a mask back only where it was given one
        width = self.tensors["out.final_norm"].shape[1] if "out.final_norm" in self.tensors else ours.shape[1]
        return ours[:, :width]


def our_name(name: str) -> str:
    """What the model calls one of the reference's parameters."""
    ours = RULES.rename(name)
    assert ours is not None, name
    return ours


def reference_name(name: str) -> str:
    """What the reference calls one of our parameters."""
    for pattern, replacement in (
        (r"model\.vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
        (r"model\.multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
        (r"model\.multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
        (r"model\.image_newline\.weight", "model.image_newline"),
        (r"model\.fusion\.layer_embedding", "model.manager_layer_embedding"),
        (r"model\.fusion\.managers\.(\d+)\.scores", r"model.manager.\1.layer_scores"),
        (r"model\.fusion\.managers\.(\d+)\.gate", r"model.manager.\1.zero_gate"),
        (r"model\.fusion\.managers\.(\d+)\.controller", r"model.manager.\1.linear_controller"),
        (r"model\.fusion\.managers\.(\d+)\.query_proj", r"model.manager.\1.fusion_attention.q_proj"),
        (r"model\.fusion\.managers\.(\d+)\.key_proj", r"model.manager.\1.fusion_attention.k_proj"),
        (r"model\.language_model\.", "model."),
    ):
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name


def list_cases(golden_dir: Path) -> dict[str, str]:
    """{case name: family} of every case file in the folder; one that cannot be read has the family "unreadable"."""
    return {path.stem: _family(path) for path in sorted(golden_dir.glob("cases/*.json"))}


def _family(path: Path) -> str:
    try:
        return json.loads(path.read_text())["family"]
    except (ValueError, KeyError, TypeError):
        return "unreadable"


def load_case(golden_dir: Path, name: str) -> Case:
    """Builds the case's model with the reference's weights, and its inputs with expanded placeholders."""
    spec = json.loads((golden_dir / "cases" / f"{name}.json").read_text())
    tensors = load_file(golden_dir / "cases" / f"{name}.safetensors")
    model = load_model(golden_dir, spec)
    return Case(name, spec, tensors, model, *make_inputs(golden_dir, spec, tensors, model.config))


def load_model(golden_dir: Path, spec: dict) -> LlavaOVManagerForConditionalGeneration:
    weights = golden_dir / "weights" / spec["weights"]
    described = json.loads(weights.with_suffix(".json").read_text())
    reference = {**described["config"], **spec["config"]}
    vision = {**described["siglip"], "num_hidden_layers": described["siglip"]["num_hidden_layers"] - 1}
    config = LlavaOVManagerConfig(
        vision_config=SiglipVisionConfig(**vision, vision_use_head=False),
        text_config=Qwen2Config(**{field: reference[field] for field in TEXT_FIELDS}, pad_token_id=500),
        fusion=fusion_from_released(reference),
        tiling=tiling_from_released(reference, tile=vision["image_size"]),
        image_token_id=IMAGE_TOKEN_ID,
        turn_start_token_id=501,
        turn_end_token_id=502,
    )
    config._attn_implementation = spec["config"].get("attn_implementation", described["attn"])
    model = LlavaOVManagerForConditionalGeneration(config).eval()
    state = load_file(golden_dir / "weights" / "base.safetensors")
    state.update(load_file(weights.with_suffix(".safetensors")))
    state = {our_name(name): convert_tensor(name, tensor) for name, tensor in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = ["lm_head.weight"] if reference["tie_word_embeddings"] else []
    if unexpected or missing != tied:
        raise KeyError(f"{spec['weights']}: missing {missing}, unexpected {unexpected}")
    return model


def make_inputs(golden_dir: Path, spec: dict, tensors: dict, config: LlavaOVManagerConfig):
    """(inputs, images, crops_of_images): the batch with each placeholder expanded, padded as the case is."""
    crops = read_crops(golden_dir, spec["pixel_values"])
    tile = config.vision_config.image_size
    sizes = [(height, width) for width, height in spec["image_sizes_wh"] or [(tile, tile)] * len(crops)]
    counts = [row.count(REFERENCE_PLACEHOLDER) for row in spec["input_ids"]]
    owners = [row for row, count in enumerate(counts) for _ in range(max(count, 1))]
    images = [index for index, row in enumerate(owners) if counts[row]]
    lengths = iter(_num_tokens(sizes[index], config, counts[owners[index]] > 1) for index in images)
    masks, labels = tensors.get("in.attention_mask"), tensors.get("in.labels")
    rows = []
    for number, ids in enumerate(spec["input_ids"]):
        row = []
        for position, token in enumerate(ids):
            label = labels[number, position].item() if labels is not None else -100
            if token == REFERENCE_PLACEHOLDER:
                row += [(IMAGE_TOKEN_ID, -100)] * next(lengths)
            elif masks is None or masks[number, position]:
                row.append((token, label))
        rows.append(row)
    inputs = _padded(rows, left=spec["config"].get("tokenizer_padding_side") == "left")
    if labels is None:
        del inputs["labels"]
    if images:
        inputs["pixel_values"] = torch.cat([crops[index] for index in images])
        inputs["image_sizes"] = torch.tensor([sizes[index] for index in images])
    inputs["batch_num_images"] = torch.tensor(counts)
    return inputs, images, [len(crops[index]) for index in images]


def _num_tokens(size: tuple[int, int], config: LlavaOVManagerConfig, several_images: bool) -> int:
    height, width = size
    tile, side = config.vision_config.image_size, config.patches_per_side
    layout = image_layout(width, height, config.tiling, tile=tile, side=side, several_images=several_images)
    return layout.num_tokens


def read_crops(golden_dir: Path, keys: list[str]) -> list[torch.Tensor]:
    """One (crops, 3, S, S) float32 tensor per key; uint8 entries are normalised as the file format says."""
    pixels = load_file(golden_dir / "pixels.safetensors")
    crops = []
    for key in keys:
        tensor = pixels[key]
        if tensor.dtype == torch.uint8:
            tensor = ((tensor.double() * (1 / 255)).float() - 0.5) / 0.5
        crops.append(tensor if tensor.dim() == 4 else tensor[None])
    return crops


def _padded(rows: list[list[tuple[int, int]]], left: bool) -> dict[str, torch.Tensor]:
    length = max(len(row) for row in rows)
    batch = {"input_ids": [], "labels": [], "attention_mask": []}
    for row in rows:
        padding = [(500, -100, 0)] * (length - len(row))
        filled = [(token, label, 1) for token, label in row]
        filled = padding + filled if left else filled + padding
        for key, values in zip(batch, zip(*filled)):
            batch[key].append(list(values))
    return {key: torch.tensor(values) for key, values in batch.items()}
