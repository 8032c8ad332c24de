"""Two hosts for tests: network namespaces joined by a cable of their own, or loopback where those are not allowed."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_port

ADDRESSES = ("10.77.0.1", "10.77.0.2")


@dataclass(frozen=True)
class Host:
    """How commands run on a host: `prefix` goes in front of them. address: its own; interface: what leads out of it."""

    prefix: tuple[str, ...]
    address: str
    interface: str


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


def why_no_namespaces() -> str | None:
    """Why this machine has no network namespaces for a test, or None."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    name = f"llava{os.getpid()}t"
    try:
        ip("netns", "add", name)
        ip("netns", "exec", name, "true")
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed here: {error.stderr.decode().strip()}"
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
    return None


class Namespaces:
    """A context of two hosts that reach each other through a veth pair and nothing else."""

    def __enter__(self) -> list[Host]:
        self.names = [f"llava{os.getpid()}{side}" for side in "ab"]
        cables = [f"v{os.getpid()}{side}" for side in "ab"]
        try:
            for name in self.names:
                ip("netns", "add", name)
            ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
            for name, cable, address in zip(self.names, cables, ADDRESSES):
                ip("link", "set", cable, "netns", name)
                inside = ("-n", name)
                ip(*inside, "addr", "add", f"{address}/24", "dev", cable)
                ip(*inside, "link", "set", cable, "up")
                ip(*inside, "link", "set", "lo", "up")
        except subprocess.CalledProcessError:
            self.__exit__()
            raise
        entered = [("ip", "netns", "exec", name) for name in self.names]
        return [Host(*facts) for facts in zip(entered, ADDRESSES, cables)]

    def __exit__(self, *_) -> None:
        """The cable goes with the namespaces."""
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


class Loopback:
    """A context of two "hosts" that are this machine."""

    def __enter__(self) -> list[Host]:
        return [Host((), "127.0.0.1", "lo")] * 2

    def __exit__(self, *_) -> None:
        pass


def two_hosts() -> Namespaces | Loopback:
    """Namespaces where they are allowed."""
    return Namespaces() if why_no_namespaces() is None else Loopback()


def run_on_both(
    hosts: list[Host], script: str, arguments: list[list[str]], out: Path, timeout: float
) -> list[tuple[int, str]]:
    """(status, output) of `bash scripts/train/SCRIPT.sh`, started as node 0 and node 1 with each its `arguments`."""
    port, processes = str(free_port()), []
    for node, (host, own) in enumerate(zip(hosts, arguments)):
        environment = {
            **os.environ,
            "NNODES": "2",
            "NODE_RANK": str(node),
            "MASTER_ADDR": hosts[0].address,
            "MASTER_PORT": port,
            "NPROC_PER_NODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [*host.prefix, "bash", f"scripts/train/{script}.sh", *own]
        with (out / f"{script}-{node}.log").open("w") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    statuses = []
    try:
        for process in processes:
            statuses.append(process.wait(timeout))
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()  # reaches the ranks through their launcher
                process.wait(60)
    return [(status, (out / f"{script}-{node}.log").read_text()) for node, status in enumerate(statuses)]
