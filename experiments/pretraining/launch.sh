#!/usr/bin/env bash
# The tables of motion in README.md: experiments/pretraining/launch.sh, from the root of the repository. A second start
# goes on. SEEDS="0 1" leaves it at two.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=outputs/pretraining FEW=data/motion_three
DECODER=(objective.decoder_dim=48 objective.decoder_depth=1 objective.decoder_heads=4)

uv run python -m vidtrain.baselines dataset=motion 'networks=[]' # makes data/motion where it is not there yet
for split in train val test; do # the first three training videos of each class; val and test whole
    for folder in data/motion/$split/*/; do
        mkdir -p "$FEW/$split/$(basename "$folder")"
        find "$(realpath "$folder")" -type f | sort | if [ $split = train ]; then sed -n 1,3p; else cat; fi |
            xargs ln -sf -t "$FEW/$split/$(basename "$folder")"
    done
done

few() { uv run python -m vidtrain.train dataset=class_folders dataset.name=motion_three dataset.flip=0 \
    dataset.source.root=$FEW trainer.eval_every=50ep trainer.epochs=100 trainer.batch_size=10 "$@"; }
for seed in ${SEEDS:-0 1 2 3 4}; do
    uv run python -m vidtrain.train objective=videomae objective.masks.ratio=0.75 "${DECODER[@]}" dataset=motion \
        dataset@probe.dataset=motion trainer.eval_every=30ep trainer.epochs=30 optimizer.lr=1e-3 seed="$seed" run_dir="$OUT/videomae$seed"
    few seed="$seed" run_dir="$OUT/scratch$seed"
    few seed="$seed" init_from="$OUT/videomae$seed" run_dir="$OUT/fine$seed"
done
