#!/usr/bin/env bash
# Trains every case with the code of two commits and compares what they leave: launch.sh BEFORE AFTER [OUT]
set -euo pipefail
cd "$(dirname "$0")/../.."
before=$1 after=$2 out=${3:-outputs/same_bits}
for commit in "$before" "$after"; do
    name=$(git rev-parse --short "$commit")
    [ -d "$out/code/$name" ] || git worktree add --detach "$out/code/$name" "$commit"
    uv run python experiments/same_bits/bits.py run "$out/code/$name" "$out/$name"
done
uv run python experiments/same_bits/bits.py compare "$out/$(git rev-parse --short "$before")" \
    "$out/$(git rev-parse --short "$after")"
