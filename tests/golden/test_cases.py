"""The model against numbers that the released code produced: every case of the golden folder.

Where the released code is at fault (tests/golden/data/QUIRKS.md), the case is compared with what it should have been.
"""

from itertools import pairwise

import pytest
import torch

from tests.golden.reference_case import IMAGE_TOKEN_ID, Case, list_cases, load_case, reference_name

TOLERANCE = 1e-4  # of logits; of hidden states and gradients relative to the tensor's largest entry, see relative()
LOSS_TOLERANCE = 1e-5
FORWARD_FAMILIES = "abcdefgh"
COMPARED = tuple(
    f"out.{name}"
    for name in ("inputs_embeds", "image_features", "layer_in", "layer_out", "final_norm", "tower_last", "tower_select")
)


def test_the_list_of_cases_is_not_empty(golden_dir):
    assert list_cases(golden_dir), f"no cases in {golden_dir}"


def test_forward(forward_case, golden_dir, record_difference):
    family = list_cases(golden_dir)[forward_case]
    assert family in FORWARD_FAMILIES, f"{forward_case}: unknown family {family!r}"
    case = load_case(golden_dir, forward_case)
    found = run(case)
    if has_shifted_question(case):
        difference = max((found["logits"][row, at] - alone).abs().max().item() for row, at, alone in rows_alone(case))
    else:
        differences = compare(case, found)
        differences["logits"] = logits_difference(case, found["logits"])
        difference = max(differences.values())
    record_difference(family, forward_case, difference)
    assert difference <= TOLERANCE
    if "out.loss" in case.tensors:
        assert abs(found["loss"] - expected_loss(case)) <= LOSS_TOLERANCE


def test_generation(generation_case, golden_dir, record_difference):
    case = load_case(golden_dir, generation_case)
    steps = case.spec["max_new_tokens"]
    output = case.model.generate(
        **case.inputs,
        max_new_tokens=steps,
        min_new_tokens=case.spec["min_new_tokens"],
        eos_token_id=case.spec["eos_token_id"],
        pad_token_id=case.spec["pad_token_id"],
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    difference = (torch.stack(output.logits, dim=1) - case["out.step_logits"]).abs().max().item()
    record_difference("i", generation_case, difference)
    assert output.sequences[:, -steps:].tolist() == case.spec["generated_ids"]
    assert difference <= TOLERANCE


def test_training(training_case, golden_dir, record_difference, monkeypatch):
    case = load_case(golden_dir, training_case)
    monkeypatch.setattr("llava.fusion.visual_managers.draw_jitter", given_jitter(case))
    case.model.train()
    found = run(case, with_gradients=True)
    differences = compare(case, found)
    differences["logits"] = logits_difference(case, found["logits"])
    parameters = {reference_name(name): parameter for name, parameter in case.model.named_parameters()}
    expected = {name.removeprefix("grad."): tensor for name, tensor in case.tensors.items() if name.startswith("grad.")}
    for name, gradient in expected.items():
        # A bias of keys has no effect; its gradient is rounding noise of 1e-8, which is compared with 1e-3.
        found_gradient = parameters[name].grad
        if found_gradient is None:  # here nothing ran, there a dummy image, whose gradients are zero
            found_gradient = torch.zeros_like(parameters[name])
        differences[f"grad.{name}"] = relative(found_gradient.reshape(gradient.shape), gradient, smallest=1e-3)
    record_difference("j", training_case, max(differences.values()))
    assert max(differences.values()) <= TOLERANCE, differences
    assert abs(found["loss"] - expected_loss(case)) <= LOSS_TOLERANCE
    for name in case.spec.get("no_grad_parameters", []):
        gradient = parameters[name].grad
        assert gradient is None or not gradient.any(), name


def run(case: Case, with_gradients: bool = False) -> dict:
    """The case's forward pass (and backward), aligned with the expected tensors.

    Hidden states at padded positions are implementation-defined; they are taken from the expected ones.
    """
    found = {}
    model = case.model.model
    attended = case.attended

    def keep(name: str, states: torch.Tensor) -> None:
        if name in case.tensors:
            found[name] = torch.where(attended[..., None], case.aligned(states.detach()), case[name])

    hooks = [
        model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: keep("out.inputs_embeds", kwargs["inputs_embeds"]), with_kwargs=True
        ),
        model.language_model.norm.register_forward_hook(lambda module, args, out: keep("out.final_norm", out)),
    ]
    for index, layer in enumerate(model.language_model.layers):
        hooks += [
            layer.register_forward_pre_hook(lambda module, args, i=index: keep(f"out.layer_in.{i:02}", args[0])),
            layer.register_forward_hook(lambda module, args, out, i=index: keep(f"out.layer_out.{i:02}", out)),
        ]
    with torch.set_grad_enabled(with_gradients):
        logits = case.aligned(case.model(**case.inputs).logits)
        if "labels" in case.inputs:
            loss = case.model.loss_function(logits, labels(case), vocab_size=logits.shape[-1])
            found["loss"] = loss.item()
        if "pixel_values" in case.inputs and not with_gradients:
            found |= visual_features(case)
    if with_gradients:
        loss.backward()
    for hook in hooks:
        hook.remove()
    return found | {"logits": logits.detach()}


def compare(case: Case, found: dict) -> dict[str, float]:
    """{tensor name: largest difference} of all intermediate states that the case holds and the run produced."""
    names = [name for name in case.tensors if name.startswith(COMPARED) and name in found]
    assert "out.final_norm" in names, f"{case.name} holds nothing to compare"
    return {name: relative(found[name], case[name], smallest=1.0) for name in names}


