#!/usr/bin/env bash
# The whole way once, on the embedded digit pages: data, pretraining, three stages, evaluation, one question.
#
#   bash scripts/quickstart.sh [ARMS] [SEEDS]
#
# ARMS   grid_manager (default), any of `--arm`, several in one argument, or "all", the four of the paper
# SEEDS  how often each arm is trained, with the seeds 1, 2, ..: of pretraining and of every stage; the data stays the
#        same. Prints one table of means over the seeds, with intervals, and goes on where it was when it is started
#        again, also with more arms or seeds; after a change of the code or the recipes it refuses. Without it: once
#
# QUICKSTART_DIR   where everything goes, default playground/quickstart (what an earlier quickstart left there goes) or,
#                  with SEEDS, playground/quickstart_seeds (what is done there stays)
# QUICKSTART_SIZE  full (default), or smoke: a few steps of everything, to see that it runs
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,14s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."
source scripts/quickstart/common.bash
arms=${1:-grid_manager} seeds=${2:-}
[ "$arms" = all ] && arms="baseline manager grid grid_manager"
check_seeds "$seeds"
out=${QUICKSTART_DIR:-playground/quickstart${seeds:+_seeds}}
check_out
if [ -f "$out/$started" ]; then
    if [ -z "$seeds" ] && [ -s "$out/$started" ]; then
        fail "$out holds the runs of several seeds; remove it, or name another QUICKSTART_DIR"
    elif [ -n "$seeds" ] && [ ! -s "$out/$started" ]; then
        fail "$out holds a quickstart without SEEDS; remove it, or name another QUICKSTART_DIR"
    fi
fi
declare -A model # "STAGE ARM" -> the folder's name
for arm in $arms; do
    for name in stage2 stage1_5 stage1; do # an arm that there is not is refused
        folder=$(bash "scripts/train/$name.sh" --arm "$arm" --checkpoints "$out" --print run.output_dir)
        model[$name $arm]=$(basename "$folder")
    done
done
size=${QUICKSTART_SIZE:-full}
# pretraining, tiles, square, blind: seconds on two idle cores, of a seed's tower and language model, of an arm with and
# without tiles, of an evaluation with noise, about.
case $size in
full) sizes=(--captions 4000 --pages 8000) steps=() training=() pretraining=250 tiles=300 square=250 blind=40 ;;
smoke)
    sizes=(--captions 64 --pages 160 --test_pages 6)
    steps=(--tower_steps 3 --language_model_steps 3)
    training=(--optim.max_steps 2)
    pretraining=10 tiles=60 square=60 blind=20
    ;;
*) fail "QUICKSTART_SIZE must be full or smoke, found $size" ;;
esac

use_two_cores

make_data() {
    say "data: pages of handwritten digits"
    llava demo make "$1" "${sizes[@]}"
}

pretrain() {
    say "pretraining of the tiny vision tower and language model$of_seed"
    llava demo pretrain "$1" "${steps[@]}" ${seed:+--seed "$seed"}
}

