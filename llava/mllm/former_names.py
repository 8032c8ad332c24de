"""Weights that older files name otherwise. They load for ever; what is saved has the names of today."""

import re

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming

PREFIXES = {"model.managers.": "model.fusion.", "managers.": "fusion."}  # of the whole model, and of one without head


class FormerName(WeightRenaming):
    """A renaming on the way in. transformers would save a model under the names that it was loaded from."""

    __slots__ = ()

    def reverse_transform(self) -> WeightRenaming:
        """What saving does with the names: nothing."""
        return WeightRenaming(self._original_target_patterns, self._original_target_patterns)


def current_name(name: str) -> str:
    """Today's name of a weight in a file of any age."""
    for former, current in PREFIXES.items():
        if name.startswith(former):
            return current + name.removeprefix(former)
    return name


def load_former_names(model_type: str) -> None:
    """Makes transformers' from_pretrained rename what files of this model type hold."""
    renamings: list[WeightConverter | WeightRenaming] = [
        FormerName(f"^{re.escape(former)}", current) for former, current in PREFIXES.items()
    ]
    register_checkpoint_conversion_mapping(model_type, renamings, overwrite=True)
