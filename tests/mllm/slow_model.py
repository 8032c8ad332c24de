"""The model written slowly: one sample, one image, one token and one map at a time, from the formulas alone.

Of the model's own code it runs only single layers of the tower and of the language model, on unpadded sequences.
"""

import torch
from torch.func import functional_call
from transformers import AutoModel

from llava.anyres import image_layout


def slow_logits(model, input_ids: list[int], images=(), questions=()) -> torch.Tensor:
    """Logits (L, V) of one sample. images: (crops (C, 3, S, S), (width, height)) of each. questions: for adaptive
    managers, the positions that each image asks with."""
    config, ids = model.config, torch.tensor(input_ids)
    managers = config.fusion if config.fusion.method == "manager" else None
    hidden = model.get_input_embeddings()(ids).clone()
    places = (ids == config.image_token_id).nonzero()[:, 0].tolist()
    tokens_of_images = []
    for crops, size in images:
        tokens = visual_tokens(model, crops, size, several=len(images) > 1)
        tokens_of_images.append([(places.pop(0), token) for token in tokens])
    assert not places
    for placed in tokens_of_images:
        for place, (last_map, _, _) in placed:
            hidden[place] = last_map
    layers = model.model.language_model.layers
    length = len(ids)
    mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
    rotary = model.model.language_model.rotary_emb(hidden[None], torch.arange(length)[None])
    for index, layer in enumerate(layers):
        if managers is not None and index in managers.injection_layers:
            manager = model.model.fusion.managers[managers.injection_layers.index(index)]
            before = hidden.clone()
            for number, placed in enumerate(tokens_of_images):
                own = torch.stack([before[place] for place, _ in placed])
                asked = before[questions[number]] if len(questions) and len(questions[number]) else own
                for place, (_, maps, managed) in placed:
                    if managed:
                        hidden[place] += delta(manager, maps, before[place], asked)
        hidden = layer(hidden[None], attention_mask=mask, position_embeddings=rotary)[0]
    return model.lm_head(model.model.language_model.norm(hidden))


def delta(manager, maps: torch.Tensor, state: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """What one manager adds at one token: a weighted sum over its maps (N, D)."""
    if not hasattr(manager, "gate"):
        return sum(manager.scores[index] * maps[index] for index in range(len(manager.scores)))
    if manager.query == "last":
        state = torch.cat([asked[-1], state])
    elif manager.query == "average":
        state = torch.cat([asked.sum(0) / len(asked), state])
    elif manager.query == "cross":
        keys = [manager.key_proj(states) for states in asked]
        weights = torch.stack([manager.query_proj(state) @ key for key in keys]).div(len(state) ** 0.5).softmax(0)
        state = torch.cat([sum(weight * states for weight, states in zip(weights, asked)), state])
    scores = manager.controller.weight @ state
    return sum(scores[index] * manager.gate[index] * maps[index] for index in range(len(maps)))


def tower_states(tower, crops: torch.Tensor) -> list[torch.Tensor]:
    """All hidden states (C, T, width) of the patches, of transformers' own model with the tower's weights."""
    config = tower.config
    given = dict(tower.named_parameters())
    states = functional_call(AutoModel.from_config(config), given, (crops,), {"output_hidden_states": True})
    leading = {"siglip_vision_model": 0, "clip_vision_model": 1, "dinov2": 1}.get(config.model_type)
    if config.model_type == "dinov2_with_registers":
        leading = 1 + config.num_register_tokens
    return [state[:, leading:] for state in states.hidden_states]


def visual_tokens(model, crops: torch.Tensor, size: tuple[int, int], several: bool):
    """Of one image, in order: (its visual input (D,), its maps (N, D), whether managers reach it) of every token."""
    config = model.config
    states = tower_states(model.model.vision_tower, crops)
    project = model.model.multi_modal_projector
    newline = model.model.image_newline()
    managers = config.fusion if config.fusion.method == "manager" else None
    wanted = [config.vision_config.num_hidden_layers, *(managers.vision_layers if managers is not None else ())]
    projected = [project(states[layer]) for layer in wanted]
    if managers is not None:
        embedding = model.model.fusion.layer_embedding
        projected[1:] = [features + embedding[index] for index, features in enumerate(projected[1:])]
    vectors = torch.stack(projected, dim=2)  # (crops, tokens, 1 + N, D)
    scope = managers.scope if managers is not None else "all"
    unmanaged = {"all": None, "main": "grid", "grid": "main"}[scope]
    packed = packed_slowly(config, vectors, newline.expand(len(wanted), -1), size, several)
    return [(vector[0], vector[1:], place != unmanaged) for vector, place in packed]


def packed_slowly(config, vectors: torch.Tensor, newlines: torch.Tensor, size: tuple[int, int], several: bool):
    """Of one image, in order: (vectors (K, D), `main` or `grid`) of every token.

    vectors: (crops, tokens, K, D), what each token of a crop has. newlines: (K, D), what a newline has.
    """
    side = config.patches_per_side
    layout = image_layout(*size, config.tiling, tile=config.vision_config.image_size, side=side, several_images=several)
    base = [(vector, "main") for vector in vectors[0]]
    if len(vectors) == 1:
        return base + ([(newlines, "main")] if layout.one_crop_newline else [])
    columns, rows = layout.grid
    grid = []
    if config.tiling.merge == "flat":
        grid = [vector for tile in vectors[1:] for vector in tile]
    else:
        top, left, height, width = layout.window
        picture = [
            [vectors[1 + y // side * columns + x // side][y % side * side + x % side] for x in range(columns * side)]
            for y in range(rows * side)
        ]
        picture = [row[left : left + width] for row in picture[top : top + height]]
        picture = shrink(picture, layout.rows, layout.columns)
        for row in picture:
            grid += row + ([newlines] if config.tiling.merge == "spatial_unpad" else [])
    return base + [(vector, "grid") for vector in grid]


def shrink(picture: list[list[torch.Tensor]], rows: int, columns: int) -> list[list[torch.Tensor]]:
    """Bilinear without antialiasing, corners not aligned, one value at a time."""
    if not picture or (rows, columns) == (len(picture), len(picture[0])):
        return picture

    def sample(y: float, x: float) -> torch.Tensor:
        y, x = max(y, 0.0), max(x, 0.0)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, len(picture) - 1), min(x0 + 1, len(picture[0]) - 1)
        upper = picture[y0][x0] * (1 - (x - x0)) + picture[y0][x1] * (x - x0)
        lower = picture[y1][x0] * (1 - (x - x0)) + picture[y1][x1] * (x - x0)
        return upper * (1 - (y - y0)) + lower * (y - y0)

    scale_y, scale_x = len(picture) / rows, len(picture[0]) / columns
    return [
        [sample((row + 0.5) * scale_y - 0.5, (column + 0.5) * scale_x - 0.5) for column in range(columns)]
        for row in range(rows)
    ]
