#!/usr/bin/env bash
# The table of README.md: experiments/mean_frame/launch.sh dataset=ucf101 data_root=DATA
set -euo pipefail
cd "$(dirname "$0")/../.."
uv run python experiments/mean_frame/baseline.py "$@"
