"""Towers, language models and stage-1 projectors joined to one model."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.convert.conftest import WEIGHTS, load_strictly, released_state
from tests.convert.test_from_released import check_case, read_case
from tests.golden.reference_case import TEXT_FIELDS
from tests.paths import GOLDEN_DIR

TOWER = "model.vision_tower.vision_tower.vision_model."
ADAPTER = ("model.mm_projector", "model.manager", "model.image_newline")


@pytest.fixture
def golden_parts(tmp_path):
    """The golden model's tower (7 layers of which the last is noise, with head) and language model, and its adapter."""
    described = json.loads((WEIGHTS / "base.json").read_text())
    state = released_state("base")
    torch.manual_seed(0)
    tower = SiglipVisionModel(SiglipVisionConfig(**described["siglip"]))
    names = {name.removeprefix(TOWER): tensor for name, tensor in state.items() if name.startswith(TOWER)}
    left = tower.load_state_dict(names, strict=False)
    assert not left.unexpected_keys
    assert all(name.startswith(("head.", "encoder.layers.6.")) for name in left.missing_keys)
    tower.save_pretrained(tmp_path / "siglip")

    text = Qwen2Config(**{field: described["config"][field] for field in TEXT_FIELDS})
    language_model = Qwen2ForCausalLM(text)
    others = {n: t for n, t in state.items() if not n.startswith((TOWER, *ADAPTER))}
    left = language_model.load_state_dict(others, strict=False)
    assert left.missing_keys == ["lm_head.weight"]
    assert not left.unexpected_keys
    language_model.save_pretrained(tmp_path / "qwen2")
    for file in (GOLDEN_DIR / "tokenizer").iterdir():
        (tmp_path / "qwen2" / file.name).write_bytes(file.read_bytes())
    return "--vision_tower", tmp_path / "siglip", "--language_model", tmp_path / "qwen2"


@pytest.fixture
def projector(tmp_path):
    """A function: golden case and prefix to mm_projector.bin, with config.json beside it unless told otherwise."""

    def make(spec: dict, fields: dict, prefix: str = "", with_config: bool = True, newline: bool = True):
        folder = tmp_path / "stage1"
        folder.mkdir()
        state = {n: t for n, t in released_state(spec["weights"]).items() if n.startswith(ADAPTER)}
        if not newline:
            del state["model.image_newline"]
        torch.save({prefix + name: tensor for name, tensor in state.items()}, folder / "mm_projector.bin")
        if with_config:
            config = json.loads((WEIGHTS / f"{spec['weights']}.json").read_text())["config"]
            (folder / "config.json").write_text(json.dumps({**config, **fields}))
        return folder

    return make


@pytest.mark.parametrize("prefix", ["", "module.", "base_model.model.", "module.base_model."])
@pytest.mark.parametrize("name", ["b1_static_zerouni_list", "f_adaptive_cross_anyres_all"])
def test_a_projector_with_managers(name, prefix, projector, golden_parts, convert):
    spec, tensors, fields = read_case(name)
    folder, printed = convert(projector(spec, fields, prefix), *golden_parts)
    assert "pooling head" in printed
    assert "vision layer above the used ones" in printed
    check_case(load_strictly(folder), spec, tensors)


def test_a_bare_projector_file(projector, golden_parts, convert):
    spec, tensors, fields = read_case("a1_base_square_list")
    folder, _ = convert(projector(spec, fields, with_config=False, newline=False) / "mm_projector.bin", *golden_parts)
    model = load_strictly(folder)
    assert model.config.fusion.method == "none"
    assert model.config.tiling.mode == "square"
    check_case(model, spec, tensors)


def test_a_projector_of_managers_needs_the_config_that_describes_them(projector, golden_parts, refused):
    spec, _, fields = read_case("b1_static_zerouni_list")
    folder = projector(spec, fields, with_config=False)
    assert "5 unexpected (model.manager" in refused(folder, *golden_parts)


def test_a_projector_alone_is_refused(projector, golden_parts, refused):
    spec, _, fields = read_case("a1_base_square_list")
    folder = projector(spec, fields)
    assert "both --vision_tower DIR and --language_model DIR are needed" in refused(folder, *golden_parts[:2])


