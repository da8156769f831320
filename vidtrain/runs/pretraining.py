"""Pretraining runs, without labels: evaluation by loss, features and probes, detection of collapse, closing report."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from omegaconf import DictConfig
from torch import Tensor, nn

from vidtrain.build import data as build_data
from vidtrain.build import parts as build
from vidtrain.data.loading.dataset import Batch
from vidtrain.data.manifest.splitting import group_numbers
from vidtrain.errors import DivergedError, UserError
from vidtrain.evaluation.metrics import EVALUATIONS
from vidtrain.evaluation.views import ClipModel, ViewTable
from vidtrain.evaluator.classifiers import Classifier, logistic_regression, nearest_neighbors
from vidtrain.models.masked_models import MaskedModel
from vidtrain.models.masks import MaskedClips, WithMasks
from vidtrain.reports.pages import warn_of_failure
from vidtrain.runs.assemble import Goal
from vidtrain.runs.examples import MOST_MASKED, draw_features, draw_masked
from vidtrain.runs.report import close, draw_all, draw_page, load_best, plot_curves
from vidtrain.tracking.run_log import RunLog, each_metric
from vidtrain.training.distributed import Ranks
from vidtrain.training.phases import TrainState
from vidtrain.training.run import Console
from vidtrain.training.validation import METRIC_PREFIXES

PROBES: Mapping[str, Classifier] = {"knn_top1": nearest_neighbors, "linear_top1": logistic_regression}
RANK = "effective_rank"
SPREAD = "spread"
# Features have collapsed if (rank - 1) and spread both fall below these shares of their best values. Measured lowest
# shares: 0.18 to 0.27 and 0.11 to 0.19 in collapsing runs (momentum 0), 0.26 and 0.24 or more in sound runs
LEAST_RANK, LEAST_SPREAD = 0.3, 0.2


@dataclass(frozen=True)
class PretrainingReport:
    """The result of an evaluation without labels: a `vidtrain.training.run.Evaluation`."""

    metrics: dict[str, float]
    coverage: str
    missing: Sequence[tuple[str, str]]
    has_nan: bool


Extract = Callable[[ClipModel, build_data.EvalData, nn.Module], ViewTable]


class LossAndFeatures:
    """A `ClipModel` that returns for each clip its loss and the mean of its tokens: [b n 1+d]. The features are those
    of `MaskedModel.feature_encoder` on the whole clip."""

    fusion = "mean_logits"

    def __init__(self, model: MaskedModel):
        self.model = model
        self.num_classes = 1 + model.encoder.embed_dim

    def eval(self) -> nn.Module:
        return self.model.eval()

    def __call__(self, inputs: MaskedClips) -> Tensor:
        n = inputs.clips.shape[1]
        losses = self.model(inputs)
        features = self.model.features(rearrange(inputs.clips, "b n c t h w -> (b n) c t h w"))
        return rearrange(torch.cat((losses[:, None].float(), features), dim=1), "(b n) k -> b n k", n=n)


class Features:
    """A `ClipModel` that returns only the features of each clip: [b n d]."""

    fusion = "mean_logits"

    def __init__(self, model: MaskedModel):
        self.model = model
        self.num_classes = model.encoder.embed_dim

    def eval(self) -> nn.Module:
        return self.model.eval()

    def __call__(self, clips: Tensor) -> Tensor:
        flat = rearrange(clips, "b n c t h w -> (b n) c t h w")
        return rearrange(self.model.features(flat), "(b n) d -> b n d", n=clips.shape[1])


@dataclass(frozen=True)
class Probe:
    """Measures frozen features on a labeled dataset with simple classifiers: nearest neighbors and logistic regression.
    Both choose their hyperparameter on `train` and are evaluated on `other`."""

    name: str
    train: build_data.EvalData
    other: build_data.EvalData
    transform: nn.Module

    def __call__(self, extract: Extract, model: MaskedModel, ranks: Ranks) -> dict[str, float]:
        tables = [extract(Features(model), videos, self.transform) for videos in (self.train, self.other)]
        return ranks.on_main(lambda: self._score(*tables))

    def _score(self, train: ViewTable, other: ViewTable) -> dict[str, float]:
        train_features, other_features = (table.logits.mean(dim=1).double().numpy() for table in (train, other))
        targets = np.eye(len(self.train.manifest.classes))[train.labels.numpy()]
        groups = group_numbers(self.train.manifest)[train.indices.numpy()]
        truth = other.labels.numpy()
        return {
            name: float((fit(train_features, targets, groups, False)(other_features).argmax(axis=1) == truth).mean())
            for name, fit in PROBES.items()
        }


# --- collapse of features ---------------------------------------------------------------------------------


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalized singular values of features [v d], from 1 to min(v, d). It is near 1 if all
    videos have nearly the same features. Source: Roy and Vetterli 2007, section 2."""
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp().item()


