#!/usr/bin/env bash
# The tables of README.md: experiments/few_labels/launch.sh DATA GESTURES SHAPES [SWEEP ...]
# DATA/ucf101/{videos,splits} lie as dataset=ucf101 has them; GESTURES/groups.csv: path,label,group; SHAPES: class folders.
# SWEEP is a name or a pattern, such as 'sports_*'; without one all are run. A second start goes on, and its times are of
# what was missing. SEEDS=0 leaves it at one seed.
set -euo pipefail
cd "$(dirname "$0")/../.."
DATA=$(realpath "$1") GESTURES=$(realpath "$2") SHAPES=$(realpath "$3") CHOSEN=("${@:4}")
OUT=multirun/few_labels LISTS=$DATA/few_labels
SPORTS=(dataset=ucf101 "data_root=$DATA" dataset.source.fold=1,2,3)
LISTED=(dataset=listing "data_root=$LISTS" dataset.source.test=null) # data_root/NAME holds the listings
PEOPLE=("${LISTED[@]}" dataset.name=person1,person2,person3)
ALONE=("${LISTED[@]}" dataset.name=only_person1,only_person2,only_person3)
FORMS=("${LISTED[@]}" dataset.name=shape_circle,shape_square,shape_star)
MOTION=(dataset=motion "data_root=$DATA" clip.size=96 clip.eval_clips=8)
LAST=trainer.eval_every=40ep # the last epoch alone is evaluated, and nothing is selected
ADAMW=(optimizer=adamw optimizer.lr=1e-3)
# as the recipe was until features of nine places were kept apart: rows change one setting of this
POOLED=(model.encoder.features=pooled model.encoder.spatial_size=null)
SGD=(optimizer.lr=1e-3)

chosen() {
    local pattern
    for pattern in "${CHOSEN[@]:-*}"; do
        # shellcheck disable=SC2053
        [[ $1 == $pattern ]] && return
    done
    return 1
}
timed() { # NAME COMMAND...: a line NAME,load,user,system,wall of times.csv, the last three in seconds
    local TIMEFORMAT=%U,%S,%R seconds
    { seconds=$({ time "${@:2}" >&3 2>&4; } 2>&1); } 3>&1 4>&2
    echo "$1,$(cut -d' ' -f1 /proc/loadavg),$seconds" >>"$OUT/times.csv"
}
# a machine that does other work may be slow to start a process
sweep() {
    uv run python -m vidtrain.train -m experiment=few_labels logger=none data.decode_timeout_s=600 "hydra.sweep.dir=$OUT/$1" "${@:2}"
}
seeded() { # NAME OVERRIDES...
    if chosen "$1"; then timed "$1,${SEED//,/ }" sweep "$@" "seed=$SEED"; fi
}
row() { # NAME OVERRIDES...: on sports, gestures, and gestures of one person
    seeded "sports_$1" "${SPORTS[@]}" "${@:2}"
    people "$@"
}
pooled_row() { row "$1" "${POOLED[@]}" "${SGD[@]}" "${@:2}"; }
slow_row() { # of a head that takes longer
    seeded "sports_$1" "${SPORTS[@]}" trainer.epochs=10 "${@:2}"
    people "$@"
}
people() {
    seeded "gestures_$1" "${PEOPLE[@]}" $LAST "${@:2}"
    seeded "alone_$1" "${ALONE[@]}" $LAST "${@:2}"
}
moving() { # NAME OVERRIDES...: on generated videos, where motion alone decides
    seeded "shapes_$1" "${FORMS[@]}" $LAST "${@:2}"
    [[ $SEED != *,* ]] || seeded "motion_$1" "${MOTION[@]}" trainer.eval_every=10ep "${@:2}" # a sweep needs two
}

