"""transformers' llava_onevision checkpoints give transformers' own logits after conversion."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

from llava.cli import main
from llava.convert.from_llava_onevision import tiling_from_onevision
from tests.conftest import TILE
from tests.convert.conftest import load_strictly
from tests.parts import LANGUAGE_MODELS

PINPOINTS_HW = [[56, 56], [56, 112], [112, 56], [112, 112], [56, 168], [168, 112]]
SIZES_HW = [(70, 100), (56, 56), (130, 60), (333, 41), (200, 210)]


@pytest.fixture
def onevision(tmp_path, make_config, tiny_tokenizer):
    """A function: names on disk ("saved", "first", "classes") and fields to (folder, transformers' model).

    kind: of the language model, one of tests/parts.py; None for Qwen2.
    """

    def make(names: str = "saved", tie: bool = True, kind: str | None = None, **fields):
        language_model, text = LANGUAGE_MODELS[kind] if kind is not None else (Qwen2Config, {})
        ours = make_config(fusion=None, language_model=language_model, **text)
        ours.text_config.tie_word_embeddings = tie
        config = LlavaOnevisionConfig(
            vision_config=ours.vision_config,
            text_config=ours.text_config,
            image_token_index=ours.image_token_id,
            video_token_index=ours.video_token_id,
            image_grid_pinpoints=PINPOINTS_HW,
            vision_aspect_ratio="anyres_max_4",
            **fields,
        )
        torch.manual_seed(0)
        model = LlavaOnevisionForConditionalGeneration(config).eval()
        folder = tmp_path / "onevision"
        model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        rename(folder, model, names)
        return folder, model

    return make


def rename(folder, model, names: str) -> None:
    """Writes the weights under the names of the first release, with vision_model, or under those of the classes."""
    file = folder / "model.safetensors"
    if names == "first":
        state = {name.replace("vision_tower.", "vision_tower.vision_model."): t for name, t in load_file(file).items()}
        assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in state
        assert "language_model.model.norm.weight" in state
        save_file(state, file, metadata={"format": "pt"})
    elif names == "classes":
        state = {name: t.contiguous() for name, t in model.state_dict().items() if name != "lm_head.weight"}
        assert "model.language_model.norm.weight" in state
        save_file(state, file, metadata={"format": "pt"})


def both_logits(theirs, ours, size: tuple[int, int], several: int = 1):
    """Logits of noise images of one (height, width), with as many placeholders as transformers has features."""
    torch.manual_seed(1)
    crops = 1 if several > 1 else image_size_to_num_patches(size, PINPOINTS_HW, TILE)
    images = {
        "pixel_values": torch.randn(several * crops, 3, TILE, TILE),
        "image_sizes": torch.tensor([size] * several),
        "batch_num_images": torch.tensor([several]),
    }
    with torch.no_grad():
        count = sum(map(len, theirs.get_image_features(**images).pooler_output))
        ids = torch.tensor([[*range(20, 25), *[theirs.config.image_token_index] * count, *range(25, 40)]])
        return theirs(input_ids=ids, **images).logits, ours(input_ids=ids, **images).logits


@pytest.mark.parametrize("names", ["saved", "first", "classes"])
@pytest.mark.parametrize("size", SIZES_HW)
def test_logits_are_transformers_own(names, size, onevision, convert):
    folder, theirs = onevision(names)
    ours = load_strictly(convert(folder)[0])
    expected, found = both_logits(theirs, ours, size)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
@pytest.mark.parametrize("names", ["saved", "first", "classes"])
def test_other_language_models(names, kind, onevision, convert):
    folder, theirs = onevision(names, kind=kind)
    ours = load_strictly(convert(folder)[0])
    assert ours.config.text_config.model_type == LANGUAGE_MODELS[kind][0].model_type
    expected, found = both_logits(theirs, ours, SIZES_HW[0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_several_images_and_an_untied_head(onevision, convert):
    folder, theirs = onevision(tie=False)
    ours = load_strictly(convert(folder)[0])
    assert not torch.equal(ours.lm_head.weight, ours.get_input_embeddings().weight)
    expected, found = both_logits(theirs, ours, (70, 100), several=3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_in_and_out_again_is_the_same_checkpoint(onevision, convert, tmp_path):
    folder, _ = onevision(tie=False)
    imported, _ = convert(folder)
    exported = tmp_path / "exported"
    assert main(["convert", "export", str(imported), "--format", "llava_onevision", "--out", str(exported)]) == 0
    model, loading = LlavaOnevisionForConditionalGeneration.from_pretrained(exported, output_loading_info=True)
    assert not any(loading.values()), loading
    original = LlavaOnevisionForConditionalGeneration.from_pretrained(folder)
    assert model.config.image_grid_pinpoints == original.config.image_grid_pinpoints == PINPOINTS_HW
    for name, weight in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


@pytest.mark.parametrize("layer", [-2, 3, [-2]])
def test_another_vision_layer_is_the_last_that_is_kept(layer, onevision, convert):
    folder, theirs = onevision(vision_feature_layer=layer)
    out, printed = convert(folder)
    ours = load_strictly(out)
    assert ours.config.vision_config.num_hidden_layers == 3
    assert "vision layer above the used ones" in printed
    expected, found = both_logits(theirs, ours, (70, 100))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_configuration_and_processor(onevision, convert):
    folder, _ = onevision()
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4] * 3, "image_std": [0.3] * 3}))
    out, _ = convert(folder)
    config, processor = load_strictly(out).config, AutoProcessor.from_pretrained(out)
    assert config.tiling.pinpoints == ((56, 56), (112, 56), (56, 112), (112, 112), (168, 56), (112, 168))
    assert (config.tiling.max_tiles, config.tiling.merge, config.tiling.mode) == (4, "spatial_unpad", "anyres")
    assert config.tiling.newline_after_one_crop
    assert config.tiling.unpad_rounding == "round"
    assert config.fusion.method == "none"
    assert processor.image_processor.tiling == config.tiling
    assert processor.image_processor.image_mean == config.image_mean == [0.4] * 3
    assert processor.image_processor.image_std == config.image_std == [0.3] * 3
    assert processor.image_token_id == config.image_token_id


def test_the_default_pinpoints_are_the_published_ones():
    tiling = tiling_from_onevision(LlavaOnevisionConfig())
    assert tiling.pinpoints == tuple((384 * w, 384 * h) for h in range(1, 7) for w in range(1, 7))
    assert tiling.max_tiles == 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy 'default' is not supported"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act 'relu' is not supported"),
        ({"vision_feature_layer": [-1, -2]}, "vision_feature_layer [-1, -2] does not name one of 4 layers"),
        ({"vision_aspect_ratio": "square_max_3"}, "unknown image_aspect_ratio 'square_max_3'"),
        ({"image_token_index": 7}, "image_token_id is 7 in config.json, 3"),
        ({"text_config": {"model_type": "llama"}}, "its text_config is of type 'llama'; only 'qwen2' and 'qwen3'"),
        (
            {"vision_config": {"model_type": "clip_vision_model"}},
            "its vision_config is of type 'clip_vision_model'; only 'siglip_vision_model' is supported",
        ),
    ],
)
def test_what_this_model_lacks_is_refused(fields, message, onevision, refused):
    folder, _ = onevision()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    assert message in refused(folder)
