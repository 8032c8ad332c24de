"""No fusion: the language model sees the tower's last state, projected, and nothing else (LLaVA)."""

from llava.fusion.base import Fusion
from llava.fusion.configs.none import NoneConfig


class NoFusion(Fusion[NoneConfig, str]):
    """Every question answered as Fusion does."""
