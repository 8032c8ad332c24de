"""Where test data lies."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
GOLDEN_DIR = ROOT / "tests" / "golden" / "data"
TWO_TOWER_GOLDEN_DIR = ROOT / "tests" / "golden" / "two_tower"
