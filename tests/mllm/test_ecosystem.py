"""peft, torch.compile, checkpointing, half precision, device maps, quantisation and pipelines on the tiny model."""

import contextlib

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, pipeline
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import is_bitsandbytes_available

from llava.data.schema import Turn
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.managers import StaticManager
from llava.mllm import LlavaOVManagerConfig, LlavaOVManagerForConditionalGeneration
from tests.conftest import QUERIES

# Every linear layer of language model and tower; managers are small and trained as they are.
LORA = {
    "r": 4,
    "target_modules": r"model\.(language_model|vision_tower)\..*(_proj|fc1|fc2)",
    "modules_to_save": ["model.fusion"],
}


def with_labels(inputs) -> dict:
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    return {**inputs, "labels": labels}


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


# peft


@pytest.fixture(params=[None, "cross"], ids=["static", "cross"])
def lora(request, make_managed, tmp_path):
    """A LoRA model that took two steps from a saved base, with its base's folder."""
    peft = pytest.importorskip("peft")
    base = make_managed(request.param, jitter="none")
    base.save_pretrained(tmp_path / "base")
    return peft.get_peft_model(base, peft.LoraConfig(**LORA)).train(), tmp_path / "base"


def train(model, inputs, steps: int = 2) -> dict[str, torch.Tensor]:
    """Steps of SGD; returns the last gradients."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**with_labels(inputs)).loss.backward()
        optimizer.step()
    return gradients(model)


def test_lora_trains_its_weights_and_the_managers_and_nothing_else(lora, batch):
    model, _ = lora
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    found = train(model, batch)
    trained = {name for name in found if "lora_" in name}
    managers = {name for name in found if ".fusion.modules_to_save." in name}
    assert set(found) == trained | managers
    assert {kind for kind in ("language_model", "vision_tower") if any(kind in name for name in trained)} == {
        "language_model",
        "vision_tower",
    }
    assert len(managers) == len(list(model.base_model.model.model.fusion.original_module.parameters()))
    assert [name for name, gradient in found.items() if gradient.abs().sum() == 0] == []
    frozen = {name: parameter for name, parameter in model.named_parameters() if name not in found}
    assert frozen
    for name, parameter in frozen.items():
        assert torch.equal(parameter, before[name]), name


def test_a_saved_lora_loads_onto_its_base(lora, batch, tmp_path):
    from peft import PeftModel

    model, base = lora
    train(model, batch)
    model.eval().save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_a_merged_lora_is_an_ordinary_checkpoint(lora, batch, tmp_path):
    model, base = lora
    names = set(AutoModelForImageTextToText.from_pretrained(base).state_dict())
    train(model, batch)
    with torch.no_grad():
        expected = model.eval()(**batch).logits
    merged = model.merge_and_unload()
    assert set(merged.state_dict()) == names
    merged.save_pretrained(tmp_path / "merged")
    loaded, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, merged(**batch).logits)
        torch.testing.assert_close(loaded(**batch).logits, expected, atol=1e-5, rtol=1e-5)


# torch.compile


@pytest.mark.parametrize("query", [None, *QUERIES])
def test_the_decoder_compiles_into_one_graph(make_managed, batch, query):
    """With static managers' sums and with adaptive managers' functions; the embedding of images runs before it."""
    torch._dynamo.reset()
    model = make_managed(query)
    decoder, given = model.model.language_model, {}
    hook = decoder.register_forward_pre_hook(lambda module, args, kwargs: given.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        model(**batch)
        hook.remove()
        expected = decoder(**given)
        compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")(**given)
    assert len(given["visual_deltas"]) == 3
    assert all(callable(delta) for delta in list(given["visual_deltas"].values())[1:]) == (query is not None)
    torch.testing.assert_close(compiled.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_the_compiled_decoder_trains(make_managed, batch):
    torch._dynamo.reset()
    model = make_managed(None, jitter="none").train()
    inputs = with_labels(batch)
    model(**inputs).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.model.language_model.compile(fullgraph=True, backend="aot_eager")
    model(**inputs).loss.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


# gradient checkpointing


@pytest.mark.parametrize("tower_trained", [True, False])
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("query", ["self", "last", "average", "cross"])
def test_checkpointing_adaptive_managers_gives_the_same_gradients(
    make_managed, batch, query, use_reentrant, tower_trained
):
    model = make_managed(query, jitter="none").train()
    if not tower_trained:
        model.model.vision_tower.requires_grad_(False)
    inputs = with_labels(batch)
    model(**inputs).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model(**inputs).loss.backward()
    assert any(".managers." in name for name in expected)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


# half precision


@pytest.mark.parametrize("query", [None, "cross"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loads_predicts_and_generates(make_managed, batch, tmp_path, dtype, query):
    model = make_managed(query)
    model.save_pretrained(tmp_path)
    half = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=dtype)
    kept = torch.float32 if dtype == torch.float16 else dtype
    for name, parameter in half.named_parameters():
        small = name.startswith(("model.multi_modal_projector", "model.image_newline", "model.fusion"))
        assert parameter.dtype == (kept if small else dtype), name
    with torch.no_grad():
        expected, found = model(**batch).logits, half(**batch).logits
    assert found.dtype == dtype
    assert (found - expected).abs().mean() < 0.05 * expected.abs().mean()
    tokens = half.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert tokens.shape == (2, batch["input_ids"].shape[1] + 4)


@pytest.mark.parametrize("layer_set", ["paper", "released"])
@pytest.mark.parametrize("mode", ["weights", "autocast"])
def test_a_training_step_in_bfloat16_draws_its_noise_in_float32(make_model, batch, monkeypatch, layer_set, mode):
    drawn = []

    def uniform(tensor, low, high):
        drawn.append(tensor.dtype)
        return original(tensor, low, high)

    original = torch.Tensor.uniform_
    model = make_model(fusion=layer_set).train()
    model = model.to(torch.bfloat16) if mode == "weights" else model
    reference = make_model(fusion=layer_set).train()
    reference_loss = reference(**with_labels(batch)).loss
    monkeypatch.setattr(torch.Tensor, "uniform_", uniform)
    autocast = torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else contextlib.nullcontext()
    with autocast:
        loss = model(**with_labels(batch)).loss
    loss.backward()
    assert drawn
    assert set(drawn) == {torch.float32}
    assert abs(loss - reference_loss) < 0.02 * reference_loss
    for manager in model.model.fusion.managers:
        assert manager.scores.grad.abs().sum() > 0


# device_map

SPLIT = {
    "model.vision_tower": "cpu",
    "model.multi_modal_projector": "disk",
    "model.image_newline": "disk",
    "model.fusion": "disk",
    "model.language_model.embed_tokens": "cpu",
    "model.language_model.layers.0": "disk",
    **{f"model.language_model.layers.{index}": "cpu" for index in range(1, 6)},
    "model.language_model.norm": "disk",
    "model.language_model.rotary_emb": "cpu",
    "lm_head": "cpu",
}


@pytest.mark.parametrize("query", [None, "cross"])
@pytest.mark.parametrize("device_map", ["cpu", SPLIT, "auto"], ids=["cpu", "split", "auto"])
def test_a_model_spread_over_devices_equals_the_whole(make_managed, batch, tmp_path, device_map, query):
    model = make_managed(query)
    model.save_pretrained(tmp_path)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    limits = {"max_memory": {"cpu": weights // 2}} if device_map == "auto" else {}
    spread = AutoModelForImageTextToText.from_pretrained(
        tmp_path, device_map=device_map, offload_folder=tmp_path / "offload", **limits
    )
    if device_map != "cpu":
        assert set(spread.hf_device_map.values()) == {"cpu", "disk"}
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    with torch.no_grad():
        assert torch.equal(spread(**batch).logits, model(**batch).logits)
        assert torch.equal(spread.generate(**batch, **settings), model.generate(**batch, **settings))


# quantisation


def test_bitsandbytes_would_quantise_tower_and_language_model_alone(make_managed):
    """By transformers' own rule, without bitsandbytes."""
    model = make_managed("cross")
    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    quantised = {name for name in linear if should_convert_module(name, kept)}
    expected = {name for name in linear if name.startswith(("model.vision_tower.", "model.language_model."))}
    assert expected
    assert quantised == expected
    assert set(linear) - quantised > {"lm_head", "model.multi_modal_projector.linear_1"}


