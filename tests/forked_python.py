"""A python that has imported everything already: its processes are forks of one that did so once, which takes longest.

`ForkedPython` starts that one and makes a command that does what `python -m MODULE`, `python -c CODE` and `python FILE`
do. Where torchrun and `llava` start python themselves it is this one again, and scripts find it where it is first on
PATH. A fork sees its own arguments, environment, folder, streams and namespaces; what modules read from the environment
while they are imported is the server's. Two GPUs are there that are none, for a fork whose environment does not hide
them (pretended_gpus.py). It ends as ranks do, for Python's shutdown of so many modules takes a second.
What tests see of imports, and of processes that die with those that started them, needs the real python.
"""

import ctypes
import gc
import importlib
import inspect
import json
import os
import random
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import psutil

from llava.train.loop.stop import die_with_parent
from llava.train.rank import end_with
from tests import leftovers

PRELOADED = [
    "tests.pretended_gpus",
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "llava.eval.documents",
    "llava.eval.fields",
    "llava.eval.lmms_model",
    "llava.train.launch",
    "llava.train.stage",
    "lmms_eval.evaluator",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend",
]
NAMESPACES = ("net", "mnt")  # below /proc/PID/ns
CLIENT = Path(__file__).with_name("forked_client.py")


class ForkedPython:
    """A context in which `command` is such a python, and `path` a PATH where scripts find it, and `llava` by it."""

    def __enter__(self) -> "ForkedPython":
        self.folder = Path(tempfile.mkdtemp(prefix="fp"))  # the path of a socket is at most 107 characters long
        self.command = self.folder / "python"
        client = f"exec {sys.executable} -SE {CLIENT} {self.folder}/socket"
        for name, before in {"python": "", "llava": "-m llava.cli "}.items():
            (self.folder / name).write_text(f'#!/bin/sh\n{client} {before}"$@"\n')
            (self.folder / name).chmod(0o755)
        self.path = f"{self.folder}:{os.environ['PATH']}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(f"{self.folder}/socket")
            listener.listen(128)
            code = (
                f"import sys; sys.path[:0] = {sys.path}; from tests.forked_python import serve; "
                f"serve({listener.fileno()}, {str(self.command)!r})"
            )
            command = [sys.executable, "-c", code]
            environment = os.environ | {
                "OMP_NUM_THREADS": "1",
                "TORCHINDUCTOR_COMPILE_THREADS": "1",
                "HF_DATASETS_CACHE": f"{self.folder}/datasets",
            }
            self.server = subprocess.Popen(
                command, pass_fds=[listener.fileno()], env=environment, start_new_session=True
            )
        leftovers.SERVERS.add(self.server.pid)
        subprocess.run([self.command, "-c", ""], check=True)  # when the imports are done
        return self

    def __exit__(self, *_) -> None:
        self.server.terminate()
        self.server.wait(60)
        shutil.rmtree(self.folder)

    def processes(self) -> list[psutil.Process]:
        """The forks that have not ended."""
        return psutil.Process(self.server.pid).children(recursive=True)


def serve(descriptor: int, command: str) -> NoReturn:
    """Imports, then answers every client with a fork, until SIGTERM or the end of the process that started this one."""
    die_with_parent(os.getppid())
    listener = socket.socket(fileno=descriptor)
    for module in PRELOADED:
        importlib.import_module(module)
    inspect.stack()  # remembers the modules' files: torchrun's meeting looks for each of them
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel collects what has ended
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            _watch(connection, command)
        connection.close()


def _watch(connection: socket.socket, command: str) -> NoReturn:
    """Forks the process, passes the client's signals on and tells it the end; ends it where the client is gone."""
    message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3 + len(NAMESPACES))
    watcher, process = os.getpid(), os.fork()
    if process == 0:
        connection.close()
        end_with(lambda: _become(descriptors, command, watcher, **json.loads(message)))
    for descriptor in (0, 1, 2, *descriptors):
        os.close(descriptor)
    poll = select.poll()
    poll.register(ended := os.pidfd_open(process), select.POLLIN)
    poll.register(connection, select.POLLIN)
    while ended not in (ready := dict(poll.poll())) and connection.fileno() in ready:
        number = connection.recv(1)
        os.kill(process, number[0] if number else signal.SIGKILL)
        if not number:
            os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    connection.send(f"{status}".encode())
    os._exit(0)


def _become(
    descriptors: list[int], command: str, watcher: int, arguments: list[str], environment: dict, folder: str
) -> None:
    """Runs what python would run with these arguments. descriptors: its streams and NAMESPACES."""
    for number, (name, descriptor) in enumerate(zip(("stdin", "stdout", "stderr"), descriptors)):
        os.dup2(descriptor, number)
        errors = "backslashreplace" if name == "stderr" else "strict"
        stream = os.fdopen(number, "w" if number else "r", errors=errors, closefd=False)
        if number:
            stream.reconfigure(line_buffering=name == "stderr" or stream.isatty())
        setattr(sys, name, stream)
    for name, descriptor in zip(NAMESPACES, descriptors[3:]):
        if not os.path.samestat(os.fstat(descriptor), os.stat(f"/proc/self/ns/{name}")):
            assert ctypes.CDLL(None, use_errno=True).setns(descriptor, 0) == 0, ctypes.get_errno()
    for descriptor in descriptors:
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if "LLAVA_LAUNCHER" in environment:
        os.environ["LLAVA_LAUNCHER"] = str(watcher)  # which ends with the launcher's child
    sys.executable, tempfile.tempdir = command, None
    random.seed()
    while arguments[0] == "-u":
        arguments = arguments[1:]
        sys.stdout.reconfigure(write_through=True)
    what, *others = arguments
    if what == "-m":
        sys.argv = others
        sys.path.insert(0, folder)
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif what == "-c":
        sys.argv = ["-c", *others[1:]]
        sys.path.insert(0, "")
        exec(compile(others[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(what).resolve().parent))
        runpy.run_path(what, run_name="__main__")
