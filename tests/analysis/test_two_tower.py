"""A two-tower model's analyses against loops over layers, pairs and tokens, each pair alone and unpadded."""

import json

import numpy as np
import pytest
import torch

from llava.analysis.two_tower import TwoTowerRecorder
from llava.cli import main
from tests.two_tower.tiny import tiny_model

SIZES = {"cross_modal_layers": 3, "text_layers": 2, "image_layers": 3}
PIXELS = [torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
IDS = [[0, 5, 6, 7, 2], [0, 8, 2], [0, 9, 10, 2]]


def batch_of(pairs) -> dict[str, torch.Tensor]:
    length = max(len(IDS[pair]) for pair in pairs)
    return {
        "input_ids": torch.tensor([IDS[pair] + [1] * (length - len(IDS[pair])) for pair in pairs]),
        "attention_mask": torch.tensor([[1] * len(IDS[pair]) + [0] * (length - len(IDS[pair])) for pair in pairs]),
        "pixel_values": torch.stack([PIXELS[pair] for pair in pairs]),
    }


def softmax(scores: list) -> list:
    total = sum(score.exp() for score in scores)
    return [score.exp() / total for score in scores]


@torch.no_grad()
def slow_managers(model, pair: int) -> dict[str, list]:
    """Weights and sums of every manager of one pair, token by token, and each manager's output for comparison."""
    kept = {}

    def keep(name):
        return lambda module, given, output: kept.update({name: (given, output)})

    hooks = [
        getattr(layer, f"{side}_bridge").register_forward_hook(keep((side, number)))
        for number, layer in enumerate(model.model.cross_modal.layers)
        for side in ("text", "image")
    ]
    model.model(**batch_of([pair]))
    for hook in hooks:
        hook.remove()
    made = {}
    for (side, number), ((experts, previous, other, _), output) in kept.items():
        manager = getattr(model.model.cross_modal.layers[number], f"{side}_bridge")
        normed = [norm(states[0]) for norm, states in zip(manager.norms, experts)]
        kind, tokens = type(manager).__name__, len(normed[0])
        before = [
            norm(states[0]) for norm, states in zip(manager.previous_norms, previous[-len(manager.previous_norms) :])
        ]
        weights, unimodal, cross = [], [], []
        for token in range(tokens):
            if kind in ("SAUM", "SplitSAM"):
                of_experts = softmax([score[0, 0] / manager.temperature for score in manager.scores])
                of_previous = []
                if previous and kind == "SplitSAM":
                    of_previous = softmax([one[0, 0] / manager.previous_temperature for one in manager.previous_scores])
                elif previous:
                    of_previous = [manager.previous_weight[0, 0, 0]]
            elif kind == "SAM":
                both = softmax([score[0, 0] / manager.temperature for score in manager.scores])
                of_experts, of_previous = both[: len(normed)], both[len(normed) :]
            else:
                query, fused = before[-1][token], manager.fused_query
                asked = fused.norm(other[-1][0])
                scores = [fused.query_proj(query) @ fused.key_proj(one) / len(query) ** 0.5 for one in asked]
                attended = sum(weight * one for weight, one in zip(softmax(scores), asked))
                chosen = manager.controller(torch.cat([attended, query]))
                of_experts = softmax([score / manager.temperature for score in chosen])
                of_previous = [manager.previous_weight[0, 0, 0]]
            weights.append([float(weight.mean()) for weight in of_experts])
            unimodal.append(sum(weight * states[token] for weight, states in zip(of_experts, normed)))
            cross.append(sum(weight * states[token] for weight, states in zip(of_previous, before)) if before else None)
            whole = unimodal[-1] + (cross[-1] if before else 0)
            assert torch.allclose(whole, output[0, token], atol=1e-5), "the slow manager is the manager"
        made[side, number] = (np.mean(weights, axis=0), unimodal, cross)
    return made


@pytest.mark.parametrize("kind", ["aaum", "saum", "sam", "sam_split"])
def test_a_padded_batch_is_as_the_slow_way(kind):
    model = tiny_model("retrieval", manager_kind=kind, **SIZES)
    recorded = TwoTowerRecorder(model, []).record(batch_of([0, 1, 2]))
    for pair, arrays in enumerate(recorded):
        made = slow_managers(model, pair)
        for side, name in (("text", "textual"), ("image", "visual")):
            weights = [made[side, number][0] for number in range(3)]
            assert arrays[f"weights_{name}_mean"] == pytest.approx(np.array(weights), abs=1e-5)
            assert np.isnan(arrays[f"similarity_{name}_cross-modal"][0]), "layer 1 has no cross-modal part"
            for part, place, pairs in (("unimodal", 1, (0, 1)), ("cross-modal", 2, (1,))):
                for number in pairs:
                    tokens = zip(made[side, number][place], made[side, number + 1][place])
                    cosines = [float(a @ b / a.norm() / b.norm()) for a, b in tokens]
                    expected = pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
                    assert arrays[f"similarity_{name}_{part}"][number] == expected, (side, part, number)


def test_facts_tell_layers_and_kinds():
    model = tiny_model("retrieval", manager_kind="aaum", **SIZES)
    facts = TwoTowerRecorder(model, []).facts()
    assert facts["managers"]["visual"] == [[1, "static"], [2, "adaptive"], [3, "adaptive"]]
    assert facts["experts"] == {"textual": [2, 3], "visual": [1, 2, 3]}
    assert json.loads(json.dumps(facts)) == facts
    bridge = tiny_model("retrieval", bridge="bridge_tower")
    assert TwoTowerRecorder(bridge, []).record(batch_of([0])) == [{}], "its links weigh nothing"


@torch.no_grad()
def test_distances_leave_the_class_token_out_and_two_images_are_averaged():
    model = tiny_model("nlvr2")
    batch = batch_of([0, 1])
    both = TwoTowerRecorder(model, ["distance"]).record({**batch, "pixel_values_2": batch["pixel_values"].flip(0)})
    alone = TwoTowerRecorder(model, ["distance"]).record(batch)
    tower = model.model.image_tower
    states = tower(pixel_values=batch["pixel_values"], output_hidden_states=True).hidden_states
    apart = torch.tensor([[0, 8, 8, 128**0.5], [8, 0, 128**0.5, 8], [8, 128**0.5, 0, 8], [128**0.5, 8, 8, 0]])
    for number, layer in enumerate(module for name, module in tower.named_modules() if name.endswith("self_attn")):
        block = tower.encoder.layers[number]
        normed = block.layer_norm1(states[number])[:, 1:]
        for head in range(2):
            part = slice(8 * head, 8 * head + 8)
            query, key = layer.q_proj(normed)[..., part], layer.k_proj(normed)[..., part]
            weights = (query @ key.mT / 8**0.5).softmax(-1)
            expected = (weights * apart).sum(-1).mean(-1)
            for pair in range(2):
                assert alone[pair]["distance"][number, head] == pytest.approx(float(expected[pair]), abs=1e-5)
    mean = (alone[0]["distance"] + alone[1]["distance"]) / 2
    assert both[0]["distance"] == pytest.approx(mean, abs=1e-5)


@pytest.fixture(scope="module")
def pair_models(tmp_path_factory, processor):
    """Folders of a ManagerTower and a METER."""
    folders = []
    for name, options in (("managers", {}), ("meter", {"bridge": "meter"})):
        folders.append(tmp_path_factory.mktemp("models") / name)
        tiny_model("retrieval", vocab_size=len(processor.tokenizer), **options).save_pretrained(folders[-1])
        processor.save_pretrained(folders[-1])
    return folders


@pytest.fixture
def pairs(tmp_path, make_image):
    """Three pairs of a JSON file, with their images beside it."""
    records = [{"image": f"{number}.png", "caption": ["a page", "a circle"][: 1 + number]} for number in range(2)]
    for number, record in enumerate(records):
        make_image(20, 30, number).save(tmp_path / record["image"])
    (tmp_path / "pairs.json").write_text(json.dumps(records))
    return tmp_path / "pairs.json"


def test_the_command(pair_models, pairs, tmp_path, capsys):
    words = ["--data", str(pairs), "--image_folder", str(tmp_path), "--batch_size", "2", "--out", f"{tmp_path}/out"]
    assert main(["analyze", *map(str, pair_models), *words, "--figures", "3,6,19"]) == 0
    told = capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "curves.json").read_text())
    first, second = content["models"]
    assert (content["models"][first]["samples"], content["models"][second]["bridge"]) == (3, "meter")
    assert f"note: {second} has no managers" in told
    assert f"note: {first} has no language model" in told
    assert content["figures"].keys() == {"3", "6"}
    bars = content["figures"]["6"]["curves"]
    assert [(bar["part"], bar["number"], bar["x"]) for bar in bars] == [
        (f"{side} mean", number, [2, 3]) for side in ("visual", "textual") for number in (1, 2)
    ]
    assert all(sum(bar["mean"]) == pytest.approx(1, abs=1e-5) for bar in bars), "softmaxed"
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"figure_03.png", "figure_06.png"}
    assert main(["analyze", str(pair_models[0]), *words]) == 0
    assert "note: " not in capsys.readouterr().out, "nobody asked for figures of a language model"
    figures = json.loads((tmp_path / "out" / "curves.json").read_text())["figures"]
    assert figures.keys() == {"3", "6", "7", "distance"}


def test_wrong_input_is_one_line(pair_models, pairs, tiny_model_dir, tmp_path, capsys):
    for message, models, words in (
        ("is a two-tower model and ", [pair_models[0], tiny_model_dir], []),
        ("mixture pairs.json has no split 'x'; it has all", pair_models[:1], ["--data", f"{pairs}:x"]),
        ("unknown task 'vqav'; did you mean vqav2?", pair_models[:1], ["--data", "vqav"]),
        ("has no managers, and figure 6 shows their weights", pair_models[1:], ["--figures", "6"]),
        ("pair", pair_models[:1], ["--image_folder", f"{tmp_path}/elsewhere"]),
    ):
        line = ["analyze", *map(str, models), "--data", str(pairs), "--out", f"{tmp_path}/out"]
        assert main([*line, "--image_folder", str(tmp_path), *words]) == 2, message
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: "), error
        assert message in error.replace(f"{tmp_path}/", ""), error
