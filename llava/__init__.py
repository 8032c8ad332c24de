"""LLaVA-OV-Manager: LLaVA-OneVision with visual managers and multi-grid tiling; training, evaluation and chat."""

import logging

__version__ = "0.1.0"

# Where it is installed, bitsandbytes is imported by peft, and on some processors warns of a CPU kernel
# that it tried to fetch; nothing here depends on it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
