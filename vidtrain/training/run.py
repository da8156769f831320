"""The input of the loop: settings, which need no torch, and the parts of a run that the app assembles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vidtrain.errors import UserError
from vidtrain.training.process import PreemptionHandler

if TYPE_CHECKING:  # the settings are read before torch is imported, which takes seconds
    from torch import Tensor, nn

    from vidtrain.data.loading.dataset import Batch
    from vidtrain.models.classifier import EncoderWithHead
    from vidtrain.training.distributed import Ranks
    from vidtrain.training.losses import Objective
    from vidtrain.training.optimizers import OptimizerFactory
    from vidtrain.training.schedules import Schedule


# --- rules for the values of a setting, as metadata of its field. None is allowed where the type allows it ---


def setting(default: Any, rules: Mapping[str, Any]) -> Any:
    """A dataclass field with this default, whose value must obey `rules`."""
    return field(default=default, metadata=rules)


def at_least(minimum: float, unit: str = "", advice: str = "") -> Mapping[str, Any]:
    return {"allows": lambda value: value >= minimum, "must": f"must be {minimum}{unit} or more{advice}"}


def between(low: float, high: float, advice: str = "") -> Mapping[str, Any]:
    """Rules for a number between two bounds, which are not allowed themselves."""
    return {"allows": lambda value: low < value < high, "must": f"must lie between {low} and {high}{advice}"}


def above(bound: float, advice: str = "") -> Mapping[str, Any]:
    return {"allows": lambda value: value > bound, "must": f"must be above {bound}{advice}"}


def share(rest: str = "") -> Mapping[str, Any]:
    """Rules for a number from 0 to 1, both allowed."""
    return {"allows": lambda value: 0 <= value <= 1, "must": f"must lie between 0 and 1{rest}"}


def one_of(*choices: str) -> Mapping[str, Any]:
    return {"choices": lambda: choices}


def a_size() -> Mapping[str, Any]:
    """Rules for the size of files, such as 1GiB."""

    def allows(value: str) -> bool:
        from vidtrain.data.stores.cache import bytes_in

        try:
            return bytes_in(value) > 0
        except UserError:
            return False

    return {"allows": allows, "must": "must be a size, such as 500MB, 1GiB or 2TiB"}


def a_metric(closing: bool = False) -> Mapping[str, Any]:
    """Rules for the name of a metric. Some metrics are only in the report that ends a run, and need `closing`."""

    def names() -> list[str]:
        from vidtrain.evaluation.metrics import CLOSING_DIRECTIONS, DIRECTIONS  # imports torch

        return list(CLOSING_DIRECTIONS if closing else DIRECTIONS)

    return {"choices": names}


# --- settings ---------------------------------------------------------------------------------------------


@dataclass
class TrainerSettings:
    """How a run is trained, independent of its model and data.

    A duration is text: `3ep` epochs, `500it` optimizer steps, `10%` of the phase.
    """

    epochs: int = setting(28, at_least(1))  # length of the whole run, divided among its phases
    # videos per optimizer step, over all ranks and accumulation steps
    batch_size: int = setting(16, at_least(1))
    accumulation: int = setting(1, at_least(1))  # micro-batches per optimizer step and rank
    # null: one for each batch of the training split
    steps_per_epoch: int | None = setting(None, at_least(1))
    eval_batch_size: int = setting(16, at_least(1))  # videos per evaluation batch and rank

    device: str = "auto"  # auto, cpu, cuda
    # fp16 uses a GradScaler, and logs its scale and the steps that it skips
    precision: str = setting("fp32", one_of("fp32", "bf16", "fp16"))
    compile: bool = False  # torch.compile
    # decoding processes per rank; null: the rank's share of the machine's cores (without a GPU half of it), at most 8
    num_workers: int | None = setting(None, at_least(0))
    # computing threads per rank without a GPU; null: half of the rank's share of the cores
    cpu_threads: int | None = setting(None, at_least(1))

    # largest gradient norm or, with clip_grad_by=value, gradient component; null: the norm is logged, not clipped
    clip_grad: float | None = setting(1.0, above(0, "; null does not clip"))
    clip_grad_by: str = setting("norm", one_of("norm", "value"))
    # sync: statistics over the batch of all ranks; frozen_statistics: running statistics do not change; frozen: scale
    # and shift do not change either
    batch_norm: str = setting("train", one_of("train", "sync", "frozen_statistics", "frozen"))
    # decay of the moving average of the weights, such as 0.9999; null: no average
    ema: float | None = setting(None, between(0, 1, ", such as 0.999; null keeps no average"))
    ema_warmup: bool = True  # a smaller decay at first: (1 + step) / (10 + step)

    # the val metric that selects best.pt; map is the usual one where videos have several labels
    monitor: str = setting("top1", a_metric())
    # the weights that `monitor` is measured on and best.pt holds; null: ema if trainer.ema is set, else raw
    monitor_weights: str | None = setting(None, one_of("raw", "ema"))
    # a phase ends after this many evaluations in a row without a new best of the run; null: never
    patience: int | None = setting(None, at_least(1))
    eval_every: str = "1ep"
    save_every: str = "1ep"  # how often last.pt is written; the last.pt before becomes previous.pt
    keep_every: str | None = None  # how often a step_*.pt is written, which is never deleted
    log_every: int = setting(10, at_least(1))  # steps between rows of metrics.jsonl

    # evaluate only about this many videos, for a quick check; null: all
    max_eval_videos: int | None = setting(None, at_least(1))
    # a larger share of unreadable training videos ends the run
    max_unreadable_fraction: float = setting(0.02, share())
    overfit_one_batch: bool = False  # train and validate on one batch of videos only (debug=overfit)
    # in pretraining: end the run when features collapse; without it, collapse is a warning
    stop_on_collapse: bool = False
    profile: bool = False  # write a torch profiler trace of a few steps (debug=profile)
    # a rank that sends no heartbeat for this many seconds counts as lost, and the other ranks end
    rank_timeout: float = setting(60.0, at_least(5, " seconds"))
    deterministic: bool = False  # use only deterministic CUDA kernels, so that a resumed run gives the same bits


@dataclass
class HeadGridSettings:
    """Heads that train side by side on one frozen encoder: one for each pair of a rate and a weight decay."""

    lr: list[float] = field(default_factory=list)  # peak learning rates, in place of optimizer.lr
    weight_decay: list[float] = field(default_factory=list)  # in place of optimizer.weight_decay


@dataclass
class LoraSettings:
    """Low-rank adapters of frozen linear layers in the encoder: W x + (alpha / rank) B A x, where A and B train."""

    rank: int = setting(8, at_least(1))
    alpha: float = setting(16.0, above(0))
    # probability of dropout on the adapters' input
    dropout: float = setting(0.0, {"allows": lambda value: 0 <= value < 1, "must": "must be 0 or more, and below 1"})
    # patterns of layer names in the encoder, such as "*.attn.qkv"; null: the linear layers of attention and MLP
    targets: list[str] | None = None


@dataclass
class PhaseSettings:
    """One phase of a stage: how long it is, which parameters it trains, and at which rates."""

    duration: str = "100%"  # a share of trainer.epochs, or epochs, or steps
    encoder_blocks: int | None = None  # how many of the encoder's last blocks train; null: all of it; 0: none
    lr_scale: float = 1.0  # factor of optimizer.lr
    encoder_lr_scale: float = 1.0  # another factor for the encoder's parameters
    # a further factor for each block between a layer and the head
    layer_decay: float = 1.0
    # adapters that train in the encoder, beside its last encoder_blocks; the same in all phases that have them
    lora: LoraSettings | None = None
    # many heads that train at once, of which val selects one. heads and cache_features need encoder_blocks: 0, no lora
    heads: HeadGridSettings | None = None
    cache_features: bool = False  # compute the encoder's tokens once, keep them on disk, and train on those
    # number of differently augmented views of each video in the cache; epochs use them in turn. null: only the view of
    # evaluation, which is not random, so runs with other seeds, splits and folds can share it
    cache_views: int | None = 4


Value = float | int | str | None  # a cell of a log or of a table


class Console(Protocol):
    """The terminal output of a run: `tracking.console.Console` on rank 0, and one that shows nothing on other ranks."""

    def info(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> None: ...

    def phase(self, name: str, total_steps: int, start_step: int = 0) -> AbstractContextManager[None, bool | None]:
        """A context in which `advance` moves the progress bar of this phase."""

    def advance(self, step: int, fields: Mapping[str, Value]) -> None: ...


class Log(Protocol):
    """The log files of a run: see `tracking.run_log.RunLog`."""

    def log(self, metrics: Mapping[str, Value], step: int) -> None:
        """Records metrics after optimizer step `step`."""

    def step(self, row: Mapping[str, Value]) -> None:
        """Records one optimizer step of this rank."""

    def fault(self, path: str, cause: str, step: int, split: str) -> None:
        """Records a video that could not be read."""

    def flush(self) -> str | None:
        """Writes every row to the disk; returns why that failed, or None."""


class Evaluation(Protocol):
    """The part of an evaluation's report that the loop reads, see `vidtrain.evaluation.report.Report`."""

    @property
    def metrics(self) -> Mapping[str, float]: ...

    @property
    def has_nan(self) -> bool:
        """Whether any output of the model is NaN; then the metrics mean nothing."""

    @property
    def coverage(self) -> str:
        """How many videos were read, as "read/all videos of the split"."""

    @property
    def missing(self) -> Sequence[tuple[str, str]]:
        """(path, cause) of each video that could not be read."""


