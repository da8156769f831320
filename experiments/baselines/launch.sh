#!/usr/bin/env bash
# The first column of README.md: experiments/baselines/launch.sh dataset=ucf101 data_root=DATA
set -euo pipefail
cd "$(dirname "$0")/../.."
uv run python -m vidtrain.baselines "$@"
