#!/usr/bin/env bash
# Runs one training stage on this machine's share of the processes. Called by stage1.sh, stage1_5.sh and stage2.sh.
#
#   --arm baseline|manager|grid|grid_manager    --override FILE.yaml    --key value (any key of the recipe, dotted)
#   --dry_run   print the resolved recipe, the steps and what trains, in one process, and exit
#
# NPROC_PER_NODE  processes here, default one per GPU, or one     MASTER_ADDR  address of node 0, default 127.0.0.1
# NNODES          machines, default 1                             MASTER_PORT  default 29500
# NODE_RANK       this machine's number, default 0                (one machine alone finds a free port)
#
# Run it from the repository root: the paths in the recipes are relative to it.
set -euo pipefail

stage=$1
shift
arguments=(--recipe "$(dirname "$0")/recipes/$stage.yaml" "$@")
gpus=$(command -v nvidia-smi > /dev/null && python -c 'import torch; print(torch.cuda.device_count())' || echo 0)
export NPROC_PER_NODE=${NPROC_PER_NODE:-$((gpus > 0 ? gpus : 1))} NNODES=${NNODES:-1}

case " $* " in
*" --dry_run "* | *" --help "* | *" -h "*) exec python -m llava.cli train "${arguments[@]}" ;;
esac

python -m llava.cli train "${arguments[@]}" --check  # a mistake costs a second and one line
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}  # seconds to save after Ctrl-C, SIGTERM
if [ "$NNODES" = 1 ]; then
    meeting=(--standalone)
else
    meeting=(--nnodes "$NNODES" --node_rank "${NODE_RANK:-0}"
        --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}")
fi
exec torchrun "${meeting[@]}" --nproc_per_node "$NPROC_PER_NODE" -m llava.cli train "${arguments[@]}"
