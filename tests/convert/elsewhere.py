"""A Python that cannot import this package, and keeps what transformers copies in a folder of its own."""

import os
import subprocess
import sys
from pathlib import Path

WITHOUT_LLAVA = """
import sys

class NoLlava:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "llava":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoLlava())
"""


def run_elsewhere(code: str, folder: Path, *arguments: object) -> None:
    """Runs code in `folder`, with sys.argv[1:] of these arguments, and asserts that it ends well."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_LLAVA + code, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
