#!/usr/bin/env bash
# A grid with a rate that is too high, a search, and their comparison: experiments/sweeps/launch.sh [override of every run]
set -euo pipefail
cd "$(dirname "$0")/../.."
small=(+dataset.source.train_per_class=20 +dataset.source.val_per_class=10 +dataset.source.test_per_class=10
    data_root=data/sweeps logger=none trainer.epochs=6 "$@")

# ends with status 1, as two of its six trials diverge
uv run python -m vidtrain.train -m "${small[@]}" hydra.sweep.dir=multirun/sweeps/grid \
    optimizer.lr=1e-3,3e-3,1e30 seed=0,1 || test $? = 1
uv run python -m vidtrain.sweep status multirun/sweeps/grid
uv run python -m vidtrain.compare multirun/sweeps/grid out=outputs/sweeps/grid

uv run --extra optuna python -m vidtrain.train -m "${small[@]}" hydra.sweep.dir=multirun/sweeps/search \
    hydra/sweeper=optuna hydra.sweeper.n_trials=12 hydra.sweeper.pruner.n_startup_trials=3 \
    'optimizer.lr=tag(log, interval(1e-5, 1e-1))' 'model.encoder.depth=range(1, 5)'
uv run python -m vidtrain.compare multirun/sweeps/search out=outputs/sweeps/search
