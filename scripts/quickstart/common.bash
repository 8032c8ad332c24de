# What the quickstarts have in common; they source it in the repository's root, and set `out` to where everything goes.

started=.quickstart # in $out: that a quickstart made it; of several seeds also what they have in common

fail() { echo "error: $1" >&2 && exit 2; }

say() { printf '\n== %s (%d:%02d) ==\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }

check_seeds() { case $1 in *[!0-9]* | 0*) fail "SEEDS must be a whole number above 0, found $1" ;; esac; }

check_out() { # a folder of somebody else's is left alone
    [ -z "$(ls -A "$out" 2> /dev/null)" ] || [ -f "$out/$started" ] ||
        fail "$out is not empty and was not made by the quickstart; name another QUICKSTART_DIR"
}

once() { # FOLDER COMMAND ..: the command makes the folder, whole or not at all; one that is there stays
    [ -d "$1" ] && return
    rm -rf "$1.unfinished" && mkdir -p "$(dirname "$1")"
    "${@:2}" "$1.unfinished" && mv "$1.unfinished" "$1"
}

start_or_go_on() { # SIZE FOLDER ..: refuses another size, or other code and recipes in these, than $out began with
    local used changed
    used=$(
        find "${@:2}" -name '*.py' -o -name '*.yaml' -o -name '*.json' | LC_ALL=C sort | xargs sha256sum
        echo "$1  QUICKSTART_SIZE"
    ) # "HASH  FILE"
    if [ -f "$out/$started" ]; then
        changed=$(sort - "$out/$started" <<< "$used" | uniq -u)
        changed=${changed%%$'\n'*}
        [ -z "$changed" ] || fail "$out was started with another ${changed##* }; name another QUICKSTART_DIR"
    fi
    mkdir -p "$out" && echo "$used" > "$out/$started"
    exec 9> "$out/.lock" # held by whatever an ended quickstart left at work, too
    flock --nonblock 9 || fail "$out: another quickstart is at work there"
}

use_two_cores() { # two processes of one thread each; threads that spin while they wait would starve the other process
    export CUDA_VISIBLE_DEVICES= # on the CPU also where GPUs are
    export NPROC_PER_NODE=2 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false DS_ACCELERATOR=cpu
}
