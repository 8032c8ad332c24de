"""Checkpoints in the released format give the logits of the authors' code after conversion."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoProcessor

from llava.checkpoint.shards import INDEX
from tests.convert.conftest import PLACEHOLDER, WEIGHTS, load_strictly, released_state
from tests.golden.reference_case import IMAGE_TOKEN_ID, list_cases, make_inputs
from tests.paths import GOLDEN_DIR

# One case per variant of the weights, more where tiling or scope matter.
CASES = (
    *("a1_base_square_list", "a3_base_untied", "c_base_anyres_landscape", "e_base_max9_336sq"),
    *("b1_static_zerouni_list", "b1_static_zerouni_zero_list", "d_static_anyres_main_landscape"),
    *("d_static_anyres_grid_landscape", "e_static_max9_all_224x60", "d_base_spatial_no_unpad"),
    *("f_adaptive_imgfirst", "f_adaptive_last_imgfirst", "f_adaptive_average_anyres_all", "f_adaptive_cross_imgfirst"),
)
FIELDS = ("mm_patch_merge_type", "image_aspect_ratio", "image_grid_pinpoints", "mm_manager_grid_type")
TOLERANCE = 1e-4


def read_case(name: str) -> tuple[dict, dict, dict]:
    """(description, tensors, the fields of config.json that the case sets)."""
    spec = json.loads((GOLDEN_DIR / "cases" / f"{name}.json").read_text())
    tensors = load_file(GOLDEN_DIR / "cases" / f"{name}.safetensors")
    return spec, tensors, {field: spec["config"][field] for field in FIELDS}


def check_case(model, spec: dict, tensors: dict, tolerance: float = TOLERANCE) -> None:
    """The model's logits on the case's inputs against those of the authors' code."""
    inputs = make_inputs(GOLDEN_DIR, spec, tensors, model.config)[0]
    inputs.pop("labels", None)
    inputs["input_ids"][inputs["input_ids"] == IMAGE_TOKEN_ID] = PLACEHOLDER
    with torch.no_grad():
        logits = model(**inputs).logits
    if "out.logits" in tensors:
        torch.testing.assert_close(logits, tensors["out.logits"], atol=tolerance, rtol=tolerance)
    else:
        rows, positions = tensors["out.logits_pos"].T
        torch.testing.assert_close(
            logits[rows, positions], tensors["out.logits_at_pos"], atol=tolerance, rtol=tolerance
        )


def test_every_variant_of_the_weights_is_converted():
    used = {read_case(name)[0]["weights"] for name in CASES}
    assert used == {path.stem for path in WEIGHTS.glob("*.json")}
    assert set(CASES) <= set(list_cases(GOLDEN_DIR))


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_authors_code(name, make_released, tower_config, convert):
    spec, tensors, fields = read_case(name)
    folder, _ = convert(make_released(spec["weights"], **fields), "--vision_tower", tower_config)
    check_case(load_strictly(folder), spec, tensors)


@pytest.mark.parametrize("layout", ["safetensors_sharded", "bin", "bin_sharded"])
def test_every_layout_of_the_weights(layout, make_released, tower_config, convert):
    spec, tensors, fields = read_case("f_adaptive_cross_imgfirst")
    folder, _ = convert(make_released(spec["weights"], layout, **fields), "--vision_tower", tower_config)
    check_case(load_strictly(folder), spec, tensors)


def test_bfloat16_stays_bfloat16_bit_for_bit(make_released, tower_config, convert):
    state = {name: tensor.bfloat16() for name, tensor in released_state("static_zerouni").items()}
    folder, printed = convert(make_released("static_zerouni", state=state), "--vision_tower", tower_config)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert "bfloat16" in printed
    model = load_strictly(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    language_model = model.model.language_model
    assert torch.equal(language_model.layers[3].mlp.up_proj.weight, state["model.layers.3.mlp.up_proj.weight"])
    assert torch.equal(model.model.fusion.managers[1].scores, state["model.manager.1.layer_scores"][0, :, 0])


def test_the_folder_is_complete(make_released, tower_config, convert):
    spec, _, fields = read_case("d_static_anyres_all_landscape")
    source = make_released(spec["weights"], **fields)
    (source / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [502, 500], "repetition_penalty": 1.1, "do_sample": True, "temperature": 0.7})
    )
    folder, printed = convert(source, "--vision_tower", tower_config)
    model, processor = load_strictly(folder), AutoProcessor.from_pretrained(folder)
    assert processor.image_token_id == model.config.image_token_id == PLACEHOLDER
    assert processor.image_processor.tiling == model.config.tiling
    assert (processor.image_processor.size, processor.image_processor.patch_size) == (56, 14)
    assert not model.config.tiling.newline_after_one_crop
    assert model.config.tiling.unpad_rounding == "truncate"
    assert (model.config.fusion.question, model.config.fusion.jitter) == ("released", "released")
    assert (model.config.turn_start_token_id, model.config.turn_end_token_id) == (501, 502)
    assert model.config.newline_token_id == 198
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [502, 500]
    assert not {"repetition_penalty", "do_sample", "temperature"} & settings.keys()
    record = json.loads((folder / "conversion.json").read_text())
    state = released_state(spec["weights"])
    assert record["keys"] == {"mapped": len(state), "new": 0, "ignored": {}}
    assert record["kind"] == "released model (llava_qwen_manager)"
    rows = [line.split() for line in printed.splitlines()]
    assert ["fusion", "5", "0", "0"] in rows
    assert ["unexpected", "0"] in rows


