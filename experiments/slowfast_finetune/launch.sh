#!/usr/bin/env bash
# The first run of README.md; say where the data and the weights lie:
#   experiments/slowfast_finetune/launch.sh dataset.source.root=DATA pretrained=WEIGHTS
set -euo pipefail
cd "$(dirname "$0")/../.."
uv run python -m vidtrain.train experiment=slowfast_finetune "run_dir=outputs/slowfast_finetune/launch" "$@"
