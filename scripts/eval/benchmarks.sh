#!/usr/bin/env bash
# The paper's 20 benchmarks (or --tasks some of them) on one checkpoint:
#     scripts/eval/benchmarks.sh MODEL [--tasks T,T,...] [--limit N] [--data ROOT] [any option of `llava eval`]
# Results go to runs/NAME, NAME being the checkpoint's, unless --out says otherwise.
set -euo pipefail

usage() { sed -n '2,4s/^# //p' "$0"; }
case ${1:-} in
-h | --help) usage && exit ;;
"") usage >&2 && exit 2 ;;
-*) echo "error: the first argument is MODEL, a checkpoint's folder, found '$1'; see $0 --help" >&2 && exit 2 ;;
esac
model=${1%/}
exec llava eval --model "$model" --out "runs/$(basename "$model")" "${@:2}"
