"""Golden data of the two-tower models: what a folder holds, and models with the reference's weights.

The layout is described in tests/golden/two_tower/README.md. A folder may hold any part of it.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPVisionConfig, PreTrainedConfig, RobertaConfig

from llava.checkpoint.match import Rules
from llava.convert.two_tower_names import config_fields, pieces, reference_rules, vision_config
from llava.two_tower.bridges import Link
from llava.two_tower.configuration import TwoTowerConfig
from llava.two_tower.managers import AAUM, SAM, SAUM, FusedQuery, Manager
from llava.two_tower.modeling import TwoTowerForTask

FILES = ("managers.json", "models_*.json", "retrieval.json", "extras.json")
# Of the text tower's configuration, what says nothing of its sizes.
NOT_OURS = ("architectures", "torch_dtype", "transformers_version", "model_type", "position_embedding_type")
# Of the image tower: what no weight tells, and by our names what weights do.
NOT_IN_WEIGHTS = ("heads", "act", "eps")
IMAGE_SIZES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "patch": "patch_size",
    "mlp": "intermediate_size",
    "resolution": "image_size",
}
NORM_EPS = 1e-5  # of managers' LayerNorms and BridgeTower's


def is_two_tower(folder: Path) -> bool:
    return any(any(folder.glob(name)) for name in FILES)


def families(folder: Path) -> list[str]:
    """Of models: A and B, or what the folder has."""
    return sorted(path.stem.removeprefix("models_") for path in folder.glob("models_*.json"))


def list_cases(folder: Path) -> dict[str, list[str]]:
    """{family: names of its cases} of what the folder's json files list."""
    models = [f"{family}/{name}" for family in families(folder) for name in read(folder, f"models_{family}")["models"]]
    extras = read(folder, "extras")
    return {
        "managers": list(read(folder, "managers").get("cases", {})),
        "models": models,
        "retrieval": list(read(folder, "retrieval").get("results", {})),
        "extras": ["position_embeddings"] if extras else [],
    }


def read(folder: Path, name: str) -> dict:
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def agree(case: str, key: str, value: object, *possible: object) -> None:
    """Raises ValueError for a setting that is none of the possible ones."""
    if value not in possible:
        raise ValueError(f"{case}: {key} is {value!r}, but its weights or this model have {possible[0]!r}")


