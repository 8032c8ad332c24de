"""The analyses written slowly: one sample alone, unpadded, with eager attention, all rows kept, loops over all."""

import math
from itertools import pairwise

import torch
from torch.func import functional_call
from transformers import AutoModel

from llava.constants import IMAGE_TOKEN, VIDEO_TOKEN


def slow_arrays(model, processor, sample) -> dict[str, torch.Tensor]:
    """By the names in llava/analysis/probes.py, of an (all-float32) model whose attention is eager."""
    inputs = processor.encode_prompts([sample])
    decoder, ids = model.model.language_model, inputs["input_ids"][0].tolist()
    before, embedded, normed = [], [], []
    hooks = [
        decoder.norm.register_forward_pre_hook(lambda module, given: normed.append(given[0][0])),
        decoder.register_forward_pre_hook(
            lambda module, given, named: embedded.append(named["inputs_embeds"][0]), with_kwargs=True
        ),
    ]
    for layer in decoder.layers:
        hooks.append(layer.register_forward_pre_hook(lambda module, given: before.append(given[0][0])))
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    # transformers' first states are those that layer 0 gets, with what is added before it; its last are normed.
    after = embedded + [states[0] for states in outputs.hidden_states[1:-1]] + normed
    tokens = processor.tokenizer.convert_ids_to_tokens(ids)
    visual = [place for place, token in enumerate(tokens) if token in (IMAGE_TOKEN, VIDEO_TOKEN)]
    text = [place for place in range(len(ids)) if place not in visual]
    found = {
        "cosine_visual": [mean([cosine(after[n][place], after[n + 1][place]) for place in visual]) for n in range(6)],
        "cosine_textual": [mean([cosine(after[n][place], after[n + 1][place]) for place in text]) for n in range(6)],
    }
    deltas = [states - earlier for states, earlier in zip(before, after)]
    layers = [n for n, delta in enumerate(deltas) if delta.abs().max() > 0]
    found["movement"] = [
        mean([float(deltas[n][place].norm() / after[n][place].norm()) for place in visual]) for n in layers
    ]
    found["similarity_visual_unimodal"] = [
        mean([cosine(deltas[one][place], deltas[other][place]) for place in visual if deltas[one][place].norm()])
        for one, other in pairwise(layers)
    ]
    for name, queries in (("visual", visual), ("textual", [place for place in text if place > visual[0]])):
        rows = [part_statistics(rows[0].double(), queries, visual) for rows in outputs.attentions]
        found[f"attention_{name}"] = rows
    crops = [inputs[key] for key in ("pixel_values", "pixel_values_videos") if key in inputs]
    found["distance"] = distances(model, torch.cat(crops))
    return {name: torch.tensor(values) for name, values in found.items()}


def part_statistics(rows, queries: list[int], visual: list[int]) -> list[float]:
    """Entropy, entropy of the raw part and KL of one layer. rows: (heads, L, L)."""
    entropies, raw_entropies, divergences = [], [], []
    for query in queries:
        seen = [place for place in visual if place <= query]
        raw = rows[:, query, seen]
        whole = [row / row.sum() for row in raw]
        entropies += [-sum(p * math.log(p) for p in row.tolist() if p > 0) for row in whole]
        raw_entropies += [-sum(p * math.log(p) for p in row.tolist() if p > 0) for row in raw]
        for a, one in enumerate(whole):
            for b, other in enumerate(whole):
                if a != b:
                    divergences.append(float((one * ((one + 1e-12).log() - (other + 1e-12).log())).sum()))
    return [mean(entropies), mean(raw_entropies), mean(divergences)]


@torch.no_grad()
def distances(model, crops) -> list[list[float]]:
    """(layers, heads), of the crops of one sample, from the rows of transformers' own tower."""
    tower, vision = model.model.vision_tower, model.config.vision_config
    own = AutoModel.from_config(vision, attn_implementation="eager").eval()
    rows = functional_call(own, dict(tower.named_parameters()), (crops,), {"output_attentions": True}).attentions
    side, patch = vision.image_size // vision.patch_size, vision.patch_size
    apart = torch.tensor(
        [[math.dist(divmod(a, side), divmod(b, side)) * patch for b in range(side**2)] for a in range(side**2)]
    )
    found = []
    for rows_CHTT in rows:
        leading = rows_CHTT.shape[-1] - side**2
        patches = rows_CHTT[:, :, leading:, leading:]
        of_crops = []
        for heads in patches:
            weights = [[row / row.sum() for row in head] for head in heads]
            of_crops.append([mean([float(row @ away) for row, away in zip(head, apart)]) for head in weights])
        found.append([mean(list(of_head)) for of_head in zip(*of_crops)])
    return found


def cosine(one, other) -> float:
    return float(one.double() @ other.double() / one.double().norm() / other.double().norm())


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
