"""`llava train`: one stage from a recipe. scripts/train/stage*.sh start it on every process of a run."""

import os
from argparse import Action, Namespace
from collections.abc import Sequence

from llava.arguments import ArgumentParser, did_you_mean, nearest
from llava.errors import LlavaError
from llava.train.family import StageRecipe
from llava.train.imports import import_stage
from llava.train.recipe.dotted import flatten, shown, suggestion
from llava.train.recipe.load import CHECKPOINTS, known_keys, load_recipe


def main(argv: list[str]) -> int:
    """Checks the recipe, then trains, or prints what would be trained. Raises LlavaError for wrong input."""
    try:
        options, recipe = read(argv)
    except LlavaError as error:
        if "RANK" in os.environ:
            from llava.train.ranks.preflight import stop_all

            stop_all(error)
        raise
    if options.print is not None:
        print(value_of(recipe, options.print))
    elif options.check:
        from llava.train.recipe.checks import check_data

        check_data(recipe)
    elif options.dry_run:
        from llava.train.estimate.plan import dry_run

        print(dry_run(recipe, options.tokens_per_second))
    else:
        import_stage(recipe).run_stage(recipe)
    return 0


def read(argv: list[str]) -> tuple[Namespace, StageRecipe]:
    """The fixed options and the recipe, which is checked unless it is only printed."""
    options, keys = parse(argv)
    recipe = load_recipe(options.recipe, options.arm, options.override, keys, options.checkpoints)
    if options.print is not None:
        return options, recipe
    from llava.train.ranks.environment import world_size
    from llava.train.recipe.checks import check_recipe  # imports numpy

    check_recipe(recipe, world_size(), options.dry_run)
    return options, recipe


class PrintKeys(Action):
    """Prints the keys of a recipe in the form that is given, and ends the command as --help does."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: str, option_string: str | None = None
    ) -> None:
        """argparse's."""
        from llava.train.recipe.keys import FORMS

        print(FORMS[values]())
        parser.exit()


def value_of(recipe: StageRecipe, key: str) -> str:
    """The recipe's value of a dotted key, as it is printed. Raises LlavaError for an unknown key."""
    values = flatten(recipe.to_dict())
    if key not in values:
        raise LlavaError(f"unknown key '{key}'{suggestion(key, values)}")
    return shown(values[key])


def parse(argv: list[str]) -> tuple[Namespace, dict[str, str]]:
    """The fixed options, and the recipe keys given as `--key value` or `--key=value`."""
    parser = ArgumentParser(
        prog="llava train",
        description="Trains one stage. Every key of the recipe can be given too, dotted: --optim.max_steps 10",
        takes_keys=True,
    )
    parser.add_argument("--recipe", required=True, help="recipe YAML, e.g. scripts/train/recipes/mllm/stage1.yaml")
    parser.add_argument(
        "--arm",
        help="baseline (the default), grid, a method of recipes/fusion such as manager, or grid_METHOD; of the two "
        "towers a file of recipes/two_tower/arms (default manager)",
    )
    parser.add_argument("--override", action="append", default=[], metavar="YAML", help="file of keys to change")
    parser.add_argument(
        "--checkpoints", default=CHECKPOINTS, metavar="DIR", help=f"folder of the stages' own (default {CHECKPOINTS})"
    )
    parser.add_argument("--dry_run", action="store_true", help="print recipe, steps and what trains; needs no weights")
    parser.add_argument(
        "--tokens_per_second", type=float, metavar="N", help="of all processes together: a dry run then tells the time"
    )
    parser.add_argument(
        "--keys",
        action=PrintKeys,
        nargs="?",
        const="text",
        choices=("text", "markdown"),
        metavar="FORM",
        help="print every key of a recipe with a sentence, as text or markdown, and exit",
    )
    parser.add_argument("--print", metavar="KEY", help="print what the recipe has for one key, and exit")
    parser.add_argument("--check", action="store_true", help="only check recipe, folders and data")
    options, rest = parser.parse_known_args(argv)
    if options.tokens_per_second is not None and options.tokens_per_second <= 0:
        raise LlavaError(f"--tokens_per_second must be above 0; found {options.tokens_per_second:g}")
    return options, recipe_keys(rest, [flag.removeprefix("--") for flag in parser.flags])


def recipe_keys(words: list[str], options: Sequence[str] = ()) -> dict[str, str]:
    """["--a.b-c", "1", "--d=2"] -> {"a.b_c": "1", "d": "2"}; LlavaError for anything else.

    options: names of the fixed options, one of which a word may have meant.
    """
    keys, words = {}, list(words)
    sectionless = {name.rpartition(".")[2] for name in known_keys()}
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise LlavaError(f"unexpected argument '{word}'; recipe keys are given as --key value")
        key = key.replace("-", "_")
        meant = None if "." in key or key in sectionless else nearest(key, options)
        if meant:
            raise LlavaError(f"unknown option --{key}{did_you_mean(f'--{meant}')}")
        if not equals:
            if not words or words[0].startswith("--"):
                raise LlavaError(f"--{key} has no value; recipe keys are given as --key value")
            value = words.pop(0)
        keys[key] = value
    return keys
