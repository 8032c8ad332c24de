"""The trainer: loss at supervised positions alone, equal weight of tokens, order of data, what is logged."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llava.data.collator import Collator
from llava.errors import DataError
from llava.train.loop.callbacks import progress_line
from llava.train.loop.trainer import LlavaTrainer
from llava.train.stage import prepare, run_stage, train


@pytest.fixture
def losses(tiny_recipe):
    """A function: keys of stage 1 to the losses of its steps, from one process."""

    def run(**changes) -> list[float]:
        recipe = tiny_recipe("1", **{"optim.warmup": 0, **changes})
        run_stage(recipe)
        state = json.loads(Path(recipe.run.output_dir, "trainer_state.json").read_text())
        return [entry["loss"] for entry in state["log_history"] if "loss" in entry]

    return run


def test_loss_and_gradients_equal_those_of_all_logits(tiny_recipe, data_folder):
    turns = {"data.mixture": f"{data_folder}/turns.yaml", "data.template": "qwen_1_5"}
    grid = {"tiling.aspect_ratio": "anyres_max_9", "tiling.merge": "spatial_unpad"}
    stage = prepare(tiny_recipe("1", **turns, **grid))
    model, dataset = stage.trainer.model.train(), stage.trainer.train_dataset
    model.requires_grad_(True)
    # text, several images, one image, text
    batch = Collator(stage.processor.tokenizer.pad_token_id)([dataset[index] for index in (4, 5, 6, 7)])
    names = [origin.name.split("'")[1] for origin in batch.pop("samples")]
    assert names == ["sample-4", "sample-5", "sample-6", "sample-7"]
    results = []
    found_by_itself = {**batch, "supervised_positions": None}
    for inputs in (batch, found_by_itself | {"skip_logits": True}, batch | {"skip_logits": True}):
        model.zero_grad()
        output = model(**inputs)
        output.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((output.loss.item(), gradients, output.logits))
    (loss, gradients, logits), *trained = results
    assert logits.shape == (*batch["labels"].shape, model.config.text_config.vocab_size)
    for loss_kept, gradients_kept, logits in trained:
        assert logits is None
        assert loss_kept == pytest.approx(loss, abs=1e-6)
        assert set(gradients) == set(gradients_kept)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradients_kept[name], gradient, rtol=1e-4, atol=1e-6)
    assert trained[0][0] == trained[1][0]


def test_tokens_weigh_the_same_however_a_step_is_cut(losses, tmp_path):
    """Answers have unequal lengths: a mean of micro-batch means would differ."""
    at_once = losses(**{"optim.batch_size": 4, "run.output_dir": f"{tmp_path}/a"})
    one_by_one = losses(**{"optim.batch_size": 1, "run.output_dir": f"{tmp_path}/b"})
    assert len(at_once) == 4
    assert one_by_one == pytest.approx(at_once, abs=2e-6)


def test_a_step_of_skipped_samples_alone_is_no_step(tiny_recipe, data_folder, tmp_path):
    images = shutil.copytree(data_folder, tmp_path / "images")
    keys = {"data.image_folder": str(images), "data.on_bad_sample": "skip", "optim.max_steps": 2}
    stage = prepare(tiny_recipe("1", **keys))
    shutil.rmtree(images)
    before = {name: parameter.clone() for name, parameter in stage.trainer.model.named_parameters()}
    assert train(stage.trainer).training_loss == 0
    assert all(torch.equal(parameter, before[name]) for name, parameter in stage.trainer.model.named_parameters())


def test_the_order_changes_with_the_epoch_and_covers_all(tiny_recipe):
    stage = prepare(tiny_recipe("1", **{"optim.epochs": 2}))
    seen = []
    dataset = stage.trainer.train_dataset
    encode = dataset.processor.encode_sample
    dataset.processor.encode_sample = lambda sample, *args, **kwargs: (
        seen.append(sample.id) or encode(sample, *args, **kwargs)
    )
    train(stage.trainer)
    first, second = seen[:16], seen[16:]
    assert sorted(first) == sorted(second) == sorted(sample.id for sample in dataset.samples)
    assert first != second


def test_what_is_logged(tiny_recipe):
    stage = prepare(tiny_recipe("1", **{"optim.warmup": 0.5}))
    train(stage.trainer)
    steps = [entry for entry in stage.trainer.state.log_history if "loss" in entry]
    assert [entry["samples"] for entry in steps] == [4, 8, 12, 16]
    assert [entry["lr/projector"] for entry in steps] == pytest.approx([0, 5e-4, 1e-3, 5e-4])
    assert [entry["lr/fusion"] for entry in steps] == pytest.approx([0, 5e-4, 1e-3, 5e-4])
    assert all(entry["grad_norm"] > 0 and entry["train_tokens_per_second"] > 0 for entry in steps)
    tokens = [entry["num_input_tokens_seen"] for entry in steps]
    lengths = [len(stage.trainer.train_dataset[index]["input_ids"]) for index in range(16)]
    assert tokens == sorted(tokens)
    assert tokens[-1] == sum(lengths)


@pytest.mark.parametrize("zero_stage", [None, 1, 2, 3])
def test_weights_are_copied_on_the_first_rank_alone(zero_stage):
    """Under ZeRO-3 all ranks take part, since each holds a share of every weight."""
    model = SimpleNamespace(all_tied_weights_keys=["lm_head.weight"])
    weights, copies = {"lm_head.weight": 1, "norm.weight": 2}, []
    accelerator = SimpleNamespace(get_state_dict=lambda wrapped: copies.append(wrapped) or dict(weights))
    for first in (True, False):
        args = SimpleNamespace(should_save=first)
        trainer = SimpleNamespace(
            zero_stage=zero_stage, args=args, accelerator=accelerator, model=model, model_wrapped=model
        )
        assert LlavaTrainer.gather_weights(trainer) == ({"norm.weight": 2} if first else {})
    assert len(copies) == (2 if zero_stage == 3 else 1)


def test_progress_line():
    logs = {"loss": 1.23456, "grad_norm": 0.5, "samples": 512, "lr/projector": 1e-3, "lr/fusion": 5e-5}
    logs |= {"num_input_tokens_seen": 98304, "tokens_per_second": 1234.5}
    assert progress_line(logs) == (
        "loss 1.2346  grad 0.500  samples 512  tokens 98,304 (1,234/s)  lr projector 1.0e-03 fusion 5.0e-05"
    )
    assert "tokens 98,304 (1,234/s, mfu 38%)  lr" in progress_line(logs | {"mfu": 0.381})


def test_over_long_samples_are_found_before_training(tiny_recipe):
    with pytest.raises(DataError, match=r"16 of 16 samples are unusable") as caught:
        prepare(tiny_recipe("1", **{"data.max_length": 20}))
    assert "sample-0" in str(caught.value)
    assert "but max_length is 20" in str(caught.value)
    stage = prepare(tiny_recipe("1", **{"data.max_length": 20, "data.on_over_long": "truncate"}))
    assert {len(stage.trainer.train_dataset[index]["input_ids"]) for index in range(16)} == {20}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_vanishes_during_training_is_one_line(tiny_recipe, data_folder, tmp_path, workers):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in data_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    stage = prepare(tiny_recipe("1", **{"data.image_folder": str(folder), "data.workers": workers}))
    (folder / "3.png").unlink()
    with pytest.raises(DataError, match=r"captions\.json row 4.*3\.png does not exist") as caught:
        train(stage.trainer)
    assert "\n" not in str(caught.value)
