#!/usr/bin/env bash
# The table of README.md: experiments/vjepa_attentive/launch.sh DATA/ucf101 [override of every run ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
data=$1
shift
runs=outputs/vjepa_attentive
lists=data/ucf101_listings
uv run python experiments/vjepa_attentive/listings.py "$data" "$lists"

train() {
    uv run python -m vidtrain.train experiment=vjepa_attentive "dataset.folder=$lists" \
        "+dataset.source.parts.first.source.test=$lists/first_test.csv" dataset.source.parts.second.frames=4 \
        dataset.source.parts.first.weight=0.65 dataset.source.parts.second.weight=0.35 \
        model=vit3d_tiny model.encoder.depth=6 model.head.num_heads=3 \
        clip.size=112 optimizer.lr=5e-4 trainer.batch_size=8 trainer.precision=fp32 "$@"
}
train "run_dir=$runs/scratch" stage=full "$@"
train "run_dir=$runs/scratch_seed1" stage=full seed=1 "$@"
# cached tokens need clips of one length
frozen=(dataset.source.parts.second.frames=null stage=head_only stage.head_only.cache_features=true
    stage.head_only.cache_views=2)
train "run_dir=$runs/frozen" "${frozen[@]}" "$@"
train "run_dir=$runs/frozen_seed1" "${frozen[@]}" seed=1 "$@"
train "run_dir=$runs/frozen_seed2" "${frozen[@]}" seed=2 "$@"
motion=outputs/videomae_staged/motion
experiments/videomae_staged/motion.sh "$motion" "$@" # one that is finished returns at once
from_motion=("init_from=$motion/checkpoints/best.pt" model.encoder.positions=sincos_1d model.encoder.image_size=224
    model.encoder.num_frames=16)
train "run_dir=$runs/frozen_motion" "${frozen[@]}" "${from_motion[@]}" "$@"
train "run_dir=$runs/finetuned_motion" stage=finetune "${from_motion[@]}" "$@"
