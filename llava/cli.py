"""The `llava` command. Subcommands are imported only when they run, so that help is instant."""

import sys
from importlib import import_module

COMMANDS = {
    "train": ("llava.train.main", "train one stage from a recipe"),
    "eval": ("llava.eval.main", "evaluate a model through lmms-eval, or report runs side by side"),
    "chat": ("llava.chat.cli", "talk with a model about images"),
    "data": ("llava.data.main", "download, prepare, check and preview training data"),
    "convert": ("llava.convert.main", "bring in checkpoints of other formats, hand ours out in them"),
    "demo": ("llava.demo.main", "make the digit pages and pretrain their tiny tower and language model"),
}


def usage() -> str:
    """The help text."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        ["usage: llava COMMAND [options]", "", *lines, "", "llava COMMAND --help tells a command's options."]
    )


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, 2 after a wrong argument or input, or what the command says."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"error: unknown command {argv[0]!r}\n{usage()}", file=sys.stderr)
        return 2
    from llava.errors import LlavaError

    try:
        return import_module(COMMANDS[argv[0]][0]).main(argv[1:])
    except LlavaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