@pytest.mark.skipif(not is_bitsandbytes_available(), reason="bitsandbytes is not installed: the extra `quantization`")
@pytest.mark.parametrize("query", [None, "cross"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_model_is_close_to_the_whole(make_config, tmp_path, bits, query):
    """On a GPU if there is one. bitsandbytes works in blocks of 64 weights: the towers are wider than elsewhere."""
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    tiny = make_config(fusion=None)
    vision = tiny.vision_config.to_dict() | {"hidden_size": 64, "intermediate_size": 128}
    text = tiny.text_config.to_dict() | {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    config = LlavaOVManagerConfig(
        vision_config=vision,
        text_config=text,
        fusion=ManagerConfig(interval=2, query=query),
        image_token_id=tiny.image_token_id,
        video_token_id=tiny.video_token_id,
        newline_token_id=1,
        turn_start_token_id=2,
        turn_end_token_id=3,
    )
    model = LlavaOVManagerForConditionalGeneration(config).eval()
    for manager in model.model.fusion.managers:
        torch.nn.init.normal_(manager.scores if isinstance(manager, StaticManager) else manager.gate, std=0.3)
    model.save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    quantised = AutoModelForImageTextToText.from_pretrained(
        tmp_path, quantization_config=settings, dtype=torch.bfloat16, device_map=device
    )
    for name, parameter in quantised.model.fusion.named_parameters():
        assert parameter.dtype == torch.bfloat16, name
        expected = model.model.fusion.get_parameter(name).to(torch.bfloat16)
        assert torch.equal(parameter.cpu(), expected), name
    assert quantised.model.language_model.layers[0].mlp.up_proj.weight.element_size() == 1
    side = config.patches_per_side
    ids = torch.tensor([[2, 7, 1, *[config.image_token_id] * side**2, 9, 3, 2, 8, 1]])
    pixels = torch.randn(1, 3, config.vision_config.image_size, config.vision_config.image_size)
    inputs = {"input_ids": ids, "pixel_values": pixels, "image_sizes": torch.tensor([[56, 56]])}
    with torch.no_grad():
        expected = model(**inputs).logits
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        found = quantised(**inputs).logits.cpu()
    assert (found - expected).abs().mean() < (0.25 if bits == 4 else 0.05) * expected.abs().mean()
    assert quantised.generate(**inputs, max_new_tokens=2, min_new_tokens=2).shape[1] == ids.shape[1] + 2


# pipelines


@pytest.fixture
def pipe(tiny_model_dir):
    return pipeline("image-text-to-text", model=str(tiny_model_dir))


SETTINGS = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


def answers(outputs) -> list[str]:
    outputs = [output[0] if isinstance(output, list) else output for output in outputs]
    return [output["generated_text"] for output in outputs]


def chat(image: Image.Image, question: str) -> list[dict]:
    return [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]},
    ]


def test_the_pipeline_answers_as_the_model_does(pipe, tiny_model, make_processor, make_image):
    processor, model = make_processor(), tiny_model
    cases = [(make_image(100, 70), "What is it?"), (make_image(30, 170, 1), "Hi"), (make_image(150, 97), "A car?")]
    expected = []
    for image, question in cases:
        inputs = processor.encode_prompts([((Turn("human", f"<image>\n{question}"),), [image])])
        tokens = model.generate(**inputs, **SETTINGS)[0, inputs["input_ids"].shape[1] :]
        expected.append(processor.tokenizer.decode(tokens, skip_special_tokens=True))
    chats = [chat(*case) for case in cases]
    settings = {"return_full_text": False, "generate_kwargs": SETTINGS}
    assert [pipe(text=messages, **settings)[0]["generated_text"] for messages in chats] == expected
    for batch_size in (2, 3):
        assert answers(pipe(text=chats, batch_size=batch_size, **settings)) == expected


def test_the_pipeline_completes_texts_with_images(pipe, make_image):
    images, texts = [make_image(100, 70), make_image(30, 170, 1)], ["<image>\nWhat is in the picture?", "<image> A"]
    settings = {"return_full_text": False, "generate_kwargs": SETTINGS}
    alone = [answers(pipe(images=image, text=text, **settings))[0] for image, text in zip(images, texts)]
    assert answers(pipe(images=images, text=texts, **settings)) == alone


def test_prompts_that_the_processor_pads_are_padded_on_the_left(make_processor):
    batch = make_processor()(text=["What is in the picture? A red car.", "A"])
    assert batch["attention_mask"][1].tolist() == [0] * (batch["attention_mask"].shape[1] - 1) + [1]
