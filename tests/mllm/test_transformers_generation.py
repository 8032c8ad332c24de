"""Generation, by transformers' own tests where a checkout is given, and always by tests of our own to the same ends.

pytest tests/mllm/test_transformers_generation.py --transformers-tests CHECKOUT
"""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, Qwen2ForCausalLM, StaticCache
from transformers.generation import CompileConfig

from llava.data.schema import Turn
from llava.errors import LlavaError
from tests.mllm.transformers_mixin import TABLE, entry_of, markdown
from tests.paths import ROOT

NEW = 4
EXACT = {"max_new_tokens": NEW, "min_new_tokens": NEW}
GREEDY = {**EXACT, "do_sample": False}
EVERYTHING = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_hidden_states": True,
    "output_attentions": True,
}
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(params=[None, "cross"], ids=["static", "cross"])
def model(request, make_managed):
    return make_managed(request.param)


@pytest.fixture
def single(make_processor, make_image):
    """One prompt with an image of many tiles."""
    return make_processor().encode_prompts([((Turn("human", "<image>\nWhat is it?"),), [make_image(150, 97)])])


def logits_of(output) -> torch.Tensor:
    return torch.stack(output.logits, dim=1)


def as_embeds(model, inputs) -> dict:
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    return {key: value for key, value in inputs.items() if key != "input_ids"} | {"inputs_embeds": embeds}


# transformers' own tests


def test_the_documentation_shows_the_table():
    assert markdown() in (ROOT / "docs/transformers_tests.md").read_text()


def test_the_table_tells_one_test_from_another():
    assert sum(not reason for reason in TABLE.values()) >= 30
    assert entry_of("test_generate_from_inputs_embeds_0_greedy") == "test_generate_from_inputs_embeds_[01]_*"
    assert entry_of("test_flash_attention_3_padding_matches_padding_free_with_position_ids") == "test_flash_attention_*"
    assert entry_of("test_new_in_transformers") is None


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("query", ["static", "cross"])
def test_transformers_generation_tests(pytestconfig, query):
    checkout = pytestconfig.getoption("--transformers-tests")
    if checkout is None:
        pytest.skip("transformers' wheel has no tests: give a source checkout by --transformers-tests DIR")
    pytest.importorskip("parameterized", reason="transformers' tests need the package parameterized")
    command = [sys.executable, ROOT / "tests/mllm/transformers_mixin.py", checkout, query]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    ran = [test for test, outcome in outcomes.items() if outcome == "passed"]
    print(f"{len(ran)} of {len(outcomes)} tests of GenerationTesterMixin ran and passed ({query})")
    assert {test: outcome for test, outcome in outcomes.items() if outcome not in ("passed", "not run")} == {}
    assert len(ran) >= 30


# What generate returns

MODES = {
    "greedy": ({"do_sample": False}, 1, 1),
    "sample": ({"do_sample": True, "num_return_sequences": 2}, 2, 2),
    "beams": ({"do_sample": False, "num_beams": 2}, 2, 1),
    "sampled_beams": ({"do_sample": True, "num_beams": 2}, 2, 1),
}


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_everything_that_generate_returns_has_its_shape(model, batch, mode, use_cache):
    settings, expansion, returned = MODES[mode]
    model.set_attn_implementation("eager")
    # A placeholder that is sampled would ask for an image wherever the whole sequence is fed again.
    placeholders = [model.config.image_token_id, model.config.video_token_id]
    settings = {**settings, **EXACT, **EVERYTHING, "suppress_tokens": placeholders, "use_cache": use_cache}
    torch.manual_seed(0)
    output = model.generate(**batch, **settings)
    text, prompt = model.config.text_config, batch["input_ids"].shape[1]
    rows = 2 * expansion
    assert output.sequences.shape == (2 * returned, prompt + NEW)
    assert [scores.shape for scores in output.scores] == [(rows, text.vocab_size)] * NEW
    assert [logits.shape for logits in output.logits] == [(rows, text.vocab_size)] * NEW
    for step, (states, attentions) in enumerate(zip(output.hidden_states, output.attentions, strict=True)):
        total = prompt + step
        fed = 1 if use_cache and step else total
        assert [state.shape for state in states] == [(rows, fed, text.hidden_size)] * (text.num_hidden_layers + 1)
        assert {layer.shape for layer in attentions} == {(rows, text.num_attention_heads, fed, total)}
        assert len(attentions) == text.num_hidden_layers
    if use_cache:
        heads, size = text.num_key_value_heads, text.hidden_size // text.num_attention_heads
        for layer in output.past_key_values.layers:
            assert layer.keys.shape == layer.values.shape == (rows, heads, prompt + NEW - 1, size)
    else:
        assert output.past_key_values is None


