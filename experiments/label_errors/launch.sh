#!/usr/bin/env bash
# The figures of README.md: experiments/label_errors/launch.sh DATA, where DATA/ucf101/{videos,splits} lie as dataset=ucf101
# has them. Embeddings that are there are not made again.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=outputs/embed/ucf101_5
[ -e "$OUT/embeddings.npz" ] || uv run python -m vidtrain.embed model=efficientnet_lite0 pretrained=package:efficientnet_lite0 \
    model.encoder.input=both clip.frames=2 clip.fps=10 clip.size=160 eval_clips=16 batch_size=1 \
    dataset=ucf101 "data_root=$(realpath "$1")" "out=$OUT"
uv run python experiments/label_errors/measure.py "$OUT"
uv run python experiments/label_next/measure.py "$OUT"
