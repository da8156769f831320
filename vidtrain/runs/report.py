"""Evaluates a classifier on val during training; at the end evaluates its best checkpoint on test, and writes tables,
pictures and summary.json."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from vidtrain.build import data as build_data
from vidtrain.build import parts as build
from vidtrain.config.references import to_dict
from vidtrain.errors import DivergedError, UserError, pluralize
from vidtrain.evaluation.metrics import DIRECTIONS
from vidtrain.evaluation.report import Report, report, write_report
from vidtrain.evaluation.views import ClipModel, EvalBatch, split_heads, view_table
from vidtrain.evaluator.baselines import MOTION, BaselineComparison, compare_with_known
from vidtrain.evaluator.report import results_table, warn_missing
from vidtrain.files.atomic import write_text_atomic
from vidtrain.files.escaping import csv_text
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.lora import Adapters
from vidtrain.models.masked_models import MaskedModel
from vidtrain.reports import plots
from vidtrain.reports.pages import warn_of_failure
from vidtrain.runs import examples
from vidtrain.runs.assemble import Goal, Parts, RunData
from vidtrain.runs.data import changed_in_mid_run
from vidtrain.runs.frozen_encoder import CachedFeatureTask
from vidtrain.runs.page import PAGE, write_page
from vidtrain.tracking.run_log import RunLog, each_metric
from vidtrain.training import checkpoint
from vidtrain.training.distributed import Ranks
from vidtrain.training.phases import TrainState
from vidtrain.training.process import PreemptionHandler
from vidtrain.training.run import Console, Evaluation, PhaseSettings
from vidtrain.training.stages import head_choices, head_names
from vidtrain.training.validation import HEADS_PREFIX, METRIC_PREFIXES

MOST_SHOWN = 40  # heads in the closing table
TRY_MOTION = "Try more frames, more videos, or frame differences as input (as in experiment=few_labels)"
TRY_APPEARANCE = (
    "More test videos would narrow the interval; pretrained weights may do better (as in experiment=few_labels)"
)


def goal_of(
    cfg: DictConfig,
    data: RunData,
    parts: Parts,
    model: VideoClassifier | MaskedModel,
    ranks: Ranks,
    console: Console,
    preemption: PreemptionHandler,
) -> Goal:
    """The goal of a run that trains `model`. Raises `UserError` as `vidtrain.runs.pretraining.open_probe` does."""
    val = data.open_split("val", data.splits["val"], ranks)
    shared = (val, parts, build.protocol_text(cfg, cfg.model.fusion), ranks, console, preemption)
    if isinstance(model, MaskedModel):
        from vidtrain.runs.pretraining import Pretraining, open_probe  # imports scikit-learn

        probe = None if cfg.probe.dataset is None else open_probe(cfg, ranks, console)
        return Pretraining(*shared, model, probe, cfg.probe.pictures)
    goal = Classifying(*shared, data, model)
    goal.cached = cached_features(cfg, data, parts, goal)
    return goal


def cached_features(cfg: DictConfig, data: RunData, parts: Parts, goal: "Classifying") -> CachedFeatureTask:
    ranks = goal.ranks
    return CachedFeatureTask(
        train=build_data.train_dataset(cfg, data.train, data.reading),
        evaluated=lambda split: build_data.eval_dataset(cfg, split, data.splits[split], data.reading),
        eval_views=cfg.clip.eval_clips * goal.val.crops,
        stream=partial(build_data.stream, cfg, data.train, ranks),
        shard=lambda dataset: build_data.eval_shard(cfg, dataset, ranks),
        evaluate=goal.of_batches,
        transform=parts.transform,
        context=parts.autocast,
        config=to_dict(cfg, resolve=True),
        root=Path(cfg.data.features_root),
        batch_size=cfg.trainer.eval_batch_size,
        num_workers=build.num_workers(cfg.trainer.num_workers, ranks),
        decode_timeout_s=cfg.data.decode_timeout_s,
        ranks=ranks,
        console=goal.console,
    )


@dataclass(frozen=True)
class Result:
    """The evaluation of a run's best checkpoint."""

    split: str  # test, or val if there is no test
    report: Report
    weights: str  # raw or ema
    heads: list[dict[str, Any]]  # rows for the heads of a grid, the best first
    beside: list[BaselineComparison]  # comparisons with baselines on the same videos, the best baseline first

    @property
    def also_selected(self) -> bool:
        return self.split == "val"


