"""Uploading an exported folder to the hub, when it is asked for."""

from pathlib import Path

from llava.checkpoint.folder import TENSORBOARD
from llava.errors import LlavaError

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def check_login(repo: str) -> None:
    """LlavaError unless the name can be one on the hub and the hub knows who is logged in; before any work."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import httpx, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise LlavaError(f"--push {repo}: {_line(error)}") from None
    if get_token() is None:
        raise LlavaError(f"--push {repo}: nobody is logged in to the hub; {LOGIN}")
    try:
        HfApi().whoami()
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise LlavaError(f"--push {repo}: the hub does not let you in ({_line(error)}); {LOGIN}") from None


def push(folder: Path, repo: str, private: bool) -> str:
    """Uploads a folder, makes the repository where there is none, and returns its address.

    Tensorboard's log stays here: it tells paths of this machine, and shows questions and pictures of held-out samples.

    Raises:
        LlavaError: It could not be uploaded; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx

    api = HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="llava convert export",
            ignore_patterns=f"{TENSORBOARD}/*",
        )
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise LlavaError(f"--push {repo}: {folder} is written, but could not be uploaded: {_line(error)}") from None
    return str(address)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