def test_allowed_leftovers_are_ignored_and_counted(make_released, tower_config, convert):
    state = released_state("base")
    tower = "model.vision_tower.vision_tower.vision_model"
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    state[f"{tower}.embeddings.position_ids"] = torch.arange(16)[None]
    state[f"{tower}.head.probe"] = torch.ones(1, 1, 32)
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    above = {
        name.replace("layers.5.", "layers.6."): tensor.clone()
        for name, tensor in state.items()
        if f"{tower}.encoder.layers.5." in name
    }
    spec, tensors, fields = read_case("a1_base_square_list")
    folder, printed = convert(make_released(state=state | above, **fields), "--vision_tower", tower_config)
    check_case(load_strictly(folder), spec, tensors)
    ignored = json.loads((folder / "conversion.json").read_text())["keys"]["ignored"]
    assert ignored == {
        "rotary buffer": 1,
        "position buffer": 1,
        "pooling head": 1,
        "tied to the embeddings": 1,
        "vision layer above the used ones": len(above),
    }
    assert all(reason in printed for reason in ignored)


@pytest.mark.parametrize("merge", ["flat", "spatial"])
def test_a_newline_that_is_never_used_may_be_missing(merge, make_released, tower_config, convert):
    state = released_state("base")
    del state["model.image_newline"], state["model.vision_tower.vision_tower.vision_model.post_layernorm.weight"]
    source = make_released(state=state, mm_patch_merge_type=merge)
    folder, _ = convert(source, "--vision_tower", tower_config)
    model = load_strictly(folder)
    assert torch.equal(model.model.vision_tower.post_layernorm.weight, torch.ones(32))
    assert 0.5 < model.model.image_newline.weight.std() * 32**0.5 < 2
    assert json.loads((folder / "conversion.json").read_text())["keys"]["new"] == 2


def test_the_original_code_appends_a_newline_to_one_crop(make_released, tower_config, convert):
    fields = {
        "model_type": "llava",
        "architectures": ["LlavaQwenForCausalLM"],
        "image_aspect_ratio": "anyres_max_9",
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": [[56, 56], [56, 112], [112, 56]],
        "mm_newline_position": "one_token",
        "mm_spatial_pool_mode": "bilinear",
        "mm_resampler_type": None,
    }
    source = make_released(**fields)
    folder, _ = convert(source, "--vision_tower", tower_config)
    tiling = load_strictly(folder).config.tiling
    assert tiling.newline_after_one_crop
    assert tiling.pinpoints == ((56, 56), (56, 112), (112, 56))
    assert (tiling.max_tiles, tiling.unpad_rounding) == (9, "truncate")
    folder, _ = convert(source, "--vision_tower", tower_config, "--newline_after_one_crop", "false", out="without")
    assert not load_strictly(folder).config.tiling.newline_after_one_crop


def test_a_tower_that_the_config_names_by_its_folder(make_released, tower_config, convert):
    spec, tensors, fields = read_case("a1_base_square_list")
    folder, _ = convert(make_released(**fields, mm_vision_tower=str(tower_config)))
    check_case(load_strictly(folder), spec, tensors)


def test_settings_of_videos_are_noted_and_change_nothing_else(make_released, tower_config, convert):
    spec, tensors, fields = read_case("c_base_anyres_landscape")
    folder, printed = convert(
        make_released(**fields, mm_newline_position="grid", mm_spatial_pool_mode="average"),
        "--vision_tower",
        tower_config,
    )
    assert "note: mm_newline_position is 'grid'; this model takes a video as with 'one_token'" in printed
    assert "note: mm_spatial_pool_mode is 'average'" in printed
    check_case(load_strictly(folder), spec, tensors)


def test_shards_have_an_index_and_the_size_that_was_asked_for(make_released, tower_config, convert):
    spec, tensors, fields = read_case("b1_static_zerouni_list")
    source = make_released(spec["weights"], **fields)
    folder, _ = convert(source, "--vision_tower", tower_config, "--max_shard_size", "100KB")
    index = json.loads((folder / INDEX).read_text())
    files = sorted(folder.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == [file.name for file in files]
    assert len(files) > 5
    total = 0
    for file in files:
        with safe_open(file, "pt") as opened:
            names = set(opened.keys())
            sizes = [opened.get_tensor(name).nbytes for name in names]
        assert names == {name for name, member in index["weight_map"].items() if member == file.name}
        assert sum(sizes) <= 100_000
        total += sum(sizes)
    assert total == index["metadata"]["total_size"]
    check_case(load_strictly(folder), spec, tensors)


def test_layers_from_the_range_when_the_config_does_not_list_them(make_released, tower_config, convert):
    spec, tensors, fields = read_case("b1_static_zerouni_list")
    listed = {"mm_manager_select_layer_index_list": None, "mm_manager_index_list": None}
    folder, _ = convert(make_released(spec["weights"], **fields, **listed), "--vision_tower", tower_config)
    check_case(load_strictly(folder), spec, tensors)