def relative(found: torch.Tensor, expected: torch.Tensor, smallest: float) -> float:
    """The largest difference, relative to the largest expected entry or to `smallest`, whichever is larger."""
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=smallest)).item()


def visual_features(case: Case) -> dict[str, torch.Tensor]:
    """Features of each image, and the tower's states. Dummy images of text-only samples are not run here."""
    inputs, config = case.inputs, case.model.config
    features = case.model.get_image_features(
        inputs["pixel_values"], inputs["image_sizes"], inputs["batch_num_images"]
    ).pooler_output
    found = {f"out.image_features.{index}": tensor for index, tensor in zip(case.images, features)}
    if len(case.images) == len(case.spec["pixel_values"]):
        last = config.vision_config.num_hidden_layers
        managed = list(config.fusion.vision_layers) if config.fusion.method != "none" else []
        visual_input, *states = case.model.model.vision_tower(inputs["pixel_values"], [last, *managed])
        found["out.tower_last.0"] = visual_input
        if managed:
            found["out.tower_select.0"] = torch.stack(states, dim=1)
    return {name: tensor for name, tensor in found.items() if name in case.tensors}


def labels(case: Case) -> torch.Tensor:
    """The labels without those that rows padded on the left would get from a padded position (quirk 19)."""
    cleared = torch.where(case.attended, case.aligned(case.inputs["labels"]), -100)
    cleared[torch.arange(len(cleared)), case.attended.int().argmax(1)] = -100
    return cleared


def expected_loss(case: Case) -> float:
    """The reference's loss; for rows padded on the left, ours for the same rows padded on the right."""
    if not is_left_padded(case):
        return case["out.loss"].item()
    logits, targets = [], []
    for row, at, alone in rows_alone(case):
        logits.append(alone[:-1])
        targets.append(labels(case)[row, at][1:])
    return torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(targets)).item()


def is_left_padded(case: Case) -> bool:
    return not bool(case.attended[:, 0].all())


def has_shifted_question(case: Case) -> bool:
    """Whether the reference asked with the wrong tokens: it shifts images by the padding, not questions (quirk 22)."""
    managers = case.model.config.fusion
    return managers.question_rule is not None and is_left_padded(case)


def rows_alone(case: Case):
    """(row, its attended positions, logits there of the row run alone and unpadded) of each row of the batch."""
    inputs, images = case.inputs, [0, *case.inputs["batch_num_images"].cumsum(0).tolist()]
    crops = case.crops_of_images
    offsets = [0, *torch.tensor(crops).cumsum(0).tolist()]
    for row, (begin, end) in enumerate(pairwise(images)):
        at = inputs["attention_mask"][row].bool()
        alone = {"input_ids": inputs["input_ids"][row, at][None]}
        if end > begin:
            alone["pixel_values"] = inputs["pixel_values"][offsets[begin] : offsets[end]]
            alone["image_sizes"] = inputs["image_sizes"][begin:end]
            alone["batch_num_images"] = torch.tensor([end - begin])
        with torch.no_grad():
            yield row, case.attended[row], case.model(**alone).logits[0, : case.attended[row].sum()]


def given_jitter(case: Case):
    """In place of draw_jitter, the reference's factors: for each manager, for each sample; ones where it had none.

    A static manager's noise is (1, maps, 1, width). An adaptive one's is (1, maps, managed tokens, width), and a sample
    of text alone may or may not have drawn it.
    """
    counts = case.inputs["batch_num_images"].tolist()
    lengths = [(row == IMAGE_TOKEN_ID).sum().item() for row in case.inputs["input_ids"]]
    noise = [case[f"noise.{index}"] for index in range(sum(name.startswith("noise.") for name in case.tensors))]
    managers = case.model.config.fusion
    draws = len(noise) // len(managers.injection_layers) if managers.method == "manager" else 0
    with_images = [sample for sample, count in enumerate(counts) if count]
    assert draws in (0, len(counts), len(with_images)), f"{case.name}: {draws} draws of each manager"
    drew = range(len(counts)) if draws == len(counts) else with_images
    pending = iter(noise)

    def draw(jitter: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        factors = torch.ones(shape)
        if not noise:
            return factors
        for sample, drawn in zip(drew, [next(pending)[0] for _ in drew]):
            if not counts[sample]:
                continue
            if drawn.shape[1] == 1:  # factors are (samples, maps, width)
                factors[sample, : len(drawn)] = drawn[:, 0]
            else:  # factors are (maps, visual tokens of all samples, width); those outside the scope act on zeros
                begin, end = sum(lengths[:sample]), sum(lengths[: sample + 1])
                if managers.scope == "grid":
                    begin = max(begin, end - drawn.shape[1])
                end = min(end, begin + drawn.shape[1])
                factors[:, begin:end] = drawn[:, : end - begin]
        return factors

    return draw


def logits_difference(case: Case, logits: torch.Tensor) -> float:
    if "out.logits" in case.tensors:
        return (logits - case["out.logits"])[case.attended].abs().max().item()
    rows, positions = case["out.logits_pos"].T
    return (logits[rows, positions] - case["out.logits_at_pos"]).abs().max().item()


@pytest.mark.parametrize("shift", [1e-3, -1e-3])
def test_a_small_change_of_a_manager_is_noticed(golden_dir, shift):
    """The comparison itself: scores changed in the third decimal must exceed the tolerance."""
    names = [name for name, family in list_cases(golden_dir).items() if family == "b"]
    if not names:
        pytest.skip("the folder holds no case of family b")
    case = load_case(golden_dir, names[0])
    with torch.no_grad():
        case.model.model.fusion.managers[1].scores.add_(shift)
    assert logits_difference(case, run(case)["logits"]) > TOLERANCE
