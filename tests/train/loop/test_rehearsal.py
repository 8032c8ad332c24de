"""The heaviest micro-batch: which one it is, and that trying it leaves no trace in the training."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llava.data import sampler as sampler_module
from llava.data.sample_sizes import SampleSizes
from llava.data.sampler import LengthGroupedSampler
from llava.errors import LlavaError
from llava.train.estimate.heaviest import heaviest
from llava.train.estimate.memory import Work, recipe_activations
from llava.train.loop.optimizer import moments_to_come
from llava.train.stage import prepare, train


def linear(work):
    """As the estimate, a number or an array."""
    return 3 * work.tokens + 100 * work.crops + np.minimum(work.supervised, 50)


@pytest.mark.parametrize("packing", [False, True])
def test_the_heaviest_of_an_epoch(packing, monkeypatch):
    """Against a loop over the micro-batches, by blocks of two; 37 samples leave some that are filled up."""
    monkeypatch.setattr(sampler_module, "SCAN", 6)
    random = np.random.default_rng(0)
    sizes = SampleSizes(random.integers(0, 9, 37), random.integers(60, 900, 37), random.integers(0, 60, 37))
    sampler = LengthGroupedSampler(sizes.tokens, sizes.crops > 0, batch_size=3, world_size=2, accumulation=2, seed=5)
    found = heaviest(sampler, sizes, packing, linear)
    order, expected = list(sampler), []
    for start in range(0, len(order), 3):
        samples = [index for index in order[start : start + 3] if index is not None]
        tokens = [int(sizes.tokens[index]) for index in samples] or [0]
        supervised = min(50, sum(int(sizes.supervised[index]) for index in samples))
        crops = sum(int(sizes.crops[index]) for index in samples)
        expected.append(3 * (sum(tokens) if packing else 3 * max(tokens)) + 100 * crops + supervised)
    place = expected.index(max(expected))
    assert found.indices == order[3 * place : 3 * place + 3]
    assert found.activations == max(expected)


def test_a_batch_that_is_filled_up_can_be_the_heaviest():
    sizes = SampleSizes(np.array([1]), np.array([10]), np.array([5]))
    found = heaviest(LengthGroupedSampler([1.0], [True], batch_size=2), sizes, False, linear)
    assert (found.indices, found.tokens, found.crops, found.supervised) == ([0, None], 20, 1, 5)


def trained(recipe) -> tuple:
    """Weights, optimizer states, losses and random numbers behind a run; and how often the model ran."""
    trainer, passes = prepare(recipe).trainer, []
    trainer.model.lm_head.register_forward_hook(lambda *_: passes.append(1))
    train(trainer)
    states = [tensor for state in trainer.optimizer.state.values() for tensor in state.values()]
    losses = [(entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "loss" in entry]
    totals = {key: value for key, value in trainer.joined_totals().items() if key in ("loss", "skipped", "shortened")}
    facts = (losses, trainer.state.num_input_tokens_seen, totals)
    return [*trainer.model.parameters(), *states, torch.get_rng_state()], facts, len(passes)


def test_training_is_the_same_bit_for_bit_with_and_without(tiny_recipe, tmp_path, data_folder, capsys):
    """With the managers' noise, which draws random numbers."""
    keys = {"fusion.jitter": "paper", "data.mixture": f"{data_folder}/turns.yaml", "data.template": "qwen_1_5"}
    found = {}
    for value in ("never", "always"):
        changes = {"run.rehearsal": value, "run.output_dir": f"{tmp_path}/{value}", "optim.max_steps": 2}
        found[value] = trained(tiny_recipe("1", **keys, **changes))
        told = capsys.readouterr().out
        assert re.search(r"heaviest    micro-batch of the epoch: [\d,]+ tokens, \d+ crops, [\d,]+ supervised, ", told)
        assert ("tried before the first step" in told) == (value == "always")
    (tensors, facts, passes), (others, other_facts, other_passes) = found["never"], found["always"]
    assert other_passes == passes + 1
    assert facts == other_facts
    assert len(tensors) == len(others)
    assert all(torch.equal(one, other) for one, other in zip(tensors, others, strict=True))


def test_room_is_kept_for_moments_that_are_not_there_yet():
    weight = torch.nn.Parameter(torch.ones(3, 2))
    adamw = torch.optim.AdamW([weight])
    wrapped = SimpleNamespace(optimizer=SimpleNamespace(optimizer=adamw))  # as accelerate and DeepSpeed do
    assert [moment.shape for moment in moments_to_come(wrapped)] == [(3, 2), (3, 2)]
    weight.sum().backward()
    adamw.step()
    assert moments_to_come(adamw) == moments_to_come(wrapped) == []


def test_a_lack_of_memory_is_told_before_the_first_step(tiny_recipe, monkeypatch):
    trainer = prepare(tiny_recipe("1", **{"run.rehearsal": "always"})).trainer

    def fails(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "compute_loss", fails)
    with pytest.raises(LlavaError, match=r"the micro-batch of the epoch: .* does not fit .*--optim.batch_size.*CUDA"):
        train(trainer)
    assert trainer.state.global_step == 0


def test_the_estimate_of_many_micro_batches_is_that_of_each(tiny_recipe):
    """Also where the head's loss is taken in chunks."""
    stage = prepare(tiny_recipe("1"))
    activations = recipe_activations(stage.recipe, stage.trainer.components, stage.trainer.model.config)
    many = [(30, 1, 5), (5000, 0, 4000), (2000, 40, 1024)]
    together = activations(Work(1, *map(np.array, zip(*many))))
    assert together.tolist() == [activations(Work(1, *one)) for one in many]
