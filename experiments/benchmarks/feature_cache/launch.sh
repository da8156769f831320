#!/usr/bin/env bash
# The table of README.md.
set -euo pipefail
cd "$(dirname "$0")/../../.."
uv run python experiments/benchmarks/feature_cache/bench.py "$@"