def test_the_forward_returns_states_and_attentions(model, batch):
    model.set_attn_implementation("eager")
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    text, (rows, length) = model.config.text_config, batch["input_ids"].shape
    assert [state.shape for state in output.hidden_states] == [(rows, length, text.hidden_size)] * 7
    assert [layer.shape for layer in output.attentions] == [(rows, text.num_attention_heads, length, length)] * 6
    torch.testing.assert_close(model.lm_head(output.hidden_states[-1]), output.logits, **CLOSE)
    as_tuple = model(**batch, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], output.logits)


# The same tokens by other ways


def test_with_and_without_cache(model, batch):
    settings = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    cached, whole = (model.generate(**batch, **settings, use_cache=use_cache) for use_cache in (True, False))
    assert torch.equal(cached.sequences, whole.sequences)
    torch.testing.assert_close(logits_of(cached), logits_of(whole), **CLOSE)


def test_attention_implementations(model, batch):
    settings = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    found = {}
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert model.model.vision_tower.config._attn_implementation == name
        assert model.model.language_model.config._attn_implementation == name
        found[name] = model.generate(**batch, **settings)
    assert torch.equal(found["eager"].sequences, found["sdpa"].sequences)
    torch.testing.assert_close(logits_of(found["eager"]), logits_of(found["sdpa"]), **CLOSE)


def padded_by(count: int, batch, model) -> dict:
    padding = torch.full((len(batch["input_ids"]), count), model.config.text_config.pad_token_id)
    return {
        **batch,
        "input_ids": torch.cat([padding, batch["input_ids"]], dim=1),
        "attention_mask": torch.cat([torch.zeros_like(padding), batch["attention_mask"]], dim=1),
    }


def test_more_padding_on_the_left(model, batch):
    padded = padded_by(32, batch, model)
    with torch.no_grad():
        torch.testing.assert_close(model(**padded).logits[:, -1], model(**batch).logits[:, -1], **CLOSE)
    assert torch.equal(model.generate(**padded, **GREEDY)[:, -NEW:], model.generate(**batch, **GREEDY)[:, -NEW:])


def test_inputs_embeds_equal_input_ids(model, batch):
    with torch.no_grad():
        assert torch.equal(model(**as_embeds(model, batch)).logits, model(**batch).logits)


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 2}, {"cache_implementation": "static"}], ids=["greedy", "beams", "static"]
)
def test_generating_from_inputs_embeds(model, batch, settings):
    expected = model.generate(**batch, **GREEDY, num_beams=settings.get("num_beams", 1))
    embeds = as_embeds(model, batch)
    assert torch.equal(model.generate(**embeds, **GREEDY, **settings), expected[:, -NEW:])
    both = model.generate(input_ids=batch["input_ids"], **embeds, **GREEDY, **settings)
    assert torch.equal(both, expected)


def test_static_cache(model, batch):
    expected = model.generate(**batch, **GREEDY)
    output = model.generate(**batch, **GREEDY, cache_implementation="static", return_dict_in_generate=True)
    assert isinstance(output.past_key_values, StaticCache)
    assert torch.equal(output.sequences, expected)


def test_compiled_decoding_has_one_graph_and_the_same_tokens(model, batch):
    torch.compiler.reset()
    expected = model.generate(**batch, **GREEDY)
    compiling = CompileConfig(backend="aot_eager", fullgraph=True, dynamic=False)
    compiling._compile_all_devices = True
    found = model.generate(**batch, **GREEDY, cache_implementation="static", compile_config=compiling)
    assert model._can_compile_fullgraph
    assert hasattr(model, "_compiled_call")
    assert torch.equal(found, expected)


def test_going_on_from_past_key_values(model, batch):
    expected = model.generate(**batch, **GREEDY)
    first = model.generate(**batch, max_new_tokens=2, min_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 2), value=1)
    second = model.generate(
        input_ids=first.sequences,
        attention_mask=mask,
        past_key_values=first.past_key_values,
        max_new_tokens=NEW - 2,
        min_new_tokens=NEW - 2,
        do_sample=False,
    )
    assert torch.equal(second, expected)