@dataclass
class Classifying(Goal):
    """The goal of classification, for a single head or a head grid."""

    data: RunData
    model: VideoClassifier
    result: Result | None = None

    def __call__(self, model: ClipModel) -> list[Report]:
        return self.of_batches(model, self.val.batches(self.console), self.parts.transform)

    def of_batches(self, model: ClipModel, batches: Iterable[EvalBatch], transform: nn.Module) -> list[Report]:
        """A report for each head. `batches` hold the videos of val as clips or as cached features."""
        tables = split_heads(self.table(model, self.val, batches, transform), self.model.num_classes)
        independent = self.parts.loss.independent
        return [report(table, self.model.fusion, self.protocol, independent) for table in tables]

    def report(self, state: TrainState, log: RunLog) -> None:
        """Evaluates on test, or on val if there is no test; on cached features if all phases trained on them."""
        data, model, ranks = self.data, self.model, self.ranks
        best = load_best(self, model, state, log)
        split = "test" if "test" in data.splits else "val"
        videos = data.open_split(split, data.splits[split], ranks)
        cached = self.cached if all(phase.cache_features for phase in self.parts.phases.values()) else None
        inputs: tuple[ClipModel, Iterable[EvalBatch], nn.Module] = (
            cached.closing(model, split)
            if cached is not None
            else (model, videos.batches(self.console), self.parts.transform)
        )
        manifest = videos.manifest
        table = view_table(*inputs, len(manifest), ranks.device, self.parts.autocast, videos.crops)
        result = report(table, model.fusion, self.protocol, self.parts.loss.independent)
        warn_missing(self.console, result, split)
        comparisons, heads = [], []
        if ranks.is_main:
            out = log.run_dir / "eval" / split
            write_report(result, out, manifest.paths, manifest.classes, manifest.groups)
            comparisons = beside_baselines(data, split, out / "predictions.csv", self.console)
            heads = rank_heads(log.run_dir, self.parts)
        self.result = Result(split, result, best["weights"], heads, comparisons)
        extra = {
            **({"best_head": best["head"]} if heads else {}),
            "split": split,
            "split_also_selected": self.result.also_selected,
            "baselines": [asdict(comparison) for comparison in comparisons],
            "intervals": {
                name: [row[name]["low"], row[name]["high"]]
                for row in result.reliability[:1]
                for name in ("nll", "brier", "ece", "ece_mass")
            },
        }
        close(self, result, "final" if self.result.also_selected else "test", best, state, log, **extra)

    def draw_pictures(self, state: TrainState, log: RunLog) -> None:
        """Draws the pictures into the run folder's plots/, writes report.html, and passes both and best.pt to the
        loggers. With several labels a video there is no confusion matrix."""
        assert self.result is not None  # set by `report`
        split, result, console = self.result.split, self.result.report, self.console
        log.loggers.checkpoint("best", log.run_dir / "checkpoints" / "best.pt")
        manifest = self.data.splits[split]
        read = partial(examples.read, self.data, split, result)
        shown = warn_of_failure(f"pictures of videos of {split}", read, console) or []
        pictures: dict[str, Callable[[Path], None]] = {"curves": partial(plot_curves, log)}
        confusion = result.confusion
        if confusion is not None:
            pairs = confusion.labels.numpy(), confusion.predictions.numpy(), confusion.counts.numpy()
            pictures[f"confusion_{split}"] = partial(plots.plot_confusion, pairs, manifest.classes)
            pictures[f"wrong_{split}"] = partial(examples.draw_wrong, shown, split, result)
        draw_all(pictures, log, state.total_step, console)
        videos = log.run_dir / "plots" / f"examples_{split}"
        write = partial(examples.write_examples, shown, result, manifest.paths, videos)
        warn_of_failure(str(videos), write, console)
        draw_page(log, state.total_step, console)

    def show(self, state: TrainState, log: RunLog) -> None:
        assert self.result is not None
        result, monitor = self.result, self.parts.settings.monitor
        if result.heads:
            show_head_table(self.console, result.heads, monitor)
        selected = ", which also selected it, as there is no test split" if result.also_selected else ""
        value = f"{METRIC_PREFIXES[result.weights]} {monitor} {state.best:.4f}"
        title = f"best checkpoint ({value}) on {result.split}{selected}"
        results_table(self.console, title, result.report)
        show_baselines(result, self.console)


