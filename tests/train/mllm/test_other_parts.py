"""Towers and language models other than SigLIP and Qwen2, as their publishers save them: a stage, and an answer."""

import json

import pytest
import torch
import yaml
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2ForImageClassification,
    Dinov2WithRegistersModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from llava.anyres import TilingConfig
from llava.cli import main
from llava.engine.engine import Engine
from llava.train.main import main as train
from llava.train.stage import prepare
from tests.parts import LANGUAGE_MODELS, TOWERS
from tests.train.estimate.test_memory import autograd_keeps

HALF, QUARTER = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]


def save_clip(tower, folder):
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    ends = {"vocab_size": 9, "bos_token_id": 7, "eos_token_id": 8}
    model = CLIPModel(CLIPConfig(vision_config=tower.to_dict(), text_config=text | ends))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": HALF, "image_std": QUARTER}))


# Pair: how the tower is saved, the language model, the pixels' statistics.
STARTS = {
    "clip qwen3": (save_clip, Qwen3ForCausalLM, HALF),
    "dinov2_giant qwen2.5": (
        lambda tower, folder: Dinov2ForImageClassification(tower).save_pretrained(folder),
        Qwen2ForCausalLM,
        [0.485, 0.456, 0.406],
    ),
    "registers qwen3": (
        lambda tower, folder: Dinov2WithRegistersModel(tower).save_pretrained(folder),
        Qwen3ForCausalLM,
        [0.485, 0.456, 0.406],
    ),
}


@pytest.fixture(scope="module", params=STARTS)
def start(request, tmp_path_factory, make_config, tiny_tokenizer):
    """(the keys of a recipe that start from folders of such a pair, what the processor's mean is then)."""
    save, language_model, mean = STARTS[request.param]
    folder = tmp_path_factory.mktemp("start")
    name, kind = request.param.split()
    config = make_config(TilingConfig(), None, TOWERS[name], LANGUAGE_MODELS[kind][0], **LANGUAGE_MODELS[kind][1])
    tower = type(TOWERS[name])(**{**TOWERS[name].to_dict(), "num_hidden_layers": 5})
    torch.manual_seed(0)
    save(tower, folder / "tower")
    language_model(config.text_config).save_pretrained(folder / "text")
    tiny_tokenizer.save_pretrained(folder / "text")
    return {"model.vision_tower": f"{folder}/tower", "model.language_model": f"{folder}/text"}, mean


@pytest.mark.parametrize("checkpointed", [[], ["vision_tower"]])
def test_real_tensors_that_autograd_keeps(start, tiny_recipe, checkpointed):
    """As of the usual pair: within a third."""
    keys = {f"components.{name}.trained": True for name in ("vision_tower", "language_model")}
    stage = prepare(tiny_recipe("1", "grid", **start[0], **keys, **{"run.gradient_checkpointing": checkpointed}))
    measured, guessed = autograd_keeps(stage, checkpointed)
    print(f"measured {measured:,} bytes, estimated {guessed:,.0f}, ratio {guessed / measured:.2f}")
    assert guessed == pytest.approx(measured, rel=1 / 3)


def test_a_stage_and_an_answer(start, tiny_keys, tmp_path):
    keys, mean = start
    keys = tiny_keys("1", **keys, **{"run.output_dir": f"{tmp_path}/out", "optim.max_steps": 1})
    keys |= {f"components.{name}.trained": True for name in ("vision_tower", "language_model")}
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump(keys))
    arguments = ["--recipe", "scripts/train/recipes/mllm/stage1.yaml", "--arm", "grid_manager"]
    arguments += ["--override", f"{tmp_path}/keys.yaml"]
    assert train([*arguments, "--dry_run"]) == 0
    assert train(arguments) == 0
    assert main(["chat", "--model", f"{tmp_path}/out", "--device", "cpu", "--max_new_tokens", "4", "What is it?"]) == 0
    engine = Engine.from_pretrained(f"{tmp_path}/out", device="cpu")
    assert engine.processor.image_processor.image_mean == engine.model.config.image_mean == mean
    assert len(engine.model.model.vision_tower.layers) == 4
