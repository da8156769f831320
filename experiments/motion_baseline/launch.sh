#!/usr/bin/env bash
# Both runs of this experiment, then the figures of README.md from their tables.
set -euo pipefail
cd "$(dirname "$0")/../.."
for experiment in motion_baseline motion_single_frame; do
    uv run python -m vidtrain.train experiment=$experiment "run_dir=outputs/$experiment/launch" "$@"
    uv run python experiments/motion_baseline/pairs.py "outputs/$experiment/launch/eval/test/predictions.csv"
done
