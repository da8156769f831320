#!/usr/bin/env bash
# A small VideoMAE encoder (2.9 M parameters) trained on generated video, for want of published weights:
#   experiments/videomae_staged/motion.sh RUN [override ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
run=$1
shift
uv run python -m vidtrain.train experiment=videomae_staged dataset=motion stage=full "run_dir=$run" \
    model=videomae_small model.encoder.embed_dim=192 model.encoder.num_heads=3 model.encoder.depth=6 \
    clip.size=64 trainer.epochs=12 trainer.patience=null trainer.precision=fp32 "$@"
