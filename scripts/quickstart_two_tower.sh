#!/usr/bin/env bash
# The two towers once, on the embedded emoji pages: data, towers, floors, pre-training, VQA and retrieval, their scores.
#
#   bash scripts/quickstart_two_tower.sh [ARMS] [SEEDS]
#
# ARMS   manager (default), any of `--arm`, several in one argument, or "all": meter, bridge_tower and manager, from the
#        same towers, with the same data and steps
# SEEDS  how often each arm is trained (default 1), with the seeds 1, 2, ..: of the image tower and of every stage; the
#        data stays the same. Goes on where it was when it is started again, also with more arms or seeds; after a change
#        of the code or the recipes it refuses
#
# QUICKSTART_DIR   where everything goes, default playground/quickstart_two_tower; what is done there stays
# QUICKSTART_SIZE  full (default), or smoke: a few steps of everything, to see that it runs
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,14s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."
source scripts/quickstart/common.bash
arms=${1:-manager} seeds=${2:-1}
[ "$arms" = all ] && arms="meter bridge_tower manager"
check_seeds "$seeds"
out=${QUICKSTART_DIR:-playground/quickstart_two_tower}
retrieved=retrieval.test,retrieval.drawings,retrieval.names # splits, ranked by ITC alone, and the nearest anew by ITM
check_out
for arm in $arms; do # one that there is not is refused
    bash scripts/train/two_tower.sh pretrain --arm "$arm" --checkpoints "$out" --print run.output_dir > /dev/null
done
size=${QUICKSTART_SIZE:-full}
case $size in
full) pages=(--pages 2000 --held_out_pages 150) steps=() training=() limit=() ;;
smoke) pages=(--pages 70 --held_out_pages 6) steps=(--steps 3) training=(--optim.max_steps 2) limit=(--limit 8) ;;
*) fail "QUICKSTART_SIZE must be full or smoke, found $size" ;;
esac
use_two_cores

make_data() {
    say "data: pages of drawings with names"
    llava demo emoji_pages "$1" --data_sets captions questions retrieval "${pages[@]}"
}

make_towers() {
    say "towers: MiniLM, and a small ViT that learns names of drawings, seed $seed of $seeds"
    llava demo emoji_towers "$1" "${steps[@]}" --seed "$seed"
}

find_floor() {
    [ -f "$at/floor.txt" ] && return
    say "floors, seed $seed of $seeds"
    llava demo emoji_floor "$at/towers" "$out/data" > "$at/floor.txt.unfinished"
    mv "$at/floor.txt.unfinished" "$at/floor.txt"
}

stage() { # NAME DATA [--key value ...]: skips a stage that is trained already
    [ -f "$at/checkpoints/$1-$arm/run.json" ] && return
    say "$1, arm $arm, seed $seed of $seeds"
    OMP_NUM_THREADS=1 bash scripts/train/two_tower.sh "$1" --arm "$arm" --checkpoints "$at/checkpoints" \
        --override scripts/quickstart/two_tower/model.yaml --override "scripts/quickstart/two_tower/$1.yaml" \
        --data.mixture "$out/data/$2.yaml" --run.seed "$seed" "${training[@]}" "${@:3}"
}

evaluate() { # STAGE DATA TASKS [FOLDER --rerank N]
    local run=$out/eval/${4:-$2}/$arm/seed$seed last=${3##*,}
    [ -f "$run/$last/results.json" ] && return
    say "evaluation of $1${4:+ by $4}, arm $arm, seed $seed of $seeds"
    mkdir -p "$(dirname "$run")"
    OMP_NUM_THREADS=1 llava eval --model "$at/checkpoints/$1-$arm" --tasks "$3" --data "$out/data/$2.yaml" --out "$run" \
        --batch_size 64 --processes 2 "${limit[@]}" "${@:5}" > "$run.log" 2>&1 || { cat "$run.log" >&2 && exit 1; }
}

table() { # FOLDER TASK, by its folder in eval
    local runs=()
    for arm in $arms; do runs+=("$out/eval/$1/$arm"); done
    say "$1: $2, seeds 1 to $seeds"
    llava bench seeds "${runs[@]}" --task "$2" --seeds "$seeds" --markdown "$out/$1.$2.md" --json "$out/$1.$2.json"
}

# What all runs must have in common.
start_or_go_on "$size" llava/{data,demo,eval/two_tower,train,two_tower} scripts/quickstart scripts/train/recipes/two_tower
once "$out/data" make_data
for seed in $(seq "$seeds"); do
    at=$out/seed$seed
    once "$at/towers" make_towers
    find_floor
    for arm in $arms; do
        stage pretrain captions --model.text_tower "$at/towers/text" --model.vision_tower "$at/towers/image"
        stage vqav2 questions
        evaluate vqav2 questions vqav2.test
        stage flickr30k retrieval
        evaluate flickr30k retrieval "$retrieved" ITC --rerank 0
        evaluate flickr30k retrieval "$retrieved" ITM --rerank 4
    done
done
table questions vqav2.test
for ranked in ITC ITM; do
    for task in ${retrieved//,/ }; do table "$ranked" "$task"; done
done
for seed in $(seq "$seeds"); do
    say "floors to beat, of the towers of seed $seed"
    cat "$out/seed$seed/floor.txt"
done
say "done"
