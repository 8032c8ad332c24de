"""`pytest tests/golden --golden-dir DIR` runs every case found in DIR; the last lines count them per family."""

from collections import defaultdict
from pathlib import Path

import pytest

from tests.golden.reference_case import list_cases

FAMILIES = "abcdefghij"
NOT_YET_COVERED = "fghij"
DIFFERENCES = pytest.StashKey[dict[str, dict[str, float]]]()


def pytest_generate_tests(metafunc):
    if "golden_case" in metafunc.fixturenames:
        cases = list_cases(metafunc.config.getoption("--golden-dir"))
        # A case of an unknown family is run too, and fails.
        names = [name for name, family in cases.items() if family not in NOT_YET_COVERED]
        metafunc.parametrize("golden_case", names)


@pytest.fixture
def golden_dir(request) -> Path:
    return request.config.getoption("--golden-dir")


@pytest.fixture
def record_difference(request):
    """A function: (family, case, largest absolute difference) into the closing lines."""

    def record(family: str, case: str, difference: float) -> None:
        request.config.stash.setdefault(DIFFERENCES, defaultdict(dict))[family][case] = difference

    return record


def pytest_terminal_summary(terminalreporter, config):
    differences = config.stash.get(DIFFERENCES, {})
    if not differences:
        return
    terminalreporter.section("golden cases")
    for family in sorted(differences):
        name, largest = max(differences[family].items(), key=lambda item: item[1])
        terminalreporter.line(
            f"family {family}: {len(differences[family])} cases ran, largest difference {largest:.1e} ({name})"
        )
    left = [family for family in list_cases(config.getoption("--golden-dir")).values() if family in NOT_YET_COVERED]
    counts = ", ".join(f"{family} {left.count(family)}" for family in sorted(set(left)))
    ran = sum(map(len, differences.values()))
    terminalreporter.line(f"{ran} cases ran; not yet covered: {len(left)} ({counts})")
