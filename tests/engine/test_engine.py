"""The generation engine: prompts, batches, stop strings, streaming, and what it refuses to load."""

import json
import os
import shutil
import signal
from contextlib import closing
from threading import Event

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config

from llava.data.schema import Dialogue, Turn
from llava.engine import engine as engine_module
from llava.engine.engine import Engine
from llava.engine.kept_cache import KeptCache
from llava.errors import DataError, LlavaError
from llava.mllm import LlavaOVManagerConfig, LlavaOVManagerForConditionalGeneration


@pytest.fixture(scope="module")
def engine(tiny_model_dir):
    return Engine.from_pretrained(tiny_model_dir, device="cpu")


@pytest.fixture(scope="module")
def dialogues(make_image):
    """One of each kind: an image, text alone, several images, several turns with an image in the second."""
    return [
        Dialogue([Turn("human", "What is in the picture?")], [make_image(100, 70)]),
        Dialogue([Turn("human", "Hello")]),
        Dialogue([Turn("human", "Compare <image> and <image>")], [make_image(60, 80, 1), make_image(90, 30, 2)]),
        Dialogue(
            [
                Turn("system", "Be brief."),
                Turn("human", "Hi"),
                Turn("gpt", "Yes?"),
                Turn("human", "<image>\nA red car?"),
            ],
            [make_image(150, 130, 3)],
        ),
    ]


def test_a_batch_answers_as_each_dialogue_alone(engine, dialogues):
    alone = [engine.generate([dialogue], max_new_tokens=12)[0] for dialogue in dialogues]
    assert engine.generate(dialogues, max_new_tokens=12) == alone
    assert len(set(alone)) > 1, "random weights should answer different prompts differently"


def test_generation_agrees_with_a_plain_greedy_loop(engine, dialogues):
    tokenizer = engine.processor.tokenizer
    inputs = engine.processor.encode_prompts([((Turn("human", "Hello"),), [])])
    ids = inputs["input_ids"]
    with torch.inference_mode():
        for _ in range(12):
            token = engine.model(input_ids=ids).logits[0, -1].argmax()
            ids = torch.cat([ids, token[None, None]], dim=1)
            if token == tokenizer.eos_token_id:
                break
    answer = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert engine.generate([dialogues[1]], max_new_tokens=12) == [answer.strip()]


def test_streamed_pieces_are_the_generated_answer(engine, dialogues):
    for dialogue in dialogues:
        kept = KeptCache()
        pieces = list(engine.stream(dialogue, max_new_tokens=12, kept=kept))
        assert "".join(pieces).strip() == engine.generate([dialogue], max_new_tokens=12)[0]
        assert len(pieces) >= kept.usage.answer, "the first comes with the first token, by which the speed is measured"


def test_images_without_a_place_are_joined_in_front(engine, make_image):
    images = [make_image(60, 80, 1), make_image(90, 30, 2)]
    bare = Dialogue([Turn("human", "Compare")], images)
    placed = Dialogue([Turn("human", "<image> <image>\nCompare")], images)
    assert engine.generate([bare], max_new_tokens=8) == engine.generate([placed], max_new_tokens=8)
    with pytest.raises(DataError, match="found 1 <image> placeholders but 2 images"):
        engine.generate([Dialogue([Turn("human", "<image>\nCompare")], images)], max_new_tokens=8)


def test_count_tokens_is_the_length_of_the_encoded_prompt(engine, dialogues):
    for dialogue in dialogues:
        assert engine.count_tokens(dialogue) == engine.prepare([dialogue])["input_ids"].shape[1]


def test_answers_are_cut_before_the_first_stop_string(engine, dialogues):
    whole = engine.generate([dialogues[0]], max_new_tokens=12)[0]
    early, late = whole[4:6], whole[8:10]
    cut = engine.generate([dialogues[0]], max_new_tokens=12, stop=[late, early, "never written"])[0]
    assert cut == whole[: whole.index(early)].strip()


def test_sampling_follows_torch_seed_and_beams_run(engine, dialogues):
    torch.manual_seed(3)
    first = engine.generate(dialogues[:1], max_new_tokens=12, temperature=1.0, top_p=0.9)
    torch.manual_seed(3)
    assert engine.generate(dialogues[:1], max_new_tokens=12, temperature=1.0, top_p=0.9) == first
    assert first != engine.generate(dialogues[:1], max_new_tokens=12)
    assert len(engine.generate(dialogues, max_new_tokens=4, num_beams=2)) == len(dialogues)


def test_settings_of_the_language_model_do_not_leak(tiny_model_dir, dialogues, engine, tmp_path):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    leaking = {"do_sample": True, "repetition_penalty": 5.0, "temperature": 0.7, "top_k": 20, "eos_token_id": 7}
    (folder / "generation_config.json").write_text(json.dumps(leaking))
    other = Engine.from_pretrained(folder, device="cpu")
    assert other.generate(dialogues[:2], max_new_tokens=12) == engine.generate(dialogues[:2], max_new_tokens=12)


