"""Assembles a run from the configuration: its data, its model and where that starts, its parts, and the loop's
`Run`."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from vidtrain import __version__
from vidtrain.build import data as build_data
from vidtrain.build import parts as build
from vidtrain.build.checkpoint_loader import restore
from vidtrain.config.references import to_dict, to_phases, to_settings, with_published
from vidtrain.data.loading.samplers import class_shares, describe_shares
from vidtrain.data.manifest.manifest import Manifest, spelled_classes
from vidtrain.errors import UserError, pluralize
from vidtrain.evaluation.views import ClipModel, EvalBatch, ViewTable, view_table
from vidtrain.files.atomic import write_json_atomic
from vidtrain.files.escaping import masked_values
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.dense_joint_embedding import DenseJointEmbedding
from vidtrain.models.lora import Adapters
from vidtrain.models.masked_models import MaskedModel
from vidtrain.models.masks import WithMasks
from vidtrain.runs import data as run_data
from vidtrain.runs import folder as run_folder
from vidtrain.runs.frozen_encoder import CachedFeatureTask, head_task
from vidtrain.tracking import console as tracking
from vidtrain.tracking.logger_process import Loggers
from vidtrain.tracking.run_log import RunLog, write_provenance
from vidtrain.training import checkpoint
from vidtrain.training.distributed import Ranks, autocast
from vidtrain.training.losses import Classification, Loss, MaskedPrediction, Objective, describe_loss
from vidtrain.training.optimizers import OptimizerFactory
from vidtrain.training.phases import TrainState
from vidtrain.training.process import PreemptionHandler
from vidtrain.training.run import Console, Evaluation, Log, PhaseSettings, PhaseTask, Run, TrainerSettings
from vidtrain.training.schedules import Schedule, ramp_steps
from vidtrain.training.validation import check_monitor


@dataclass(frozen=True)
class RunData:
    """The data of a run, and how they are read.

    `open_split` opens the batches of a split for evaluation, distributed over ranks. `digests` holds a digest of each
    split's files; it is empty in a benchmark. `index_folder` holds the dataset's index.
    """

    name: str
    reading: build_data.Reading
    splits: dict[str, Manifest]
    digests: dict[str, str]
    index_folder: Path
    open_split: Callable[[str, Manifest, Ranks], build_data.EvalData]

    @property
    def train(self) -> Manifest:
        return self.splits["train"]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.train.classes)


def set_up(cfg: DictConfig, ranks: Ranks, console: Console, folder: Path) -> str:
    """Sets the process up and records the run in its folder; returns the run's id."""
    build.set_cpu_threads(cfg.trainer.cpu_threads, ranks)
    if cfg.trainer.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it cuBLAS refuses to be deterministic
    torch.use_deterministic_algorithms(
        cfg.trainer.deterministic
    )  # always set, as an earlier trial in this process may have set it
    run_id = ranks.on_main(lambda: run_folder.record(folder, cfg))
    if ranks.is_main:
        write_provenance(folder)
    console.info(f"run folder {folder}")
    return run_id


def open_data(cfg: DictConfig, ranks: Ranks, console: Console, folder: Path | None = None) -> RunData:
    """Opens the splits that the run trains and evaluates on. `folder` is the run's folder, which records their content.
    Raises `UserError` if a resumed run has other training data now, unless `data.allow_changed` is set."""
    reading = build_data.reading(cfg, ranks, folder)
    splits = build_data.manifests(cfg, ranks, console)
    digests: dict[str, str] = {}
    if folder is not None:
        allowed = cfg.data.allow_changed
        digests = ranks.on_main(lambda: run_data.begin(folder, splits, reading.index, allowed, console))
    splits["train"] = build_data.filtered(cfg, splits["train"], reading.index, ranks, console)
    if cfg.trainer.overfit_one_batch:
        splits = build_data.one_batch(splits["train"], cfg.trainer.batch_size, cfg.seed)

    def open_split(split: str, manifest: Manifest, ranks: Ranks) -> build_data.EvalData:
        return build_data.eval_data(cfg, split, manifest, reading, ranks)

    return RunData(cfg.dataset.name, reading, splits, digests, build_data.index_folder(cfg), open_split)


@dataclass(frozen=True)
class Start:
    """A model, and where its weights come from: the run's last checkpoint, else init_from, else pretrained weights,
    else random initialization."""

    model: VideoClassifier | MaskedModel
    resume: dict[str, Any] | None  # the run's own last checkpoint
    origin: str  # the source of the weights, as text for the log
    adapters: Adapters | None  # of the model's encoder

    @property
    def classifier(self) -> VideoClassifier:
        assert isinstance(self.model, VideoClassifier)  # callers have checked that the run trains a classifier
        return self.model

    @property
    def step(self) -> int:
        return self.resume["state"]["total_step"] if self.resume else 0

    def describe(self) -> str:
        model = self.model
        count = sum(parameter.numel() for parameter in model.parameters())
        encoder, head = type(model.encoder).__name__, type(model.head).__name__
        return f"model {encoder} + {head}, {count / 1e6:.2f} M parameters; {self.origin}"


