"""The model that a stage trains: composed for stage 1, continued after it, strict about what it starts from."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2ForCausalLM, SiglipVisionModel

from llava.errors import LlavaError
from llava.train.mllm.build import build, build_on_meta, config_from_sizes
from llava.train.stage import prepare, train


@pytest.fixture
def checkpoint(make_model, make_processor, tmp_path):
    """A function: managers to a checkpoint folder of the tiny model with them."""

    def save(fusion) -> str:
        folder = tmp_path / f"start-{fusion}"
        make_model(fusion=fusion).save_pretrained(folder)
        make_processor().save_pretrained(folder)
        return str(folder)

    return save


def after(checkpoint, tiny_recipe, start, arm="grid_manager", **changes):
    return tiny_recipe("2", arm, **{"model.start_from": checkpoint(start), **changes})


def test_attention_that_cannot_run_here_is_refused_before_weights_are_read(tiny_recipe):
    recipe = tiny_recipe("1", **{"model.attention": "flash_attention_2", "model.vision_tower": "gone"})
    with pytest.raises(LlavaError, match=r"^model\.attention: flash_attention_2 needs a GPU; sdpa does not$"):
        build(recipe)


def test_stage_1_is_the_tower_and_the_language_model(start_folders, tiny_recipe):
    model, _ = build(tiny_recipe("1"))
    tower = SiglipVisionModel.from_pretrained(start_folders / "siglip").state_dict()
    language_model = Qwen2ForCausalLM.from_pretrained(start_folders / "qwen2").state_dict()
    assert model.config.vision_config.num_hidden_layers == 4  # of the 5 built
    for name, weight in model.model.vision_tower.state_dict().items():
        assert torch.equal(weight, tower[name]), name
    for name, weight in model.model.language_model.state_dict().items():
        assert torch.equal(weight, language_model[f"model.{name}"]), name
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_stage_1_managers_are_zero_and_change_nothing(tiny_recipe, make_image):
    torch.manual_seed(0)
    with_managers, processor = build(tiny_recipe("1", "manager"))
    torch.manual_seed(0)
    without, _ = build(tiny_recipe("1", "baseline"))
    without.model.multi_modal_projector.load_state_dict(with_managers.model.multi_modal_projector.state_dict())
    assert all(manager.scores.abs().sum() == 0 for manager in with_managers.model.fusion.managers)
    assert with_managers.model.fusion.layer_embedding.std() > 0
    batch = processor(text="<image>What is it?", images=make_image())
    assert torch.equal(with_managers.eval()(**batch).logits, without.eval()(**batch).logits)


def test_stage_1_processor_knows_the_image_token_and_the_tiling(start_folders, tiny_recipe, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(start_folders / "qwen2")
    _, processor = build(tiny_recipe("1", **{"tiling.aspect_ratio": "anyres_max_9", "tiling.merge": "spatial_unpad"}))
    assert processor.image_token_id == tokenizer.convert_tokens_to_ids("<image>")
    assert processor.image_processor.tiling.max_tiles == 9
    assert processor.image_processor.tiling.pinpoints == ((56, 56), (56, 112), (112, 56), (112, 112))


def test_generation_settings_of_the_language_model_are_left_behind(tiny_recipe):
    model, processor = build(tiny_recipe("1"))
    settings = model.generation_config
    assert settings.repetition_penalty in (None, 1.0)
    assert (settings.eos_token_id, settings.pad_token_id) == (
        processor.tokenizer.eos_token_id,
        processor.tokenizer.pad_token_id,
    )


@pytest.mark.parametrize(("start", "arm"), [("None", "baseline"), ("None", "grid"), ("paper", "grid_manager")])
def test_later_stages_keep_the_weights_and_change_the_tiling(checkpoint, tiny_recipe, start, arm):
    recipe = after(checkpoint, tiny_recipe, None if start == "None" else start, arm)
    model, processor = build(recipe)
    saved = load_file(f"{recipe.model.start_from}/model.safetensors")
    found = model.state_dict()
    assert {name for name in found if name not in saved} <= {"lm_head.weight"}  # tied
    assert all(torch.equal(found[name], weight) for name, weight in saved.items())
    assert model.config.tiling == processor.image_processor.tiling
    assert model.config.tiling.mode == ("anyres" if "grid" in arm else "square")


def test_managers_can_be_added_and_are_then_zero(checkpoint, tiny_recipe):
    model, _ = build(after(checkpoint, tiny_recipe, None))
    managers = model.model.fusion
    assert len(managers.managers) == 3
    assert all(manager.scores.abs().sum() == 0 for manager in managers.managers)
    assert managers.layer_embedding.std() > 0


@pytest.mark.parametrize(
    ("start", "arm", "changes", "message"),
    [
        ("paper", "grid", {}, "has the fusion method manager, arm grid has none"),
        ("released", "grid_manager", {}, "has fusion manager of vision_layers"),
        ("paper", "grid_manager", {"fusion.interval": 3}, "has fusion manager of injection_layers"),
        ("paper", "grid_manager", {"fusion.vision_layers": [9]}, r"vision_layers \[9\] do not exist"),
        ("paper", "grid_manager", {"tiling.pinpoints": [[60, 56]]}, "is not a whole number of tiles"),
    ],
)
def test_what_does_not_fit_is_refused(checkpoint, tiny_recipe, start, arm, changes, message):
    recipe = after(checkpoint, tiny_recipe, start, arm, **changes)
    with pytest.raises(LlavaError, match=message):
        build(recipe)


@pytest.mark.parametrize("lost", ["model.fusion.layer_embedding", "model.multi_modal_projector.linear_1.bias"])
def test_missing_weights_are_refused(checkpoint, tiny_recipe, lost):
    recipe = after(checkpoint, tiny_recipe, "paper")
    path = f"{recipe.model.start_from}/model.safetensors"
    weights = load_file(path)
    del weights[lost]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(
        LlavaError,
        match=rf"^model.start_from {recipe.model.start_from}: missing in the weights: 1 parameters, first {lost}$",
    ):
        build(recipe)


def test_too_many_dropped_layers_are_refused(tiny_recipe):
    with pytest.raises(LlavaError, match="vision_layers_dropped is 5, the tower has 5 layers"):
        build(tiny_recipe("1", **{"model.vision_layers_dropped": 5}))


def test_pixel_statistics_come_with_the_tower(start_folders, tiny_recipe):
    path = start_folders / "siglip" / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "size": {"height": 56}}))
    try:
        model, processor = build(tiny_recipe("1"))
    finally:
        path.unlink()
    assert processor.image_processor.image_mean == [0.1, 0.2, 0.3]
    assert (model.config.image_mean, model.config.image_std) == ([0.1, 0.2, 0.3], [1, 1, 1])


def test_a_checkpoint_without_pixel_statistics_takes_those_of_its_processor(make_model, make_processor, tiny_recipe):
    """Checkpoints of before the model normalised pixels; their processors have always told."""
    recipe = tiny_recipe("2")
    model, processor = make_model(), make_processor()
    model.config.image_mean = model.config.image_std = None
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    folder = recipe.run.output_dir + "-start"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    continued, _ = build(tiny_recipe("2", **{"model.start_from": folder}))
    assert continued.model.config.image_mean == [0.1, 0.2, 0.3]
    assert continued.model.config.image_std == [0.5] * 3


@pytest.mark.parametrize(("arm", "managers"), [("baseline", 0), ("manager", 13 * 6 * 896 + 13 * 896)])
def test_the_real_sizes(tiny_recipe, arm, managers):
    recipe = tiny_recipe("1", arm, **({"fusion.interval": 4} if managers else {}))
    model = build_on_meta(config_from_sizes(recipe), recipe)
    newline = 896
    assert sum(parameter.numel() for parameter in model.parameters()) == 893_617_312 + newline + managers
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_frozen_parts_are_in_bfloat16_where_training_is(tiny_recipe):
    """Without DeepSpeed what trains stays in float32, as AdamW needs it; the losses are those of float32, nearly."""
    losses = {}
    for precision in ("fp32", "bf16"):
        trainer = prepare(tiny_recipe("1", **{"run.precision": precision, "optim.warmup": 0})).trainer
        dtypes = {
            component.name: {parameter.dtype for parameter in component.parameters.values()}
            for component in trainer.components
        }
        train(trainer)
        losses[precision] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    frozen = {name: {torch.bfloat16} for name in ("vision_tower", "newline", "language_model")}
    assert dtypes == frozen | {name: {torch.float32} for name in ("projector", "fusion")}
    assert len(losses["fp32"]) == 4
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]
