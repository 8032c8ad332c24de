"""One hooked pass over a padded batch against the slow way, each sample alone with every row of attention kept."""

import math

import numpy as np
import pytest
import torch

from llava.analysis import attention
from llava.analysis.data import NOT_OF_MODEL
from llava.analysis.places import Row
from llava.analysis.probes import Batch
from llava.analysis.record import PROBES, Recorder
from llava.anyres import TilingConfig
from llava.checkpoint.compose import make_processor as make_processor_of
from llava.data.collator import Collator
from llava.data.schema import Sample, Turn
from llava.errors import LlavaError
from llava.fusion.configs.cross_attention import CrossAttentionConfig
from llava.fusion.configs.deepstack_qwen3 import DeepstackQwen3Config
from llava.fusion.configs.layer_select import LayerSelectConfig
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.configs.none import NoneConfig
from llava.mllm import LlavaOVManagerForConditionalGeneration
from llava.mllm.questions import question_finder
from tests.analysis.slow import slow_arrays
from tests.conftest import GRID
from tests.fusion.test_methods import CASES, tiling_of
from tests.parts import LANGUAGE_MODELS, PAIRS, TOWERS

# Methods that only change what the projector gets.
WITHOUT_INJECTIONS = {"none", "concat", "sci", "dci", "mmfuser", "sti", "tgif", "igva"}
METHODS = {
    "adaptive": ManagerConfig(interval=2, query="cross"),
    "cross_attention": CrossAttentionConfig(injection_layers=(1, 3)),
    "deepstack_qwen3": DeepstackQwen3Config(vision_layers=(1, 2, 4), injection_layers=(0, 1, 2)),
}


@pytest.fixture(scope="module")
def make_awake(make_model):
    """A function: as make_model, to a model of which every part does something, with sharp attention."""

    def make(fusion, tiling=GRID, **parts):
        model, generator = make_model(tiling, fusion, **parts), torch.Generator().manual_seed(1)
        for parameter in model.model.fusion.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        layers = [layer.self_attn for layer in model.model.language_model.layers]
        for module in (*layers, *model.model.vision_tower.attentions):
            for projection in (module.q_proj, module.k_proj):
                projection.weight.data = 0.4 * torch.randn(projection.weight.shape, generator=generator)
        return model

    return make


@pytest.fixture(scope="module")
def samples(make_image):
    """Several tiles; two images with text between; a video, and text alone behind it."""
    return [
        ((Turn("human", "<image>\nWhat is in the picture?"),), [make_image(150, 97)], []),
        ((Turn("human", "<image> and <image>\nA car?"),), [make_image(60, 40, 1), make_image(40, 90, 2)], []),
        ((Turn("human", "<video>\nWhat?"),), [], [[make_image(70, 40, seed) for seed in range(2)]]),
    ]


@pytest.mark.parametrize("fusion", METHODS.values(), ids=METHODS)
def test_a_left_padded_batch_is_as_the_slow_way(fusion, make_awake, make_processor, samples, monkeypatch):
    monkeypatch.setitem(attention.BLOCK, "cpu", 3 * 4 * 60)  # blocks of a few queries, of unequal number
    assert_as_the_slow_way(make_awake(fusion), make_processor(), samples)


@pytest.mark.parametrize("pair", PAIRS)
def test_other_towers_and_language_models_are_as_the_slow_way(pair, make_awake, tiny_tokenizer, samples):
    tower, (kind, fields) = TOWERS[PAIRS[pair][0]], LANGUAGE_MODELS[PAIRS[pair][1]]
    tiling = TilingConfig.from_llava("anyres_max_4", "spatial_unpad", "(1x1),...,(2x2)", tower.image_size)
    model = make_awake(METHODS["adaptive"], tiling, tower=tower, language_model=kind, **fields)
    for parameter in model.model.vision_tower.parameters():  # class tokens and registers begin at zero
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    assert_as_the_slow_way(model, make_processor_of(model.config, tiny_tokenizer, {}), samples)


