#!/usr/bin/env bash
# The whole way once, on the embedded digit pages: data, pretraining, three stages, evaluation, one question.
#
#   bash scripts/quickstart.sh [ARMS]     ARMS: grid_manager (default), any of `--arm`, several in one argument, or
#                                         "all", the four of the paper
#
# QUICKSTART_DIR   where everything goes, default playground/quickstart (what an earlier quickstart left there goes)
# QUICKSTART_SIZE  full (default), or smoke: a few steps of everything, to see that it runs
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0" && exit ;; esac
arms=${1:-grid_manager}
[ "$arms" = all ] && arms="baseline manager grid grid_manager"
out=${QUICKSTART_DIR:-playground/quickstart}
if [ -n "$(ls -A "$out" 2> /dev/null)" ] && [ ! -f "$out/.quickstart" ]; then
    echo "error: $out is not empty and was not made by the quickstart; name another QUICKSTART_DIR" >&2 && exit 2
fi
checkpoint() { # STAGE ARM: where it goes; an arm that there is not is refused
    bash "scripts/train/$1.sh" --arm "$2" --checkpoints "$out/checkpoints" --print run.output_dir
}
for arm in $arms; do last=$(checkpoint stage2 "$arm"); done
case ${QUICKSTART_SIZE:-full} in
full) sizes=() steps=() training=() ;;
smoke)
    sizes=(--captions 64 --pages 160 --test_pages 6)
    steps=(--tower_steps 3 --language_model_steps 3)
    training=(--optim.max_steps 2)
    ;;
*) echo "error: QUICKSTART_SIZE must be full or smoke, found $QUICKSTART_SIZE" >&2 && exit 2 ;;
esac

export CUDA_VISIBLE_DEVICES= # on the CPU also where GPUs are
# Two processes of one thread each; threads that spin while they wait would starve the other process.
export NPROC_PER_NODE=2 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false DS_ACCELERATOR=cpu

say() { printf '\n== %s (%d:%02d) ==\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }

stage() { # NAME ARM [--key value ...]: skips a stage that another arm has trained already
    local name=$1 arm=$2 method=scripts/quickstart/fusion/${2#grid_}.yaml
    local overrides=(--override "scripts/quickstart/$name.yaml")
    [ -f "$(checkpoint "$name" "$arm")/run.json" ] && return
    [ -f "$method" ] && overrides+=(--override "$method")
    say "$name, arm $arm"
    OMP_NUM_THREADS=1 bash "scripts/train/$name.sh" --arm "$arm" --checkpoints "$out/checkpoints" "${overrides[@]}" \
        --data.mixture "$out/data/$name.yaml" --data.image_folder "$out/data" "${training[@]}" "${@:3}"
}

evaluate() { # MODEL RUN [option]
    llava eval --model "$1" --tasks digit_pages --data "$out/data/test" --out "$2" --batch_size 50 "${@:3}" \
        > "$2.log" 2>&1 || { cat "$2.log" >&2 && exit 1; }
}

rm -rf "$out"
mkdir -p "$out/eval" && touch "$out/.quickstart"
say "data: pages of handwritten digits"
llava demo make "$out/data" "${sizes[@]}"
say "pretraining of the tiny vision tower and language model"
llava demo pretrain "$out/models" "${steps[@]}"

runs=()
for arm in $arms; do
    stage stage1 "$arm" --model.vision_tower "$out/models/siglip" --model.language_model "$out/models/qwen2"
    stage stage1_5 "$arm"
    stage stage2 "$arm"
    say "evaluation of $arm through lmms-eval"
    evaluate "$(checkpoint stage2 "$arm")" "$out/eval/$arm"
    runs+=("$out/eval/$arm")
done
say "evaluation of $arm, blind: every image replaced by noise"
evaluate "$last" "$out/eval/${arm}_blind" --image_noise
runs+=("$out/eval/${arm}_blind")

say "results on held-out digits"
llava eval report "${runs[@]}" --markdown "$out/eval/report.md" --json "$out/eval/report.json"

say "one question in the chat"
example() { python -c "import json; print(json.load(open('$out/data/example.json'))$1)"; }
question=$(example "['question']")
printf 'image     %s\nquestion  %s\nexpected  %s\n' "$out/data/example.png" "$question" "$(example "['answers'][0]")"
printf 'answer    '
llava chat --model "$last" --image "$out/data/example.png" "$question"
say "done"
