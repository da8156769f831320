#!/usr/bin/env bash
# The table of real videos in README.md: experiments/pretraining/ucf101_5.sh FOLDER, from the root of the repository, where
# FOLDER has videos/ and splits/ in UCF-101's layout. A second start goes on.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
OUT=outputs/pretraining_ucf101_5 SEEDS="0 1 2 3 4"
ucf() { echo "$1=ucf101 $2.name=ucf101_5 $2.source.root=$FOLDER/videos $2.source.annotations=$FOLDER/splits $2.source.val=$3"; }
FOLDER=$1

[ -d data/prepared/ucf101_5/small ] || uv run python -m vidtrain.prepare $(ucf dataset dataset train) name=small short_side=56 \
    gop=1 b_frames=0 preset=ultrafast
pretrain() { # name, seed, epochs, settings; probes learn from all training videos, and are measured on the test videos
    uv run python -m vidtrain.train $(ucf dataset dataset train) $(ucf dataset@probe.dataset probe.dataset test) \
        data.prepared=small clip.size=48 clip.frames=8 clip.frame_step=4 clip.repeated_augmentation=2 augmentation=pretraining \
        trainer.batch_size=8 trainer.epochs="$3" trainer.eval_every="$3"ep trainer.cpu_threads=1 trainer.num_workers=0 \
        logger=none seed="$2" run_dir="$OUT/$1$2" objective="$1" "${@:4}"
}
PREDICTOR=(objective.predictor_dim=64 objective.predictor_depth=2 objective.predictor_heads=4 optimizer.lr=1e-3)
for seed in $SEEDS; do
    pretrain videomae "$seed" 5 objective.masks.ratio=0.75 optimizer.lr=2e-3 \
        objective.decoder_dim=64 objective.decoder_depth=1 objective.decoder_heads=4
    pretrain vjepa "$seed" 3 objective.momentum=0.99 "${PREDICTOR[@]}"
    pretrain salt "$seed" 3 objective.teacher="$OUT/videomae$seed" "${PREDICTOR[@]}"
done
uv run python - "$OUT" $SEEDS <<'PY'
import json
import sys
from pathlib import Path

import numpy as np
from scipy.stats import t

out, *seeds = sys.argv[1:]
for name in ("videomae", "vjepa", "salt"):
    for metric in ("linear_top1", "knn_top1"):
        runs = [Path(out, f"{name}{seed}") for seed in seeds]
        before = [json.loads((run / "metrics.jsonl").open().readline())[f"val/{metric}"] for run in runs]
        after = [json.loads((run / "summary.json").read_text())[metric] for run in runs]
        gain = np.subtract(after, before)
        half = t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / len(gain) ** 0.5
        print(name, metric, np.round(before, 3), np.round(after, 3), f"{gain.mean():+.3f} +- {half:.3f}")
PY
