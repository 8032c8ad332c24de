"""Visual managers: they aggregate a vision tower's layers and hand the sum to chosen layers of the language model.

    hidden[visual] += sum_i W_i * (map_i + e_i)        before each injection layer, W_i in R^D, zero at initialisation

(Equations 12 to 14 of the paper; the layer embedding e_i is in the released code only.) This is the static manager,
SAUM. A sum over layers commutes with unpadding, resizing and packing, so it is taken per crop, before packing.

Shapes: C crops, T tokens per crop, D width of the language model, N selected vision layers, S samples, K managers.
A map is one vision layer after the shared projector, (C, T, D).
"""

from dataclasses import asdict, dataclass, replace

import torch
from torch import nn

from llava.errors import LlavaError

QUERIES = ("self", "last", "average", "cross")
QUESTION_RULES = ("turn", "released")
SCOPES = ("all", "main", "grid")
JITTER_RANGES = {"none": None, "paper": (0.98, 1.02), "released": (0.99, 1.01)}


@dataclass(frozen=True)
class ManagerConfig:
    """Which vision layers are managed, where they are injected, and what the managers do.

    vision_layers: indices of the tower's hidden states, 0 = the embeddings' output; negative ones count from the end.
    injection_layers: language-model layers that receive a manager's output before they run.
    first_omits_last_map: the manager at language-model layer 0 leaves out the last selected map (released weights).
    scope: visual tokens that are managed: `all`, `main` (the whole-image crop) or `grid` (the tiles).
    jitter: noise while training. `paper` multiplies a manager's output elementwise by U(0.98, 1.02) (Equation 12);
        `released` multiplies W by U(0.99, 1.01); both anew for each manager and sample. `none` draws nothing.
    query: None for static managers. Else every manager but the first is adaptive and asks with the token's hidden
        state: alone (`self`), or beside the question's `last` token, its `average`, or a `cross` attention over it.
    question: which tokens are the question, see llava/mllm/questions.py.
    """

    vision_layers: tuple[int, ...]
    injection_layers: tuple[int, ...]
    first_omits_last_map: bool = False
    scope: str = "all"
    jitter: str = "paper"
    query: str | None = None
    question: str = "turn"

    def __post_init__(self):
        object.__setattr__(self, "vision_layers", tuple(self.vision_layers))
        object.__setattr__(self, "injection_layers", tuple(self.injection_layers))
        for field, choices in (
            ("scope", SCOPES),
            ("jitter", tuple(JITTER_RANGES)),
            ("query", (None, *QUERIES)),
            ("question", QUESTION_RULES),
        ):
            found = getattr(self, field)
            if found not in choices:
                raise LlavaError(f"unknown manager {field} {found!r}; choose one of {', '.join(map(str, choices))}")
        for field in ("vision_layers", "injection_layers"):
            layers = getattr(self, field)
            if not layers or len(set(layers)) != len(layers):
                raise LlavaError(f"manager {field} must name at least one layer and none twice, found {list(layers)}")
        if any(self.num_maps(layer) < 1 for layer in self.injection_layers):
            raise LlavaError("first_omits_last_map needs at least 2 vision_layers, found 1")

    @classmethod
    def paper(cls, num_vision_layers: int, num_text_layers: int, interval: int = 4, **fields) -> "ManagerConfig":
        """Top half of the tower up to its last state, V_14 .. V_26 of 26, injected every `interval` layers (V-B2)."""
        return cls._top_half(num_vision_layers, num_text_layers, interval, shift=0, **fields)

    @classmethod
    def released(cls, num_vision_layers: int, num_text_layers: int, interval: int = 4, **fields) -> "ManagerConfig":
        """The public checkpoints' set, V_13 .. V_25 of 26, with 12 maps in the manager at layer 0 and noise on W."""
        fields = {"first_omits_last_map": True, "jitter": "released", **fields}
        return cls._top_half(num_vision_layers, num_text_layers, interval, shift=1, **fields)

    @classmethod
    def _top_half(cls, num_vision_layers, num_text_layers, interval, shift, **fields):
        top_half = range(num_vision_layers // 2 + 1 - shift, num_vision_layers + 1 - shift)
        injection = layer_range("injection", num_text_layers, 0, num_text_layers, interval)
        return cls(tuple(top_half), injection, **fields)

    def resolved(self, num_vision_layers: int, num_text_layers: int) -> "ManagerConfig":
        """The same with every layer index counted from the start; LlavaError if one does not exist."""
        # A tower of L layers has L + 1 hidden states.
        vision = _resolve_layers("vision_layers", self.vision_layers, num_vision_layers + 1)
        injection = _resolve_layers("injection_layers", self.injection_layers, num_text_layers)
        return replace(self, vision_layers=vision, injection_layers=injection)

    @property
    def asks(self) -> bool:
        """Whether some manager needs to know the question about an image."""
        return self.query not in (None, "self")

    def num_maps(self, injection_layer: int) -> int:
        """How many maps the manager before `injection_layer` sums."""
        return len(self.vision_layers) - (self.first_omits_last_map and injection_layer == 0)

    def to_dict(self) -> dict:
        """The fields as JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def layer_range(kind: str, count: int, start: int, end: int, interval: int = 1) -> tuple[int, ...]:
    """Every `interval`-th of `count` layers, from `start` to before `end`; negative numbers count from the end.

    kind: `vision` or `injection`. Raises LlavaError for an end of the range that does not exist, for an interval below
    1 and for a range without layers.
    """
    if interval < 1:
        raise LlavaError(f"manager {kind} interval must be at least 1, found {interval}")
    if not -count <= start < count:
        raise LlavaError(f"manager {kind}_start {start} does not exist: the model has {count}, from 0 to {count - 1}")
    if not -count <= end <= count:
        raise LlavaError(f"manager {kind}_end {end} is out of reach: the model has {count}, the last end is {count}")
    first, behind = (bound + count if bound < 0 else bound for bound in (start, end))
    if first >= behind:
        raise LlavaError(
            f"manager {kind}_start {start} and {kind}_end {end} leave none of {count} layers: {first} >= {behind}"
        )
    return tuple(range(first, behind, interval))


def _resolve_layers(field: str, layers: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Layers counted from the start. They must ascend: the first manager is the static one, the last map is omitted."""
    outside = [layer for layer in layers if not -count <= layer < count]
    if outside:
        raise LlavaError(f"manager {field} {outside} do not exist: the model has {count}, from 0 to {count - 1}")
    resolved = tuple(layer % count for layer in layers)
    if len(set(resolved)) != len(resolved):
        raise LlavaError(f"manager {field} {list(layers)} must name none twice: of {count} they are {list(resolved)}")
    if list(resolved) != sorted(resolved):
        raise LlavaError(f"manager {field} {list(layers)} must ascend: of {count} they are {list(resolved)}")
    return resolved


def draw_jitter(jitter: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Factors of the noise named `jitter`, drawn in float32 (in bfloat16 only five values would be left)."""
    low, high = JITTER_RANGES[jitter]
    return torch.empty(shape, dtype=torch.float32, device=device).uniform_(low, high)


class StaticManager(nn.Module):
    """One SAUM: a learned sum over maps, the same for every token."""

    def __init__(self, num_maps: int, width: int):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(num_maps, width))

    def forward(self, layer_embedding_ND, newline_D, jitter_SND, sample_of_crop_C):
        """What is to be done with the maps: the scores per crop (C or 1, N, D), the sums before the first map (C or 1,
        1, D) and, per sample, what a newline position receives (S or 1, D).

        jitter_SND: factors on the scores per sample, or None for none. sample_of_crop_C: the sample that each crop
        belongs to. The maps come one at a time and for all managers, see VisualManagers.forward.
        """
        count = self.scores.shape[0]
        if jitter_SND is None:
            scores_SND = scores_CND = self.scores[None].clone()  # ZeRO-3 takes the weights away after this call
        else:
            scores_SND = (self.scores * jitter_SND[:, :count]).to(newline_D)
            scores_CND = scores_SND[sample_of_crop_C]
        # sum_i W_i e_i is one vector per sample, cheaper than an addition to every map
        embedding_CTD = (scores_CND * layer_embedding_ND[:count]).sum(1)[:, None]
        # Newlines carry the plain newline vector in every layer's map, without layer embedding.
        return scores_CND, embedding_CTD, scores_SND.sum(1) * newline_D


class AdaptiveManager(nn.Module):
    """One AAUM: a sum over maps whose weights every token chooses for itself, without softmax.

    delta = sum_i score_i * gate_i * (map_i + e_i),    score = controller(query),    gate = 0 at initialisation
    """

    def __init__(self, num_maps: int, width: int, query: str):
        super().__init__()
        self.query = query
        self.controller = nn.Linear(width if query == "self" else 2 * width, num_maps, bias=False)
        self.gate = nn.Parameter(torch.zeros(num_maps, width))
        if query == "cross":
            self.query_proj = nn.Linear(width, width)
            self.key_proj = nn.Linear(width, width)

    def forward(self, visual_VD, lengths, questions, maps, jitter_NVD=None):
        """What is added at the V tokens of all images of a batch, (V, D).

        visual_VD: their hidden states. lengths: tokens of each image. questions: per image (Q, D), the hidden states of
        its question, at least one; not used with the query `self`. maps: N tensors (V, D), packed. jitter_NVD: factors
        on the weights, or None for none.
        Every weight is used once, however many images there are: ZeRO-3 gathers it each time, on all ranks alike. And
        every tensor given is used: ZeRO-3 releases the weights when all of them have their gradients.
        """
        scores_VN = self.controller(self._query_states(visual_VD, lengths, questions))
        delta_VD = torch.zeros_like(visual_VD)
        for index, map_VD in enumerate(maps):
            weights_VD = scores_VN[:, index, None] * self.gate[index]
            if jitter_NVD is not None:
                weights_VD = (weights_VD * jitter_NVD[index]).to(visual_VD)
            delta_VD = torch.addcmul(delta_VD, weights_VD, map_VD)
        return delta_VD

    def _query_states(self, visual_VD, lengths, questions):
        if self.query == "self":
            return visual_VD
        images = visual_VD.split(lengths)
        if self.query == "last":
            asked = [question[-1:].expand_as(image) for question, image in zip(questions, images)]
        elif self.query == "average":
            asked = [question.mean(0).expand_as(image) for question, image in zip(questions, images)]
        else:
            asked = self._attended(visual_VD, lengths, questions)
        return torch.cat([torch.cat(asked), visual_VD], dim=-1)

    def _attended(self, visual_VD, lengths, questions) -> list[torch.Tensor]:
        """Per image (V, D): every token's softmax over the question, of its states as they are."""
        queries = self.query_proj(visual_VD).split(lengths)
        keys = self.key_proj(torch.cat(questions)).split([len(question) for question in questions])
        scale = visual_VD.shape[-1] ** -0.5
        return [(q @ k.T * scale).softmax(-1) @ question for q, k, question in zip(queries, keys, questions)]


class VisualManagers(nn.Module):
    """All managers of a model and the layer embedding that they share."""

    def __init__(self, config: ManagerConfig, width: int):
        super().__init__()
        self.config = config
        self.layer_embedding = nn.Parameter(torch.randn(len(config.vision_layers), width) / width**0.5)
        adaptive_layers = config.injection_layers[1:] if config.query is not None else ()
        self.managers = nn.ModuleList(
            AdaptiveManager(config.num_maps(layer), width, config.query)
            if layer in adaptive_layers
            else StaticManager(config.num_maps(layer), width)
            for layer in config.injection_layers
        )

    def forward(self, maps, newline_D, sample_of_crop_C, num_samples):
        """What is to be packed: the static managers' sums and, where adaptive managers follow, the maps themselves.

        maps: one (C, T, D) tensor per selected vision layer, best made as they are asked for: each is added to all sums
        before the next, so that only what the backward pass needs of them is held. sample_of_crop_C: int64, the sample
        each crop belongs to.
        Returns pairs (crops (C, T, D), newline vector per sample (S, D)): K sums in the order of injection_layers, or
        one sum and N maps with their layer embedding.
        """
        scores, sums, newlines = [], [], []
        for manager in self.managers:
            if isinstance(manager, StaticManager):
                shape = (num_samples, len(self.config.vision_layers), newline_D.shape[-1])
                jitter_SND = self._score_jitter(shape, newline_D.device)
                found = manager(self.layer_embedding, newline_D, jitter_SND, sample_of_crop_C)
                for outputs, output in zip((scores, sums, newlines), found):
                    outputs.append(output)
        adaptable = []
        for index, map_CTD in enumerate(maps):
            map_CTD = map_CTD.to(newline_D.device)  # as accelerate moves what is given at once
            for manager, scores_CND in enumerate(scores):
                if index < scores_CND.shape[1]:
                    sums[manager] = torch.addcmul(sums[manager], scores_CND[:, index, None], map_CTD)
            if self.config.query is not None:
                adaptable.append(map_CTD + self.layer_embedding[index])
        newlines = [newline_SD.expand(num_samples, -1) for newline_SD in newlines]
        return list(zip(sums, newlines)) + [(crops, newline_D.expand(num_samples, -1)) for crops in adaptable]

    def is_output(self, index: int) -> bool:
        """Whether what forward returns at `index` is added as it is: a static manager's sums, not a map."""
        return index == 0 or self.config.query is None

    def adapt(self, index: int, visual_VD, lengths, questions, maps):
        """Runs adaptive manager `index` on all images of a batch, see AdaptiveManager.forward."""
        jitter_NVD = self._score_jitter((len(maps), *visual_VD.shape), visual_VD.device)
        # The language model's states are float16 where the maps, as all that comes of the projector, are float32.
        visual_VD = visual_VD.to(maps[0])
        # An image without a question asks itself; what no query uses stays outside, see AdaptiveManager.forward.
        asked = [
            question.to(maps[0]) if len(question) else image
            for question, image in zip(questions, visual_VD.split(lengths))
            if self.config.asks
        ]
        return self.jittered(self.managers[index](visual_VD, lengths, asked, maps, jitter_NVD))

    def jittered(self, output: torch.Tensor) -> torch.Tensor:
        """A manager's output, while training with the jitter `paper` multiplied by its noise (Equation 12)."""
        if not self.training or self.config.jitter != "paper":
            return output
        return (output * draw_jitter("paper", output.shape, output.device)).to(output)

    def _score_jitter(self, shape: tuple[int, ...], device: torch.device):
        noisy = self.training and self.config.jitter == "released"
        return draw_jitter(self.config.jitter, shape, device) if noisy else None
