#!/usr/bin/env bash
# The run of README.md and the baseline beside it: experiments/classy_ucf101/launch.sh data_root=DATA
set -euo pipefail
cd "$(dirname "$0")/../.."
uv run python -m vidtrain.train experiment=classy_ucf101 run_dir=outputs/classy_ucf101/launch "$@"
uv run python -m vidtrain.baselines dataset=ucf101 "$@"
