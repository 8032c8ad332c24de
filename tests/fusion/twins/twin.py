"""A model with a fusion method, written slowly: one sample, one image, one crop and one token at a time.

Of the model's own code it runs only single layers of the tower and of the language model, on unpadded sequences. What
is one method's a file beside this one says, which test_methods.py finds by itself:

    class MyTwin(Twin)                       what differs from doing nothing, from the equation, with plain loops and
                                             products: visual_input, or features, newlines and before
    CASES = {"mine": Case(MyConfig(), MyTwin)}    a row for each kind of it; deepstack_qwen3.py is the smallest

Helpers: linear, layer_norm, gelu (from their formulas), add_at (a packed feature at every visual token).
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from llava.fusion.config import FusionConfig
from tests.mllm.slow_model import packed_slowly, shrink, tower_states


@dataclass
class Shown:
    """One image or video of a sample, C crops or frames of T tokens.

    states: of the tower, all L + 1, each (C, T, width). size: (width, height) of an image, None of a video. places: of
    its V tokens in the sequence, in order. question: places of the text of the turn that holds it. packed: of every
    token (K, H), what Twin.features made of it.
    """

    states: list[torch.Tensor]
    size: tuple[int, int] | None
    places: list[int]
    question: list[int]
    packed: list[torch.Tensor]


class Twin:
    """What a method adds, slowly; the answers here are those of `none`. Sizes: T tokens a crop, H of the text.

    model: whole. fusion: the method's module, whose weights are the twin's. config: the method's. project: P.
    """

    def __init__(self, model: nn.Module):
        self.model, self.fusion, self.config = model, model.model.fusion, model.config.fusion
        self.project, self.newline = model.model.multi_modal_projector, model.model.image_newline()

    def visual_input(self, states: list[torch.Tensor], question: torch.Tensor) -> torch.Tensor:
        """Of one crop, what the projector gets, (T, width) or more.

        states: of the tower, all L + 1, each (T, width). question: token embeddings (Q, H) of the text of the turn.
        """
        return states[-1]

    def features(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        """Of one crop, K features (T, H) that are packed as the visual tokens are."""
        return []

    def newlines(self) -> list[torch.Tensor]:
        """Of each of the K features, what a newline has, (H,)."""
        return [torch.zeros_like(self.newline)] * len(self.features(self.blank()))

    def blank(self) -> list[torch.Tensor]:
        """States of a blank crop of one token."""
        vision = self.model.config.vision_config
        return [torch.zeros(1, vision.hidden_size)] * (vision.num_hidden_layers + 1)

    def before(self, layer: int, hidden: torch.Tensor, shown: list[Shown]) -> torch.Tensor:
        """The hidden states (length, H) that layer `layer` of the language model gets, from those behind the last."""
        return hidden


@dataclass(frozen=True)
class Case:
    """A method's small configuration, for a tower of 4 layers and a language model of 6, and its twin.

    neutral: the configuration with which it begins as the baseline bit for bit, if there is one. refused: what it does
    not take, of TILINGS and `video`: the message. without_gradient: parts of names of its weights that need have none.
    sums: operations of its weighted sums, worked out by hand: {`crop` or `visual_token`, of which each is one: where
    nothing trains, the tower, the projector, fusion, projector and fusion, the language model, all}.
    """

    config: FusionConfig
    twin: type[Twin]
    neutral: FusionConfig | None = None
    refused: dict[str, str] = field(default_factory=dict)
    without_gradient: tuple[str, ...] = ()
    sums: dict[str, tuple[int, ...]] = field(default_factory=dict)


def add_at(hidden: torch.Tensor, shown: list[Shown], number: int) -> torch.Tensor:
    """For Twin.before: feature `number` of what was packed, added at every visual token."""
    hidden = hidden.clone()
    for one in shown:
        for place, features in zip(one.places, one.packed, strict=True):
            hidden[place] += features[number]
    return hidden


def linear(module: nn.Module, given: torch.Tensor) -> torch.Tensor:
    """A linear layer from its formula."""
    return given @ module.weight.T + (module.bias if module.bias is not None else 0)


def layer_norm(module: nn.LayerNorm, given: torch.Tensor) -> torch.Tensor:
    """A LayerNorm from its formula."""
    mean, variance = given.mean(-1, keepdim=True), given.var(-1, correction=0, keepdim=True)
    return (given - mean) / (variance + module.eps).sqrt() * module.weight + module.bias


def gelu(given: torch.Tensor) -> torch.Tensor:
    """x Phi(x)."""
    return given * (1 + torch.erf(given / 2**0.5)) / 2


def slow_logits(twin: Twin, ids: list[int], visuals: list) -> torch.Tensor:
    """Logits (length, V) of one sample.

    visuals: (crops or frames (C, 3, S, S), (width, height) or None for a video) of each, images first.
    """
    model, inner = twin.model, twin.model.model
    embedded = model.get_input_embeddings()(torch.tensor(ids))
    hidden, shown = embedded.clone(), []
    free = {
        kind: [place for place, token in enumerate(ids) if token == getattr(model.config, f"{kind}_token_id")]
        for kind in ("image", "video")
    }
    several = sum(size is not None for _, size in visuals) > 1
    for crops, size in visuals:
        left = free["video" if size is None else "image"]
        question = question_of(model.config, ids, left[0])
        states = tower_states(inner.vision_tower, crops)
        of_crops = [[state[crop] for state in states] for crop in range(len(crops))]
        tokens = torch.stack(
            [inner.multi_modal_projector(twin.visual_input(one, embedded[question])) for one in of_crops]
        )
        tokens = packed_of(twin, tokens[:, :, None], twin.newline[None], size, several)
        packed = [torch.zeros(0, len(twin.newline))] * len(tokens)
        if newlines := twin.newlines():
            features = torch.stack([torch.stack(twin.features(one), 1) for one in of_crops])
            packed = packed_of(twin, features, torch.stack(newlines), size, several)
        places, left[:] = left[: len(tokens)], left[len(tokens) :]
        shown.append(Shown(states, size, places, question, packed))
        for place, token in zip(places, tokens, strict=True):
            hidden[place] = token[0]
    assert free == {"image": [], "video": []}
    mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)[None, None]
    rotary = inner.language_model.rotary_emb(hidden[None], torch.arange(len(ids))[None])
    for index, layer in enumerate(inner.language_model.layers):
        hidden = twin.before(index, hidden, shown)
        hidden = layer(hidden[None], attention_mask=mask, position_embeddings=rotary)[0]
    return model.lm_head(inner.language_model.norm(hidden))


def question_of(config, ids: list[int], place: int) -> list[int]:
    """Places of the text of the turn that holds `place`, which begins behind the role's line."""
    start = max(other for other in range(place) if ids[other] == config.turn_start_token_id)
    begin = 1 + ids.index(config.newline_token_id, start)
    end = ids.index(config.turn_end_token_id, place)
    shown = (config.image_token_id, config.video_token_id)
    return [other for other in range(begin, end) if ids[other] not in shown]


def packed_of(twin: Twin, vectors: torch.Tensor, newlines: torch.Tensor, size, several: bool) -> list[torch.Tensor]:
    """Of one image or video, of every token in order (K, H). vectors: (C, T, K, H). newlines: (K, H)."""
    config = twin.model.config
    if size is not None:
        vectors = vectors[:1] if config.tiling.in_sequence == "main" else vectors
        return [vector for vector, _ in packed_slowly(config, vectors, newlines, size, several)]
    side = config.patches_per_side
    tokens = []
    for frame in vectors:
        picture = [list(frame[row * side : (row + 1) * side]) for row in range(side)]
        tokens += [vector for row in shrink(picture, -(-side // 2), -(-side // 2)) for vector in row]
    return [*tokens, newlines]
