#!/usr/bin/env bash
# What each tracker costs a training step: experiments/benchmarks/tracker/launch.sh [override ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
OMP_NUM_THREADS=1 uv run python experiments/benchmarks/tracker/bench.py "$@"