def test_a_new_image_behind_a_cache(model, make_processor, make_image):
    """Two turns, left-padded; the first is in the cache when the second, with an image of its own, arrives."""
    first = Turn("human", "<image>\nWhat is it?")
    turns = (first, Turn("gpt", "A red car."), Turn("human", "<image>\nAnd this?"))
    images = [make_image(60, 40), make_image(40, 90, 1)]
    whole = padded_by(3, make_processor().encode_prompts([(turns, images)]), model)
    given = {key: value for key, value in whole.items() if key not in ("input_ids", "attention_mask")}
    features = model.model.get_image_features(**given)
    starts = (whole["input_ids"][0] == model.config.turn_start_token_id).nonzero()[:, 0].tolist()
    cut = starts[3]  # system, user, assistant, user
    expected = model(**whole).logits[:, cut:]
    old, new = whole["input_ids"][:, :cut], whole["input_ids"][:, cut:]
    with torch.no_grad():
        cache = model(
            old,
            attention_mask=whole["attention_mask"][:, :cut],
            mm_encoder_outputs={"image": part(features, slice(1))},
            use_cache=True,
        ).past_key_values
        found = model(
            new,
            attention_mask=whole["attention_mask"],
            past_key_values=cache,
            mm_encoder_outputs={"image": part(features, slice(1, None))},
        ).logits
    torch.testing.assert_close(found, expected, **CLOSE)


def part(features, images: slice):
    """Some images of the features of several."""
    managed = [of_layer[images] for of_layer in features.deepstack_features]
    return type(features)(pooler_output=features.pooler_output[images], deepstack_features=managed)


def test_position_ids_may_be_given(model, batch):
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    expected = model.generate(**batch, **GREEDY)
    assert torch.equal(model.generate(**batch, **GREEDY, position_ids=positions), expected)


def test_logits_to_keep(model, batch):
    with torch.no_grad():
        torch.testing.assert_close(model(**batch, logits_to_keep=1).logits, model(**batch).logits[:, -1:], **CLOSE)
    expected = model.generate(**batch, **GREEDY)
    assert torch.equal(model.generate(**batch, **GREEDY, logits_to_keep=0), expected)


# Sampling