@dataclass
class ModelCase:
    """One model of the reference: its weights, inputs and outputs. family: of models_{family}.json."""

    folder: Path
    family: str
    name: str
    models: dict = field(init=False)
    spec: dict = field(init=False)

    def __post_init__(self):
        self.models = read(self.folder, f"models_{self.family}")
        self.spec = self.models["models"][self.name]

    @cached_property
    def inputs(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"inputs_{self.family}.safetensors")

    @cached_property
    def own(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"model_{self.name}.safetensors")

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        """The reference's state_dict."""
        shared = load_file(self.folder / f"shared_params_{self.family}.safetensors")
        return {key: self.own.get(f"param.{key}", shared.get(key)) for key in self.spec["state_dict_keys"]}

    def out(self, name: str) -> torch.Tensor:
        return self.own[f"out.{name}"]

    def has(self, name: str) -> bool:
        return f"out.{name}" in self.own

    @property
    def text_tower(self) -> RobertaConfig:
        fields = self.models["text_tower"]
        agree(self.name, "text_tower.model_type", fields["model_type"], "roberta")
        agree(self.name, "text_tower.position_embedding_type", fields.get("position_embedding_type"), "absolute", None)
        return RobertaConfig(**{key: value for key, value in fields.items() if key not in NOT_OURS})

    @property
    def image_tower(self) -> CLIPVisionConfig:
        fields = self.models["image_tower"]
        tower = vision_config({key: tuple(tensor.shape) for key, tensor in self.state.items()})
        tower.num_attention_heads, tower.hidden_act, tower.layer_norm_eps = (fields[key] for key in NOT_IN_WEIGHTS)
        for key, name in IMAGE_SIZES.items():
            agree(self.name, f"image_tower.{key}", fields[key], tower.to_dict()[name])
        return tower

    def config(self, task: str) -> TwoTowerConfig:
        """Raises ValueError where the files disagree, or ask for what this model does not have."""
        text, image, cross, reference = self.text_tower, self.image_tower, self.models["cross"], self.spec["config"]
        fields = config_fields(reference, task) | {"layer_norm_eps": cross["layer_norm_eps"]}
        agree(self.name, "vocab_size", reference["vocab_size"], text.vocab_size)
        agree(self.name, "input_text_embed_size", reference["input_text_embed_size"], text.hidden_size)
        agree(self.name, "input_image_embed_size", reference["input_image_embed_size"], image.hidden_size)
        agree(self.name, "image_size", reference["image_size"], image.image_size)
        agree(self.name, "patch_size", reference["patch_size"], image.patch_size)
        agree(self.name, "cross.hidden", cross["hidden"], fields["hidden_size"])
        agree(self.name, "cross.heads", cross["heads"], fields["num_attention_heads"])
        agree(self.name, "cross.intermediate", cross["intermediate"], fields["intermediate_size"])
        agree(self.name, "cross.act", cross["act"], "gelu")
        return TwoTowerConfig(text_config=text, vision_config=image, **fields)

    def model(self, task: str, **replaced: torch.Tensor) -> TwoTowerForTask:
        """In evaluation mode, strictly loaded. replaced: weights by the reference's names, in place of the case's."""
        config = self.config(task)
        model = TwoTowerForTask(config).eval()
        model.load_state_dict(ours(self.state | replaced, config))
        return model

    @property
    def batch(self) -> dict[str, torch.Tensor]:
        """What every task's forward pass takes."""
        names = {"input_ids": "text_ids", "attention_mask": "text_masks", "pixel_values": "image"}
        return {name: self.inputs[theirs] for name, theirs in names.items()}


def ours(state: dict[str, torch.Tensor], config: TwoTowerConfig) -> dict[str, torch.Tensor]:
    """A reference's state by our names."""
    rules = reference_rules(config)
    return {name: piece for theirs, tensor in state.items() for name, piece in renamed(theirs, tensor, rules, config)}


def renamed(theirs: str, tensor: torch.Tensor, rules: Rules, config: TwoTowerConfig) -> list[tuple[str, torch.Tensor]]:
    """(our name, piece) of one of the reference's tensors; empty for one that has no place."""
    if rules.reason_to_ignore(theirs) is not None:
        return []
    named = [(rules.rename(name), piece) for name, piece in pieces(config)(theirs, tensor).items()]
    assert None not in dict(named), theirs
    return named


