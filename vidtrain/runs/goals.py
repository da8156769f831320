"""What a run is for: how it is evaluated while it trains, and how it closes. With labels, or without."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from omegaconf import DictConfig

from vidtrain.build.parts import protocol_text
from vidtrain.features.frozen_encoder import CachedFeatureTask
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.pretraining.masked_model import MaskedModel
from vidtrain.runs import report
from vidtrain.runs.assemble import Parts, RunData, ValEvaluation, cached_features
from vidtrain.runs.pretraining import Pretraining, open_probe
from vidtrain.tracking.run_log import RunLog
from vidtrain.training.ranks.distributed import Ranks
from vidtrain.training.ranks.signals import PreemptionHandler
from vidtrain.training.run import Console, Evaluation
from vidtrain.training.state import TrainState


class Goal(Protocol):
    """In the order in which a run calls them. `protocol` says what numbers are measured with."""

    protocol: str
    ranks: Ranks
    console: Console
    preemption: PreemptionHandler

    def begin(self, log: RunLog) -> None:
        """Before the first step of an attempt."""

    def __call__(self, model: Any) -> Sequence[Evaluation]:
        """Evaluates on val, of a grid a report for each head. Raises `Stopped` where a signal cut it short."""

    def report(self, state: TrainState, log: RunLog) -> None:
        """Gives the model the weights of best.pt, evaluates them and writes summary.json: the run is finished."""

    def draw_pictures(self, state: TrainState, log: RunLog) -> None:
        """On the main rank. What fails is a warning."""

    def show(self, state: TrainState, log: RunLog) -> None:
        """The closing tables."""


@dataclass
class Classifying(ValEvaluation):
    """A classifier of the dataset's classes."""

    data: RunData
    model: VideoClassifier
    cached: Callable[["Classifying"], CachedFeatureTask]
    result: report.Result | None = None

    def begin(self, log: RunLog) -> None:
        pass

    def report(self, state: TrainState, log: RunLog) -> None:
        self.result = report.report_best(
            self.data, self.parts, self.model, self, self.cached(self), state, log
        )

    def draw_pictures(self, state: TrainState, log: RunLog) -> None:
        assert self.result is not None  # which `report` left
        report.draw_pictures(self.data, self.result, state, log, self.console)

    def show(self, state: TrainState, log: RunLog) -> None:
        assert self.result is not None
        report.show(self.result, state, self.parts.settings.monitor, self.console)


def goal_of(
    cfg: DictConfig,
    data: RunData,
    parts: Parts,
    model: VideoClassifier | MaskedModel,
    ranks: Ranks,
    console: Console,
    preemption: PreemptionHandler,
) -> Goal:
    """What a run that trains `model` is for. Raises `UserError` as `open_probe` does."""
    val = data.open_split("val", data.splits["val"], ranks)
    protocol = protocol_text(cfg, cfg.model.fusion)
    if isinstance(model, MaskedModel):
        probe = None if cfg.probe.dataset is None else open_probe(cfg, ranks, console)
        pictures = cfg.probe.pictures
        return Pretraining(model, val, parts, probe, pictures, protocol, ranks, console, preemption)
    count = len(data.classes)
    shared = (ranks, console, preemption)
    return Classifying(
        val,
        parts,
        count,
        model.fusion,
        protocol,
        *shared,
        data,
        model,
        partial(cached_features, cfg, data, parts),
    )
