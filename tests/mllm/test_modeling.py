import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    Qwen2Config,
    Qwen3MoeConfig,
    Siglip2VisionConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
)

from llava.anyres import TilingConfig
from llava.data.collator import supervised_positions
from llava.data.schema import Turn
from llava.errors import LlavaError
from llava.fusion.configs.manager import ManagerConfig
from llava.mllm import LlavaOVManagerConfig, LlavaOVManagerForConditionalGeneration

SQUARE = TilingConfig()
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
ANYRES = TilingConfig.from_llava("anyres", "spatial_unpad", PINPOINTS, 56)
COMPUTED = {
    "vision_config": "siglip_vision_model, clip_vision_model, dinov2 and dinov2_with_registers",
    "text_config": "qwen2 and qwen3",
}
QUESTION = "<image>\nWhat is in the picture?"


def inputs_of(processor, *dialogues):
    """dialogues: (question, images) pairs; a left-padded batch."""
    return processor.encode_prompts([((Turn("human", question),), images) for question, images in dialogues])


def with_labels(inputs):
    labels = inputs["input_ids"].clone()
    labels[:, : labels.shape[1] // 2] = -100
    return {**inputs, "labels": labels}


@pytest.fixture
def mixed_batch(make_processor, make_image):
    """One image of many tiles, no image, several images."""
    return inputs_of(
        make_processor(),
        (QUESTION, [make_image(150, 97)]),
        ("What is it?", []),
        ("<image> <image>\nWhat is in the picture?", [make_image(60, 40, 1), make_image(40, 90, 2)]),
    )


def real_config(managers) -> LlavaOVManagerConfig:
    return LlavaOVManagerConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=26,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=151936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        ),
        fusion=managers,
    )


@pytest.mark.parametrize(
    ("managers", "expected"), [(None, 893_617_312), (ManagerConfig(layer_set="released"), 893_697_952)]
)
def test_parameter_counts_at_the_real_size(managers, expected):
    """Table IV of the paper; the count leaves image_newline out and counts the tied head once."""
    with torch.device("meta"):
        model = LlavaOVManagerForConditionalGeneration(real_config(managers))
    model.tie_weights()
    assert model.num_parameters() - model.model.image_newline.weight.numel() == expected


@pytest.mark.parametrize("tiling", [SQUARE, ANYRES], ids=["square", "anyres"])
@pytest.mark.parametrize("layer_set", ["paper", "released"])
def test_a_zero_manager_equals_the_baseline_bit_for_bit(make_model, make_processor, make_image, tiling, layer_set):
    inputs = with_labels(inputs_of(make_processor(tiling), (QUESTION, [make_image()])))
    baseline = make_model(tiling, fusion=None).train()
    managed = make_model(tiling, layer_set, zero_managers=True).train()
    missing, unexpected = managed.load_state_dict(baseline.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("model.fusion.") for name in missing)
    expected, found = baseline(**inputs), managed(**inputs)
    assert torch.equal(expected.logits, found.logits)
    assert torch.equal(expected.loss, found.loss)
    expected.loss.backward()
    found.loss.backward()
    gradients = dict(managed.named_parameters())
    for name, parameter in baseline.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, gradients[name].grad), name
    assert all(manager.scores.grad.abs().sum() > 0 for manager in managed.model.fusion.managers)


def test_managers_change_only_visual_positions_of_their_scope(make_model, make_processor, make_image):
    inputs = inputs_of(make_processor(ANYRES), (QUESTION, [make_image()]))
    visual = (inputs["input_ids"][0] == make_model(ANYRES).config.image_token_id).nonzero()[:, 0]
    main, grid = visual[:16], visual[16:]
    for scope, expected in (("all", visual), ("main", main), ("grid", grid)):
        managers = ManagerConfig(interval=2, scope=scope)
        model = make_model(ANYRES, managers)
        features = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"], inputs["batch_num_images"])
        changed = features.deepstack_features[0][0].abs().sum(-1).nonzero()[:, 0]
        assert torch.equal(visual[changed], expected), scope


