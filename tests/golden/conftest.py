"""`pytest tests/golden --golden-dir DIR` runs every case found in DIR; the last lines count them per family.

DIR has the layout of tests/golden/data (the MLLM's) or of tests/golden/two_tower, and is recognised by its files.
"""

from collections import defaultdict
from itertools import chain
from pathlib import Path

import pytest

from tests.golden import two_tower_case
from tests.golden.reference_case import list_cases
from tests.paths import GOLDEN_DIR, TWO_TOWER_GOLDEN_DIR

# Test argument -> the families whose cases it takes. A case of any other family goes to the first, and fails there.
FAMILIES = {"forward_case": "abcdefgh", "generation_case": "i", "training_case": "j"}
# Likewise of the two-tower models; see two_tower_case.list_cases.
TWO_TOWER = {
    "manager_case": "managers",
    "model_case": "models",
    "retrieval_case": "retrieval",
    "extras_case": "extras",
}
DIFFERENCE = "golden difference"  # a report's property, which reaches the last lines from any process


def pytest_generate_tests(metafunc):
    for argument, families in FAMILIES.items():
        if argument in metafunc.fixturenames:
            cases = mllm_cases(metafunc.config)
            known = "".join(FAMILIES.values())
            unknown_too = argument == next(iter(FAMILIES))
            names = [name for name, f in cases.items() if f in families or (unknown_too and f not in known)]
            metafunc.parametrize(argument, names)
    for argument, family in TWO_TOWER.items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, two_tower_cases(metafunc.config)[family])


def is_two_tower(config) -> bool:
    given = config.getoption("--golden-dir")
    return given is not None and two_tower_case.is_two_tower(given)


def mllm_cases(config) -> dict[str, str]:
    return {} if is_two_tower(config) else list_cases(config.getoption("--golden-dir") or GOLDEN_DIR)


def two_tower_cases(config) -> dict[str, list[str]]:
    given = config.getoption("--golden-dir")
    return two_tower_case.list_cases(given if given is not None else TWO_TOWER_GOLDEN_DIR)


@pytest.fixture
def golden_dir(request) -> Path:
    if is_two_tower(request.config):
        pytest.skip("--golden-dir holds two-tower models")
    return request.config.getoption("--golden-dir") or GOLDEN_DIR


@pytest.fixture
def two_tower_dir(request) -> Path:
    given = request.config.getoption("--golden-dir")
    if given is not None and not is_two_tower(request.config):
        pytest.skip("--golden-dir holds no two-tower models")
    return given or TWO_TOWER_GOLDEN_DIR


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
    ran = {
        family: {case.split("/")[1] if family == "models" else case for case in of}
        for family, of in differences.items()
    }
    listed = len(mllm_cases(config)) + sum(map(len, two_tower_cases(config).values()))
    terminalreporter.line(f"{sum(map(len, ran.values()))} of {listed} cases ran")