def load_model(cfg: DictConfig, data: RunData, ranks: Ranks, console: Console, folder: Path) -> Start:
    model = build.trained_model(cfg, len(data.classes), ranks)
    resumable = checkpoint.find_resume(folder / "checkpoints", ranks, console)
    if resumable is None:
        start = build.load_starting_point(cfg, model, ranks, console, folder)
        if isinstance(model, MaskedModel):
            model.begin(frozenset().union(*(source.loaded for source in start.sources)))
            return Start(model, None, start.origin, None)
        adapters = build.start_adapters(model, to_phases(cfg.stage), start, cfg.seed, ranks, console)
        return Start(model, None, start.origin, adapters)
    newest, resume = resumable
    adapters = Adapters.of(resume, newest)
    restore(model, adapters, resume["model"], newest)
    if spelled_classes(resume["classes"]) != data.classes:
        raise UserError(f"{newest} was trained on other classes, or in another order, than the dataset has now")
    return Start(model, resume, f"resumed from {newest} at step {resume['state']['total_step']}", adapters)


@dataclass(frozen=True)
class Parts:
    """The parts of a training step besides the model, built from the configuration."""

    settings: TrainerSettings
    phases: Mapping[str, PhaseSettings]
    train_batches: Callable[[int, int], Iterable]
    steps_per_epoch: int
    transform: nn.Module
    mix: build.Mix
    autocast: AbstractContextManager
    loss: Loss
    class_weights: Tensor | None
    about_loss: str
    optimizer: OptimizerFactory
    lr: Schedule
    weight_decay: Schedule
    seed: int

    def describe(self, ranks: Ranks, protocol: str) -> str:
        return (
            f"training on {ranks.device.type} x {ranks.world_size} in {self.settings.precision}: batches of "
            f"{self.settings.batch_size}, {pluralize(self.steps_per_epoch, 'step')} an epoch; evaluated with {protocol}"
        )


def make_parts(cfg: DictConfig, data: RunData, ranks: Ranks, console: Console, folder: Path | None = None) -> Parts:
    """Builds the parts. A run in `folder` keeps the steps per epoch with which it was started. Raises `UserError` if
    the dataset does not have the metric `trainer.monitor`, or the loss cannot use the class weights."""
    settings = to_settings(cfg.trainer, TrainerSettings)
    batches, steps_per_epoch = build_data.train_batches(cfg, data.train, data.reading, ranks)
    if folder is not None:
        counted = steps_per_epoch
        steps_per_epoch = ranks.on_main(lambda: run_data.epoch_steps(folder, counted, console))
    if cfg.objective is None:
        check_monitor(settings.monitor, len(data.classes), data.train.multi_label)
    shares = class_shares(data.train, cfg.data.class_balanced_sampling)
    loss = build.instantiate_component(cfg.loss)
    class_weights = loss.weights(torch.from_numpy(shares).to(ranks.device))
    about_loss = f"{describe_loss(loss, class_weights)}; {describe_shares(shares, cfg.data.class_balanced_sampling)}"
    if cfg.objective is not None:
        network = str(cfg.objective["_target_"]).rpartition(".")[2]
        masks = build.instantiate_component(cfg.objective.masks)
        about_loss = f"no label is looked at: {network}, with {masks}"
    return Parts(
        settings=settings,
        phases=to_phases(cfg.stage),
        train_batches=batches,
        steps_per_epoch=steps_per_epoch,
        transform=build.device_transform(cfg, ranks.device),
        mix=build.mixing(cfg, len(data.classes)),
        autocast=autocast(ranks, settings.precision),
        loss=loss,
        class_weights=class_weights,
        about_loss=about_loss,
        optimizer=build.instantiate_component(cfg.optimizer),
        lr=build.instantiate_component(cfg.schedule.lr),
        weight_decay=build.instantiate_component(cfg.schedule.weight_decay),
        seed=cfg.seed,
    )


def describe_data(data: RunData, parts: Parts, ranks: Ranks, console: Console, folder: Path) -> None:
    """Logs the classes and the numbers of videos, and records them in dataset.json."""
    videos = {name: len(split) for name, split in data.splits.items()}
    counts = ", ".join(f"{name} {count}" for name, count in videos.items())
    console.info(f"dataset {data.name}: {pluralize(len(data.classes), 'class')}; videos: {counts}")
    if ranks.is_main:
        facts = {
            "classes": list(data.classes),
            "videos": videos,
            "digests": data.digests,
            "steps_per_epoch": parts.steps_per_epoch,
        }
        write_json_atomic(folder / "dataset.json", facts)
    console.info(parts.about_loss)


