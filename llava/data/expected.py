"""How many samples mixtures should give, told from their expected_rows before any data is there."""

from pathlib import Path
from typing import NamedTuple

from llava.data.mixture import count_taken, mixture_entries

STAGES = ("stage1.yaml", "stage1_5.yaml", "stage2.yaml")  # mixtures that make up one training


class ExpectedSamples(NamedTuple):
    """samples: of the sets whose rows are known. sets: of the mixture. unknown: names of those without a number."""

    samples: int
    sets: int
    unknown: tuple[str, ...]


def expected_samples(mixture: str | Path) -> ExpectedSamples:
    """What the mixture's strategies take of its expected rows; DataError as mixture_entries raises it."""
    entries = mixture_entries(mixture)
    taken = (
        count_taken(entry.expected_rows.rows, entry.sampling_strategy, str(mixture))
        for entry in entries
        if entry.expected_rows is not None
    )
    unknown = tuple(entry.file.stem for entry in entries if entry.expected_rows is None)
    return ExpectedSamples(sum(taken), len(entries), unknown)


def expected_table(mixture: str | Path) -> str:
    """The expected samples of a mixture; of all three stages and their total where it stands beside the others'.

    Empty for a mixture without any expected_rows.
    """
    mixture = Path(mixture)
    stages = [mixture.with_name(name) for name in STAGES]
    paths = stages if mixture in stages and all(path.is_file() for path in stages) else [mixture]
    stages_expected = {path.name: expected_samples(path) for path in paths}
    if not any(expected.samples for expected in stages_expected.values()):
        return ""
    rows = [(name, expected.samples, _sets(expected)) for name, expected in stages_expected.items()]
    if len(rows) > 1:
        rows.append(("all stages", sum(samples for _, samples, _ in rows), ""))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"  {name:<{width}}  {samples:>10,}  {note}".rstrip() for name, samples, note in rows]
    return "\n".join(["samples that the mixtures expect", *lines])


def _sets(expected: ExpectedSamples) -> str:
    sets = f"{expected.sets} {'sets' if expected.sets > 1 else 'set'}"
    return f"{sets}, without {', '.join(expected.unknown)}: unknown" if expected.unknown else sets
