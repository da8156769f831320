#!/usr/bin/env bash
# The table of README.md; needs about 3 GB of disk and 4 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/../../.."
uv run python experiments/benchmarks/manifest/bench.py "$@"