stage() { # NAME ARM [--key value ...]: skips a stage that is trained already, for another arm or earlier
    local name=$1 arm=$2 method=scripts/quickstart/fusion/${2#grid_}.yaml
    local overrides=(--override "scripts/quickstart/$name.yaml")
    [ -f "$at/checkpoints/${model[$name $arm]}/run.json" ] && return
    [ -f "$method" ] && overrides+=(--override "$method")
    say "$name, arm $arm$of_seed"
    OMP_NUM_THREADS=1 bash "scripts/train/$name.sh" --arm "$arm" --checkpoints "$at/checkpoints" "${overrides[@]}" \
        --data.mixture "$out/data/$name.yaml" --data.image_folder "$out/data" ${seed:+--run.seed "$seed"} \
        "${training[@]}" "${@:3}"
}

answers() { echo "$out/eval/$1${seed:+/seed$seed}"; } # NAME: the folder of an evaluation

evaluate() { # MODEL NAME WHAT [option]
    local run
    run=$(answers "$2")
    [ -f "$run/digit_pages/results.json" ] && return
    say "evaluation of $3$of_seed"
    mkdir -p "$(dirname "$run")"
    llava eval --model "$1" --tasks digit_pages --data "$out/data/test" --out "$run" --batch_size 50 "${@:4}" \
        > "$run.log" 2>&1 || { cat "$run.log" >&2 && exit 1; }
}

train_arms() { # from pretraining to evaluation: all arms, of one seed where there are several
    local at=$out${seed:+/seed$seed} of_seed=${seed:+, seed $seed of $seeds}
    once "$at/models" pretrain
    for arm in $arms; do
        stage stage1 "$arm" --model.vision_tower "$at/models/siglip" --model.language_model "$at/models/qwen2"
        stage stage1_5 "$arm"
        stage stage2 "$arm"
        last=$at/checkpoints/${model[stage2 $arm]}
        evaluate "$last" "$arm" "$arm through lmms-eval"
        tell_rest
    done
    evaluate "$last" "${arm}_blind" "$arm, blind: every image replaced by noise" --image_noise
}

rest() { # "MODELS MISSING SECONDS" of all seeds: how many there will be, are not evaluated yet, and how long that takes
    local seed arm models=0 missing=0 left=0
    for seed in $(seq "$seeds"); do
        [ -d "$out/seed$seed/models" ] || left=$((left + pretraining))
        for arm in $arms; do
            models=$((models + 1))
            [ -f "$(answers "$arm")/digit_pages/results.json" ] && continue
            missing=$((missing + 1))
            case $arm in grid*) left=$((left + tiles)) ;; *) left=$((left + square)) ;; esac
        done
        [ -f "$(answers "${arm}_blind")/digit_pages/results.json" ] || left=$((left + blind))
    done
    echo "$models $missing $left"
}

tell_rest() { # as fast as this start has been so far
    [ -n "$seeds" ] || return 0
    local models missing left
    read -r models missing left <<< "$(rest)"
    first_left=${first_left:-$left}
    [ "$left" -lt "$first_left" ] && left=$((left * SECONDS / (first_left - left)))
    printf '\n%d models (%s; %d seeds): %d are done, the rest takes about %d:%02d hours\n' \
        "$models" "$arms" "$seeds" $((models - missing)) $((left / 3600)) $((left / 60 % 60))
}

seed=
if [ -z "$seeds" ]; then
    rm -rf "$out"
    mkdir -p "$out/eval" && touch "$out/$started"
    once "$out/data" make_data
    train_arms
    say "results on held-out digits"
    runs=()
    for run in $arms "${arm}_blind"; do runs+=("$out/eval/$run"); done
    llava eval report "${runs[@]}" --markdown "$out/eval/report.md" --json "$out/eval/report.json"

    say "one question in the chat"
    example() { python -c "import json; print(json.load(open('$out/data/example.json'))$1)"; }
    question=$(example "['question']")
    printf 'image     %s\nquestion  %s\n' "$out/data/example.png" "$question"
    printf 'expected  %s\nanswer    ' "$(example "['answers'][0]")"
    llava chat --model "$last" --image "$out/data/example.png" "$question"
else
    # What runs of several seeds must have in common.
    start_or_go_on "$size" llava/{data,demo,engine,eval/tasks,fusion,mllm,train} scripts/quickstart scripts/train/recipes
    tell_rest
    once "$out/data" make_data
    for seed in $(seq "$seeds"); do train_arms; done
    say "means over $seeds seeds on held-out digits"
    runs=()
    for run in $arms "${arm}_blind"; do runs+=("$out/eval/$run"); done
    llava bench seeds "${runs[@]}" --seeds "$seeds" --markdown "$out/seeds.md" --json "$out/seeds.json"
fi
say "done"
