"""The control with a wider projector: `none` with as many parameters as another method."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llava.anyres import TilingConfig
from llava.convert.to_llava_onevision import check_expressible
from llava.errors import LlavaError
from llava.fusion.config import Sizes
from llava.fusion.configs.none import NoneConfig, width_for
from llava.mllm import LlavaOVManagerForConditionalGeneration
from llava.mllm.cost import training_cost
from llava.mllm.parts import PROJECTOR
from llava.train.mllm.build import check_fusion_fits
from tests.conftest import TILE

REAL = Sizes(26, 1152, 24, 896, 729)


def parameters_of(width: int) -> int:
    """Of Linear, GELU, Linear at the real sizes."""
    return 1152 * width + width + width * 896 + 896


def test_the_width_gives_as_many_parameters_as_a_method_adds():
    """Within half of what one channel more has, 2049."""
    assert parameters_of(896) == 1_836_800
    added = {"manager": 81_536, "sci": 2_064_384, "deepstack_qwen3": 7_090_944, "nothing": 0}
    widths = {method: width_for(parameters, REAL) for method, parameters in added.items()}
    assert widths == {"manager": 936, "sci": 1904, "deepstack_qwen3": 4357, "nothing": 896}
    for method, parameters in added.items():
        assert abs(parameters_of(widths[method]) - parameters_of(896) - parameters) <= 2049 / 2


def test_it_begins_as_the_baselines_does(make_model):
    wide, plain = (make_model(fusion=NoneConfig(width)).model.multi_modal_projector for width in (400, None))
    assert (wide.linear_1.weight.shape, wide.linear_2.weight.shape) == ((400, 32), (24, 400))
    found, expected = (projector.linear_1.weight.std().item() for projector in (wide, plain))
    assert found == pytest.approx(expected, rel=0.1)


def test_models_that_name_no_width_are_as_before(make_model, make_config, tmp_path):
    """Their config.json too; one that names it keeps it."""
    assert make_config(fusion=None).to_dict()["fusion"] == {"method": "none"}
    make_model(fusion=NoneConfig(60)).save_pretrained(tmp_path)
    loaded, info = LlavaOVManagerForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    assert loaded.config.fusion == NoneConfig(60)
    assert loaded.config.fusion.describe() == "none, with a projector 60 wide"


def test_a_stage_starts_from_a_projector_of_its_widths(make_config):
    recipe = SimpleNamespace(arm="grid", model=SimpleNamespace(start_from="stage1"))
    sizes = make_config(fusion=None).sizes
    check_fusion_fits(recipe, NoneConfig(60), NoneConfig(60), sizes)
    check_fusion_fits(recipe, NoneConfig(24), NoneConfig(), sizes)
    with pytest.raises(
        LlavaError, match="stage1 has a projector of widths 32 and 60, arm grid with fusion none needs 32 and 24"
    ):
        check_fusion_fits(recipe, NoneConfig(60), NoneConfig(), sizes)


def test_it_has_no_place_in_llava_onevision(make_config):
    with pytest.raises(LlavaError, match="the model has none, with a projector 60 wide; llava_onevision has no place"):
        check_expressible(make_config(fusion=NoneConfig(60)))
    assert check_expressible(make_config(fusion=None))


def test_its_cost_is_what_torch_counts(make_model):
    """Of one crop, forward and backward, the projector trained."""
    model = make_model(TilingConfig(), NoneConfig(60)).train()
    model.set_attn_implementation("eager")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(PROJECTOR))
    ids = torch.tensor([[5, *[model.config.image_token_id] * 16, 6]])
    labels = torch.full_like(ids, -100)
    labels[0, -1] = 6
    pixels, sizes = torch.randn(1, 3, TILE, TILE), torch.tensor([[TILE, TILE]])
    with FlopCounterMode(display=False) as counter:
        model(ids, pixel_values=pixels, image_sizes=sizes, labels=labels, skip_logits=True).loss.backward()
    cost = training_cost(model.config, ["projector"])
    assert cost(1, 18, 1) + cost.token_pair * 18**2 == counter.get_total_flops()
