"""No test is lost where files with slow tests are put first in each worker's share."""

from dataclasses import dataclass

from tests.order import slow_files_first


@dataclass(frozen=True)
class Item:
    """A test, as far as its order goes; of a slow one the name begins with "slow"."""

    path: str
    name: str

    def get_closest_marker(self, marker: str) -> bool:
        return self.name.startswith(marker)


ITEMS = [Item(path, f"{name}{path}") for path in "abcdefg" for name in ("1", "slow" if path in "beg" else "2", "3")]


def paths(items: list) -> str:
    return "".join(item.path for item in items)


def test_one_process_keeps_the_order():
    assert slow_files_first(ITEMS, 1) == ITEMS


def test_every_share_begins_with_its_slow_files():
    assert paths(slow_files_first(ITEMS, 2)) == "bbbgggaaaccc" + "eeedddfff"
    assert paths(slow_files_first(ITEMS, 3)) == "bbbaaaccc" + "eeeddd" + "gggfff"
    assert paths(slow_files_first(ITEMS, 30)) == "bbbeeegggaaacccdddfff"


def test_a_file_that_is_named_twice_stays_together():
    items = [ITEMS[0], ITEMS[4], ITEMS[1]]
    assert slow_files_first(items, 2) == [ITEMS[4], ITEMS[0], ITEMS[1]]
