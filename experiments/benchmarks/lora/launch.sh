#!/usr/bin/env bash
# The tables of README.md. About 5 minutes, and 5 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/../../.."
export OMP_NUM_THREADS=1
uv run python experiments/benchmarks/lora/bench.py "$@"