def test_seeded_samples_equal_a_loop_over_full_forwards(model, single):
    """Two sequences of one prompt, temperature 0.7."""
    settings = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0, "num_return_sequences": 2}
    placeholders = [model.config.image_token_id, model.config.video_token_id]
    torch.manual_seed(7)
    found = model.generate(**single, max_new_tokens=NEW, eos_token_id=-1, suppress_tokens=placeholders, **settings)
    torch.manual_seed(7)
    sequences = single["input_ids"].repeat(2, 1)
    for _ in range(NEW):
        rows = [{**single, "input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in sequences]
        with torch.no_grad():
            logits = torch.cat([model(**row).logits[:, -1] for row in rows])
        logits[:, placeholders] = -torch.inf
        chosen = torch.multinomial((logits / 0.7).softmax(-1), num_samples=1)
        sequences = torch.cat([sequences, chosen], dim=1)
    assert torch.equal(found, sequences)
    assert not torch.equal(found[0], found[1])


# Assisted decoding: an assistant proposes from the text alone, transformers hands it no image; the model decides.


@pytest.fixture(params=["itself", "another", "smaller", "text_only"])
def assistant(request, model, make_model, make_config):
    if request.param == "itself":
        return copy.deepcopy(model)
    if request.param == "another":
        return make_model(fusion=None)
    text = make_config().text_config.to_dict() | {"hidden_size": 16, "num_hidden_layers": 1, "layer_types": None}
    if request.param == "smaller":
        config = make_config(fusion=None)
        config.text_config = type(config.text_config)(**text)
        return type(model)(config).eval()
    return Qwen2ForCausalLM(make_config().text_config.__class__(**text)).eval()


def test_assisted_decoding_gives_the_greedy_tokens(model, single, assistant):
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1}
    expected = model.generate(**single, **settings)
    proposed = []
    assistant.register_forward_hook(lambda *_: proposed.append(1))
    assert torch.equal(model.generate(**single, **settings, assistant_model=assistant), expected)
    assert proposed


def test_assisted_sampling_runs(model, single):
    settings = {"max_new_tokens": 8, "do_sample": True, "eos_token_id": -1}
    found = model.generate(**single, **settings, assistant_model=copy.deepcopy(model))
    assert found.shape[1] == single["input_ids"].shape[1] + 8


def test_assisted_decoding_of_a_batch_is_refused(model, batch):
    with pytest.raises(ValueError, match="batch_size = 1"):
        model.generate(**batch, **GREEDY, assistant_model=copy.deepcopy(model))


def test_prompt_lookup(model, single):
    expected = model.generate(**single, **GREEDY)
    assert torch.equal(model.generate(**single, **GREEDY, prompt_lookup_num_tokens=2), expected)


def test_chunked_prefill_is_right_or_refused(make_managed, batch):
    for query in (None, "self"):
        model = make_managed(query)
        settings = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
        expected = model.generate(**batch, **settings)
        found = model.generate(**batch, **settings, prefill_chunk_size=7)
        torch.testing.assert_close(logits_of(found), logits_of(expected), **CLOSE)
    for query in ("last", "average", "cross"):
        with pytest.raises(LlavaError, match="prefill_chunk_size must be None"):
            make_managed(query).generate(**batch, **GREEDY, prefill_chunk_size=7)


def test_the_question_is_found_under_a_mask_of_four_dimensions(make_managed, single):
    length = single["input_ids"].shape[1]
    causal = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    model = make_managed("cross")
    with torch.no_grad():
        torch.testing.assert_close(model(**single | {"attention_mask": causal}).logits, model(**single).logits, **CLOSE)


# Packing, and masks of four dimensions


def test_packed_texts_equal_padded_ones(model, make_processor):
    batch = make_processor()(text=["What is in the picture?", "A red car."])
    kept = batch["attention_mask"].bool()
    positions = torch.cat([torch.arange(length) for length in kept.sum(1).tolist()])[None]
    with torch.no_grad():
        padded = model(**batch, position_ids=(batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)).logits[kept]
        packed = model(input_ids=batch["input_ids"][kept][None], position_ids=positions, use_cache=False).logits[0]
    torch.testing.assert_close(packed, padded, **CLOSE)


def test_a_tree_of_endings_by_a_mask_of_four_dimensions(model):
    """Three endings of one beginning in a single row equal three rows."""
    beginning, endings = [10, 11, 12], [13, 14, 15]
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    mask[..., :3] = torch.ones(6, 3, dtype=torch.bool).tril()
    mask[..., 3:, 3:] = torch.eye(3, dtype=torch.bool)
    with torch.no_grad():
        rows = model(torch.tensor([[*beginning, ending] for ending in endings])).logits[:, -1]
        positions = torch.tensor([[0, 1, 2, 3, 3, 3]])
        tree = model(torch.tensor([beginning + endings]), attention_mask=mask, position_ids=positions).logits[0, 3:]
    torch.testing.assert_close(tree, rows, **CLOSE)


# Weights


def test_resizing_the_vocabulary_keeps_the_head_tied(make_model, batch, tmp_path):
    model = make_model()
    with torch.no_grad():
        expected = model(**batch).logits
    model.resize_token_embeddings(352)
    assert model.config.text_config.vocab_size == 352
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with torch.no_grad():
        assert torch.equal(model(**batch).logits[..., :320], expected)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert loaded.get_input_embeddings().weight.shape[0] == 352
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("query", [None, "cross"])
def test_saved_keys_are_those_of_the_state_dict_but_the_tied_head(make_managed, tmp_path, query):
    model = make_managed(query)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict()) - {"lm_head.weight"}
    tied = model.lm_head.weight
    assert tied is model.model.language_model.embed_tokens.weight
    assert model.num_parameters() == sum(p.numel() for p in model.state_dict().values()) - tied.numel()


def test_an_untied_head_is_saved(make_model, make_config, tmp_path):
    config = make_config()
    config.text_config.tie_word_embeddings = config.tie_word_embeddings = False
    model = type(make_model())(config)
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_the_modules_that_stay_in_float32_exist(make_managed):
    names = {name for name, _ in make_managed("cross").named_modules()}
    assert make_managed("cross")._keep_in_fp32_modules <= names
