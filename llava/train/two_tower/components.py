"""The parts of a two-tower model that learn at rates of their own, and what of them decays."""

from torch import nn

from llava.train.loop.components import Component, full_shape, parts_of
from llava.train.two_tower.recipe import TwoTowerRecipe
from llava.two_tower.parts import IMAGE_TOWER, PREFIXES

UNUSED = ".embeddings.mask_token"  # of a DINOv2 tower: of its own pre-training alone
# LayerNorms whose weights the authors' code decays: it looks for names that these do not have.
DECAYED_NORMS = (IMAGE_TOWER, "heads.classifier.")
MANAGERS_NORMS = (".norms.", ".previous_norms.")


def split_components(model: nn.Module, recipe: TwoTowerRecipe) -> list[Component]:
    """The model's components, every parameter in exactly one; those that the model lacks are left out.

    Raises RuntimeError, see parts_of.
    """
    parts, undecayed = parts_of(model, PREFIXES), undecayed_names(model, recipe.rates.decay)
    return [_component(recipe, name, parameters, undecayed) for name, parameters in parts.items() if parameters]


def _component(
    recipe: TwoTowerRecipe, name: str, parameters: dict[str, nn.Parameter], undecayed: frozenset[str]
) -> Component:
    rates = recipe.rates
    times = {"cross_modal": rates.cross_modal, "heads": rates.heads}.get(name, rates.towers)
    return Component(
        name,
        parameters,
        trained=times > 0,
        lr=recipe.optim.lr * times,
        weight_decay=recipe.optim.weight_decay,
        unused=frozenset(parameter for parameter in parameters if parameter.endswith(UNUSED)),
        undecayed=undecayed & parameters.keys(),
    )


def undecayed_names(model: nn.Module, decay: str) -> frozenset[str]:
    """Names of the parameters without weight decay.

    decay: `matrices` decays what has two axes or more, such as embeddings and the managers' scores; `reference` what
    the authors' code decays, see RatesRecipe.
    """
    if decay == "matrices":
        return frozenset(name for name, parameter in model.named_parameters() if len(full_shape(parameter)) <= 1)
    norms = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    undecayed = [
        name
        for name in norms
        if not name.startswith(DECAYED_NORMS) and not any(part in name for part in MANAGERS_NORMS)
    ]
    return frozenset([*undecayed, *(name for name, _ in model.named_parameters() if name.endswith("bias"))])
