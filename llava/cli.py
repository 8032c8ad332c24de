"""The `llava` command. Subcommands are imported only when they run, so that help is instant."""

import signal
import sys
from importlib import import_module
from textwrap import indent

from llava.text_table import text_table

COMMANDS = {
    "train": ("llava.train.main", "train one stage from a recipe"),
    "analyze": ("llava.analysis.main", "what happens inside models: the paper's analyses as figures"),
    "eval": ("llava.eval.main", "evaluate a model through lmms-eval, or report runs side by side"),
    "bench": ("llava.bench.main", "methods of fusion side by side, the paper's ablations and its Table IV"),
    "chat": ("llava.chat.cli", "talk with a model about images"),
    "demo-page": ("llava.chat.page.main", "a page in the browser to try a model, or two side by side"),
    "serve": ("llava.serve.main", "an OpenAI-compatible server of a model, by vLLM or transformers"),
    "data": ("llava.prepare_data.main", "download, prepare, check and preview training data"),
    "convert": ("llava.convert.main", "bring in checkpoints of other formats, hand ours out in them"),
    "demo": ("llava.demo.main", "make the digit pages and pretrain their tiny tower and language model"),
}
PACKAGES = ("torch", "transformers")  # what a version is told of, besides this package's


def usage() -> str:
    """The help text."""
    summaries = text_table([(name, summary) for name, (_, summary) in COMMANDS.items()], right=[False])
    return "\n".join(
        [
            "usage: llava COMMAND [options]",
            "",
            indent(summaries, "  "),
            "",
            "llava COMMAND --help tells a command's options, llava --version the versions.",
        ]
    )


def versions() -> str:
    """The package's version and those of what it stands on, without importing them."""
    from importlib.metadata import PackageNotFoundError, version

    from llava import __version__

    names = [f"llava-ov-manager {__version__}"]
    for package in PACKAGES:
        try:
            names.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            names.append(f"{package} is not installed")
    return f"{names[0]} ({', '.join(names[1:])}, Python {sys.version.split()[0]})"


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, 2 after a wrong argument or input, or what the command says."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(versions())
        return 0
    from llava.errors import LlavaError

    try:
        return import_module(_module(argv[0])).main(argv[1:])
    except LlavaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _module(command: str) -> str:
    if command in COMMANDS:
        return COMMANDS[command][0]
    from llava.arguments import unknown
    from llava.errors import LlavaError

    kind, choices = ("option", ["--help", "--version"]) if command.startswith("-") else ("command", list(COMMANDS))
    raise LlavaError(unknown(kind, command, choices))


if __name__ == "__main__":
    sys.exit(main())
