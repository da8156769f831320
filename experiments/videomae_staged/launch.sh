#!/usr/bin/env bash
# The table of README.md: experiments/videomae_staged/launch.sh DATA/ucf101 [override of every run ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
data=$1
shift
runs=outputs/videomae_staged
uv run python experiments/videomae_staged/folders.py "$data" data/ucf101_folders
experiments/videomae_staged/motion.sh "$runs/motion" "$@"

train() {
    uv run python -m vidtrain.train experiment=videomae_staged dataset.source.root=data/ucf101_folders \
        model=videomae_small model.encoder.embed_dim=192 model.encoder.num_heads=3 model.encoder.depth=6 \
        clip.size=112 trainer.precision=fp32 stage.head_only.cache_features=true "$@"
}
train "run_dir=$runs/staged" "init_from=$runs/motion/checkpoints/best.pt" "$@"
train "run_dir=$runs/staged_random" "$@"
train "run_dir=$runs/staged_random_seed1" seed=1 "$@"
train "run_dir=$runs/staged_random_seed2" seed=2 "$@"