def test_closing_a_stream_stops_the_generation(engine, dialogues, monkeypatch):
    steps = []
    forward = engine.model.forward
    monkeypatch.setattr(engine.model, "forward", lambda **inputs: (steps.append(1), forward(**inputs))[1])
    monkeypatch.setattr(engine.model.generation_config, "eos_token_id", None)
    with closing(engine.stream(dialogues[1], max_new_tokens=1500, temperature=3.0)) as stream:
        next(stream)
    assert 0 < len(steps) < 750


@pytest.mark.parametrize("part", ["language_model.layers", "vision_tower.encoder.layers"])
def test_a_prompt_is_not_read_to_its_end_when_the_reader_leaves(engine, dialogues, monkeypatch, part):
    first, second = engine.model.get_submodule(f"model.{part}")[:2]
    ran, made = [], []

    class NotedEvent(Event):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr(engine_module, "Event", NotedEvent)

    def interrupt_reader(*_):  # as Ctrl-C does: it reaches the main thread, which waits for the first piece
        ran.append("first")
        os.kill(os.getpid(), signal.SIGINT)
        assert made[0].wait(60), "the reader has left"

    hooks = [first.register_forward_hook(interrupt_reader), second.register_forward_hook(lambda *_: ran.append("next"))]
    with pytest.raises(KeyboardInterrupt):
        next(engine.stream(dialogues[0], max_new_tokens=8))
    for hook in hooks:
        hook.remove()
    assert ran == ["first"]
    assert engine.generate(dialogues[:1], max_new_tokens=2), "nothing of it stays"


def test_an_error_while_streaming_reaches_the_caller(engine, dialogues, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.model, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(engine.stream(dialogues[1], max_new_tokens=4))


def test_choices_are_made_from_the_device_and_said(engine):
    assert engine.describe() == "cpu, float32, sdpa"


def text_model(folder):
    Qwen2Config(architectures=["Qwen2ForCausalLM"]).save_pretrained(folder)


def vision_model(folder):
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "siglip_vision_model"}')


def broken_config(folder):
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": ')


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "model: no such model folder"),
        (lambda folder: folder.mkdir(), "not a model folder"),
        (text_model, "a text-only model of type 'qwen2'; expected llava_ov_manager"),
        (vision_model, "a model of type 'siglip_vision_model'; expected llava_ov_manager"),
        (broken_config, "config.json: not readable as JSON"),
    ],
)
def test_other_folders_get_one_clear_line(tmp_path, make, message):
    make(tmp_path / "model")
    with pytest.raises(LlavaError, match=message) as caught:
        Engine.from_pretrained(tmp_path / "model")
    assert "\n" not in str(caught.value)


def without_a_weight(weights):
    state = load_file(weights)
    del state["model.image_newline.weight"]
    save_file(state, weights, metadata={"format": "pt"})


def truncated(weights):
    weights.write_bytes(weights.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_weight, "missing in the weights: 1 parameters, first model.image_newline.weight"),
        (truncated, "cannot be loaded"),
        (lambda weights: weights.unlink(), "cannot be loaded"),
    ],
)
def test_damaged_weights_are_refused(tiny_model_dir, tmp_path, damage, message):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    damage(folder / "model.safetensors")
    with pytest.raises(LlavaError, match=message) as caught:
        Engine.from_pretrained(folder, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"device": "abacus"}, "device 'abacus'"),
        ({"dtype": "int3"}, "unknown dtype 'int3'"),
        (
            {"attn_implementation": "flash_attention_2"},
            r"^flash_attention_2 needs the package flash_attn: pip install --no-build-isolation -e '\.\[flash\]'",
        ),
    ],
)
def test_device_dtype_and_attention_that_are_not_there(tiny_model_dir, choice, message, monkeypatch):
    monkeypatch.setattr("llava.engine.checks.find_spec", lambda name: None)
    with pytest.raises(LlavaError, match=message):
        Engine.from_pretrained(tiny_model_dir, **choice)


def test_four_bits_of_the_language_model_alone(tmp_path, make_config, make_processor, dialogues):
    pytest.importorskip("bitsandbytes")
    config = make_config().to_dict()
    config["text_config"] |= {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}  # blocks of 64 weights
    wide = LlavaOVManagerForConditionalGeneration(LlavaOVManagerConfig.from_dict(config))
    wide.save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    engine = Engine.from_pretrained(tmp_path, device="cpu", load_4bit=True)
    assert engine.describe() == "cpu, float32, sdpa, language model in 4 bits"
    quantised = {name for name, weight in engine.model.named_parameters() if type(weight).__name__ == "Params4bit"}
    linear = {name for name, module in wide.named_modules() if isinstance(module, torch.nn.Linear)}
    assert quantised == {f"{name}.weight" for name in linear if name.startswith("model.language_model.")} != set()
    assert len(engine.generate(dialogues[:1], max_new_tokens=2)) == 1
    (tmp_path / "adapter").mkdir()
    with pytest.raises(LlavaError, match="cannot be merged into 4 bits; merge them first: llava convert merge-lora"):
        Engine.from_pretrained(tmp_path, device="cpu", load_4bit=True)


def test_four_bits_without_bitsandbytes(tiny_model_dir, monkeypatch):
    monkeypatch.setattr("llava.engine.four_bits.find_spec", lambda name: None)
    with pytest.raises(LlavaError, match=r"pip install 'llava-ov-manager\[quantization\]'"):
        Engine.from_pretrained(tiny_model_dir, load_4bit=True)
