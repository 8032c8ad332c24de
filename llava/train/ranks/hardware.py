"""What a process runs on: its host, its GPU or CPU, the network to the others, the disk it will write to."""

import fcntl
import os
import platform
import socket
import struct
from pathlib import Path

import torch

from llava.errors import LlavaError
from llava.files import free_bytes

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
GB = 1e9
DISCARD = 9  # a UDP socket sends nothing when it connects, so that any port serves to find the route


def hardware(output_dir: str) -> dict:
    """{host, device, memory_gb, cpus, network, free_disk_gb}; memory is the GPU's, or the host's without one.

    Raises:
        LlavaError: when this process has no GPU of its own on a host with GPUs, or is alone on one with several.
    """
    device, memory = _gpu() if torch.cuda.is_available() else _cpu()
    return {
        "host": platform.node(),
        "device": device,
        "memory_gb": round(memory / GB, 1),
        "cpus": os.cpu_count(),
        "network": network(),
        "free_disk_gb": round(free_bytes(output_dir) / GB, 6),
    }


def _gpu() -> tuple[str, int]:
    number, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= count:
        raise LlavaError(f"process {number} of {platform.node()} has no GPU: {count} are visible there")
    if count > 1 and "WORLD_SIZE" not in os.environ:  # transformers would copy the model to all: nn.DataParallel
        raise LlavaError(
            f"{count} GPUs are visible to one process: start one process each, as scripts/train/*.sh do "
            f"(NPROC_PER_NODE={count}), or show it one (CUDA_VISIBLE_DEVICES=0)"
        )
    properties = torch.cuda.get_device_properties(number)
    return properties.name, properties.total_memory


def _cpu() -> tuple[str, int]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"CPU {cpu_name()}", memory


def cpu_name() -> str:
    """The processor's name as Linux has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def repeat_bits() -> None:
    """From now on a GPU takes only kernels that add in one order; an operation that has none raises RuntimeError.

    To be called before the GPU multiplies anything: cuBLAS reads its variable once.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"
    torch.use_deterministic_algorithms(True)


def network() -> str | None:
    """The interface that NCCL or gloo was told to use, else the one that reaches MASTER_ADDR; None for one process."""
    interface = os.environ.get("NCCL_SOCKET_IFNAME" if torch.cuda.is_available() else "GLOO_SOCKET_IFNAME")
    if not interface and "MASTER_ADDR" in os.environ:
        return interface_to(os.environ["MASTER_ADDR"])
    return interface or None


def interface_to(address: str) -> str | None:
    """The name of the interface through which packets to `address` leave; None where it cannot be told (IPv6)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, DISCARD))
        except OSError:
            return None
        local = probe.getsockname()[0]
        return next((name for _, name in socket.if_nameindex() if _address(probe, name) == local), None)


def _address(probe: socket.socket, interface: str) -> str | None:
    request = struct.pack("256s", interface.encode())
    try:
        return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24])
    except OSError:
        return None  # an interface without an IPv4 address


def choose_network() -> None:
    """Lets gloo use the interface that reaches MASTER_ADDR when the run has several hosts, unless told otherwise.

    Of itself gloo takes the address that the host's name stands for, on many systems 127.0.1.1: no other host reaches
    that.
    """
    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
        interface = interface_to(os.environ["MASTER_ADDR"])
        if interface is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
