#!/usr/bin/env bash
# From folders of images to an ONNX file, then validation, export and resuming by themselves:
#   experiments/k400_tiny/launch.sh DATA [override of vidtrain.train ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
data=$1
shift
run=outputs/k400_tiny/launch
uv run python -m vidtrain.split source=frame_folders "path=$data/k400tiny_images" \
    "ground_truth=$data/k400tiny_groundtruth.csv" out=data/k400_tiny overwrite=true
uv run python -m vidtrain.train experiment=k400_tiny "dataset.source.root=$data/k400tiny_images" \
    "run_dir=$run" 'export.formats=[onnx]' "$@"
uv run python -m vidtrain.evaluate "checkpoint=$run" split=val
uv run python -m vidtrain.export "checkpoint=$run" "out=$run/export_again" 'formats=[onnx]'
uv run python -m vidtrain.train "run_dir=$run"
