"""SAUM against a slow loop over tokens and channels, its configuration, and what AAUM costs by query."""

import weakref
from dataclasses import replace

import pytest
import torch

from llava.data.schema import Turn
from llava.errors import LlavaError
from llava.fusion.config import Sizes
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.layers import layer_range
from llava.fusion.visual_managers import VisualManagers, draw_jitter
from llava.mllm.parts import PREFIXES
from tests.fusion.test_methods import CASES, assert_cost_is_what_torch_counts, make_awake, samples

__all__ = ["make_awake", "samples"]

CROPS, TOKENS, WIDTH, SAMPLES = 3, 4, 5, 2
SAMPLE_OF_CROP = torch.tensor([0, 1, 1])


def make_managers(**fields) -> VisualManagers:
    torch.manual_seed(0)
    sizes = Sizes(vision_layers=3, vision_width=6, text_layers=3, text_width=WIDTH, crop_tokens=TOKENS)
    config = ManagerConfig(vision_layers=(1, 2, 3), injection_layers=(0, 2), **fields).resolved(3, 3)
    managers = VisualManagers(config, sizes)
    for manager in managers.managers:
        torch.nn.init.normal_(manager.scores)
    return managers.eval()


def make_maps() -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(CROPS, TOKENS, WIDTH, generator=generator) for _ in range(3)]
    return maps, torch.randn(WIDTH, generator=generator)


def slow_sums(managers: VisualManagers, maps, index: int) -> torch.Tensor:
    """Equation 14, one number at a time."""
    scores = managers.managers[index].scores
    sums = torch.zeros(CROPS, TOKENS, WIDTH)
    for crop in range(CROPS):
        for token in range(TOKENS):
            for channel in range(WIDTH):
                for layer in range(len(scores)):
                    value = maps[layer][crop, token, channel] + managers.layer_embedding[layer, channel]
                    sums[crop, token, channel] += scores[layer, channel] * value
    return sums


@pytest.mark.parametrize("first_omits", [False, True])
def test_sums_and_newlines_equal_a_slow_loop(first_omits):
    managers = make_managers(first_omits_last_map=first_omits)
    maps, newline = make_maps()
    outputs, _ = managers(maps, newline, SAMPLE_OF_CROP, SAMPLES)
    assert len(managers.managers[0].scores) == (2 if first_omits else 3)
    assert len(outputs) == 2
    for index, (sums, newline_sums) in enumerate(outputs):
        torch.testing.assert_close(sums, slow_sums(managers, maps, index))
        scores = managers.managers[index].scores
        expected = sum(scores[layer] * newline for layer in range(len(scores)))
        torch.testing.assert_close(newline_sums, expected.expand(SAMPLES, -1))


def test_gradients_equal_those_of_the_slow_loop():
    managers = make_managers()
    maps, newline = make_maps()
    outputs, _ = managers(maps, newline, SAMPLE_OF_CROP, SAMPLES)
    outputs[1][0].square().sum().backward()
    found = managers.managers[1].scores.grad.clone(), managers.layer_embedding.grad.clone()
    managers.zero_grad()
    slow_sums(managers, maps, 1).square().sum().backward()
    torch.testing.assert_close(found[0], managers.managers[1].scores.grad)
    torch.testing.assert_close(found[1], managers.layer_embedding.grad)


@pytest.mark.parametrize("first_omits", [False, True])
def test_gradients_of_the_maps_and_what_they_launch(first_omits):
    """Of two managers together; a product and a sum by themselves for each would launch twice as much."""
    managers = make_managers(first_omits_last_map=first_omits)
    maps, newline = make_maps()
    for map_CTD in maps:
        map_CTD.requires_grad_()
    sums = [slow_sums(managers, maps, index) for index in (0, 1)]
    sum(total.square().sum() for total in sums).backward()
    expected = [map_CTD.grad.clone() for map_CTD in maps]
    for map_CTD in maps:
        map_CTD.grad = None
    outputs, _ = managers(maps, newline, SAMPLE_OF_CROP, SAMPLES)
    loss = sum(total.square().sum() for total, _ in outputs)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss.backward()
    for map_CTD, gradient in zip(maps, expected, strict=True):
        torch.testing.assert_close(map_CTD.grad, gradient)
    launched = {event.key: event.count for event in profile.key_averages()}
    assert launched["aten::addcmul_"] == 3 - first_omits  # for each map, of every manager but one
    assert launched.get("aten::select_backward", 0) == 0


def test_a_map_is_gone_when_the_one_behind_the_next_is_made():
    managers = make_managers()
    maps, newline = make_maps()
    expected, _ = managers(maps, newline, SAMPLE_OF_CROP, SAMPLES)
    made = []

    def one_by_one():
        for map_CTD in maps:
            assert sum(reference() is not None for reference in made) <= 1
            copy = map_CTD.clone()
            made.append(weakref.ref(copy))
            yield copy
            del copy

    with torch.no_grad():
        found, _ = managers(one_by_one(), newline, SAMPLE_OF_CROP, SAMPLES)
    assert len(made) == len(maps) == 3
    assert all(torch.equal(sums, others) for (sums, _), (others, _) in zip(found, expected))


