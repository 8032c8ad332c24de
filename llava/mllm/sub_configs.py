"""The configurations within ours. transformers makes them from 5.22 on; before, as where vLLM runs, this file does."""

from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

try:
    from transformers.configuration_utils import SubConfigSpec

    MADE_BY_TRANSFORMERS = True
except ImportError:
    MADE_BY_TRANSFORMERS = False

    @dataclass
    class SubConfigSpec:  # type: ignore[no-redef]  # where transformers has none
        """What of transformers' own class is used here: the kind of a part that names none, and its defaults."""

        config_class: Any
        model_type: str
        init_kwargs: dict[str, Any] = field(default_factory=dict)


def complete(config: PreTrainedConfig, specs: dict[str, SubConfigSpec]) -> None:
    """Makes a configuration of each part that is a dict or None, where transformers will not."""
    if MADE_BY_TRANSFORMERS:
        return
    for name, spec in specs.items():
        part = getattr(config, name)
        if not isinstance(part, PreTrainedConfig):
            values = spec.init_kwargs | dict(part or {})
            setattr(config, name, AutoConfig.for_model(values.pop("model_type", spec.model_type), **values))
