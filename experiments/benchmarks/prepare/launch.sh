#!/usr/bin/env bash
# The table of README.md, with sources made of real clips (their folder as --clips FOLDER) or of a moving texture.
set -euo pipefail
cd "$(dirname "$0")/../../.."
uv run python experiments/benchmarks/prepare/bench.py "$@"