@dataclass
class Goal(ABC):
    """What a run trains for, classification or pretraining: how it is evaluated on `val`, and what it reports at its
    end.

    A run calls the methods in this order, on all ranks. `protocol` describes how the metrics are measured. `cached`
    makes the tasks of phases with cached features, for classifiers only.
    """

    val: build_data.EvalData
    parts: Parts
    protocol: str
    ranks: Ranks
    console: Console
    preemption: PreemptionHandler
    cached: CachedFeatureTask | None = field(default=None, kw_only=True)

    def begin(self, log: RunLog) -> None:  # noqa: B027  # optional
        """Is called before the first step of an attempt."""

    @abstractmethod
    def __call__(self, model: Any) -> Sequence[Evaluation]:
        """Evaluates `model` on val; a head grid gives a report for each head. Raises `Stopped` if a signal ends it
        early."""

    @abstractmethod
    def report(self, state: TrainState, log: RunLog) -> None:
        """Loads best.pt into the model, evaluates it and writes summary.json, which marks the run as finished."""

    @abstractmethod
    def draw_pictures(self, state: TrainState, log: RunLog) -> None:
        """Draws the pictures, on the main rank. A picture that fails becomes a warning."""

    @abstractmethod
    def show(self, state: TrainState, log: RunLog) -> None:
        """Prints the closing tables."""

    def table(
        self,
        model: ClipModel,
        videos: build_data.EvalData,
        batches: Iterable[EvalBatch],
        transform: nn.Module,
    ) -> ViewTable:
        """The view table of `videos`, which are read as `batches`. Raises `Stopped` if a signal ends it early."""
        table = view_table(
            model,
            self.preemption.until_stop_requested(batches),
            transform,
            len(videos.manifest),
            self.ranks.device,
            self.parts.autocast,
            videos.crops,
        )
        # after a signal the table may be incomplete
        if self.ranks.any_rank(self.preemption.stop_requested):
            self.preemption.raise_stopped()
        return table


def open_log(
    cfg: DictConfig, ranks: Ranks, console: "tracking.Console | tracking.NullConsole", folder: Path, step: int
) -> RunLog:
    """Opens the run's log, cut back to `step`. Its loggers (W&B, TensorBoard, MLflow) are not started yet."""
    loggers = Loggers(build.instantiate_component(cfg.logger) if ranks.is_main else {})
    log = RunLog(folder, loggers, console, ranks.is_main, ranks.rank)
    log.rewind(step, ranks.world_size)
    return log


@dataclass(frozen=True)
class Record:
    """Where a run is recorded, and the hooks that the loop calls; a benchmark records nothing. A new hook of the loop
    needs a field here and in `Run`; `assemble` copies it."""

    log: Log
    console: Console
    folder: Path = Path()
    on_validation: Callable[[float], None] = lambda value: None
    preemption: PreemptionHandler = field(default_factory=PreemptionHandler)


def assemble(
    cfg: DictConfig,
    data: RunData,
    parts: Parts,
    model: VideoClassifier | MaskedModel,
    goal: Goal | None,
    ranks: Ranks,
    record: Record,
    adapters: Adapters | None = None,
) -> Run:
    """Assembles the `Run` with which the loop works. Without a `goal` it can make steps, but not evaluate. `adapters`
    are those of the model's encoder."""

    def reports(trained: Any) -> Sequence[Evaluation]:
        return [] if goal is None else goal(trained)

    def frozen(phase: PhaseSettings) -> PhaseTask:
        assert isinstance(model, VideoClassifier)  # checked with the configuration
        if phase.cache_features and goal is not None and goal.cached is not None:
            return goal.cached(model, phase)
        return head_task(model, phase, parts.transform, parts.mix, parts.train_batches, reports)

    return Run(
        model=model,
        transform=WithMasks(parts.transform, model) if isinstance(model, MaskedModel) else parts.transform,
        mix=parts.mix,
        train_batches=parts.train_batches,
        train_paths=data.train.paths,
        steps_per_epoch=parts.steps_per_epoch,
        evaluate=lambda: reports(model)[0],
        objective=objective_of(model, parts, data),
        optimizer=parts.optimizer,
        lr=parts.lr,
        weight_decay=parts.weight_decay,
        phases=parts.phases,
        settings=parts.settings,
        ranks=ranks,
        seed=parts.seed,
        log=record.log,
        console=record.console,
        checkpoints=record.folder / "checkpoints",
        metadata=checkpoint_metadata(cfg, data.classes) | (adapters.payload() if adapters else {}),
        left_out=adapters.left_out if adapters else frozenset(),
        frozen=frozen,
        preemption=record.preemption,
        on_validation=record.on_validation,
    )


def objective_of(model: VideoClassifier | MaskedModel, parts: Parts, data: RunData) -> Objective:
    if isinstance(model, DenseJointEmbedding):
        total = parts.settings.epochs * parts.steps_per_epoch
        model.ramp = ramp_steps(model.context_warmup, total, parts.steps_per_epoch, "objective.context_warmup")
    if isinstance(model, MaskedModel):
        return MaskedPrediction(model)
    multi_label = data.train.multi_label
    return Classification(parts.loss, parts.class_weights, model.fusion, model.num_classes, multi_label)


def checkpoint_metadata(cfg: DictConfig, classes: tuple[str, ...]) -> dict[str, Any]:
    """The metadata with which a checkpoint can be used without its run."""
    return {
        "classes": list(classes),
        # references stay, so that values can be changed later
        "config": masked_values(to_dict(with_published(cfg))),
        "protocol": build.protocol_text(cfg, cfg.model.fusion),
        "versions": {"vidtrain": __version__, "torch": str(torch.__version__)},
    }
