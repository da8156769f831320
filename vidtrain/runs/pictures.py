"""The pictures that close a run: curves, the confusion matrix, and what was got wrong with the most confidence."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from omegaconf import DictConfig

from vidtrain.build import data as build_data
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.evaluation.metrics import Confusion
from vidtrain.evaluation.report import Report
from vidtrain.reports import plots
from vidtrain.reports.guarding import made_or_warned
from vidtrain.reports.top_losses import FRAMES, most_wrong, plot_wrong
from vidtrain.tracking.run_log import RunLog, each_metric
from vidtrain.training.ranks.distributed import Ranks


def draw(
    cfg: DictConfig,
    log: RunLog,
    found: Report,
    split: str,
    manifest: Manifest,
    reading: build_data.Reading,
    step: int,
    console: Any,
) -> None:
    """Draws them into the run folder's plots/ and shows them in its trackers as of step `step`; for the main rank
    alone. Where videos may have several labels there are curves only. One that fails is warned about."""
    folder = log.run_dir / "plots"
    wrong, confusion = f"wrong_{split}", f"confusion_{split}"
    pictures = {"curves": lambda path: plots.plot_curves(each_metric(log.run_dir), path)}
    if found.confusion is not None:
        pictures[confusion] = lambda path: draw_confusion(found.confusion, manifest, path)
        pictures[wrong] = lambda path: draw_wrong(cfg, found, split, manifest, reading, path)
    for name, plot in pictures.items():
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)  # of an earlier attempt
        made_or_warned(str(path), lambda plot=plot, path=path: plot(path), console)
        if path.is_file():
            log.image(name, path, step)


def draw_confusion(confusion: Confusion, manifest: Manifest, path: Path) -> None:
    pairs = (confusion.labels, confusion.predictions, confusion.counts)
    plots.plot_confusion(tuple(each.numpy() for each in pairs), manifest.classes, path)


def draw_wrong(
    cfg: DictConfig, found: Report, split: str, manifest: Manifest, reading: build_data.Reading, path: Path
) -> None:
    """Draws frames of the middle view that the model saw of each video, from its first to its last; nothing where all
    is right or no file can be read any more."""
    wrong, count = most_wrong(
        found.table.labels, found.ranked[:, 0], found.ranked_chances[:, 0], manifest.classes
    )
    if not wrong:
        return
    rows = found.table.indices[[each.row for each in wrong]].tolist()
    data = build_data.eval_data(cfg, split, manifest.subset(rows), reading, Ranks(torch.device("cpu")))
    strips = {}
    for batch in data.loader:
        for index, views in zip(batch.indices.tolist(), batch.clips, strict=True):
            view = views[len(views) // 2]
            last = view.shape[1] - 1
            places = np.unique(np.linspace(0, last, FRAMES).round().astype(int))
            strips[index] = rearrange(view[:, places], "c t h w -> t h w c").numpy()
    shown = [number for number in range(len(wrong)) if number in strips]  # a file may be gone meanwhile
    if not shown:
        return
    total = len(found.table.labels)
    which = f"the {len(shown)} most confident of {count:,}" if count > len(shown) else f"{count}"
    title = f"wrong on {split}: {which} (of {total:,} videos); frames as the model saw them, first to last"
    plot_wrong([strips[number] for number in shown], [wrong[number] for number in shown], title, path)
