#!/usr/bin/env bash
# Runs one training stage on this machine's share of the processes. Called by stage1.sh, stage1_5.sh, stage2.sh and
# two_tower.sh with the stage's file below recipes/.
#
#   --arm baseline|grid|METHOD|grid_METHOD (METHOD: a file of recipes/fusion, such as manager)
#   --size 7b   with Qwen2-7B-Instruct in place of the 0.5B model: recipes/mllm/STAGE_7b.yaml
#   --override FILE.yaml    --key value (any key of the recipe, dotted)    --checkpoints FOLDER (of all stages)
#   --hostfile FILE   the same as HOSTFILE, below
#   --dry_run   print the resolved recipe, the steps, the memory and what trains, in one process, and exit
#
# NPROC_PER_NODE  processes here, default one per GPU, or one     MASTER_ADDR  address of node 0, default 127.0.0.1
# NNODES          machines, default 1                             MASTER_PORT  default 29500
# NODE_RANK       this machine's number, default 0                (one machine alone finds a free port)
# JOIN_TIMEOUT    seconds that machines wait for each other at the start, default 1800
#
# HOSTFILE        lines of `HOST slots=GPUS`: started here alone, DeepSpeed's launcher starts all machines through pdsh
#                 and ssh; MASTER_ADDR is then the first of them by default. The folder must be the same on each.
#
# Run it from the repository root: the paths in the recipes are relative to it. For SLURM see slurm.sbatch.
set -euo pipefail

stage=$1
shift
arguments=(--recipe "") # filled in below
while [ $# -gt 0 ]; do
    case $1 in
    --hostfile) HOSTFILE=${2:?--hostfile needs a file} && shift 2 ;;
    --hostfile=*) HOSTFILE=${1#*=} && shift ;;
    --size) stage=${stage}_${2:?--size needs the size of a language model} && shift 2 ;;
    --size=*) stage=${stage}_${1#*=} && shift ;;
    *) arguments+=("$1") && shift ;;
    esac
done
arguments[1]=$(dirname "$0")/recipes/$stage.yaml
set -- "${arguments[@]}"
if [ -n "${HOSTFILE:-}" ] && [ ! -r "$HOSTFILE" ]; then
    echo "error: the hostfile $HOSTFILE cannot be read" >&2
    exit 2
fi
if [ -n "${HOSTFILE:-}" ]; then
    hosts=$(sed 's/#.*//' "$HOSTFILE" | awk 'NF { print $1 }')
    slots=$(sed 's/#.*//' "$HOSTFILE" | sed -n 's/.*slots=\([0-9]*\).*/\1/p' | paste -sd +)
    export NNODES=1 NPROC_PER_NODE=$((slots)) # for the checks: as many processes as all machines have
else
    gpus=$(command -v nvidia-smi > /dev/null && python -c 'import torch; print(torch.cuda.device_count())' || echo 0)
    export NPROC_PER_NODE=${NPROC_PER_NODE:-$((gpus > 0 ? gpus : 1))} NNODES=${NNODES:-1}
fi

case " $* " in
*" --dry_run "* | *" --dry-run "* | *" --print "* | *" --keys "* | *" --help "* | *" -h "*) exec python -m llava.cli train "${arguments[@]}" ;;
esac

if [ "$NNODES" = 1 ]; then
    python -m llava.cli train "${arguments[@]}" --check  # a mistake costs a second and one line
fi  # on several machines the processes check together: one that stopped here would leave the others waiting
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}  # seconds to save after Ctrl-C, SIGTERM
if [ -n "${HOSTFILE:-}" ]; then
    remote=()
    for word in "${arguments[@]}"; do  # another shell reads them; DeepSpeed quotes those with spaces
        case $word in *" "*) remote+=("$word") ;; *) remote+=("$(printf %q "$word")") ;; esac
    done
    exec deepspeed --hostfile "$HOSTFILE" --force_multi --master_addr "${MASTER_ADDR:-${hosts%%$'\n'*}}" \
        --master_port "${MASTER_PORT:-29500}" --no_local_rank --module llava.train.rank "${remote[@]}"
fi
if [ "$NNODES" = 1 ]; then
    meeting=(--standalone)
else
    meeting=(--nnodes "$NNODES" --node_rank "${NODE_RANK:-0}" --rdzv_conf "timeout=${JOIN_TIMEOUT:-1800}"
        --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}")
fi
exec python -m llava.train.launch "${meeting[@]}" --nproc_per_node "$NPROC_PER_NODE" \
    -m llava.train.rank "${arguments[@]}"
