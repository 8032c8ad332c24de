"""The models that `make demo-real` installs, against those who read their files otherwise: `make test-real`."""

from functools import partial

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, Qwen2ForCausalLM, SiglipVisionModel

from llava.cli import main
from llava.constants import SYSTEM_MESSAGE
from llava.data.conversation import add_visual_tokens, encode_conversation, encode_prompt
from llava.data.schema import Turn
from llava.demo import dinov2, smollm2
from llava.demo.fonts import FONTS, faces
from llava.demo.prose import topics
from llava.errors import LlavaError
from llava.mllm.questions import turn_token_ids

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]
TEXT = "Rather than spelling it out in full details (see section Names), here are 3 hints:\nit isn't 1234."


def installed(find):
    """What `find` finds; where it is not installed the test is skipped, and says what installs it."""
    try:
        return find()
    except LlavaError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def smollm2_file():
    return installed(smollm2.gguf_file)


@pytest.fixture(scope="module")
def qwen2_folder(smollm2_file, tmp_path_factory):
    """`llava demo smollm2`."""
    folder = tmp_path_factory.mktemp("smollm2") / "qwen2"
    assert main(["demo", "smollm2", str(folder)]) == 0
    return folder


def test_smollm2_is_transformers_own_llama_to_the_bit(smollm2_file, qwen2_folder):
    """On real text, and it answers as it should, in its own words' tokens."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_file.parent, gguf_file=smollm2_file.name)
    saved = AutoTokenizer.from_pretrained(qwen2_folder)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert torch.equal(saved(TEXT, return_tensors="pt")["input_ids"], ids)
    for sentence in (" ".join(words) for part in (False, True) for topic in topics(part) for words in topic):
        assert saved(sentence)["input_ids"] == tokenizer(sentence)["input_ids"], sentence
    llama = LlamaForCausalLM.from_pretrained(smollm2_file.parent, gguf_file=smollm2_file.name).eval()
    qwen2 = Qwen2ForCausalLM.from_pretrained(qwen2_folder, dtype=torch.float32).eval()
    assert (qwen2.config.num_hidden_layers, qwen2.config.hidden_size, qwen2.config.vocab_size) == (30, 576, 49152)
    with torch.no_grad():
        assert torch.equal(qwen2(ids).logits, llama(ids).logits)
    prompt = encode_prompt(saved, (Turn("human", "What is the capital of France?"),))
    answer = qwen2.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, len(prompt) :]
    assert saved.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_our_template_is_smollm2s_own(qwen2_folder):
    """`qwen_1_5` is ChatML with our system message: the ids are those that its own template gives for it."""
    tokenizer = AutoTokenizer.from_pretrained(qwen2_folder)
    assert add_visual_tokens(tokenizer, 49152) == {"image_token_id": 15, "video_token_id": 16}
    assert turn_token_ids(tokenizer) == {"turn_start_token_id": 1, "turn_end_token_id": 2, "newline_token_id": 198}
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 2, 49152)
    turns = (Turn("human", "Which word?"), Turn("gpt", "Names"), Turn("human", "And then?"), Turn("gpt", "are"))
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": "system", "content": SYSTEM_MESSAGE}]
    messages += [{"role": roles[turn.role], "content": turn.text} for turn in turns]
    template = partial(tokenizer.apply_chat_template, return_dict=False)
    assert encode_conversation(tokenizer, turns, "qwen_1_5", "answers")[0] == template(messages)
    assert encode_prompt(tokenizer, turns[:3]) == template(messages[:-1], add_generation_prompt=True)


def test_dinov2_is_what_onnxruntime_computes(tmp_path):
    """The original by Dinov2Model; in SigLIP's form patch states keep their direction, the class token apart."""
    file = installed(dinov2.onnx_file)
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = onnx.load(str(file))
    states = [f"/backbone/encoder/layer.{layer - 1}/Add_1_output_0" for layer in (1, 4, 8, 11)]
    states.append("/backbone/layernorm/Add_1_output_0")
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in states)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = picture()
    original = [torch.from_numpy(state)[0, 1:] for state in session.run(states, {"input_image": pixels.numpy()})]

    assert main(["demo", "dinov2", str(tmp_path / "siglip"), "--tile", "224"]) == 0
    tower = SiglipVisionModel.from_pretrained(tmp_path / "siglip").eval()
    with torch.no_grad():
        found = tower(pixels, output_hidden_states=True)
    ours = [found.hidden_states[layer][0] for layer in (1, 4, 8, 11)] + [found.last_hidden_state[0]]
    cosines = [torch.cosine_similarity(one, other).mean().item() for one, other in zip(ours, original)]
    print("cosines after layers 1, 4, 8, 11 and the norm:", [f"{cosine:.3f}" for cosine in cosines])
    expected = [0.98, 0.95, 0.92, 0.93, 0.98]
    assert all(cosine > seen - 0.06 for cosine, seen in zip(cosines, expected)), cosines


def picture():
    """matplotlib's photograph of Grace Hopper, as the tower gets it: (1, 3, 224, 224)."""
    import numpy as np
    from PIL import Image

    from llava.demo.wheels import packaged_file

    image = Image.open(packaged_file("matplotlib", "mpl-data/sample_data/grace_hopper.jpg")).convert("RGB")
    pixels = np.asarray(image.resize((224, 224)), np.float32) / 255
    normalized = (pixels - np.array(dinov2.MEAN, np.float32)) / np.array(dinov2.STD, np.float32)
    return torch.from_numpy(normalized).permute(2, 0, 1)[None]


def test_every_font_is_where_it_is_looked_for():
    assert len(installed(lambda: faces("all"))) == len(FONTS["all"]) == 12
