#!/usr/bin/env bash
# The first run of README.md; say where the data and the weights lie:
#   experiments/vjepa_attentive/launch.sh dataset.folder=DATA pretrained=WEIGHTS
set -euo pipefail
cd "$(dirname "$0")/../.."
uv run python -m vidtrain.train experiment=vjepa_attentive "run_dir=outputs/vjepa_attentive/launch" "$@"
