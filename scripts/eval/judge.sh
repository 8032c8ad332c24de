#!/usr/bin/env bash
# Judges the answers that scripts/eval/benchmarks.sh MODEL --predict_only has stored, without a GPU or the weights:
#     OPENAI_API_KEY=... scripts/eval/judge.sh RUN --judge https://api.openai.com/v1 --judge_model gpt-4o-2024-11-20
# RUN is the folder runs/NAME; further options: `llava eval judge --help`. The key is only taken from the environment.
set -euo pipefail

usage() { sed -n '2,4s/^# //p' "$0"; }
case ${1:-} in
-h | --help) usage && exit ;;
"") usage >&2 && exit 2 ;;
-*) echo "error: the first argument is RUN, a folder of answers, found '$1'; see $0 --help" >&2 && exit 2 ;;
esac
exec llava eval judge "$@"
