"""Every kind of manager in a whole cross-modal encoder against a slow twin, and what managers begin with.

What the golden data holds (SAUM, AAUM with a fused query) is compared there as well; SAM in a model, Concat-Attention,
Cross-Attention and masked padding only here.
"""

import pytest
import torch
from torch.nn.functional import layer_norm

from llava.two_tower.configuration import CHOICES, TwoTowerConfig
from llava.two_tower.managers import draw_noise
from llava.two_tower.modeling import TwoTowerModel
from tests.two_tower.test_modeling import batch_of
from tests.two_tower.tiny import tiny_config, tiny_model

KINDS = [  # with masked padding and, where there is a query that could see it, without
    (kind, query, weight, mask_padding)
    for kind in CHOICES["manager_kind"]
    for query in (CHOICES["query"] if kind.endswith(("aaum", "attention")) else ("own",))
    for weight in CHOICES["weight"]
    for mask_padding in ((True, False) if query == "fused" else (True,))
]


def twin(model, texts, images, mask):
    """The cross-modal encoder's inputs of every layer, token by token. texts, images: experts (N, B, L, D)."""
    previous = {"text": [], "image": []}
    for layer in model.cross_modal.layers:
        inputs = {}
        for tower, other, experts in (("text", "image", texts), ("image", "text", images)):
            keys = mask if tower == "image" else torch.ones(images.shape[1:3], dtype=torch.bool)
            inputs[tower] = torch.stack(
                [
                    twin_of_one(
                        layer.get_submodule(f"{tower}_bridge"),
                        model.config,
                        experts[:, row],
                        [states[row] for states in previous[tower]],
                        [states[row] for states in previous[other]],
                        keys[row],
                    )
                    for row in range(experts.shape[1])
                ]
            )
        padding = mask[:, None, None]
        text = layer.text(inputs["text"], inputs["image"], padding, None)
        image = layer.image(inputs["image"], inputs["text"], None, padding)
        previous["text"].append(text)
        previous["image"].append(image)
    return previous["text"][-1], previous["image"][-1]


def twin_of_one(manager, config: TwoTowerConfig, experts, own, other, keys):
    """A manager's output of one example, (L, D)."""
    p = dict(manager.named_parameters())

    def normed(states, name):
        return layer_norm(states, states.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)

    X = [normed(states, f"norms.{i}") for i, states in enumerate(experts)]
    tau, width = p["temperature"], config.hidden_size
    if config.manager_kind == "sam":
        states = X + [normed(one, f"previous_norms.{i}") for i, one in enumerate(own)]
        weights = softmax([p["scores"][i, 0] / tau for i in range(len(states))])
        return sum(w * state for w, state in zip(weights, states))
    if config.manager_kind == "sam_split":
        output = sum(w * x for w, x in zip(softmax([p["scores"][i, 0] / tau for i in range(len(X))]), X))
        if own:
            states = [normed(one, f"previous_norms.{i}") for i, one in enumerate(own)]
            scores = [p["previous_scores"][i, 0] / p["previous_temperature"] for i in range(len(states))]
            output = output + sum(w * state for w, state in zip(softmax(scores), states))
        return output
    if not own or config.manager_kind == "saum":
        scores = [p["scores"][i, 0].expand(len(X[0]), -1) for i in range(len(X))]
    c = normed(own[-1], "previous_norms.0") if own else None
    if own and config.manager_kind != "saum":
        query = c
        if config.query == "fused":
            q = normed(other[-1], "fused_query.norm")
            if config.mask_padding:
                q = q[keys]
            asks = c @ p["fused_query.query_proj.weight"].T + p["fused_query.query_proj.bias"]
            answers = q @ p["fused_query.key_proj.weight"].T + p["fused_query.key_proj.bias"]
            query = torch.cat([(asks @ answers.T / width**0.5).softmax(-1) @ q, c], dim=-1)
        if config.manager_kind == "aaum":
            all_scores = query @ p["controller.weight"].T + p["controller.bias"]
            scores = [all_scores[:, i, None] for i in range(len(X))]
        elif config.manager_kind == "concat_attention":
            weight = torch.cat([p["expert_proj.weight"], p["score_proj.weight"]], dim=1)
            scores = [torch.cat([x, query], dim=-1) @ weight.T for x in X]
        else:
            asks = query @ p["score_query.weight"].T
            scores = [(asks * (x @ p["score_key.weight"].T)).sum(-1, keepdim=True) / width**0.5 for x in X]
    output = sum(w * x for w, x in zip(softmax([score / tau for score in scores]), X))
    return output if c is None else output + p["previous_weight"][0, 0] * c