def spread(features: Tensor) -> float:
    """The mean distance of features [v d], scaled to unit length, from their mean: 0 to 1, and 0 if all have the same
    direction."""
    units = F.normalize(features.double(), dim=1)
    return (units - units.mean(dim=0)).norm(dim=1).mean().item()


@dataclass
class CollapseWatch:
    """Detects collapsed features: compares the effective rank and the spread of val features with their best values so
    far, including those of the untrained network. Each of them can fall early in sound pretraining, so both must.

    `rank` and `spread` are the best values, `evaluations` counts the evaluations.
    """

    console: Console
    stops: bool
    rank: float = 1.0
    spread: float = 0.0
    evaluations: int = 0

    def take_up(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Restores the values of earlier attempts from the rows of metrics.jsonl."""
        for row in rows:
            for prefix in METRIC_PREFIXES.values():
                # values that were not finite are null or absent
                self.rank = max(self.rank, row.get(f"{prefix}/{RANK}") or 1.0)
                self.spread = max(self.spread, row.get(f"{prefix}/{SPREAD}") or 0.0)
                self.evaluations = max(self.evaluations, int(row.get(f"{prefix}/{EVALUATIONS}", 0)))

    def look(self, metrics: Mapping[str, float]) -> None:
        """Warns of a collapse, or raises `DivergedError` if `stops` is set."""
        if RANK not in metrics:
            return
        rank, spread = metrics[RANK], metrics[SPREAD]
        self.rank, self.spread = max(self.rank, rank), max(self.spread, spread)
        if rank - 1 >= LEAST_RANK * (self.rank - 1) or spread >= LEAST_SPREAD * self.spread:
            return
        message = (
            f"the features collapse: on val their effective rank is {rank:.2f} (best {self.rank:.2f}) and their spread "
            f"{spread:.3f} (best {self.spread:.3f}), so all videos have nearly the same features: raise "
            "objective.momentum, lower optimizer.lr, or choose other objective.masks"
        )
        if self.stops:
            raise DivergedError(f"{message}. trainer.stop_on_collapse=true ends the run here")
        self.console.warn(message)


# --- the run ----------------------------------------------------------------------------------------------


@dataclass
class Pretraining(Goal):
    """The goal of pretraining: a masked model is evaluated by its loss and features on val, and by probes on a labeled
    dataset."""

    model: MaskedModel
    probe: Probe | None
    pictures: bool  # whether to draw pictures at every evaluation
    result: PretrainingReport | None = None
    log: RunLog | None = None  # set by `begin`

    def __post_init__(self) -> None:
        self.watch = CollapseWatch(self.console, self.parts.settings.stop_on_collapse)
        self.transform = WithMasks(self.parts.transform, self.model)

    def begin(self, log: RunLog) -> None:
        """Restores the values of earlier attempts. A new run first evaluates the untrained network, logged as step
        0."""
        self.log = log
        self.watch.take_up(each_metric(log.run_dir))
        if self.watch.evaluations:
            return
        [report] = self(self.model)
        log.log({f"val/{name}": value for name, value in report.metrics.items()}, 0)
        self.console.info(f"before training: val {shown_metrics(report.metrics)}")

    def __call__(self, model: MaskedModel) -> list[PretrainingReport]:
        """Evaluates on val; returns one report. Raises `DivergedError` on collapse (see `CollapseWatch.look`)."""
        self.watch.evaluations += 1
        report = self._measure(model)
        if self.pictures and self.log is not None and self.ranks.is_main:
            suffix = f"_{self.watch.evaluations:04d}"
            draw_all(self._pictures_of_videos(model), self.log, self.log.last_step, self.console, suffix)
        self.watch.look(report.metrics)
        return [report]

    def _measure(self, model: MaskedModel) -> PretrainingReport:
        table = self._table(LossAndFeatures(model), self.val, self.transform)
        table.check_read()
        by_video = table.logits.mean(dim=1)
        loss, features = by_video[:, 0], by_video[:, 1:]
        finite = bool(by_video.isfinite().all())
        metrics = {"loss": loss.double().mean().item(), EVALUATIONS: float(self.watch.evaluations)}
        if finite:
            metrics |= {RANK: effective_rank(features), SPREAD: spread(features)}
        if finite and self.probe is not None:
            metrics |= self.probe(self._table, model, self.ranks)
        return PretrainingReport(metrics, table.coverage, table.missing, not finite)

    def _table(self, model: ClipModel, videos: build_data.EvalData, transform: nn.Module) -> ViewTable:
        return self.table(model, videos, videos.batches(self.console), transform)

    def report(self, state: TrainState, log: RunLog) -> None:
        best = load_best(self, self.model, state, log)
        self.result = self._measure(self.model)
        name = type(self.model).__name__
        close(self, self.result, "final", best, state, log, pretraining=name, split="val")

    def draw_pictures(self, state: TrainState, log: RunLog) -> None:
        """plots/curves.png, what the network makes of some videos of val, and report.html."""
        log.loggers.checkpoint("best", log.run_dir / "checkpoints" / "best.pt")
        pictures = {"curves": partial(plot_curves, log)} | self._pictures_of_videos(self.model)
        draw_all(pictures, log, log.last_step, self.console)
        draw_page(log, state.total_step, self.console)

    def _pictures_of_videos(self, model: MaskedModel) -> dict[str, Callable[[Path], None]]:
        """The functions that draw pictures of videos of val, by name; empty if no video can be read."""
        batch: Batch | None = warn_of_failure("videos of val", lambda: next(iter(self.val.loader)), self.console)
        if batch is None or not len(batch.labels):
            return {}
        clips = batch.clips[:MOST_MASKED]
        inputs = self.transform(clips.to(self.ranks.device))
        return {
            "masked_val": partial(draw_masked, model, clips, inputs),
            "features_val": partial(draw_features, model, clips, inputs),
        }

    def show(self, state: TrainState, log: RunLog) -> None:
        """Prints the closing table, with the metrics before training, and the next command."""
        assert self.result is not None  # set by `report`
        first = next((row for row in each_metric(log.run_dir) if row["step"] == 0), {})
        rows = [
            (name, f"{first[f'val/{name}']:.4g}" if f"val/{name}" in first else "", f"{value:.4g}")
            for name, value in self.result.metrics.items()
            if name != EVALUATIONS
        ]
        probe_note = "" if self.probe is None else f"; probes on {self.probe.name}"
        title = f"best.pt, of step {state.best_step}, on val{probe_note}"
        self.console.table(title, ("", "before training", "after"), rows)
        self.console.info(
            "to train a classifier that starts from it: python -m vidtrain.train dataset=... model=... "
            f"init_from={log.run_dir}"
        )


def open_probe(cfg: DictConfig, ranks: Ranks, console: Console) -> Probe:
    """Opens `probe.dataset` with the run's clip settings. Raises `UserError` if it has only one class, or several
    labels a video."""
    labeled = cfg.copy()
    labeled.dataset, labeled.trainer.max_eval_videos = cfg.probe.dataset, cfg.probe.max_videos
    splits = ranks.on_main(lambda: build_data.listed_splits(labeled, console))
    if splits["train"].multi_label or len(splits["train"].classes) < 2:
        raise UserError(f"probe.dataset={labeled.dataset.name} must have two classes or more, and one label a video")
    reading = build_data.reading(labeled, ranks, None)
    train, other = (
        build_data.eval_data(labeled, split, splits[split], reading, ranks)
        for split in ("train", "val" if "val" in splits else "test")
    )
    return Probe(labeled.dataset.name, train, other, build.device_transform(cfg, ranks.device))


def shown_metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name != EVALUATIONS)