def test_paper_jitter_multiplies_the_output_while_training_only(make_model, make_processor, make_image):
    inputs = inputs_of(make_processor(), (QUESTION, [make_image()]))
    del inputs["input_ids"], inputs["attention_mask"]
    model = make_model()
    plain = model.get_image_features(**inputs).deepstack_features
    assert torch.equal(plain[0][0], model.get_image_features(**inputs).deepstack_features[0][0])
    noisy = model.train().get_image_features(**inputs).deepstack_features
    first, second = (a[0] / b[0] for a, b in zip(noisy[:2], plain[:2]))
    for ratio in (first, second):
        assert ((ratio > 0.9799) & (ratio < 1.0201)).all()
        # One factor for every token and channel, not shared along either.
        assert ratio.std(0).min() > 0.005
        assert ratio.std(1).min() > 0.005
    assert (first - second).abs().mean() > 0.005


def test_the_projector_begins_as_linear_layers_of_torch(make_model):
    """Not as transformers draws: N(0, initializer_range), no bias."""
    projector = make_model().model.multi_modal_projector
    for linear in (projector.linear_1, projector.linear_2):
        bound = linear.in_features**-0.5
        for drawn in (linear.weight, linear.bias):
            assert 0.9 * bound < drawn.abs().max() <= bound
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_only_the_needed_vision_layers_run(make_model, make_processor, make_image):
    model = make_model(fusion=ManagerConfig(vision_layers=(1,), injection_layers=(0,)))
    inputs = inputs_of(make_processor(), (QUESTION, [make_image()]))
    ran = []
    for index, layer in enumerate(model.model.vision_tower.encoder.layers, start=1):
        layer.register_forward_hook(lambda module, args, output, index=index: ran.append(index))
    states = model.model.vision_tower(inputs["pixel_values"], [2, 0])
    assert ran == [1, 2]
    expected = SiglipVisionModel.forward(model.model.vision_tower, inputs["pixel_values"], output_hidden_states=True)
    torch.testing.assert_close(states[0], expected.hidden_states[2])
    torch.testing.assert_close(states[1], expected.hidden_states[0])


def test_no_state_of_the_tower_is_copied_for_the_projector(make_model, mixed_batch):
    model, states, projected = make_model().model, [], []
    model.vision_tower.register_forward_hook(lambda _, __, output: states.extend(output))
    model.multi_modal_projector.linear_1.register_forward_pre_hook(lambda _, given: projected.append(given[0]))
    model(**mixed_batch)
    assert [state.data_ptr() for state in states] == [given.data_ptr() for given in projected]
    assert len(states) == len(model.config.fusion.vision_layers) > 1


def test_a_mixed_left_padded_batch_equals_its_samples_one_by_one(make_model, make_processor, make_image):
    processor, model = make_processor(), make_model()
    dialogues = [
        (QUESTION, [make_image(150, 97)]),
        ("What is it?", []),
        ("<image> <image>\nWhat?", [make_image(60, 40, 1), make_image(40, 90, 2)]),
        (QUESTION, [make_image(200, 30)]),
    ]
    with torch.no_grad():
        together = model(**inputs_of(processor, *dialogues)).logits
        for row, dialogue in enumerate(dialogues):
            alone = model(**inputs_of(processor, dialogue)).logits[0]
            torch.testing.assert_close(together[row, -len(alone) :], alone, atol=1e-5, rtol=1e-5)


