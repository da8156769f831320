#!/usr/bin/env bash
# The runs of README.md: each measured, and what it is advised followed, in turn. About 15 minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/../../.."
OUT=${OUT:-outputs/benchmark/advice}
COMMON=(prove=true rounds="${ROUNDS:-5}" steps="${STEPS:-30}")
LARGE=(dataset.name=large "data_root=${DATA:-data}" "dataset.source.root=${DATA:-data}/motion_large"
    +dataset.source.size=640 +dataset.source.train_per_class=16 +dataset.source.val_per_class=2
    +dataset.source.test_per_class=2)
benchmark() { uv run python -m vidtrain.benchmark "${COMMON[@]}" "$@"; }

benchmark out="$OUT/large" "${LARGE[@]}" trainer.num_workers=1
# the advice that needs another program first
uv run python -m vidtrain.prepare dataset=motion "${LARGE[@]}" short_side=256 gop=12
benchmark out="$OUT/large_prepared" "${LARGE[@]}" trainer.num_workers=1
benchmark out="$OUT/in_process" trainer.num_workers=0
benchmark out="$OUT/model" model=vit3d_tiny clip.size=64 trainer.batch_size=4 trainer.num_workers=1 trainer.cpu_threads=1
uv run python experiments/benchmarks/advice/table.py "$OUT"/*/benchmark.json
