"""The pictures that close a run: curves, the confusion matrix, and what was got wrong with the most confidence."""

from pathlib import Path

import torch
from einops import rearrange
from omegaconf import DictConfig

from vidtrain import build_data
from vidtrain.data.manifest import Manifest
from vidtrain.evaluation.report import Report
from vidtrain.tracking import plots
from vidtrain.tracking.run_log import RunLog, read_metrics
from vidtrain.tracking.wrong_sheet import most_wrong, plot_wrong
from vidtrain.training.distributed import Ranks


def draw(
    cfg: DictConfig,
    log: RunLog,
    found: Report,
    split: str,
    manifest: Manifest,
    reading: build_data.Reading,
    step: int,
) -> None:
    """Draws them into the run folder's plots/ and shows them in its trackers as of step `step`; for the main rank
    alone. Where videos may have several labels there are curves only."""
    folder = log.run_dir / "plots"
    pictures = {"curves": folder / "curves.png"}
    plots.plot_curves(read_metrics(log.run_dir), pictures["curves"])
    if found.confusion is not None:
        pictures[f"confusion_{split}"] = folder / f"confusion_{split}.png"
        plots.plot_confusion(found.confusion, manifest.classes, pictures[f"confusion_{split}"])
        sheet = folder / f"wrong_{split}.png"
        if draw_wrong(cfg, found, split, manifest, reading, sheet):
            pictures[f"wrong_{split}"] = sheet
    for name, path in pictures.items():
        log.image(name, path, step)


def draw_wrong(
    cfg: DictConfig, found: Report, split: str, manifest: Manifest, reading: build_data.Reading, path: Path
) -> bool:
    """Draws the middle frame of the middle view that the model saw of each video; False where there is none."""
    wrong, count = most_wrong(found.table.labels, found.probabilities, manifest.classes)
    if not wrong:
        return False
    rows = found.table.indices[[each.row for each in wrong]].tolist()
    data = build_data.eval_data(cfg, split, manifest.subset(rows), reading, Ranks(torch.device("cpu")))
    frames = {}
    for batch in data.loader:
        for index, views in zip(batch.indices.tolist(), batch.clips, strict=True):
            view = views[len(views) // 2]
            frames[index] = rearrange(view[:, view.shape[1] // 2], "c h w -> h w c").numpy()
    shown = [number for number in range(len(wrong)) if number in frames]  # a file may be gone meanwhile
    if not shown:
        return False
    total = len(found.table.labels)
    which = f"the {len(shown)} most confident of {count}" if count > len(shown) else f"{count}"
    title = f"wrong on {split}: {which} (of {total} videos); the middle frame as the model saw it"
    plot_wrong([frames[number] for number in shown], [wrong[number] for number in shown], title, path)
    return True
