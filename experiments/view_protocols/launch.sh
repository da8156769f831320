#!/usr/bin/env bash
# Both models and tables of README.md: experiments/view_protocols/launch.sh DATA, which holds ucf101/{videos,splits}
set -euo pipefail
cd "$(dirname "$0")/../.."
uv run python -m vidtrain.train dataset=ucf101 "data_root=$1" run_dir=outputs/view_protocols/ucf101 \
    augmentation=light clip.size=64 clip.frame_step=4 trainer.epochs=40 trainer.batch_size=16 trainer.ema=0.99 \
    optimizer.lr=1e-3
uv run python -m vidtrain.train experiment=motion_baseline run_dir=outputs/view_protocols/motion
uv run python -m vidtrain.evaluate checkpoint=outputs/view_protocols/ucf101 \
    eval_clips=4 crops=3 'frame_order_ablations=[shuffled,reversed,single_frame]'
uv run python -m vidtrain.evaluate checkpoint=outputs/view_protocols/motion \
    eval_clips=4 'frame_order_ablations=[shuffled,reversed,single_frame]'