# --- the end of any run -----------------------------------------------------------------------------------


def load_best(goal: Goal, model: VideoClassifier | MaskedModel, state: TrainState, log: RunLog) -> dict[str, Any]:
    """Loads best.pt into the model and returns its content. Raises `DivergedError` if no evaluation gave a finite value
    of the monitored metric, and `UserError` if the file is damaged."""
    if state.best is None:
        monitor = goal.parts.settings.monitor
        raise DivergedError(f"no evaluation gave a finite {monitor}: no best checkpoint to report")
    file = log.run_dir / "checkpoints" / "best.pt"
    goal.ranks.barrier()
    best = checkpoint.load_best(file, state)
    adapters = Adapters.of(best, file)
    checkpoint.restore(model, best["model"], str(file), adapters.left_out if adapters else ())
    # checkpoints from before weight averaging do not name their weights
    return {"weights": "raw"} | best


def close(
    goal: Goal,
    evaluation: Evaluation,
    prefix: str,
    best: Mapping[str, Any],
    state: TrainState,
    log: RunLog,
    **more: Any,
) -> None:
    """Logs the closing metrics and writes summary.json, with the entries of `more`. The run is then finished."""
    # one step later: if the run is killed before its summary, resuming removes these rows and does not write them twice
    log.log({f"{prefix}/{name}": value for name, value in evaluation.metrics.items()}, state.total_step + 1)
    summary = {
        "status": "finished",
        "monitor": goal.parts.settings.monitor,
        "best": state.best,
        "best_step": state.best_step,
        "best_weights": best["weights"],
        "steps": state.total_step,
        "minutes": round(state.seconds / 60, 2),
        **({"data_changed": True} if changed_in_mid_run(log.run_dir) else {}),
        "coverage": evaluation.coverage,
        "protocol": goal.protocol,
    }
    log.summary(summary | more | dict(evaluation.metrics))


def plot_curves(log: RunLog, path: Path) -> None:
    plots.plot_curves(each_metric(log.run_dir), path)


def draw_all(
    pictures: Mapping[str, Callable[[Path], None]], log: RunLog, step: int, console: Console, suffix: str = ""
) -> None:
    """Draws `pictures`, by name, into the run folder's plots/NAME{suffix}.png, and passes them to the loggers. A
    picture that fails becomes a warning."""
    for name, draw in pictures.items():
        path = log.run_dir / "plots" / f"{name}{suffix}.png"
        path.unlink(missing_ok=True)  # left by an earlier attempt
        with torch.random.fork_rng(devices=[]):  # drawing must not change the random numbers of training
            warn_of_failure(str(path), partial(draw, path), console)
        if path.is_file():
            log.loggers.image(name, path, step)


def draw_page(log: RunLog, step: int, console: Console) -> None:
    """Writes report.html and passes it to the loggers."""
    page = log.run_dir / PAGE
    page.unlink(missing_ok=True)  # left by an earlier attempt
    warn_of_failure(str(page), partial(write_page, log.run_dir, page), console)
    if page.is_file():
        log.loggers.page("report", page, step)


# --- baselines, and heads of a grid -----------------------------------------------------------------------


def beside_baselines(data: RunData, split: str, predictions: Path, console: Console) -> list[BaselineComparison]:
    """Compares the run's predictions with the baselines measured on the same videos. Damaged baselines are a warning,
    as the run itself was successful."""
    try:
        several = data.splits[split].multi_label
        return compare_with_known(data.index_folder, data.digests, split, predictions, several)
    except UserError as error:
        console.warn(f"the run is not compared with baselines: {error}")
        return []


def rank_heads(folder: Path, parts: Parts) -> list[dict[str, Any]]:
    """Writes heads.csv with a row for each head of a grid, the best first; returns the rows, or none without a grid."""
    monitor = parts.settings.monitor
    rows = [row for row in each_metric(folder) if any(key.startswith(HEADS_PREFIX) for key in row)]
    heads = head_table(rows, parts.phases, monitor, DIRECTIONS[monitor])
    if heads:
        write_text_atomic(folder / "heads.csv", csv_text([list(heads[0]), *(list(row.values()) for row in heads)]))
    return heads


