#!/usr/bin/env bash
# The table of README.md. About 20 minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/../../.."
export OMP_NUM_THREADS=2
uv run python experiments/benchmarks/export/bench.py "$@"
