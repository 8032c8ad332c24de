"""What a pair costs, against the operations that torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llava.constants import IGNORE_INDEX
from llava.train.loop.components import Component
from llava.train.two_tower.family import operations
from llava.two_tower.cost import PASSES, forward_costs, image_tokens, training_cost
from llava.two_tower.tasks import TASKS
from tests.two_tower.tiny import tiny_config, tiny_model

LENGTH, PAIRS = 20, 4
CASES = [
    *((task, {}) for task in TASKS),
    ("vqav2", {"bridge": "bridge_tower"}),
    ("vqav2", {"bridge": "meter", "gated_fusion": True}),
    *(("vqav2", {"manager_kind": kind, "query": "own"}) for kind in ("sam", "saum", "aaum", "concat_attention")),
    *(("vqav2", {"manager_kind": kind}) for kind in ("concat_attention", "cross_attention")),
]


def batch_of(task: str) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 30, (PAIRS, LENGTH))
    pixels = torch.zeros(PAIRS, 3, 16, 16)
    labels = torch.full((PAIRS, LENGTH), IGNORE_INDEX)
    labels[:, : round(0.15 * LENGTH)] = 7
    fields = {
        "pretrain": {
            "mlm_input_ids": ids,
            "mlm_labels": labels,
            "itm_labels": torch.tensor([0, 1, 1, 0]),
            "false_pixel_values": pixels[:2],
        },
        "vqav2": {"targets": torch.zeros(PAIRS, 3129)},
        "snli_ve": {"labels": torch.tensor([0, 1, 2, 0])},
        "nlvr2": {"labels": torch.tensor([0, 1, 1, 0]), "pixel_values_2": pixels},
        "retrieval": {"image_index": torch.arange(PAIRS), "negative_draws": torch.rand(PAIRS, 2)},
    }[task]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, **fields}


@pytest.mark.parametrize(("task", "options"), CASES)
def test_forward(task, options):
    model = tiny_model(task, attn_implementation="eager", cross_modal_layers=3, **options)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**batch_of(task))
    expected = PAIRS * sum(forward_costs(model.config, LENGTH).values())
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("task", TASKS)
def test_a_step_by_its_numbers(task):
    """Texts of any lengths, without padding."""
    config, lengths, learning = tiny_config(task), (20, 7, 13, 20), {"text_tower": False, "heads": True}
    trained = [Component(name, {}, learns, 0.0, 0.0) for name, learns in learning.items()]
    whole = sum(training_cost(config, length, learning) for length in lengths)
    masked = sum(round(0.15 * length) for length in lengths) if task == "pretrain" else PAIRS
    images = round(PAIRS * PASSES[task].images)
    cost = operations(config, trained)
    assert cost(images, sum(lengths), masked, sum(length**2 for length in lengths)) == pytest.approx(whole, rel=1e-6)


def test_a_pair_in_training():
    config = tiny_config("vqav2")
    costs = forward_costs(config, LENGTH)
    assert set(PASSES) == set(TASKS)
    assert image_tokens(config) == 1 + 2 * 2
    everything = dict.fromkeys(costs, True)
    assert training_cost(config, LENGTH, everything) == 3 * sum(costs.values())
    assert training_cost(config, LENGTH, {"heads": True}) == sum(costs.values()) + costs["heads"]
    joined = {"cross_modal": True, "heads": True}  # towers are frozen: nothing goes back into them
    assert training_cost(config, LENGTH, joined) == sum(costs.values()) + costs["cross_modal"] + 2 * costs["heads"]
