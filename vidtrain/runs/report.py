"""The close of a run: its best checkpoint on the split that selected nothing, in tables, pictures and summary.json."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import nn

from vidtrain.errors import DivergedError
from vidtrain.evaluation.metrics import DIRECTIONS
from vidtrain.evaluation.report import Report
from vidtrain.evaluator.report import evaluate_split, results_table
from vidtrain.features.frozen_encoder import show_head_table, write_head_table
from vidtrain.features.head_table import head_table
from vidtrain.reports import plots
from vidtrain.reports.charts import warn_of_failure
from vidtrain.reports.frames import WRONG_FRAMES, most_wrong, plot_wrong
from vidtrain.runs.assemble import Parts, RunData
from vidtrain.runs.data import changed_in_mid_run
from vidtrain.tracking.run_log import RunLog, each_metric
from vidtrain.training import checkpoint
from vidtrain.training.ranks.distributed import Ranks
from vidtrain.training.resume import load_best
from vidtrain.training.state import TrainState
from vidtrain.training.validation import HEADS, METRIC_PREFIXES


@dataclass(frozen=True)
class Result:
    """The best checkpoint of a run, evaluated."""

    split: str  # test, or val where there is no test
    report: Report
    weights: str  # raw, or ema: their average
    heads: list[dict[str, Any]]  # of a grid, the best first

    @property
    def also_selected(self) -> bool:
        return self.split == "val"


def report_best(
    data: RunData,
    parts: Parts,
    model: nn.Module,
    fusion: str,
    protocol: str,
    state: TrainState,
    ranks: Ranks,
    log: RunLog,
    console: Any,
) -> Result:
    """Gives `model` the best weights, evaluates them and writes what closes the run.

    Raises `DivergedError` where no evaluation gave a finite number, and `UserError` where best.pt is damaged.
    """
    settings, folder = parts.settings, log.run_dir
    if state.best is None:
        raise DivergedError(f"no evaluation gave a finite {settings.monitor}: no best checkpoint to report")
    file = folder / "checkpoints" / "best.pt"
    ranks.barrier()
    best = load_best(file, state)
    checkpoint.restore(model, best["model"], str(file))
    split = "test" if "test" in data.splits else "val"
    report = evaluate_split(
        model,
        data.open_split(split, data.splits[split], ranks),
        parts.transform,
        parts.autocast,
        fusion,
        protocol,
        parts.loss.independent,
        ranks,
        console,
        folder / "eval" / split,
    )
    # checkpoints that are older than weight averaging do not name their weights
    weights = best["weights"] if "weights" in best else "raw"
    result = Result(split, report, weights, _rank_heads(folder, parts) if ranks.is_main else [])
    _write_summary(result, best, settings.monitor, state, log)
    return result


def _rank_heads(folder: Path, parts: Parts) -> list[dict[str, Any]]:
    """The heads of a grid, the best first, written into heads.csv; empty where there is no grid."""
    monitor = parts.settings.monitor
    rows = [row for row in each_metric(folder) if any(key.startswith(HEADS) for key in row)]
    heads = head_table(rows, parts.phases, monitor, DIRECTIONS[monitor])
    if heads:
        write_head_table(heads, folder / "heads.csv")
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
            **report.metrics,
        }
    )


def draw_pictures(data: RunData, result: Result, state: TrainState, log: RunLog, console: Any) -> None:
    """Offers best.pt to the trackers, draws the pictures into the run folder's plots/ and shows them in the trackers.

    For the main rank alone. Where videos may have several labels there are curves only. A picture that fails is a
    warning.
    """
    log.checkpoint("best", log.run_dir / "checkpoints" / "best.pt")
    manifest, split, confusion = data.splits[result.split], result.split, result.report.confusion
    pictures: dict[str, Callable[[Path], None]] = {
        "curves": lambda path: plots.plot_curves(each_metric(log.run_dir), path)
    }
    if confusion is not None:
        pairs = confusion.labels.numpy(), confusion.predictions.numpy(), confusion.counts.numpy()
        pictures[f"confusion_{split}"] = lambda path: plots.plot_confusion(pairs, manifest.classes, path)
        pictures[f"wrong_{split}"] = lambda path: draw_wrong(data, result, path)
    for name, plot in pictures.items():
        path = log.run_dir / "plots" / f"{name}.png"
        path.unlink(missing_ok=True)  # of an earlier attempt
        warn_of_failure(str(path), partial(plot, path), console)
        if path.is_file():
            log.image(name, path, state.total_step)


def draw_wrong(data: RunData, result: Result, path: Path) -> None:
    """Draws the videos that the model got wrong with the most confidence: frames of the middle view that it saw, from
    the first to the last. Draws nothing where all are right, or no file can be read any more."""
    report, manifest, split = result.report, data.splits[result.split], result.split
    wrong, count = most_wrong(
        report.table.labels, report.ranked[:, 0], report.ranked_chances[:, 0], manifest.classes
    )
    if not wrong:
        return
    rows = report.table.indices[[video.row for video in wrong]].tolist()
    videos = data.open_split(split, manifest.subset(rows), Ranks(torch.device("cpu")))
    strips = {}
    for batch in videos.loader:
        for index, views in zip(batch.indices.tolist(), batch.clips, strict=True):
            view = views[len(views) // 2]
            last = view.shape[1] - 1
            places = np.unique(np.linspace(0, last, WRONG_FRAMES).round().astype(int))
            strips[index] = rearrange(view[:, places], "c t h w -> t h w c").numpy()
    drawn = [number for number in range(len(wrong)) if number in strips]  # a file may be gone meanwhile
    if not drawn:
        return
    total = len(report.table.labels)
    which = f"the {len(drawn)} most confident of {count:,}" if count > len(drawn) else f"{count}"
    title = f"wrong on {split}: {which} (of {total:,} videos); frames as the model saw them, first to last"
    plot_wrong([strips[number] for number in drawn], [wrong[number] for number in drawn], title, path)


def show(result: Result, state: TrainState, monitor: str, console: Any) -> None:
    """The closing tables."""
    if result.heads:
        show_head_table(console, result.heads, monitor)
    selected = ", which also selected it: there is no test split" if result.also_selected else ""
    value = f"{METRIC_PREFIXES[result.weights]} {monitor} {state.best:.4f}"
    title = f"best checkpoint ({value}) on {result.split}{selected}"
    results_table(console, title, result.report)
