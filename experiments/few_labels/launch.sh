#!/usr/bin/env bash
# The runs of README.md, three seeds of each input: experiments/few_labels/launch.sh dataset=ucf101 data_root=DATA
set -euo pipefail
cd "$(dirname "$0")/../.."
uv run python -m vidtrain.baselines "$@"
uv run python -m vidtrain.train -m experiment=few_labels seed=0,1,2 "$@"
uv run python -m vidtrain.train -m experiment=few_labels seed=0,1,2 \
    model.encoder.input=rgb,difference model.head.streams=1 "$@"
