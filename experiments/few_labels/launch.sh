#!/usr/bin/env bash
# The tables of README.md: experiments/few_labels/launch.sh DATA GESTURES
# DATA/ucf101/{videos,splits} lie as dataset=ucf101 has them; GESTURES/groups.csv: path,label,group. A second start goes on.
set -euo pipefail
cd "$(dirname "$0")/../.."
DATA=$(realpath "$1") GESTURES=$(realpath "$2")
OUT=multirun/few_labels LISTS=$DATA/few_labels
SPORTS=(dataset=ucf101 "data_root=$DATA" dataset.source.fold=1,2,3)
LISTED=(dataset=listing "data_root=$LISTS" dataset.source.test=null) # data_root/NAME holds the listings
PEOPLE=("${LISTED[@]}" dataset.name=person1,person2,person3)
ALONE=("${LISTED[@]}" dataset.name=only_person1,only_person2,only_person3)
LAST=trainer.eval_every=40ep # the last epoch alone is evaluated, and nothing is selected
ADAMW=(optimizer=adamw optimizer.lr=1e-3)

sweep() { uv run python -m vidtrain.train -m experiment=few_labels "hydra.sweep.dir=$OUT/$1" "${@:2}"; }
both() {
    sweep "sports_$1" "${SPORTS[@]}" "${@:2}"
    sweep "gestures_$1" "${PEOPLE[@]}" $LAST "${@:2}"
    sweep "gestures_of_one_person_$1" "${ALONE[@]}" $LAST "${@:2}"
}

uv run python experiments/few_labels/lists.py "$DATA" "$GESTURES" "$LISTS"
for fold in 1 2 3; do
    uv run python -m vidtrain.baselines dataset=ucf101 "data_root=$DATA" "dataset.source.fold=$fold"
    uv run python -m vidtrain.baselines "${LISTED[@]}" "dataset.name=person$fold"
done
uv run python -m vidtrain.baselines dataset=motion "data_root=$DATA" 'networks=[]'

both recipe seed=0,1,2
both rgb model.encoder.input=rgb model.head.streams=1
both difference model.encoder.input=difference model.head.streams=1
both means_alone 'model.head.statistics=[mean]'
both adamw "${ADAMW[@]}"
both drawn_layer model.head.init_std=0.02
both more_decay optimizer.weight_decay=1e-2
both dropout model.head.dropout=0.5
both mean_head model/head=mean model.head.norm=true "${ADAMW[@]}" seed=0,1,2
both convolution model/head=convolution "${ADAMW[@]}" seed=0,1,2
both transformer model/head=transformer model.head.num_frames=16 optimizer=adamw optimizer.lr=3e-4 seed=0,1,2
both difference_convolution model.encoder.input=difference model/head=convolution "${ADAMW[@]}" seed=0,1,2
both pairs8 clip.eval_clips=8
sweep gestures_last_blocks "${PEOPLE[@]}" stage=head_then_last clip.train_clips=8 clip.eval_clips=8 clip.size=112 \
    trainer.epochs=8 trainer.batch_size=6 trainer.eval_every=8ep
uv run python -m vidtrain.train -m model=vit3d_tiny augmentation=light clip.frames=16 clip.frame_step=4 clip.size=64 \
    trainer.epochs=20 trainer.batch_size=6 "hydra.sweep.dir=$OUT/gestures_scratch" "${PEOPLE[@]}" trainer.eval_every=20ep
for count in 1 2 5; do
    for seed in 0 1 2; do
        sweep "sports_${count}_videos_seed$seed" "${LISTED[@]}" $LAST "seed=$seed" \
            "dataset.name=fold1_${count}_seed$seed,fold2_${count}_seed$seed,fold3_${count}_seed$seed"
    done
done
sweep motion dataset=motion "data_root=$DATA" clip.size=64 clip.eval_clips=8 trainer.eval_every=10ep seed=0,1,2
uv run python experiments/few_labels/table.py "$OUT"
