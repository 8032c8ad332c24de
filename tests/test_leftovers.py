"""A process that a test leaves behind is found, whoever started it, and ended."""

import subprocess
import sys

ORPHAN = """
import subprocess
from tests import leftovers
leftovers.adopt()
subprocess.run(["sh", "-c", "sleep 60 & sleep 0 &"], check=True)
server = subprocess.Popen(["sleep", "60"])
leftovers.SERVERS.add(server.pid)
print(*leftovers.end_leftovers(0.2), sep="\\n")
print(leftovers.end_leftovers(0.2), server.poll())
server.kill()
"""


def test_an_orphan_is_told_and_ended():
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, check=True, timeout=60)
    orphan, rest = done.stdout.splitlines()
    assert orphan.startswith("process ")
    assert orphan.endswith(", sleep: sleep 60")
    assert rest == "[] None"