mkdir -p "$OUT"
uv run python experiments/few_labels/lists.py "$DATA" "$GESTURES" "$SHAPES" "$LISTS"
if chosen baselines; then
    for fold in 1 2 3; do
        uv run python -m vidtrain.baselines dataset=ucf101 "data_root=$DATA" "dataset.source.fold=$fold"
    done
    for name in person1 person2 person3 shape_circle shape_square shape_star; do
        uv run python -m vidtrain.baselines "${LISTED[@]}" "dataset.name=$name"
    done
    uv run python -m vidtrain.baselines dataset=motion "data_root=$DATA" 'networks=[]'
fi

for SEED in ${SEEDS:-0 0,1,2}; do # the first encodes what is not encoded
    row recipe
    row faster optimizer.lr=1e-3
    row places5 model.encoder.spatial_size=5 optimizer.lr=1e-4
    pooled_row pooled
    pooled_row rgb model.encoder.input=rgb model.head.streams=1
    pooled_row difference model.encoder.input=difference model.head.streams=1
    pooled_row means_alone 'model.head.statistics=[mean]'
    pooled_row trend 'model.head.statistics=[mean,deviation,trend]'
    row adamw "${POOLED[@]}" "${ADAMW[@]}"
    pooled_row drawn_layer model.head.init_std=0.02
    pooled_row more_decay optimizer.weight_decay=1e-2
    pooled_row dropout model.head.dropout=0.5
    row mean_head "${POOLED[@]}" model/head=mean model.head.norm=true "${ADAMW[@]}"
    slow_row convolution "${POOLED[@]}" model/head=convolution "${ADAMW[@]}"
    slow_row difference_convolution "${POOLED[@]}" model.encoder.input=difference model/head=convolution "${ADAMW[@]}"
    slow_row transformer "${POOLED[@]}" model/head=transformer model.head.num_frames=16 optimizer=adamw optimizer.lr=3e-4
    slow_row attentive "${POOLED[@]}" model/head=attentive model.head.num_heads=8 model.head.mlp_ratio=1 optimizer=adamw optimizer.lr=3e-4
    pooled_row pairs8 clip.eval_clips=8
    pooled_row pairs32 clip.eval_clips=32
    pooled_row pixels112 clip.size=112
    pooled_row pixels224 clip.size=224
    pooled_row consecutive clip.frames=17 clip.eval_clips=1 # a tenth of a second apart, from the middle of the video
    pooled_row fifth clip.fps=5 # a fifth of a second from one frame of a pair to the other
    pooled_row lite1 model.encoder.backbone=tf_efficientnet_lite1 pretrained=package:efficientnet_lite1
    pooled_row light augmentation=light stage.head_only.cache_views=4
    moving recipe
    moving trend "${POOLED[@]}" "${SGD[@]}" 'model.head.statistics=[mean,deviation,trend]'
    moving pooled "${POOLED[@]}" "${SGD[@]}"
    moving faster optimizer.lr=1e-3
    moving consecutive "${POOLED[@]}" "${SGD[@]}" clip.frames=17 clip.eval_clips=1
done

if chosen gestures_last_blocks; then
    sweep gestures_last_blocks "${PEOPLE[@]}" "${POOLED[@]}" "${SGD[@]}" stage=head_then_last clip.train_clips=8 clip.eval_clips=8 clip.size=112 \
        trainer.epochs=8 trainer.batch_size=6 trainer.eval_every=8ep
fi
if chosen gestures_scratch; then
    uv run python -m vidtrain.train -m model=vit3d_tiny augmentation=light clip.frames=16 clip.frame_step=4 clip.size=64 \
        trainer.epochs=20 trainer.batch_size=6 "hydra.sweep.dir=$OUT/gestures_scratch" "${PEOPLE[@]}" trainer.eval_every=20ep
fi
if chosen sports_few_videos; then
    for count in 1 2 5; do
        for seed in 0 1 2; do
            sweep "sports_${count}_videos_seed$seed" "${LISTED[@]}" $LAST "seed=$seed" \
                "dataset.name=fold1_${count}_seed$seed,fold2_${count}_seed$seed,fold3_${count}_seed$seed"
        done
    done
fi
uv run python experiments/few_labels/table.py "$OUT"
