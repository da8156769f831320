#!/usr/bin/env bash
# The tables of README.md; the second needs a GPU. About 20 minutes.
set -euo pipefail
cd "$(dirname "$0")/../../.."
export OMP_NUM_THREADS=2
uv run python experiments/benchmarks/models/bench.py --compile "$@"
if uv run python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    uv run python experiments/benchmarks/models/gpu.py
else
    echo "no GPU here: gpu.py was not run"
fi
