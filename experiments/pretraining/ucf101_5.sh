#!/usr/bin/env bash
# The tables of real videos in README.md: experiments/pretraining/ucf101_5.sh FOLDER [NAME ...], from the root of the
# repository, where FOLDER has videos/ and splits/ in UCF-101's layout. A second start goes on. SEEDS="0 1" leaves it at two.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
OUT=outputs/pretraining_ucf101_5 FOLDER=$1
read -ra OBJECTIVES <<<"${*:2}"
[ ${#OBJECTIVES[@]} -gt 0 ] || OBJECTIVES=(videomae vjepa vjepa_long salt)
COMMON=(data.prepared=small clip.size=48 clip.frames=8 clip.frame_step=4 trainer.batch_size=8 trainer.cpu_threads=1
    trainer.num_workers=0 logger=none)
DECODER=(objective.masks.ratio=0.75 objective.decoder_dim=64 objective.decoder_depth=1 objective.decoder_heads=4)
PREDICTOR=(objective.predictor_dim=64 objective.predictor_depth=2 objective.predictor_heads=4)

ucf() { echo "$1=ucf101 $2.name=ucf101_5 $2.source.root=$FOLDER/videos $2.source.annotations=$FOLDER/splits $2.source.val=$3"; }
# Probes learn from all training videos and are measured on the test videos, before the first step and after the last
pretrain() { # NAME SEED EPOCHS SETTINGS...
    uv run python -m vidtrain.train $(ucf dataset dataset train) $(ucf dataset@probe.dataset probe.dataset test) "${COMMON[@]}" \
        clip.repeated_augmentation=2 augmentation=pretraining trainer.epochs="$3" trainer.eval_every="$3"ep \
        seed="$2" run_dir="$OUT/$1$2" "${@:4}"
}
classify() { # NAME SEED SETTINGS...: with labels; the last epoch is measured on the test videos, and nothing is selected
    uv run python -m vidtrain.train $(ucf dataset dataset test) "${COMMON[@]}" augmentation=crop optimizer.lr=1e-3 \
        trainer.epochs=30 trainer.eval_every=30ep seed="$2" run_dir="$OUT/$1$2" "${@:3}"
}

[ -d data/prepared/ucf101_5/small ] || uv run python -m vidtrain.prepare $(ucf dataset dataset train) name=small short_side=56 \
    gop=1 b_frames=0 preset=ultrafast
for seed in ${SEEDS:-0 1 2 3 4}; do
    classify scratch_full "$seed" stage=full
    classify scratch_head "$seed" stage=head_cached
    for objective in "${OBJECTIVES[@]}"; do
        case $objective in
            videomae) pretrain videomae "$seed" 60 objective=videomae "${DECODER[@]}" optimizer.lr=2e-3 ;;
            vjepa) pretrain vjepa "$seed" 20 objective=vjepa objective.momentum=0.99 "${PREDICTOR[@]}" optimizer.lr=1e-3 ;;
            vjepa_long) pretrain vjepa_long "$seed" 100 objective=vjepa objective.momentum=0.998 \
                "${PREDICTOR[@]}" optimizer.lr=5e-4 trainer.eval_every=25ep ;;
            salt) pretrain salt "$seed" 20 objective=salt objective.teacher="$OUT/videomae$seed" "${PREDICTOR[@]}" optimizer.lr=1e-3 ;;
            *) echo "$objective is none of videomae, vjepa, vjepa_long, salt" >&2 && exit 1 ;;
        esac
        classify "${objective}_full" "$seed" stage=full init_from="$OUT/$objective$seed"
        classify "${objective}_head" "$seed" stage=head_cached init_from="$OUT/$objective$seed"
    done
done
uv run python experiments/pretraining/table.py "$OUT" "${OBJECTIVES[@]}"
