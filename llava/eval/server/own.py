"""A server of a run's own: `llava serve` with vLLM, started before the first question and ended with the run."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from llava.errors import LlavaError
from llava.eval.server.settings import VLLM, ServerSettings
from llava.serve.limits import KEY
from llava.serve.with_vllm import check_model, vllm_python
from llava.train.loop.stop import die_with_parent

LOG = "vllm.log"  # in the run's folder
HOST = "127.0.0.1"
STARTED_WITHIN = 1800.0  # seconds: of a large model, from a slow disk
LOOK, GRACE = 0.5, 60.0  # seconds between looks, and for its end
# A benchmark's pictures are no stranger's: as many and as large as any has.
LIMITS = ("--pictures", "64", "--megapixels", "89", "--file_mib", "512", "--request_mib", "4096")


def check_own(model: Path) -> None:
    """Raises LlavaError where vLLM is not installed, does not fit, or cannot run the model."""
    vllm_python()
    check_model(model)


@contextmanager
def own_server(args: argparse.Namespace) -> Iterator[ServerSettings]:
    """A context in which vLLM serves the model; its process ends with it, however that ends.

    args: of `llava eval`. Raises LlavaError, which names the log, where no server comes of it.
    """
    model, port, log = str(args.model), _free_port(), args.out / LOG
    words = ["serve", model, "--engine", VLLM, "--host", HOST, "--port", str(port), "--dtype", args.dtype, *LIMITS]
    words += ["--", *args.options] if args.options else []
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        output = log.open("ab")
    except OSError as error:
        raise LlavaError(f"{log}: cannot be written: {error.strerror}") from error
    print(f"vLLM starts; its log is {log}", file=sys.stderr, flush=True)
    with output:
        process = subprocess.Popen(
            [sys.executable, "-m", "llava.cli", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if name != KEY},  # which is for others' requests
            start_new_session=True,  # a terminal's Ctrl-C reaches this process alone
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
    try:
        _wait(f"http://{HOST}:{port}/health", process, log)
        yield ServerSettings(f"http://{HOST}:{port}/v1", model, VLLM, args.requests, args.dtype, plain=True)
    finally:
        _end(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    """Until the server is well. Raises LlavaError when it ended instead, or takes too long."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + STARTED_WITHIN
    while time.monotonic() < end:
        if process.poll() is not None:
            said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            raise LlavaError(f"vLLM ended while it started; {log} says why, its last line: {said[-1] if said else ''}")
        try:
            with opener.open(url, timeout=10):
                return
        except OSError:  # no answer yet, or an error
            time.sleep(LOOK)
    raise LlavaError(f"vLLM did not start within {STARTED_WITHIN:g} s; {log} says what it did")


def _end(process: subprocess.Popen) -> None:
    """The process, and what is left of those that it started, which are of its session."""
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        print(f"vLLM (process {process.pid}) does not end and is killed", file=sys.stderr)
    with suppress(ProcessLookupError):  # the usual: nothing is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