def test_a_released_model_without_tower_takes_it_from_its_folder(make_released, golden_parts, convert, refused):
    spec, tensors, fields = read_case("c_base_anyres_landscape")
    state = {name: tensor for name, tensor in released_state("base").items() if not name.startswith(TOWER)}
    source = make_released(state=state, mm_vision_tower="google/siglip-so400m-patch14-384", **fields)
    assert "its weights hold no vision tower" in refused(source)
    folder, _ = convert(source, *golden_parts[:2])
    check_case(load_strictly(folder), spec, tensors)


def save_tower(kind: str, folder, dtype=torch.float32):
    """A tower as SiglipVisionModel or SiglipModel saves it, or under the names with vision_model of older versions."""
    sizes = json.loads((WEIGHTS / "base.json").read_text())["siglip"]
    if kind == "SiglipModel":
        text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = SiglipModel(SiglipConfig(vision_config=sizes, text_config={**text, "vocab_size": 50}))
        tower = model.vision_model
    else:
        model = tower = SiglipVisionModel(SiglipVisionConfig(**sizes))
    model.to(dtype).save_pretrained(folder)
    if kind == "older":
        state = {f"vision_model.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return tower


@pytest.mark.parametrize("kind", ["SiglipVisionModel", "older", "SiglipModel"])
def test_a_tower_and_a_language_model(kind, tmp_path, golden_parts, convert):
    tower = save_tower(kind, tmp_path / "tower")
    arguments = ("--vision_tower", tmp_path / "tower", *golden_parts[2:])
    folder, printed = convert(*arguments)
    assert "vision tower + language model" in printed
    model, processor = load_strictly(folder), AutoProcessor.from_pretrained(folder)
    for name, weight in model.model.vision_tower.state_dict().items():
        assert torch.equal(weight, tower.state_dict()[name]), name
    language_model = Qwen2ForCausalLM.from_pretrained(golden_parts[3])
    for name, weight in model.model.language_model.state_dict().items():
        assert torch.equal(weight, language_model.model.state_dict()[name]), name
    assert model.config.vision_config.num_hidden_layers == 6
    assert len(model.model.vision_tower.encoder.layers) == 6
    projector = model.model.multi_modal_projector
    assert 0.08 < projector.linear_1.weight.std() < 0.12  # U(-1/sqrt(32), 1/sqrt(32))
    assert projector.linear_1.weight.abs().max() <= 32**-0.5
    assert processor.image_token_id == model.config.image_token_id == 503
    again, _ = convert(*arguments, out="again")
    assert torch.equal(load_strictly(again).model.image_newline.weight, model.model.image_newline.weight)
    other, _ = convert(*arguments, "--seed", "1", out="other")
    assert not torch.equal(load_strictly(other).model.image_newline.weight, model.model.image_newline.weight)


def test_new_parameters_have_the_language_models_dtype(tmp_path, golden_parts, convert):
    save_tower("SiglipVisionModel", tmp_path / "tower")
    language_model = Qwen2ForCausalLM.from_pretrained(golden_parts[3], dtype=torch.bfloat16)
    language_model.save_pretrained(golden_parts[3])
    folder, _ = convert("--vision_tower", tmp_path / "tower", *golden_parts[2:])
    state = load_file(folder / "model.safetensors")
    assert state["model.multi_modal_projector.linear_1.weight"].dtype == torch.bfloat16
    assert state["model.vision_tower.embeddings.patch_embedding.weight"].dtype == torch.float32
    assert {parameter.dtype for parameter in load_strictly(folder).parameters()} == {torch.bfloat16}


def test_a_tied_language_model_saved_without_head_and_prefix(tmp_path, golden_parts, convert):
    language_model = Qwen2Model.from_pretrained(golden_parts[3])
    language_model.save_pretrained(golden_parts[3])
    assert "norm.weight" in load_file(golden_parts[3] / "model.safetensors")
    model = load_strictly(convert(*golden_parts)[0])
    assert torch.equal(model.lm_head.weight, language_model.embed_tokens.weight)
