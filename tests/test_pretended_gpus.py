"""`make test` on a machine with GPUs is as on one without: the suite hides them before anything looks for one."""

import os
import subprocess

from tests.paths import ROOT

LOOK = """
import os, torch
shown = [torch.cuda.is_available()]
import tests.conftest
print(*shown, torch.cuda.is_available(), torch.cuda.device_count(), os.environ["DS_ACCELERATOR"])
try:
    del os.environ["CUDA_VISIBLE_DEVICES"]
    torch.cuda.current_device()
except RuntimeError as error:
    print(error)
"""


def test_the_suite_hides_the_gpus(forked_python):
    """Whatever of them the one who starts it shows, and where nothing is said of them; seen on pretended ones."""
    unsaid = {
        name: value for name, value in os.environ.items() if name not in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR")
    }
    for environment in (unsaid, unsaid | {"CUDA_VISIBLE_DEVICES": "0", "DS_ACCELERATOR": "cuda"}):
        done = subprocess.run(
            [forked_python.command, "-c", LOOK], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.stdout, done.stderr) == ("True False 0 cpu\na pretended GPU was used\n", ""), done.stderr
