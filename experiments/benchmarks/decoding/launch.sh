#!/usr/bin/env bash
# All tables of README.md: the readers against each other, then memory over 10,000 clips. About an hour.
set -euo pipefail
cd "$(dirname "$0")/../../.."
uv run --group bench python experiments/benchmarks/decoding/bench.py "$@"
uv run --group bench python experiments/benchmarks/decoding/memory.py