def test_released_jitter_is_drawn_anew_per_manager_and_sample_and_multiplies_the_scores(monkeypatch):
    managers = make_managers(jitter="released").train()
    maps, newline = make_maps()
    drawn = []

    def record(*arguments):
        drawn.append(draw_jitter(*arguments))
        return drawn[-1]

    monkeypatch.setattr("llava.fusion.visual_managers.draw_jitter", record)
    outputs, _ = managers(maps, newline, SAMPLE_OF_CROP, SAMPLES)
    assert [factors.shape for factors in drawn] == [(SAMPLES, 3, WIDTH)] * 2
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0][0], drawn[0][1])
    plain = managers.managers[1].scores.detach().clone()
    for crop, sample in enumerate(SAMPLE_OF_CROP):
        managers.managers[1].scores.data = plain * drawn[1][sample]
        torch.testing.assert_close(outputs[1][0][crop], slow_sums(managers, maps, 1)[crop])


@pytest.mark.parametrize(("jitter", "low", "high"), [("paper", 0.98, 1.02), ("released", 0.99, 1.01)])
def test_jitter_fills_its_range_in_float32(jitter, low, high):
    factors = draw_jitter(jitter, (10_000,), torch.device("cpu"))
    assert factors.dtype == torch.float32
    assert low <= factors.min() < low + 1e-3
    assert high - 1e-3 < factors.max() <= high


def test_no_noise_in_evaluation():
    managers = make_managers(jitter="released")
    maps, newline = make_maps()
    first, second = (managers(maps, newline, SAMPLE_OF_CROP, SAMPLES)[0][0][0] for _ in range(2))
    assert torch.equal(first, second)


def test_the_two_layer_sets():
    paper, released = (ManagerConfig(layer_set=name).resolved(26, 24) for name in ("paper", "released"))
    assert paper.vision_layers == tuple(range(14, 27))
    assert released.vision_layers == tuple(range(13, 26))
    assert paper.injection_layers == released.injection_layers == (0, 4, 8, 12, 16, 20)
    assert [released.num_maps(layer) for layer in released.injection_layers] == [12, 13, 13, 13, 13, 13]
    assert {paper.num_maps(layer) for layer in paper.injection_layers} == {13}


def test_negative_layers_count_from_the_end():
    config = ManagerConfig(vision_layers=(3, -1), injection_layers=(0, -6)).resolved(26, 24)
    assert config.vision_layers == (3, 26)
    assert config.injection_layers == (0, 18)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_layers": (27,)}, r"vision_layers \[27\] do not exist: the model has 27, from 0 to 26"),
        ({"injection_layers": (-25,)}, r"injection_layers \[-25\] do not exist: the model has 24"),
        ({"vision_layers": ()}, "at least one layer"),
        ({"injection_layers": (3, 3)}, r"none twice, found \[3, 3\]"),
        ({"vision_layers": (26, -1)}, r"vision_layers \[26, -1\] must name none twice: of 27 they are \[26, 26\]"),
        ({"injection_layers": (-6, 0)}, r"injection_layers \[-6, 0\] must ascend: of 24 they are \[18, 0\]"),
        ({"scope": "tiles"}, "unknown manager scope 'tiles'"),
        ({"jitter": "gauss"}, "unknown manager jitter 'gauss'"),
        ({"vision_layers": (3,), "first_omits_last_map": True}, "needs at least 2 vision_layers"),
        (
            {"vision_layers": (3,), "injection_layers": (-24,), "first_omits_last_map": True},
            "needs at least 2 vision_layers",
        ),
    ],
)
def test_wrong_settings_are_named(fields, message):
    with pytest.raises(LlavaError, match=message):
        ManagerConfig(**{"vision_layers": (1, 2), "injection_layers": (0,), **fields}).resolved(26, 24)


def test_the_first_manager_omits_a_map_only_at_layer_0():
    config = ManagerConfig(vision_layers=(3,), injection_layers=(2, 4), first_omits_last_map=True).resolved(26, 24)
    assert [config.num_maps(layer) for layer in config.injection_layers] == [1, 1]


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((0, 24, 4), (0, 4, 8, 12, 16, 20)),
        ((-12, 24, 5), (12, 17, 22)),
        ((20, -1, 1), (20, 21, 22)),
        ((-1, 24, 1), (23,)),
        ((0, 1, 24), (0,)),
    ],
)
def test_a_range_of_layers(bounds, expected):
    assert layer_range("injection", 24, *bounds) == expected


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((0, 24, 0), "manager injection interval must be at least 1, found 0"),
        ((24, 24, 1), "manager injection_start 24 does not exist: the model has 24, from 0 to 23"),
        ((-25, 24, 1), "manager injection_start -25 does not exist"),
        ((0, 25, 1), "manager injection_end 25 is out of reach: the model has 24, the last end is 24"),
        ((12, -12, 1), "injection_start 12 and injection_end -12 leave none of 24 layers: 12 >= 12"),
    ],
)
def test_a_wrong_range_names_its_ends(bounds, message):
    with pytest.raises(LlavaError, match=message):
        layer_range("injection", 24, *bounds)


def test_a_preset_without_interval_is_refused():
    with pytest.raises(LlavaError, match="interval must be at least 1, found 0"):
        ManagerConfig(interval=0).resolved(26, 24)


@pytest.mark.parametrize("trained", [(), ("fusion",), tuple(PREFIXES)], ids=len)
@pytest.mark.parametrize(
    ("query", "asked"), [("self", 0), ("last", 0), ("average", 0), ("cross", 2), ("cross", -1)], ids=str
)
def test_the_cost_of_adaptive_managers(query, asked, trained, make_awake, samples):
    """By the query, and with `cross` of two images of one question, and of an image that asks itself."""
    case = CASES["manager adaptive"]
    case = replace(case, config=replace(case.config, query=query))
    samples.append(((Turn("human", "<image>"),), samples[0][1], []))
    assert_cost_is_what_torch_counts(case, trained, *make_awake(case), samples[asked])
