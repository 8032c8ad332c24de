"""`llava data download`: the hub's own commands for the data sets of a mixture, printed or run."""

import os
import shlex
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from llava.data.mixture import MixtureEntry
from llava.errors import LlavaError

PROGRAM = "hf"  # of huggingface_hub 1.0 or later
PATIENCE = 15  # seconds to wait for the hub


def download_commands(entries: Iterable[MixtureEntry], folder: str | Path) -> list[list[str]]:
    """One command per repository, in the mixture's order; each fills folder/NAME, or goes on filling it.

    Of a repository whose entries all name a config only those folders are fetched. Raises LlavaError when no entry
    names its place on the hub.
    """
    configs: dict[str, list[str | None]] = {}
    for entry in entries:
        if entry.hub is not None:
            of_repo = configs.setdefault(entry.hub.repo, [])
            of_repo += [entry.hub.config] if entry.hub.config not in of_repo else []
    if not configs:
        raise LlavaError("no entry of the mixture has the key 'hub': {repo, config}, so that there is nothing to fetch")
    commands = []
    for repo, names in configs.items():
        target = str(Path(folder) / repo.rpartition("/")[2])
        words = [PROGRAM, "download", repo, "--repo-type", "dataset", *_patterns(names), "--local-dir", target]
        commands.append(words)
    return commands


def _patterns(configs: list[str | None]) -> list[str]:
    return [] if None in configs else [word for config in configs for word in ("--include", f"{config}/*")]


def prepare_commands(entries: Iterable[MixtureEntry], folder: str | Path) -> list[str]:
    """What turns the fetched folders into the mixture's files, which lie in OUT/NAME/SET.json."""
    outs = {}
    for entry in entries:
        name = entry.hub.repo.rpartition("/")[2] if entry.hub else None
        if entry.file.parent.name == name:
            outs[name] = os.path.relpath(entry.file.parent.parent)
    return [
        shlex.join(["llava", "data", "prepare", str(Path(folder) / name), "--out", out]) for name, out in outs.items()
    ]


def run_commands(commands: list[list[str]]) -> None:
    """Runs them one after the other; LlavaError in one line without the program, without a network, and on failure."""
    if shutil.which(PROGRAM) is None:
        raise LlavaError(f"the program {PROGRAM} is not installed: pip install 'huggingface_hub>=1.0'")
    _check_network()
    for command in commands:
        status = subprocess.run(command, check=False).returncode
        if status != 0:
            raise LlavaError(
                f"{PROGRAM} download {command[2]} ended with status {status}; the same command goes on where it stopped"
            )


def _check_network() -> None:
    """Asks for the hub's front page, as its client would; any answer will do."""
    from huggingface_hub import constants

    advice = "run the printed commands where there is a network and bring the folders here"
    if constants.HF_HUB_OFFLINE:
        raise LlavaError(f"HF_HUB_OFFLINE is set: {advice}, or unset it")
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise LlavaError(f"the hub at {constants.ENDPOINT} cannot be reached ({reason}): {advice}") from None