def show_baselines(result: Result, console: Console) -> None:
    """Prints the comparison with baselines on the same videos, or the command that measures them."""
    if not result.beside:
        console.info(
            "to compare: python -m vidtrain.baselines with the same dataset settings measures what simple models reach "
            "on these videos; later runs are then compared with them"
        )
        return
    rows = [(row.name, f"{row.baseline:.4f}", f"{row.run:.4f}", row.text) for row in result.beside]
    columns = ("baseline", result.beside[0].metric, "this run", "difference, 95% interval")
    console.table(f"compared with baselines, on {result.split}", columns, rows)
    best, not_better = result.beside[0], [row.name for row in result.beside if not row.is_better]
    if best.low is None:
        console.warn(
            f"all {pluralize(best.videos, 'video')} of {result.split} that were compared are one group, so it is not "
            "known whether other groups would give the same difference; split the videos so that it has more groups"
        )
    elif MOTION in not_better:
        console.warn(
            f"not better than the {MOTION} by more than chance: there is no evidence that the model uses more of the "
            f"motion than its location. {TRY_MOTION}"
        )
    elif not_better:
        console.warn(
            f"not better than {best.name} by more than chance, on {pluralize(best.videos, 'video')} in "
            f"{pluralize(best.units, 'group')}. "
            f"{TRY_APPEARANCE}"
        )


def show_head_table(console: Console, table: Sequence[Mapping[str, Any]], monitor: str) -> None:
    """Prints the closing table of a grid. The first row is the head in best.pt, unless a later phase was better."""
    names = list(dict.fromkeys(name for name in (monitor, "top1", "map", "loss") if name in table[0]))
    columns = ("", "phase", "lr", "weight decay", "step", *(f"val {name}" for name in names))
    rows = []
    for place, row in enumerate(table[:MOST_SHOWN]):
        values = ("diverged" if row[name] is None else f"{row[name]:.4f}" for name in names)
        settings = (row["phase"], f"{row['lr']:g}", f"{row['weight_decay']:g}", str(row["step"]))
        rows.append(("best" if place == 0 else "", *settings, *values))
    console.table(f"{len(table)} heads, by {monitor} on val", columns, rows)
    if len(table) > MOST_SHOWN:
        console.info(f"{len(table) - MOST_SHOWN} more heads are in heads.csv")


def head_table(
    rows: Sequence[Mapping[str, Any]], phases: Mapping[str, PhaseSettings], monitor: str, direction: str
) -> list[dict[str, Any]]:
    """A row for each head of every phase that has a grid, the best value of `monitor` first.

    `rows` are those of metrics.jsonl. A result has the phase, the head's name, its peak learning rate and weight decay,
    and the step and metrics of its best evaluation. Heads that diverged before any evaluation come last. Equal values
    are in the order in which training would have selected them: the earlier step, then the earlier head.
    """
    ranked = []
    sign = -1 if direction == "max" else 1
    for phase_name, phase in phases.items():
        if phase.heads is None:
            continue
        choices = zip(head_names(phase.heads), head_choices(phase.heads), strict=True)
        for place, (name, (lr, decay)) in enumerate(choices):
            prefix = f"{HEADS_PREFIX}/{name}/"
            evaluations = [row for row in rows if row.get("phase") == phase_name and f"{prefix}{monitor}" in row]
            best = min(evaluations, key=lambda row: (_cost(row, prefix, monitor, sign), row["step"]), default=None)
            if best is None:
                continue
            metrics = {key.removeprefix(prefix): value for key, value in best.items() if key.startswith(prefix)}
            settings = {"phase": phase_name, "head": name, "lr": lr, "weight_decay": decay}
            order = (_cost(best, prefix, monitor, sign), best["step"], place)
            ranked.append((order, {**settings, "step": best["step"], **metrics}))
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0])]


def _cost(row: Mapping[str, Any], prefix: str, monitor: str, sign: int) -> float:
    # metrics.jsonl has null for values that are not finite, such as the loss of a diverged head
    if row[f"{prefix}loss"] is None or row[f"{prefix}{monitor}"] is None:
        return math.inf
    return sign * row[f"{prefix}{monitor}"]
