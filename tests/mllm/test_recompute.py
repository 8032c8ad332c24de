"""A layer computed again: the same gradients, nothing kept, and no more of it run than is needed."""

import gc
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from llava.mllm.recompute import recompute


class Layer(nn.Module):
    """Counts its products."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 8)
        self.runs = {"first": 0, "last": 0}
        for name in self.runs:
            getattr(self, name).register_forward_hook(lambda *_, name=name: self.count(name))

    def count(self, name: str) -> None:
        self.runs[name] += 1

    def forward(self, states, scale=None):
        states = states if scale is None else states * scale
        return states + self.last(nn.functional.silu(self.first(states)))


@pytest.fixture
def layers() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(Layer() for _ in range(3))


def gradients(layers, run, states, autocast=False, times=1):
    """Of the layers' weights and of the states, and the output; the graph is gone through so many times."""
    layers.zero_grad()
    states.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = states
        for layer in layers:
            output = run(layer, output)
    for _ in range(times):
        output.float().square().sum().backward(retain_graph=times > 1)
    found = [parameter.grad for parameter in layers.parameters()]
    return [output.detach(), *found, *([states.grad] if states.requires_grad else [])]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_gradients_are_the_same_bit_for_bit(layers, requires_grad, autocast, times):
    states = torch.randn(5, 8, requires_grad=requires_grad)
    expected = gradients(layers, lambda layer, states: layer(states), states, autocast, times)
    found = gradients(layers, recompute, states, autocast, times)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_the_last_product_is_not_run_again(layers):
    gradients(layers, recompute, torch.randn(5, 8))
    assert [layer.runs for layer in layers] == 3 * [{"first": 2, "last": 1}]


def test_what_is_inside_is_freed_at_once_and_again_behind_the_backward_pass(layers):
    inside = []
    layers[0].first.register_forward_hook(lambda _, __, output: inside.append(weakref.ref(output)))
    gc.disable()
    try:
        states = torch.randn(5, 8, requires_grad=True)
        output = recompute(layers[0], states)
        assert [reference() for reference in inside] == [None]
        output.sum().backward()
        assert [reference() for reference in inside] == [None, None]
    finally:
        gc.enable()


def test_without_gradients_nothing_is_counted(layers):
    with torch.no_grad():
        assert torch.equal(recompute(layers[0], torch.ones(1, 8)), layers[0](torch.ones(1, 8)))


def test_a_layer_that_does_otherwise_the_second_time_is_told(layers):
    scales = iter([torch.tensor(2.0, requires_grad=True), None])
    output = recompute(lambda states: layers[0](states, next(scales)), torch.randn(5, 8))
    with pytest.raises(RuntimeError, match=r"autograd saved \d+ tensors of a layer, and \d+ when it ran again"):
        output.sum().backward()


def test_fewer_calls_than_torchs_own(layers):
    """What the host does for a layer beside its operations."""

    def calls(run) -> int:
        count = 0

        def counted(frame, event, argument):
            nonlocal count
            count += event == "call"

        gradients(layers, run, torch.randn(5, 8, requires_grad=True))
        sys.setprofile(counted)
        try:
            gradients(layers, run, torch.randn(5, 8, requires_grad=True))
        finally:
            sys.setprofile(None)
        return count

    plain = calls(lambda layer, states: layer(states))
    ours, torchs = calls(recompute) - plain, calls(lambda layer, s: checkpoint(layer, s, use_reentrant=False)) - plain
    assert ours < 0.3 * torchs, (ours, torchs)
