"""What the loop owns, typed. Plain dataclasses: usable in a notebook, checked by Hydra on the command line."""

from dataclasses import dataclass, field


@dataclass
class TrainerSettings:
    """How a run is trained, whatever is trained on whatever.

    A duration is text: `3ep` epochs, `500it` optimizer steps, `10%` of the phase.
    """

    epochs: int = 30  # the run's length; phases take shares of it
    batch_size: int = 32  # videos per optimizer step, over all ranks and accumulation steps
    accumulation: int = 1  # micro-batches per optimizer step and rank
    steps_per_epoch: int | None = None  # null: as many as the training split holds batches
    eval_batch_size: int = 16  # videos per evaluation batch and rank

    device: str = "auto"  # auto, cpu, cuda
    precision: str = "fp32"  # fp32, bf16, fp16 (with a GradScaler: skipped steps and the scale are logged)
    compile: bool = False  # torch.compile
    num_workers: int | None = None  # decoding processes per rank; null: its share of the cores, at most 8
    cpu_threads: int | None = (
        None  # computing threads per rank without a GPU; null: half of its share of the cores
    )

    clip_grad: float | None = 1.0  # largest gradient norm, or component; null: measured, not clipped
    clip_grad_by: str = "norm"  # norm, value
    batch_norm: str = "train"  # train, sync (over ranks), frozen_statistics, frozen (with scale and shift)
    ema: float | None = None  # decay of an average of the weights, such as 0.9999; null: none is kept
    ema_warmup: bool = True  # a smaller decay at first: (1 + step) / (10 + step)

    monitor: str = "top1"  # what makes a checkpoint the best, on val: map where videos have several labels
    monitor_weights: str | None = None  # whose, and what best.pt holds: raw, ema; null: ema where it is kept
    patience: int | None = None  # evaluations without a new best of the run that end a phase; null: never
    eval_every: str = "1ep"
    save_every: str = "1ep"  # how often last.pt is written; the one before stays as previous.pt
    keep_every: str | None = None  # how often a checkpoint is kept for good
    log_every: int = 10  # steps between rows of metrics.jsonl

    max_eval_videos: int | None = None  # evaluate about so many videos only, for a quick look; null: all
    max_unreadable_fraction: float = 0.02  # share of unreadable training videos that ends the run
    overfit_one_batch: bool = False  # train and validate on one batch of videos only (debug=overfit)
    profile: bool = False  # write a torch profiler trace of a few steps (debug=profile)
    rank_timeout: float = 60.0  # seconds without a sign of life of a rank that end the others
    deterministic: bool = False  # only deterministic CUDA kernels, where resuming must give the same bits


@dataclass
class HeadGridSettings:
    """Heads that train side by side on one frozen encoder: one for each pair of a rate and a weight decay."""

    lr: list[float] = field(default_factory=list)  # peak learning rates, in place of optimizer.lr
    weight_decay: list[float] = field(default_factory=list)  # in place of optimizer.weight_decay


@dataclass
class PhaseSettings:
    """One phase of a stage: how long, what is trained, and how fast."""

    duration: str = "100%"  # a share of trainer.epochs, or epochs, or steps
    encoder_blocks: int | None = None  # how many of the encoder's last blocks train; null: all of it; 0: none
    lr_scale: float = 1.0  # times optimizer.lr
    encoder_lr_scale: float = 1.0  # times that, for the encoder
    layer_decay: float = (
        1.0  # times that, for each block from a layer to the head, and once more for the stem
    )
    # for a frozen encoder alone, encoder_blocks: 0
    heads: HeadGridSettings | None = None  # many heads at once, of which val selects one
    cache_features: bool = False  # compute the encoder's tokens once, keep them on disk, and train on those
    cache_views: int = (
        4  # differently augmented views of each video that are kept; epochs take turns with them
    )
