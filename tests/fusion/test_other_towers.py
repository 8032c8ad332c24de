"""Every method on towers with tokens in front of the patches: class tokens, registers, other numbers of states."""

import pytest

from llava.anyres import TilingConfig
from llava.checkpoint.compose import make_processor
from llava.fusion.configs.none import NoneConfig
from tests.fusion.test_methods import (
    CASES,
    assert_begins_as_the_baseline,
    assert_equal_the_slow_model,
    assert_gradients_equal_the_slow_models,
    clips,
    make_new,
    samples,
    tiling_of,
    wake,
)
from tests.parts import LANGUAGE_MODELS, PAIRS, TOWERS

__all__ = ["clips", "samples"]

# Three such tokens with every case, one with a case of each method; tests/mllm/test_kinds.py has every tower.
FIRST = {case.config.method: name for name, case in reversed(CASES.items())}
COMBINED = [(name, "registers qwen3") for name in CASES] + [(name, "clip qwen2.5") for name in FIRST.values()]


@pytest.fixture
def make_pair(make_config, tiny_tokenizer):
    """A function: name of a pair, case and fusion to a model whose class tokens are not zero, and its processor."""

    def make(pair, case, fusion):
        (tower, text), tiling = PAIRS[pair], tiling_of(case)
        side = TOWERS[tower].image_size
        if tiling.pinpoints:
            words = "anyres" if tiling.max_tiles is None else f"anyres_max_{tiling.max_tiles}"
            tiling = TilingConfig.from_llava(words, tiling.merge, "(1x1),...,(2x2)", side)
        kind, fields = LANGUAGE_MODELS[text]
        model = make_new(make_config(tiling, fusion, TOWERS[tower], kind, **fields))
        wake(model.model.vision_tower)
        return model, make_processor(model.config, tiny_tokenizer, {})

    return make


@pytest.mark.parametrize(("name", "pair"), COMBINED)
def test_forward_and_backward_equal_the_slow_model(name, pair, make_pair, samples, clips):
    case = CASES[name]
    model, processor = make_pair(pair, case, case.config)
    wake(model.model.fusion)
    assert_equal_the_slow_model(case, model, processor, samples if "video" in case.refused else [*samples, *clips])
    assert_gradients_equal_the_slow_models(case, model, processor, samples)


@pytest.mark.parametrize(("name", "pair"), [one for one in COMBINED if CASES[one[0]].neutral is not None])
def test_it_begins_as_the_baseline_bit_for_bit(name, pair, make_pair, samples):
    case = CASES[name]
    (model, processor), (baseline, _) = (make_pair(pair, case, fusion) for fusion in (case.neutral, NoneConfig()))
    assert_begins_as_the_baseline(model, baseline, processor, samples)
