"""The model against numbers that the released code produced: every case of the golden folder."""

import pytest
import torch

from tests.golden.reference_case import Case, list_cases, load_case

FAMILIES = "abcdefghij"
COMPARED = tuple(
    f"out.{name}"
    for name in ["inputs_embeds", "image_features", "layer_in", "layer_out", "final_norm", "tower_last", "tower_select"]
)
HIDDEN_TOLERANCE = 1e-4
LOSS_TOLERANCE = 1e-5


def test_the_list_of_cases_is_not_empty(golden_dir):
    assert list_cases(golden_dir), f"no cases in {golden_dir}"


def test_case(golden_case, golden_dir, record_difference):
    case = load_case(golden_dir, golden_case)
    family = case.spec["family"]
    assert family in FAMILIES, f"{golden_case}: unknown family {family!r}"
    found = run(case)
    expected = {name: tensor for name, tensor in case.tensors.items() if name.startswith(COMPARED)}
    assert expected, f"{golden_case} holds nothing to compare"

    differences = {name: (found[name] - expected[name]).abs().max().item() for name in expected}
    differences["logits"] = logits_difference(case, found["logits"])
    record_difference(family, golden_case, max(differences.values()))
    assert max(differences.values()) <= HIDDEN_TOLERANCE, differences
    assert abs(found["out.loss"] - case["out.loss"]).item() <= LOSS_TOLERANCE


def run(case: Case) -> dict[str, torch.Tensor]:
    """The case's forward pass; hidden states at padded positions are taken from the expected ones."""
    found = {}
    model = case.model.model
    attended = case["out.attention_mask"].bool()
    assert torch.equal(attended, case.inputs["attention_mask"].bool())

    def keep(name: str, states: torch.Tensor) -> None:
        if name in case.tensors:
            found[name] = torch.where(attended[..., None], states.detach(), case[name])

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
    with torch.no_grad():
        output = case.model(**case.inputs)
        if "pixel_values" in case.inputs:
            found |= visual_features(case)
    for hook in hooks:
        hook.remove()
    return found | {"logits": output.logits, "out.loss": output.loss[None]}


def visual_features(case: Case) -> dict[str, torch.Tensor]:
    inputs = case.inputs
    features = case.model.get_image_features(
        inputs["pixel_values"], inputs["image_sizes"], inputs["batch_num_images"]
    ).pooler_output
    return {f"out.image_features.{index}": tensor for index, tensor in enumerate(features)} | tower_states(case)


def tower_states(case: Case) -> dict[str, torch.Tensor]:
    config = case.model.config
    last = config.vision_config.num_hidden_layers
    managed = list(config.managers.vision_layers) if config.managers is not None else []
    visual_input, *states = case.model.model.vision_tower(case.inputs["pixel_values"], [last, *managed])
    found = {"out.tower_last.0": visual_input}
    if managed:
        found["out.tower_select.0"] = torch.stack(states, dim=1)
    return found


def logits_difference(case: Case, logits: torch.Tensor) -> float:
    if "out.logits" in case.tensors:
        attended = case["out.attention_mask"].bool()
        return (logits - case["out.logits"])[attended].abs().max().item()
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
        case.model.model.managers.managers[1].scores.add_(shift)
    assert logits_difference(case, run(case)["logits"]) > HIDDEN_TOLERANCE