@dataclass
class ManagerCase:
    """One module of the reference by itself."""

    folder: Path
    name: str

    def __post_init__(self):
        described = read(self.folder, "managers")
        self.spec, self.width, self.experts = described["cases"][self.name], described["D"], described["N"]
        agree(self.name, "layer_norm_eps", described["layer_norm_eps"], NORM_EPS)
        if not self.name.startswith("sam_"):  # of which cross-modal states are among the experts
            self.experts = self.spec.get("num_experts", self.experts)
        prefix = f"{self.name}/"
        tensors = load_file(self.folder / "managers.safetensors").items()
        self.tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors if key.startswith(prefix)}

    def parameters(self, kind: str) -> dict[str, torch.Tensor]:
        """kind: `param` or `grad.param`; by the reference's names without `manager_layer.`."""
        prefix = f"{kind}."
        return {
            key.removeprefix(prefix).removeprefix("manager_layer."): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(prefix)
        }

    def config(self, kind: str, query: str = "fused") -> TwoTowerConfig:
        sizes = {"hidden_size": self.width, "num_attention_heads": 1, "intermediate_size": self.width}
        return TwoTowerConfig(
            text_config=RobertaConfig(num_hidden_layers=self.experts, vocab_size=8, **sizes),
            vision_config=CLIPVisionConfig(num_hidden_layers=self.experts, **sizes),
            manager_kind=kind,
            query=query,
            weight=self.spec["weight_type"],
            text_layers=self.experts,
            image_layers=self.experts,
            mask_padding=False,
            **sizes,
        )

    def manager(self) -> Manager:
        """Loaded, in training mode where the case has noise."""
        kind = {"SAUE": "saum", "AAUE": "aaum"}[self.spec["manager_type"]]
        previous = 1 if self.spec["layer_index"] > 0 else 0
        if self.name.startswith("sam_"):  # the reference's SAUE with cross-modal states among its experts
            kind, previous = "sam", self.spec["num_experts"] - self.experts
        config = self.config(kind)
        manager = {"sam": SAM, "saum": SAUM, "aaum": AAUM}[kind](config, self.experts, previous)
        manager.load_state_dict(self.by_our_names(self.parameters("param"), config))
        return manager.train(self.spec["noise"])

    def by_our_names(self, tensors: dict[str, torch.Tensor], config: TwoTowerConfig) -> dict[str, torch.Tensor]:
        if config.manager_kind == "sam":
            return dict(self._of_sam(name, tensor) for name, tensor in tensors.items() if not name.endswith("_cross"))
        rules, tower = reference_rules(config), "cross_modal_text_manager_tower.1.manager_layer."
        return {
            name.removeprefix("model.cross_modal.layers.1.text_bridge."): piece
            for theirs, tensor in tensors.items()
            for name, piece in renamed(tower + theirs, tensor, rules, config)
        }

    def _of_sam(self, name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
        if name == "layer_scores":
            return "scores", tensor[0, :, None]
        if name == "softmax_temperature":
            return "temperature", tensor
        _, number, rest = name.split(".")
        number = int(number)
        place = ("norms", number) if number < self.experts else ("previous_norms", number - self.experts)
        return f"{place[0]}.{place[1]}.{rest}", tensor

    def run(self, manager: Manager) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(the output, {input of the reference: the leaf that it is made of})."""
        leaves = {
            name.removeprefix("in."): tensor.clone().requires_grad_()
            for name, tensor in self.tensors.items()
            if name.startswith("in.") and name != "in.noise"
        }
        states = list(leaves["hidden_states"].unbind(1))
        previous = states[self.experts :]
        if "cross_modal_hidden_states" in leaves:
            previous = [leaves["cross_modal_hidden_states"]]
        other = [leaves["extra_query"]] if "extra_query" in leaves else []
        return manager(torch.stack(states[: self.experts]), previous, other, None), leaves


def link_of(case: ManagerCase) -> tuple[nn.Module, torch.Tensor, dict[str, torch.Tensor]]:
    """BridgeTower's link of the case `link_tower`, its output and leaves."""
    link = Link(PreTrainedConfig(hidden_size=case.width), 0)
    link.load_state_dict({key.replace("LayerNorm", "norm"): one for key, one in case.parameters("param").items()})
    leaves = {name: case.tensors[f"in.{name}"].clone().requires_grad_() for name in LINK_INPUTS}
    return link, link(leaves["hidden_states"][None], [leaves["cross_modal_hidden_states"]], [], None), leaves


LINK_INPUTS = ("hidden_states", "cross_modal_hidden_states")


def scores_of(case: ManagerCase) -> tuple[nn.Module, torch.Tensor, dict[str, torch.Tensor]]:
    """The fused query's scores, of the case `layer_attention`: its projections' products over sqrt(D)."""
    query = FusedQuery(case.width)
    names = {"q_proj": "query_proj", "k_proj": "key_proj"}
    for theirs, name in names.items():
        state = {key: case.parameters("param")[f"{theirs}.{key}"] for key in ("weight", "bias")}
        query.get_submodule(name).load_state_dict(state)
    leaves = {name: case.tensors[f"in.{name}"].clone().requires_grad_() for name in ("query", "key")}
    scores = query.query_proj(leaves["query"]) @ query.key_proj(leaves["key"]).mT / case.width**0.5
    return query, scores, leaves
