"""The managers' weights against values computed by hand, and the chart."""

import pytest
import torch

from llava.chat.manager_weights import ScoreRecorder
from llava.chat.weights_chart import ManagerWeights, chart
from llava.data.schema import Dialogue, Turn
from llava.engine.engine import Engine
from llava.fusion.configs.manager import ManagerConfig


def test_static_managers_are_their_scores(make_model):
    model = make_model(fusion="released")
    found = ScoreRecorder(model).weights()
    assert [manager.layer for manager in found] == [0, 2, 4]
    assert [manager.vision_layers for manager in found] == [(2,), (2, 3), (2, 3)], "the first omits the last map"
    for manager, module in zip(found, model.model.fusion.managers):
        assert manager.kind == "static"
        rows = module.scores.tolist()
        assert manager.sizes == pytest.approx([sum(map(abs, row)) / len(row) for row in rows])
        assert manager.means == pytest.approx([sum(row) / len(row) for row in rows], abs=1e-7)


def test_adaptive_managers_are_what_they_choose_for_the_tokens(make_model, make_processor, make_image):
    model = make_model(fusion=ManagerConfig(interval=2, query="cross"))
    applied: dict[int, list] = {1: [], 2: []}
    for index in applied:
        torch.nn.init.normal_(model.model.fusion.managers[index].gate)
        model.model.fusion.managers[index].controller.register_forward_hook(
            lambda module, inputs, scores, index=index: applied[index].append(scores)
        )
    recorder = ScoreRecorder(model)
    static, *adaptive = recorder.weights()
    assert static.sizes is not None
    assert [(manager.kind, manager.sizes) for manager in adaptive] == [("adaptive", None)] * 2
    engine = Engine(model, make_processor())
    with recorder.recording():
        engine.generate([Dialogue([Turn("human", "What?")], [make_image()])], max_new_tokens=2)
    engine.generate([Dialogue([Turn("human", "Else?")], [make_image(seed=1)])], max_new_tokens=2)  # not recorded
    for index, manager in zip(applied, recorder.weights()[1:]):
        gate = model.model.fusion.managers[index].gate.detach()
        weights = applied[index][0][:, :, None] * gate  # tokens, maps, width
        assert manager.sizes == pytest.approx(weights.abs().mean((0, 2)).tolist(), rel=1e-4)
        assert manager.means == pytest.approx(weights.mean((0, 2)).tolist(), rel=1e-3, abs=1e-6)


def test_the_chart():
    weights = [
        ManagerWeights(0, "static", (14,), [0.25], [0.0]),
        ManagerWeights(4, "static", (14, 15), [1.0, 0.0], [0.0, 0.0]),
        ManagerWeights(8, "adaptive", (14, 15), None, None),
    ]
    assert chart(weights, width=44).splitlines()[2:] == [
        "     layer 0      layer 4      layer 8",
        "     static       static       adaptive",
        "V14  █    0.2500  ████ 1.0000  ?",
        "V15                    0.0000  ?",
        "",
        "?: adaptive, decides when it sees an image",
    ]
    narrow = chart(weights[:2], width=20, plain=True).splitlines()
    assert narrow[4:6] == ["V14  #    0.2500", "V15"]
    assert narrow[9:] == ["V14  #### 1.0000", "V15       0.0000"]
    assert chart([], 80) == "this model has no managers"
    assert "0.0000" in chart([ManagerWeights(0, "static", (14,), [0.0], [0.0])], 80), "zero managers draw nothing"
