"""The cost model against torch's own count of what a model really computes, and against the real sizes."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llava.anyres import image_layout
from llava.fusion.configs.manager import ManagerConfig
from llava.mllm.cost import Cost, forward_cost, training_cost
from llava.mllm.parts import PREFIXES
from llava.train.mllm.build import config_from_sizes
from llava.train.recipe.load import load_recipe

# By managers: their sums are no matrix products, and torch does not count them.
TOLERANCES = {"paper": 0.002, "released": 0.002, None: 1e-9}
FROZEN_TOWER = tuple(name for name in PREFIXES if name != "vision_tower")


def counted(model, text_tokens: int, supervised: int, size=(200, 90), backward: bool = False) -> tuple[int, tuple]:
    """torch's count for one sample (eager attention is plain matrix products), and its crops, tokens and supervised."""
    config, tile = model.config, model.config.vision_config.image_size
    layout = image_layout(*size, config.tiling, tile=tile, side=config.patches_per_side, several_images=False)
    ids = [5] * (text_tokens - supervised) + [config.image_token_id] * layout.num_tokens + [6] * supervised
    labels = [-100] * (len(ids) - supervised) + [6] * supervised
    batch = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels]), "skip_logits": True}
    pixels = torch.randn(layout.num_crops, 3, tile, tile)
    with FlopCounterMode(display=False) as counter:
        loss = model(**batch, pixel_values=pixels, image_sizes=torch.tensor([size[::-1]])).loss
        if backward:
            loss.backward()
    return counter.get_total_flops(), (layout.num_crops, len(ids), supervised)


@pytest.fixture
def eager_model(make_model):
    """A function: as make_model, with eager attention, in training mode."""

    def make(**fields):
        model = make_model(**fields)
        model.set_attn_implementation("eager")
        return model.train()

    return make


@pytest.mark.parametrize("managers", TOLERANCES)
@pytest.mark.parametrize(("text", "supervised", "size"), [(300, 5, (200, 90)), (40, 30, (56, 56))])
def test_the_forward_pass(eager_model, managers, text, supervised, size):
    model = eager_model(fusion=managers).requires_grad_(False)  # the counter hooks what a module is given and has one
    with torch.no_grad():
        found, units = counted(model, text, supervised, size)
    cost = forward_cost(model.config)
    # Eager attention computes the masked half as well.
    assert cost(*units) + cost.token_pair * units[1] ** 2 == pytest.approx(found, rel=TOLERANCES[managers])


TRAINED = [tuple(PREFIXES), ("projector", "fusion"), FROZEN_TOWER, ("vision_tower",), ("language_model",)]


@pytest.mark.parametrize("managers", ["paper", None])
@pytest.mark.parametrize("trained", TRAINED, ids="+".join)
def test_forward_and_backward(eager_model, trained, managers):
    model = eager_model(fusion=managers)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(prefix for part in trained for prefix in PREFIXES[part])))
    found, units = counted(model, 60, 20, backward=True)
    cost = training_cost(model.config, trained)
    assert cost(*units) + cost.token_pair * units[1] ** 2 == pytest.approx(found, rel=TOLERANCES[managers])


def test_managers_that_train_alone_leave_the_layers_before_them_out(eager_model):
    model = eager_model(fusion=ManagerConfig((3, 4), (3, 5)))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(PREFIXES["fusion"]))
    found, units = counted(model, 60, 20, backward=True)
    cost = training_cost(model.config, ("fusion",))
    assert cost(*units) + cost.token_pair * units[1] ** 2 == pytest.approx(found, rel=TOLERANCES["paper"])


def test_what_is_computed_inside_the_language_model_needs_the_visual_tokens():
    """Of two images of 3 and 2 tokens, and questions of 4 and 6."""
    cost = Cost(crop=1, token=10, token_pair=0, supervised=0, visual_token=100, visual_pair=1000)
    assert cost(2, 9, 1, visual_tokens=5, visual_pairs=3 * 3 + 2 * 2) == 2 + 90 + 500 + 13000
    with pytest.raises(ValueError, match="visual_tokens, visual_pairs must be given"):
        cost(2, 9, 1, shown=2)
    asking = replace(cost, visual_token=0, visual_pair=0, shown=10**3, question_token=10**4, question_pair=10**5)
    with pytest.raises(ValueError, match="inside the language model: question_tokens, question_pairs must be given"):
        asking(2, 9, 1, visual_tokens=5, visual_pairs=13, shown=2)
    asked = {"shown": 2, "question_tokens": 4 + 6, "question_pairs": 3 * 4 + 2 * 6}
    assert asking(2, 9, 1, **asked) == 2 + 90 + 2 * 10**3 + 10 * 10**4 + 24 * 10**5


def test_nothing_trains(make_config):
    config = make_config()
    assert training_cost(config, ()) == forward_cost(config)


def test_the_real_sizes():
    """GFLOP of a crop in the tower and in the projector, MFLOP of a token, as they follow from the published sizes."""
    config = config_from_sizes(load_recipe("scripts/train/recipes/mllm/stage2.yaml", "grid"))
    cost = forward_cost(config)
    managed = forward_cost(config_from_sizes(load_recipe("scripts/train/recipes/mllm/stage2.yaml", "grid_manager")))
    assert cost.crop / 1e9 == pytest.approx(642 + 2.68, abs=0.5)
    assert (managed.crop - cost.crop) / 1e9 == pytest.approx(12 * 2.68 + 729 * 78 * 896 * 2 / 1e9, abs=0.1)
    assert cost.token / 1e6 == pytest.approx(716, abs=0.5)
    assert cost.supervised / 1e6 == pytest.approx(272, abs=0.5)
    for tokens, language_model in ((789, 0.59e12), (2989, 2.5e12), (7471, 7.7e12)):
        assert cost(0, tokens, 0) == pytest.approx(language_model, rel=0.02)
