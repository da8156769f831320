"""The close of a run: its best checkpoint on the split that selected nothing, in tables, pictures and summary.json."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vidtrain.baseline_models.store import MOTION, BaselineComparison, compare_with_known
from vidtrain.errors import DivergedError, UserError
from vidtrain.evaluation.metrics import DIRECTIONS
from vidtrain.evaluation.report import Report, report, write_report
from vidtrain.evaluation.views import ClipModel, EvalBatch, view_table
from vidtrain.evaluator.report import results_table, warn_missing
from vidtrain.features.frozen_encoder import CachedFeatureTask
from vidtrain.files.atomic import write_text_atomic
from vidtrain.files.escaping import csv_text
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.weights.adapters import Adapters
from vidtrain.reports import plots
from vidtrain.reports.pages import warn_of_failure
from vidtrain.runs import examples
from vidtrain.runs.assemble import Parts, RunData, ValEvaluation
from vidtrain.runs.data import changed_in_mid_run
from vidtrain.runs.page import PAGE, write_page
from vidtrain.tracking.run_log import RunLog, each_metric
from vidtrain.training import checkpoint
from vidtrain.training.run import Console, PhaseSettings
from vidtrain.training.stages import head_choices, head_names
from vidtrain.training.state import TrainState
from vidtrain.training.validation import HEADS, METRIC_PREFIXES

MOST_SHOWN = 40  # heads in the closing table
TRY_MOTION = "Try experiment=few_labels, whose input shows differences of frames, more frames, or more videos"
TRY_APPEARANCE = (
    "More videos would tell; pretrained weights may do better (experiment=few_labels has some that install)"
)


@dataclass(frozen=True)
class Result:
    """The best checkpoint of a run, evaluated."""

    split: str  # test, or val where there is no test
    report: Report
    weights: str  # raw, or ema: their average
    heads: list[dict[str, Any]]  # of a grid, the best first
    beside: list[
        BaselineComparison
    ]  # baselines of the same videos, the best first; empty where none are known

    @property
    def also_selected(self) -> bool:
        return self.split == "val"


def report_best(
    data: RunData,
    parts: Parts,
    model: VideoClassifier,
    evaluation: ValEvaluation,
    cached: CachedFeatureTask,
    state: TrainState,
    log: RunLog,
) -> Result:
    """Gives `model` the best weights, evaluates them and writes what closes the run.

    Where all phases trained on cached features, it is evaluated on such features too.

    Raises `DivergedError` where no evaluation gave a finite number, and `UserError` where best.pt is damaged.
    """
    settings, folder = parts.settings, log.run_dir
    ranks, console = evaluation.ranks, evaluation.console
    if state.best is None:
        raise DivergedError(f"no evaluation gave a finite {settings.monitor}: no best checkpoint to report")
    file = folder / "checkpoints" / "best.pt"
    ranks.barrier()
    best = checkpoint.load_best(file, state)
    adapters = Adapters.of(best, file)
    checkpoint.restore(model, best["model"], str(file), adapters.left_out if adapters else ())
    split = "test" if "test" in data.splits else "val"
    videos = data.open_split(split, data.splits[split], ranks)
    inputs: tuple[ClipModel, Iterable[EvalBatch], nn.Module] = (
        cached.closing(model, split)
        if all(phase.cache_features for phase in parts.phases.values())
        else (model, videos.batches(console), parts.transform)
    )
    total = len(videos.manifest)
    table = view_table(*inputs, total, ranks.device, parts.autocast, videos.crops)
    result = report(table, evaluation.fusion, evaluation.protocol, parts.loss.independent)
    warn_missing(console, result, split)
    beside: list[BaselineComparison] = []
    if ranks.is_main:
        out = folder / "eval" / split
        manifest = videos.manifest
        write_report(result, out, manifest.paths, manifest.classes, manifest.groups)
        beside = beside_baselines(data, split, out / "predictions.csv", console)
    # checkpoints that are older than weight averaging do not name their weights
    weights = best["weights"] if "weights" in best else "raw"
    closing = Result(split, result, weights, _rank_heads(folder, parts) if ranks.is_main else [], beside)
    _write_summary(closing, best, settings.monitor, state, log)
    return closing


def beside_baselines(
    data: RunData, split: str, predictions: Path, console: Console
) -> list[BaselineComparison]:
    """The run's answers beside those of the baselines that are known for the same videos. What is damaged of them is a
    warning, as the run itself has ended well."""
    try:
        several = data.splits[split].multi_label
        return compare_with_known(data.index_folder, data.digests, split, predictions, several)
    except UserError as error:
        console.warn(f"no baselines beside this run: {error}")
        return []


def _rank_heads(folder: Path, parts: Parts) -> list[dict[str, Any]]:
    """The heads of a grid, the best first, written into heads.csv, a row each; empty where there is no grid."""
    monitor = parts.settings.monitor
    rows = [row for row in each_metric(folder) if any(key.startswith(HEADS) for key in row)]
    heads = head_table(rows, parts.phases, monitor, DIRECTIONS[monitor])
    if heads:
        write_text_atomic(
            folder / "heads.csv", csv_text([list(heads[0]), *(list(row.values()) for row in heads)])
        )
    return heads


def _write_summary(
    result: Result, best: Mapping[str, Any], monitor: str, state: TrainState, log: RunLog
) -> None:
    """Logs the closing metrics and writes summary.json, after which the run is finished."""
    report = result.report
    # one step on, so that a run killed before its summary does not keep these rows twice
    prefix = "final" if result.also_selected else "test"
    log.log({f"{prefix}/{name}": value for name, value in report.metrics.items()}, state.total_step + 1)
    log.summary(
        {
            "status": "finished",
            "monitor": monitor,
            "best": state.best,
            "best_step": state.best_step,
            "best_weights": result.weights,
            **({"best_head": best["head"]} if result.heads else {}),
            "steps": state.total_step,
            "minutes": round(state.seconds / 60, 2),
            **({"data_changed": True} if changed_in_mid_run(log.run_dir) else {}),
            "split": result.split,
            "split_also_selected": result.also_selected,
            "coverage": report.coverage,
            "protocol": report.protocol,
            "baselines": [asdict(verdict) for verdict in result.beside],
            **report.metrics,
        }
    )


def draw_pictures(data: RunData, result: Result, state: TrainState, log: RunLog, console: Console) -> None:
    """Offers best.pt to the trackers, draws the pictures into the run folder's plots/, writes report.html and shows
    them in the trackers.

    For the main rank alone. Where videos may have several labels there is no confusion. What fails is a warning.
    """
    log.checkpoint("best", log.run_dir / "checkpoints" / "best.pt")
    manifest, split, report = data.splits[result.split], result.split, result.report
    read = partial(examples.read, data, split, report)
    shown = warn_of_failure(f"pictures of videos of {split}", read, console) or []
    pictures: dict[str, Callable[[Path], None]] = {
        "curves": lambda path: plots.plot_curves(each_metric(log.run_dir), path)
    }
    confusion = report.confusion
    if confusion is not None:
        pairs = confusion.labels.numpy(), confusion.predictions.numpy(), confusion.counts.numpy()
        pictures[f"confusion_{split}"] = lambda path: plots.plot_confusion(pairs, manifest.classes, path)
        pictures[f"wrong_{split}"] = lambda path: examples.draw_wrong(shown, split, report, path)
    for name, plot in pictures.items():
        path = log.run_dir / "plots" / f"{name}.png"
        path.unlink(missing_ok=True)  # of an earlier attempt
        warn_of_failure(str(path), partial(plot, path), console)
        if path.is_file():
            log.image(name, path, state.total_step)
    videos = log.run_dir / "plots" / f"examples_{split}"
    write = partial(examples.write_examples, shown, report, manifest.paths, videos)
    warn_of_failure(str(videos), write, console)
    page = log.run_dir / PAGE
    page.unlink(missing_ok=True)  # of an earlier attempt
    warn_of_failure(str(page), lambda: write_page(log.run_dir, page), console)
    if page.is_file():
        log.page("report", page, state.total_step)


def show(result: Result, state: TrainState, monitor: str, console: Console) -> None:
    """The closing tables."""
    if result.heads:
        show_head_table(console, result.heads, monitor)
    selected = ", which also selected it: there is no test split" if result.also_selected else ""
    value = f"{METRIC_PREFIXES[result.weights]} {monitor} {state.best:.4f}"
    title = f"best checkpoint ({value}) on {result.split}{selected}"
    results_table(console, title, result.report)
    show_baselines(result, console)


def show_baselines(result: Result, console: Console) -> None:
    """What the result is worth: what baselines reach on the same videos, or how to find that out."""
    if not result.beside:
        console.info(
            "what that is worth: python -m vidtrain.baselines with the same dataset settings says what simple models "
            "reach on these videos; a run then closes beside them"
        )
        return
    rows = [
        (verdict.name, f"{verdict.baseline:.4f}", f"{verdict.run:.4f}", verdict.text)
        for verdict in result.beside
    ]
    columns = ("baseline", result.beside[0].metric, "this run", "difference, 95% interval")
    console.table(f"beside baselines, on {result.split}", columns, rows)
    best, not_better = result.beside[0], [verdict.name for verdict in result.beside if not verdict.is_better]
    if MOTION in not_better:
        console.warn(
            f"not better than the {MOTION} by more than chance: nothing shows that the model sees more of the motion "
            f"than where there is some. {TRY_MOTION}"
        )
    elif not_better:
        console.warn(
            f"not better than {best.name} by more than chance, on {best.videos} videos in {best.units} groups. "
            f"{TRY_APPEARANCE}"
        )


def show_head_table(console: Console, table: Sequence[Mapping[str, Any]], monitor: str) -> None:
    """The closing table of a grid; the first row is the head that best.pt holds, unless a later phase did better."""
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


# --- heads of a grid ----------------------------------------------------------------------------------------


def head_table(
    rows: Sequence[Mapping[str, Any]], phases: Mapping[str, PhaseSettings], monitor: str, direction: str
) -> list[dict[str, Any]]:
    """A row for each head of every phase that has a grid, the best value of `monitor` first.

    `rows` are those of metrics.jsonl. Each result has the phase, the head's name, its peak rate and weight decay, the
    step of its best evaluation and all metrics of that. Heads that diverged before any evaluation come last.
    Equal values are in the order in which training would have selected them: the earlier step, then the earlier head.
    """
    ranked = []
    sign = -1 if direction == "max" else 1
    for phase_name, phase in phases.items():
        if phase.heads is None:
            continue
        choices = zip(head_names(phase.heads), head_choices(phase.heads), strict=True)
        for place, (name, (lr, decay)) in enumerate(choices):
            prefix = f"{HEADS}/{name}/"
            judged = [row for row in rows if row.get("phase") == phase_name and f"{prefix}{monitor}" in row]
            best = min(judged, key=lambda row: (_cost(row, prefix, monitor, sign), row["step"]), default=None)
            if best is None:
                continue
            metrics = {
                key.removeprefix(prefix): value for key, value in best.items() if key.startswith(prefix)
            }
            settings = {"phase": phase_name, "head": name, "lr": lr, "weight_decay": decay}
            order = (_cost(best, prefix, monitor, sign), best["step"], place)
            ranked.append((order, {**settings, "step": best["step"], **metrics}))
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0])]


def _cost(row: Mapping[str, Any], prefix: str, monitor: str, sign: int) -> float:
    # metrics.jsonl has null for what is not finite, and the loss of a head that has diverged is not
    if row[f"{prefix}loss"] is None or row[f"{prefix}{monitor}"] is None:
        return math.inf
    return sign * row[f"{prefix}{monitor}"]
