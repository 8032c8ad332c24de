#!/usr/bin/env bash
# Stage 1, see launch.sh:  bash scripts/train/stage1.sh --arm grid_manager [--key value ...]
exec bash "$(dirname "$0")/launch.sh" mllm/stage1 "$@"