def softmax(scores):
    exponentials = [score.exp() for score in scores]
    return [one / sum(exponentials) for one in exponentials]


@pytest.mark.parametrize(("kind", "query", "weight", "mask_padding"), KINDS)
def test_twin(kind, query, weight, mask_padding):
    options = {"manager_kind": kind, "query": query, "weight": weight, "mask_padding": mask_padding}
    model = tiny_model("pretrain", text_layers=1, image_layers=3, cross_modal_layers=3, **options).model
    texts = torch.randn(1, 2, 4, 16, requires_grad=True)
    images = torch.randn(3, 2, 5, 16, requires_grad=True)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    results = []
    for text, image in (model.cross_modal(texts, images, mask[:, None, None]), twin(model, texts, images, mask)):
        for tensor in (texts, images, *model.parameters()):
            tensor.grad = None
        (text.square().sum() + image.square().sum()).backward()
        named = {name: one.grad for name, one in model.cross_modal.named_parameters()}
        results.append({"text": text, "image": image, "texts": texts.grad, "images": images.grad, **named})
    for name, expected in results[1].items():
        if expected is not None:
            torch.testing.assert_close(
                results[0][name], expected, atol=2e-4, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert all(one is not None for one in results[0].values())


def test_each_tower_gives_its_own_number_of_experts():
    model = tiny_model("pretrain", text_layers=1, image_layers=3).model
    batch = batch_of(model.config)
    assert model.encode_text(batch["input_ids"], batch["attention_mask"]).states.shape[:2] == (1, 3)
    assert model.encode_image(batch["pixel_values"]).states.shape[:2] == (3, 3)
    assert model(**batch).pooled.isfinite().all()  # as many as its managers take


def test_first_values():
    """As the paper says: equal weights, W_C and temperatures of one; SAM's over all states, the split one's apart."""
    for kind, expected in (("saum", [1 / 2] * 2), ("sam", [1 / 4] * 4), ("sam_split", [1 / 2] * 2)):
        config = tiny_config("pretrain", manager_kind=kind, cross_modal_layers=3)
        bridge = TwoTowerModel(config).cross_modal.layers[2].text_bridge
        assert bridge.scores.shape == (len(expected), 1, 1, 16)
        assert bridge.scores[:, 0, 0, 0].tolist() == pytest.approx(expected)
        assert bridge.temperature.tolist() == [1]
        if kind == "saum":
            assert bridge.previous_weight.flatten().tolist() == [1] * 16
        if kind == "sam_split":
            assert bridge.previous_scores[:, 0, 0, 0].tolist() == [1 / 2] * 2


def test_noise_is_of_training_and_of_the_configuration(monkeypatch):
    """For every expert, token and dimension, with a standard deviation of 1/N, in training alone."""
    assert draw_noise(torch.empty(4, 50, 20, 16)).std().item() == pytest.approx(1 / 4, rel=0.02)
    shapes = []
    monkeypatch.setattr(
        "llava.two_tower.managers.draw_noise", lambda states: shapes.append(states.shape) or torch.zeros_like(states)
    )
    texts, images = torch.randn(2, 1, 4, 16), torch.randn(2, 1, 5, 16)
    for noise, training, count in ((True, True, 4), (True, False, 0), (False, True, 0)):
        shapes.clear()
        encoder = tiny_model("pretrain", noise=noise).model.cross_modal.train(training)
        encoder(texts, images, None)
        assert shapes == [(2, 1, 4, 16), (2, 1, 5, 16)] * (count // 2)
