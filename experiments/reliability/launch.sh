#!/usr/bin/env bash
# The matrix of README.md: each fault, tried --times N. As root the full disks are real ones (a small tmpfs).
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1 PYTHONPATH=tests/faults:tests
exec uv run python experiments/reliability/faults.py "$@"
