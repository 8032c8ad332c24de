#!/usr/bin/env bash
# A stage of the two towers, see launch.sh and docs/two_tower.md; STAGE is a file of recipes/two_tower:
#   bash scripts/train/two_tower.sh {pretrain,vqav2,snli_ve,nlvr2,flickr30k,coco} [--arm manager] [--key value ...]
stage=${1:-}
case $stage in
pretrain | vqav2 | snli_ve | nlvr2 | flickr30k | coco | vqav2_no_vlp | flickr30k_no_vlp) ;;
*)
    echo "error: two_tower.sh needs a stage: pretrain, vqav2, snli_ve, nlvr2, flickr30k, coco, or without pre-training" \
        "vqav2_no_vlp, flickr30k_no_vlp; found '$stage'" >&2
    exit 2
    ;;
esac
exec bash "$(dirname "$0")/launch.sh" "two_tower/$stage" "${@:2}"