def assert_as_the_slow_way(model, processor, samples) -> None:
    """What is recorded of a padded batch, of each sample."""
    inputs = processor.encode_prompts(samples)
    assert (inputs["attention_mask"][:, 0] == 0).any(), "some row is padded"
    model.set_attn_implementation("sdpa")
    recorded = Recorder(model, list(PROBES)).record(inputs)
    model.set_attn_implementation("eager")
    for sample, arrays in zip(samples, recorded, strict=True):
        slow = slow_arrays(model, processor, sample)
        assert slow.keys() == arrays.keys() - {"weights_visual_mean", "weights_visual_absolute"}
        for name, expected in slow.items():
            assert arrays[name] == pytest.approx(expected.numpy(), rel=1e-5, abs=1e-5), name
        assert arrays["attention_visual"][:, 2].min() > 0.1, "heads differ"


def test_managers_weights_are_means_over_the_tokens_of_each_sample(make_awake, make_processor, samples):
    model, processor = make_awake(ManagerConfig(interval=2, query="self", layer_set="released")), make_processor()
    inputs, kept = processor.encode_prompts(samples), {}
    managers = model.model.fusion.managers
    for index in (1, 2):
        managers[index].controller.register_forward_hook(
            lambda module, given, scores, index=index: kept.setdefault(index, scores)
        )
    recorder = Recorder(model, ["weights"])
    recorded = recorder.record(inputs)
    kept = {index: scores.clone() for index, scores in kept.items()}
    assert recorder.facts()["managers"] == {"visual": [[1, "static"], [3, "adaptive"], [5, "adaptive"]]}
    assert recorder.facts()["experts"] == {"visual": [2, 3]}
    visual = [(ids == token).sum() for ids, token in zip(inputs["input_ids"], [model.config.image_token_id] * 2)]
    ends = [int(visual[0]), int(sum(visual))]
    for sample, tokens in enumerate((slice(0, ends[0]), slice(*ends), slice(ends[1], None))):
        mean, absolute = (recorded[sample][f"weights_visual_{name}"] for name in ("mean", "absolute"))
        assert np.isnan(mean[0, 1]), "the first manager omits the last map"
        assert mean[0, 0] == pytest.approx(float(managers[0].scores.mean()), abs=1e-6)
        for index in (1, 2):
            weights = kept[index][tokens, :, None] * managers[index].gate.detach()  # tokens, maps, width
            assert mean[index] == pytest.approx(weights.mean((0, 2)).numpy(), abs=1e-6)
            assert absolute[index] == pytest.approx(weights.abs().mean((0, 2)).numpy(), abs=1e-6)


def test_a_batch_and_padding_on_either_side_change_nothing(make_awake, make_processor, samples):
    model, processor = make_awake(LayerSelectConfig()), make_processor()
    recorder = Recorder(model, list(PROBES))
    together = recorder.record(processor.encode_prompts(samples))
    inputs = [processor.encode_prompts([sample]) for sample in samples[:2]]
    for one, arrays in zip(inputs, together):
        (alone,) = recorder.record(one)
        for name, values in arrays.items():
            assert np.allclose(alone[name], values, atol=1e-5), name
    lengths = [one["input_ids"].shape[1] for one in inputs]
    pad = processor.tokenizer.pad_token_id
    right = {
        "input_ids": torch.cat([torch.nn.functional.pad(one["input_ids"], (0, max(lengths) - length), value=pad)
                                for one, length in zip(inputs, lengths)]),
        "sequence_lengths": lengths,
        "pixel_values": torch.cat([one["pixel_values"] for one in inputs]),
        "image_sizes": torch.cat([one["image_sizes"] for one in inputs]).tolist(),
        "batch_num_images": [1, 2],
    }  # fmt: skip
    for padded, arrays in zip(recorder.record(right), together):
        for name, values in padded.items():
            assert np.allclose(values, arrays[name], atol=1e-5), name


