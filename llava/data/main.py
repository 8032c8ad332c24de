"""`llava data check MIXTURE`: what is wrong with a mixture, before training finds out."""

import argparse
import sys

from llava.data.check import inspect_samples
from llava.data.mixture import load_mixture


def main(argv: list[str]) -> int:
    """Prints the mixture's table and every fault; returns 1 when there is one."""
    parser = argparse.ArgumentParser(prog="llava data")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="read a mixture's records and image headers")
    check.add_argument("mixture", help="mixture YAML")
    check.add_argument("--image_folder", default=".", help="folder that image paths are relative to")
    check.add_argument("--seed", type=int, default=0, help="of `random` sampling strategies")
    arguments = parser.parse_args(argv)

    mixture = load_mixture(arguments.mixture, arguments.seed)
    print(mixture)
    faults = inspect_samples(mixture.samples, arguments.image_folder).faults
    for fault in faults:
        print(f"fault: {fault}", file=sys.stderr)
    print(f"{len(faults)} of {len(mixture.samples)} samples are unusable")
    return 1 if faults else 0
