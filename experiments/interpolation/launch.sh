#!/usr/bin/env bash
# The sweep of README.md, and its comparison. About 5 minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=multirun/interpolation/launch
uv run python -m vidtrain.train -m "hydra.sweep.dir=$folder" trainer.epochs=6 clip.interpolation=bicubic,bilinear seed=0,1,2 "$@"
uv run python -m vidtrain.compare "$folder" out=outputs/compare/interpolation
