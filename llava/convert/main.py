"""`llava convert import | export | merge-lora`: other formats in, and out. Each is imported only when it runs."""

from importlib import import_module

from llava.arguments import ArgumentParser

# A command's module exposes add_arguments(parser) and run(arguments) -> exit status.
COMMANDS = {
    "export": ("llava.convert.export", "hand a checkpoint of this model out in a format that transformers loads"),
    "import": ("llava.convert.importer", "make a checkpoint of this model from another format's"),
    "merge-lora": ("llava.convert.merge_lora", "make a plain checkpoint of one with LoRA adapters"),
}


def main(argv: list[str]) -> int:
    """`llava convert`: runs one of its commands; returns the exit status."""
    parser = ArgumentParser(prog="llava convert", description="Checkpoints of other formats in, ours out.")
    commands = parser.add_commands()
    for name, (module, summary) in COMMANDS.items():
        subparser = commands.add_parser(name, help=summary, description=summary)
        if argv[:1] == [name]:
            import_module(module).add_arguments(subparser)
    arguments = parser.parse_args(argv)
    return import_module(COMMANDS[arguments.command][0]).run(arguments)
