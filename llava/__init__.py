"""LLaVA-OV-Manager: LLaVA-OneVision with visual managers and multi-grid tiling; training, evaluation and chat."""

__version__ = "0.1.0"
