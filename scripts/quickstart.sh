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
cd "$(dirname "$0")/.."

fail() { echo "error: $1" >&2 && exit 2; }
case ${1:-} in -h | --help) sed -n '2,14s/^# \{0,1\}//p' "$0" && exit ;; esac
arms=${1:-grid_manager} seeds=${2:-}
[ "$arms" = all ] && arms="baseline manager grid grid_manager"
case $seeds in *[!0-9]* | 0*) fail "SEEDS must be a whole number above 0, found $seeds" ;; esac
out=${QUICKSTART_DIR:-playground/quickstart${seeds:+_seeds}} started=.quickstart
if [ -n "$(ls -A "$out" 2> /dev/null)" ]; then
    [ -f "$out/$started" ] || fail "$out is not empty and was not made by the quickstart; name another QUICKSTART_DIR"
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
full) sizes=(--captions 2000 --pages 8000) steps=() training=() pretraining=250 tiles=300 square=250 blind=40 ;;
smoke)
    sizes=(--captions 64 --pages 160 --test_pages 6)
    steps=(--tower_steps 3 --language_model_steps 3)
    training=(--optim.max_steps 2)
    pretraining=10 tiles=60 square=60 blind=20
    ;;
*) fail "QUICKSTART_SIZE must be full or smoke, found $size" ;;
esac

export CUDA_VISIBLE_DEVICES= # on the CPU also where GPUs are
# Two processes of one thread each; threads that spin while they wait would starve the other process.
export NPROC_PER_NODE=2 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false DS_ACCELERATOR=cpu

say() { printf '\n== %s (%d:%02d) ==\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }

settings() { # what runs of several seeds must have in common: "HASH  FILE" of code and recipes, and the size
    find llava/{data,demo,engine,eval/tasks,fusion,mllm,train} scripts/quickstart scripts/train/recipes -name '*.py' \
        -o -name '*.yaml' -o -name '*.json' | LC_ALL=C sort | xargs sha256sum
    echo "$size  QUICKSTART_SIZE"
}

once() { # FOLDER COMMAND ..: the command makes the folder, whole or not at all; one that is there stays
    [ -d "$1" ] && return
    rm -rf "$1.unfinished" && mkdir -p "$(dirname "$1")"
    "${@:2}" "$1.unfinished" && mv "$1.unfinished" "$1"
}

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
    used=$(settings)
    if [ -f "$out/$started" ]; then
        changed=$(sort - "$out/$started" <<< "$used" | uniq -u | head -n 1)
        [ -z "$changed" ] || fail "$out was started with another ${changed##* }; name another QUICKSTART_DIR"
    fi
    mkdir -p "$out" && echo "$used" > "$out/$started"
    exec 9> "$out/.lock" # held by whatever an ended quickstart left at work, too
    flock --nonblock 9 || fail "$out: another quickstart is at work there"
    tell_rest
    once "$out/data" make_data
    for seed in $(seq "$seeds"); do train_arms; done
    say "means over $seeds seeds on held-out digits"
    runs=()
    for run in $arms "${arm}_blind"; do runs+=("$out/eval/$run"); done
    llava bench seeds "${runs[@]}" --seeds "$seeds" --markdown "$out/seeds.md" --json "$out/seeds.json"
fi
say "done"