def test_the_model_is_as_before(make_awake, make_processor, samples):
    """Logits bit for bit, while it is watched too; no hook and no attention function is left, after an error too."""
    model, processor = make_awake(NoneConfig()), make_processor()
    inputs = processor.encode_prompts(samples)
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        plain = model.model(**inputs).last_hidden_state
        batch = Batch(inputs, model.config)
        with PROBES["attention"](model).watching(batch), PROBES["hidden"](model).watching(batch):
            assert torch.equal(model.model(**inputs).last_hidden_state, plain)
    with pytest.raises(LlavaError, match="image tokens but"):
        Recorder(model, list(PROBES)).record({**inputs, "input_ids": torch.ones_like(inputs["input_ids"])})
    assert attention._watchers == {}
    assert model.config.text_config._attn_implementation == model.config.vision_config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    (arrays, *_) = Recorder(model, list(PROBES)).record(inputs)
    assert {"movement", "similarity_visual_unimodal", "weights_visual_mean"}.isdisjoint(arrays), "none adds nothing"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_method_is_recorded(case, make_config, make_processor, make_image):
    """Through a training sample, whose batch says where its questions are."""
    torch.manual_seed(0)
    model = LlavaOVManagerForConditionalGeneration(make_config(tiling_of(case), case.config)).eval()
    processor = make_processor(model.config.tiling)
    turns = (Turn("human", "<image>\nWhat?"), Turn("gpt", "A red car."))
    encoding = {"template": "qwen_1_5", "label_rule": "answers", "max_length": 2000}
    item = processor.encode_sample(Sample("a", turns, ("a.png",), "here"), [make_image(120, 90)], **encoding)
    batch = Collator(0, questions=question_finder(model.config))([item])
    recorder = Recorder(model, ["hidden", "weights"])
    (arrays,) = recorder.record({key: value for key, value in batch.items() if key not in NOT_OF_MODEL})
    assert np.isfinite(arrays["cosine_visual"]).all()
    assert ("weights_visual_mean" in arrays) == (case.config.method == "manager")
    layers = recorder.facts()["injection_layers"]
    assert len(arrays.get("movement", ())) == len(layers)
    assert bool(layers) == (case.config.method not in WITHOUT_INJECTIONS)


def test_a_scope_leaves_tokens_out_of_the_similarity(make_awake, make_processor, samples):
    model = make_awake(ManagerConfig(interval=2, scope="grid"))
    (arrays,) = Recorder(model, ["injections"]).record(make_processor().encode_prompts(samples[:1]))
    assert np.isfinite(arrays["similarity_visual_unimodal"]).all()
    assert (arrays["movement"] > 0).all()


def test_eps_and_a_single_head():
    """Two heads that look at one key each, by hand; the second query sees a third key, the text before it as well."""
    row = Row(visual=torch.tensor([1, 2, 3]), text=torch.tensor([0]))
    query = torch.zeros(2, 4, 2)
    query[0, :, 0], query[1, :, 1] = 1000.0, 1000.0
    key = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    found = attention.visual_attention(query, key, 1.0, row, row.parts["visual"])
    # The first query sees a key alone, where the heads agree; of the others 1 * (log(1 + eps) - log(eps)) both ways.
    assert found[2] == pytest.approx(2 / 3 * -math.log(1e-12), rel=1e-6)
    assert found[0] == pytest.approx(0, abs=1e-9)
    flat = attention.visual_attention(torch.zeros(1, 4, 2), key, 1.0, row, row.parts["visual"])
    masses = [1 / 2, 2 / 3, 3 / 4]
    raw = [mass * math.log(count) - mass * math.log(mass) for count, mass in zip((1, 2, 3), masses)]
    assert flat[:2].tolist() == pytest.approx([math.log(6) / 3, sum(raw) / 3], rel=1e-6)
    assert math.isnan(flat[2]), "one head has no pairs"
    alone = Row(visual=torch.arange(4), text=torch.arange(0))
    whole = attention.visual_attention(torch.zeros(1, 4, 2), key, 1.0, alone, alone.parts["visual"])
    assert whole[1] == pytest.approx(math.log(24) / 4, rel=1e-6), "with nothing beside, the raw part is the whole"
