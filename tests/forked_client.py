"""What a process of tests/forked_python.py is to those that started it: it takes signals and ends as the fork does.

forked_client.py SOCKET ARGUMENTS OF PYTHON...     Imports next to nothing: python starts it in some 20 ms.
"""

import json
import os
import select
import signal
import socket
import sys

LOOK = 0.5  # seconds between looks at the launcher


def main(address: str, arguments: list[str]) -> None:
    parent = os.getppid()
    ranks_launcher = os.environ.get("LLAVA_LAUNCHER")  # with which ranks end, as llava/train/loop/stop.py sees to
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: connection.send(bytes([number])))
        namespaces = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in ("net", "mnt")]
        message = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
        socket.send_fds(connection, [json.dumps(message).encode()], [0, 1, 2, *namespaces])
        while not select.select([connection], [], [], LOOK)[0]:
            if ranks_launcher is not None and os.getppid() != parent:
                os._exit(1)
        status = int(connection.recv(16) or -signal.SIGKILL)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    os._exit(status)


main(sys.argv[1], sys.argv[2:])
