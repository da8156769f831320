#!/usr/bin/env bash
# The table of README.md. Arguments go to bench.py: --clips FOLDER (required), --latency, --samples, --turns
set -euo pipefail
cd "$(dirname "$0")/../../.."
export OMP_NUM_THREADS=1
uv run --group bench --extra remote python experiments/benchmarks/stores/bench.py "$@"
