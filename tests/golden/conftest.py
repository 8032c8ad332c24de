"""`pytest tests/golden --golden-dir DIR` runs every case found in DIR; the last lines count them per family."""

from collections import defaultdict
from pathlib import Path

import pytest

from tests.golden.reference_case import list_cases

# Test argument -> the families whose cases it takes. A case of any other family goes to the first, and fails there.
FAMILIES = {"forward_case": "abcdefgh", "generation_case": "i", "training_case": "j"}
DIFFERENCES = pytest.StashKey[dict[str, dict[str, float]]]()


def pytest_generate_tests(metafunc):
    for argument, families in FAMILIES.items():
        if argument in metafunc.fixturenames:
            cases = list_cases(metafunc.config.getoption("--golden-dir"))
            known = "".join(FAMILIES.values())
            unknown_too = argument == next(iter(FAMILIES))
            names = [name for name, f in cases.items() if f in families or (unknown_too and f not in known)]
            metafunc.parametrize(argument, names)


@pytest.fixture
def golden_dir(request) -> Path:
    return request.config.getoption("--golden-dir")


@pytest.fixture
def record_difference(request):
    """A function: (family, case, largest difference) into the closing lines."""
    differences = request.config.stash.setdefault(DIFFERENCES, defaultdict(dict))

    def record(family: str, case: str, difference: float) -> None:
        differences[family][case] = difference

    return record


def pytest_terminal_summary(terminalreporter, config):
    golden_dir = config.getoption("--golden-dir")
    if DIFFERENCES not in config.stash and not terminalreporter.stats.get("failed"):
        return
    differences = config.stash.get(DIFFERENCES, {})
    terminalreporter.section("golden cases")
    for family in sorted(differences):
        name, largest = max(differences[family].items(), key=lambda item: item[1])
        terminalreporter.line(
            f"family {family}: {len(differences[family]):2} cases ran, largest difference {largest:.1e} ({name})"
        )
    ran = sum(map(len, differences.values()))
    terminalreporter.line(f"{ran} of {len(list_cases(golden_dir))} cases ran")
