#!/usr/bin/env bash
# What is tried in README.md, on a private SLURM of three fake nodes on this machine (root; apt-get install slurm-wlm munge).
set -euo pipefail
cd "$(dirname "$0")/../.."
python -m pytest tests/slurm -v "$@"
