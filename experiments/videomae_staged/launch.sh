#!/usr/bin/env bash
# The first run of README.md; say where the data and the weights lie:
#   experiments/videomae_staged/launch.sh dataset.source.root=DATA pretrained=WEIGHTS
set -euo pipefail
cd "$(dirname "$0")/../.."
uv run python -m vidtrain.train experiment=videomae_staged "run_dir=outputs/videomae_staged/launch" "$@"