def test_generation_of_a_batch_equals_single_generation_and_full_forwards(make_model, make_processor, make_image):
    processor, model = make_processor(), make_model()
    dialogues = [(QUESTION, [make_image(150, 97)]), ("What is it?", []), (QUESTION, [make_image(56, 56)])]
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    together = model.generate(**inputs_of(processor, *dialogues), **settings)[:, -6:]
    for row, dialogue in enumerate(dialogues):
        inputs = inputs_of(processor, dialogue)
        assert torch.equal(together[row], model.generate(**inputs, **settings)[0, -6:])
        # Every step again without cache, from the whole sequence.
        prompt = inputs["input_ids"]
        for step in range(6):
            sequence = torch.cat([prompt, together[row : row + 1, :step]], dim=1)
            logits = model(**{**inputs, "input_ids": sequence, "attention_mask": torch.ones_like(sequence)}).logits
            logits[:, -1, model.generation_config.eos_token_id] = -torch.inf
            assert logits[0, -1].argmax() == together[row, step]


def test_cached_decoding_equals_the_full_forward(make_model, mixed_batch):
    model = make_model()
    continuation = torch.randint(0, 250, (3, 4), generator=torch.Generator().manual_seed(0))
    mask = torch.cat([mixed_batch["attention_mask"], torch.ones_like(continuation)], dim=1)
    whole = {**mixed_batch, "input_ids": torch.cat([mixed_batch["input_ids"], continuation], 1), "attention_mask": mask}
    with torch.no_grad():
        expected = model(**whole).logits[:, -4:]
        cache = model(**mixed_batch, use_cache=True).past_key_values
        steps = []
        for step in range(4):
            seen = mixed_batch["attention_mask"].shape[1] + step + 1
            output = model(
                input_ids=continuation[:, step : step + 1], attention_mask=mask[:, :seen], past_key_values=cache
            )
            steps.append(output.logits[:, 0])
    torch.testing.assert_close(torch.stack(steps, dim=1), expected, atol=1e-5, rtol=1e-5)


def test_beams_of_several_samples_equal_those_of_each(make_model, make_processor, make_image):
    processor, model = make_processor(), make_model()
    dialogues = [
        ("<image> <image>\nWhat?", [make_image(60, 40, 1), make_image(40, 90, 2)]),
        (QUESTION, [make_image(150, 97)]),
    ]
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": 3, "do_sample": False}
    together = model.generate(**inputs_of(processor, *dialogues), **settings)[:, -4:]
    for row, dialogue in enumerate(dialogues):
        assert torch.equal(together[row], model.generate(**inputs_of(processor, dialogue), **settings)[0, -4:])


@pytest.mark.parametrize(
    "settings",
    [
        {"cache_implementation": "static"},
        {"num_return_sequences": 2, "num_beams": 2},
        {"prompt_lookup_num_tokens": 2},
        {"prefill_chunk_size": 7},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_other_ways_to_generate_give_the_same_tokens(make_model, make_processor, make_image, settings):
    model = make_model()
    inputs = inputs_of(make_processor(), (QUESTION, [make_image(150, 97)]))
    common = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    expected = model.generate(**inputs, **common, num_beams=settings.get("num_beams", 1))
    assert torch.equal(model.generate(**inputs, **common, **settings)[:1], expected)


def test_bfloat16_weights_take_float32_pixels(make_model, mixed_batch):
    expected = make_model()(**mixed_batch).logits
    found = make_model().to(torch.bfloat16)(**mixed_batch).logits
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().mean() < 0.05 * expected.abs().mean()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(make_model, mixed_batch, use_reentrant):
    model = make_model(fusion=ManagerConfig(interval=2, jitter="none")).train()
    inputs = with_labels(mixed_batch)
    model(**inputs).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model(**inputs).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-5, msg=name)


def test_the_embeddings_have_their_gradient_before_the_tower(make_model, mixed_batch):
    """It is a large one, held three times for a moment where the head is tied to them: best while little else is."""
    model, order = make_model().train(), []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: order.append(name))
    model(**with_labels(mixed_batch)).loss.backward()
    tower = [place for place, name in enumerate(order) if name.startswith("model.vision_tower.")]
    assert order.index("model.language_model.embed_tokens.weight") < tower[0]
    assert tower[-1] == len(order) - 1


