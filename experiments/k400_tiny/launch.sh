#!/usr/bin/env bash
# From folders of images to an ONNX file: experiments/k400_tiny/launch.sh DATA [override ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
data=$1
shift
uv run python -m vidtrain.split source=frame_folders "path=$data/k400tiny_images" \
    "ground_truth=$data/k400tiny_groundtruth.csv" out=data/k400_tiny overwrite=true
uv run python -m vidtrain.train experiment=k400_tiny "dataset.source.root=$data/k400tiny_images" \
    run_dir=outputs/k400_tiny/launch 'export.formats=[onnx]' "$@"
