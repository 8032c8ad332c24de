"""From files and the command line to a recipe.

Keys are dotted (`optim.max_steps`). Later sources win: the recipe's file, its arm, `--override` files in their order,
`--key value` on the command line. Every fault of every source is collected and raised at once.
"""

from collections.abc import Sequence

from llava.errors import LlavaError, raise_faults
from llava.train.recipe.dotted import assemble, coerce, dotted_keys, flatten, read_yaml, suggestion
from llava.train.recipe.schema import Recipe


def load_recipe(path: str, arm: str, overrides: Sequence[str] = (), keys: dict[str, str] | None = None) -> Recipe:
    """Resolves `path` with `arm`, override files and the command line's `keys`.

    Raises one LlavaError that lists every unknown key, wrong value and missing key of all sources.
    """
    document = read_yaml(path)
    arms = document.pop("arms", {})
    if arm not in arms:
        raise LlavaError(f"{path}: unknown arm '{arm}'{suggestion(arm, arms)}; it has {', '.join(arms) or 'none'}")
    sources = [(path, document), (f"{path}: arm {arm}", arms[arm])]
    sources += [(override, read_yaml(override)) for override in overrides]
    sources += [("command line", keys or {})]

    known = dotted_keys(Recipe)
    del known["arm"]  # chosen by itself, before any key
    faults, given, values = [], set(), {"arm": arm}
    for origin, mapping in sources:
        try:
            flat = flatten(mapping)
        except LlavaError as error:
            raise LlavaError(f"{origin}: {error}") from error
        for key, value in flat.items():
            given.add(key)
            if key not in known:
                faults.append(f"{origin}: unknown key '{key}'{suggestion(key, known)}")
                continue
            try:
                values[key] = coerce(value, known[key].type)
            except ValueError as error:
                faults.append(f"{origin}: {key} {error}")
    faults += [f"{path}: {key} is missing" for key in known if known[key].required and key not in given]
    raise_faults(path, faults)
    return assemble(Recipe, values)
