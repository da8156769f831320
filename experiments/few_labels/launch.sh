#!/usr/bin/env bash
# The tables of README.md: experiments/few_labels/launch.sh DATA GESTURES
# DATA/ucf101/{videos,splits} lie as dataset=ucf101 has them; GESTURES/groups.csv: path,label,group. A second start goes on.
set -euo pipefail
cd "$(dirname "$0")/../.."
DATA=$(realpath "$1") GESTURES=$(realpath "$2")
OUT=multirun/few_labels LISTS=$DATA/few_labels
SPORTS=(dataset=ucf101 "data_root=$DATA" dataset.source.fold=1,2,3)
LISTED=(dataset=listing "data_root=$DATA" dataset.source.test=null trainer.eval_every=40ep)
PEOPLE=("${LISTED[@]}" dataset.name=gestures "dataset.folder=$LISTS/person1,$LISTS/person2,$LISTS/person3")
ADAMW=(optimizer=adamw optimizer.lr=1e-3)

sweep() { uv run python -m vidtrain.train -m experiment=few_labels "hydra.sweep.dir=$OUT/$1" "${@:2}"; }
both() { sweep "sports_$1" "${SPORTS[@]}" "${@:2}"; sweep "gestures_$1" "${PEOPLE[@]}" "${@:2}"; }

uv run python experiments/few_labels/lists.py "$DATA" "$GESTURES" "$LISTS"
for fold in 1 2 3; do
    uv run python -m vidtrain.baselines dataset=ucf101 "data_root=$DATA" "dataset.source.fold=$fold"
    uv run python -m vidtrain.baselines dataset=listing dataset.name=gestures "data_root=$DATA" \
        "dataset.folder=$LISTS/person$fold" dataset.source.test=null
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
both size112 clip.size=112
both size224 clip.size=224
both drawn_view stage.head_only.cache_views=1 clip.train_clips=16
for count in 1 2 5; do
    for seed in 0 1 2; do
        sweep "sports_${count}_videos_seed$seed" "${LISTED[@]}" dataset.name=ucf101_5 "seed=$seed" \
            "dataset.folder=$LISTS/fold1_${count}_seed$seed,$LISTS/fold2_${count}_seed$seed,$LISTS/fold3_${count}_seed$seed"
    done
done
sweep motion dataset=motion "data_root=$DATA" clip.size=64 clip.eval_clips=8 trainer.eval_every=10ep seed=0,1,2
uv run python experiments/few_labels/table.py "$OUT"
