"""No fusion: the language model sees the tower's last state, projected, and nothing else (LLaVA)."""

from llava.fusion.base import Fusion


class NoFusion(Fusion):
    """Every question answered as Fusion does."""
