"""The order of the tests where several workers share them."""

from collections.abc import Sequence

import pytest


def slow_files_first(items: Sequence[pytest.Item], workers: int) -> list[pytest.Item]:
    """All items, in as many shares of about one size as there are workers, files with slow tests first in each.

    xdist hands out the shares, and a worker that is done takes from another's end: what runs last is short then, and
    nobody idles beside a long test. A file stays together, for its fixtures.
    """
    if workers == 1:
        return list(items)
    files: dict = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    slow = [path for path, tests in files.items() if any(test.get_closest_marker("slow") for test in tests)]
    quick = [path for path in files if path not in slow]
    ordered: list[pytest.Item] = []
    for worker in range(workers):
        for path in slow[worker::workers]:
            ordered += files[path]
        while quick and len(ordered) * workers < len(items) * (worker + 1):
            ordered += files[quick.pop(0)]
    for path in quick:
        ordered += files[path]
    return ordered