def test_loss_at_supervised_positions_equals_the_full_loss(make_model, mixed_batch):
    model = make_model()
    inputs = with_labels(mixed_batch)
    model(**inputs).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    full = model(**inputs).loss
    model.zero_grad()
    labels = inputs.pop("labels")
    shift_labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    output = model(**inputs, shift_labels=shift_labels, skip_logits=True)
    assert torch.equal(output.loss, model(**inputs, labels=labels, skip_logits=True).loss)
    positions = supervised_positions(labels)
    assert len(positions) == (labels[:, 1:] != -100).sum()
    found = model(**inputs, labels=labels, supervised_positions=positions, skip_logits=True).loss
    assert torch.equal(output.loss, found)
    assert output.logits is None
    torch.testing.assert_close(output.loss, full)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_a_saved_checkpoint_loads_strictly_through_the_auto_classes(tiny_model, tiny_model_dir, mixed_batch):
    config = AutoConfig.from_pretrained(tiny_model_dir)
    assert config.fusion == tiny_model.config.fusion
    assert config.tiling == tiny_model.config.tiling
    model, report = AutoModelForImageTextToText.from_pretrained(tiny_model_dir, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(model(**mixed_batch).logits, tiny_model(**mixed_batch).logits)
    processor = AutoProcessor.from_pretrained(tiny_model_dir)
    assert processor.image_processor.tiling == config.tiling


def test_new_managers_in_an_old_checkpoint_start_at_zero(make_model, make_config, tmp_path):
    make_model(fusion=None).save_pretrained(tmp_path)
    model, report = LlavaOVManagerForConditionalGeneration.from_pretrained(
        tmp_path, config=make_config(), output_loading_info=True
    )
    assert {name.split(".")[1] for name in report["missing_keys"]} == {"fusion"}
    assert all((manager.scores == 0).all() for manager in model.model.fusion.managers)
    assert 0.5 < model.model.fusion.layer_embedding.std() * 24**0.5 < 1.5


def test_a_wrong_number_of_placeholders_names_both_numbers(make_model, mixed_batch):
    mixed_batch["input_ids"][0, -3] = make_model().config.image_token_id
    tokens = (mixed_batch["input_ids"] == make_model().config.image_token_id).sum()
    with pytest.raises(LlavaError, match=f"found {tokens} image tokens but {tokens - 1} features"):
        make_model()(**mixed_batch)


def test_a_wrong_number_of_crops_names_both_numbers(make_model, mixed_batch):
    mixed_batch["pixel_values"] = mixed_batch["pixel_values"][:-1]
    crops = len(mixed_batch["pixel_values"])
    with pytest.raises(LlavaError, match=f"found {crops} crops, but 3 images call for {crops + 1}"):
        make_model()(**mixed_batch)


def test_a_pinpoint_that_is_no_whole_number_of_tiles_is_refused(make_config):
    with pytest.raises(LlavaError, match=r"pinpoint \(60, 56\) is not a whole number of tiles of 56 pixels"):
        make_config(TilingConfig("anyres", pinpoints=((60, 56),)))


@pytest.mark.parametrize(
    ("part", "other"),
    [("vision_config", kind) for kind in (Siglip2VisionConfig, ViTConfig)]
    + [("text_config", kind) for kind in (Qwen3MoeConfig, LlamaConfig)],
)
def test_another_tower_or_language_model_is_refused_by_name(make_config, part, other):
    """Else layers would be computed as another's; SigLIP2's own type is NaFlex: images of sizes of their own."""
    fields = make_config(fusion=None).to_dict()
    for given in (other(), other().to_dict()):
        with pytest.raises(
            LlavaError, match=rf"is of type '{other.model_type}'; this model computes {COMPUTED[part]} alone"
        ):
            LlavaOVManagerConfig(**{**fields, part: given})


def test_an_unknown_field_is_refused(make_config):
    with pytest.raises(LlavaError, match="TilingConfig has no field modus"):
        make_config({"modus": "square"})
