"""`pytest tests/golden --golden-dir DIR` runs every case found in DIR; the last lines count them per family."""

from collections import defaultdict
from itertools import chain
from pathlib import Path

import pytest

from tests.golden.reference_case import list_cases

# Test argument -> the families whose cases it takes. A case of any other family goes to the first, and fails there.
FAMILIES = {"forward_case": "abcdefgh", "generation_case": "i", "training_case": "j"}
DIFFERENCE = "golden difference"  # a report's property, which reaches the last lines from any process


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
def record_difference(record_property):
    """A function: (family, case, largest difference) into the closing lines."""
    return lambda family, case, difference: record_property(DIFFERENCE, (family, case, difference))


def pytest_terminal_summary(terminalreporter, config):
    reports = chain.from_iterable(terminalreporter.stats.get(outcome, ()) for outcome in ("passed", "failed"))
    differences = defaultdict(dict)
    for name, value in chain.from_iterable(report.user_properties for report in reports):
        if name == DIFFERENCE:
            family, case, difference = value
            differences[family][case] = difference
    if not differences and not terminalreporter.stats.get("failed"):
        return
    terminalreporter.section("golden cases")
    for family in sorted(differences):
        name, largest = max(differences[family].items(), key=lambda item: item[1])
        terminalreporter.line(
            f"family {family}: {len(differences[family]):2} cases ran, largest difference {largest:.1e} ({name})"
        )
    ran = sum(map(len, differences.values()))
    terminalreporter.line(f"{ran} of {len(list_cases(config.getoption('--golden-dir')))} cases ran")