@dataclass(frozen=True)
class PhaseTask:
    """The model and the data of a phase: the run's model on clips, or heads alone on a frozen encoder.

    `model` has the `encoder` and `head` of the run's model; in a grid, `head` is a list of heads. `model` maps the
    output of `transform` and `mix` to clip logits [b n (h k)] of h heads. `evaluate` evaluates it on the val split and
    returns a report for each head.
    """

    model: EncoderWithHead
    transform: nn.Module
    mix: Callable[..., tuple[Tensor, Tensor]]
    train_batches: Callable[[int, int], Iterable[Batch]]
    evaluate: Callable[[], Sequence[Evaluation]]


@dataclass(frozen=True)
class Run:
    """The parts of a run. None of them knows Hydra or the programs."""

    model: EncoderWithHead  # on its device
    transform: nn.Module  # uint8 clips and seeds -> float clips, on the device
    mix: Callable[..., tuple[Tensor, Tensor]]  # clips, labels and a key -> clips and targets of a mixed batch
    train_batches: Callable[[int, int], Iterable[Batch]]  # (first step, last step + 1) -> micro-batches
    train_paths: Sequence[str]  # file of each training video by its index, to name the files of a bad batch
    steps_per_epoch: int
    evaluate: Callable[[], Evaluation]  # evaluates the val split; all ranks call it together
    objective: Objective
    optimizer: OptimizerFactory
    lr: Schedule
    weight_decay: Schedule
    phases: Mapping[str, PhaseSettings]
    settings: TrainerSettings
    ranks: Ranks
    seed: int
    log: Log
    console: Console
    checkpoints: Path  # the folder of last.pt, previous.pt and best.pt
    metadata: Mapping[str, Any]  # stored in every checkpoint: classes, resolved config, versions
    # makes the task of a phase with a head grid or cached features; None in runs without such a phase
    frozen: Callable[[PhaseSettings], PhaseTask] | None = None
    # names of model tensors that checkpoints omit, because `metadata` names the files that hold them
    left_out: frozenset[str] = frozenset()
    # called on every rank after each evaluation, with its value of `trainer.monitor`; it may raise Pruned, on all ranks
    on_validation: Callable[[float], None] = lambda value: None
    # records the signals that stop the run; the default is not entered as a context, and receives none
    preemption: PreemptionHandler = field(default_factory=PreemptionHandler)

    def task(self, model: EncoderWithHead, phase: PhaseSettings) -> PhaseTask:
        """The task of a phase: `model` on clips, or the task that `frozen` makes."""
        if phase.heads is not None or phase.cache_features:
            assert self.frozen is not None
            return self.frozen(phase)
        return PhaseTask(model, self.transform, self.mix, self.train_batches, lambda: [self.evaluate()])
