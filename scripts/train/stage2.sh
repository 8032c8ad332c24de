#!/usr/bin/env bash
# Stage 2, see launch.sh:  bash scripts/train/stage2.sh --arm grid_manager [--key value ...]
exec bash "$(dirname "$0")/launch.sh" mllm/stage2 "$@"
