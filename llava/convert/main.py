"""`llava convert import | export | merge-lora`: other formats in, and out. Each is imported only when it runs."""

import argparse
from importlib import import_module

# A command's module exposes add_arguments(parser) and run(arguments) -> exit status.
COMMANDS = {
    "export": ("llava.convert.export", "hand a checkpoint of this model out in a format that transformers loads"),
    "import": ("llava.convert.importer", "make a checkpoint of this model from another format's"),
    "merge-lora": ("llava.convert.merge_lora", "make a plain checkpoint of one with LoRA adapters"),
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="llava convert")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, summary) in COMMANDS.items():
        subparser = commands.add_parser(name, help=summary, description=summary)
        if argv[:1] == [name]:
            import_module(module).add_arguments(subparser)
    arguments = parser.parse_args(argv)
    return import_module(COMMANDS[arguments.command][0]).run(arguments)
