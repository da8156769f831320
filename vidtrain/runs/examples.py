"""Draws example videos. For a classifier: its most confident mistakes and least certain right answers, with the frames
that it saw. For a masked model: its predictions for hidden tokens, and its features as colors.

plots/examples_SPLIT/
examples.json   for each picture the path, the true class, and the most probable classes with their probabilities
NN.webp         an animation of at most eight frames of the middle view, or of all clips if they are attended jointly
"""

import io
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from vidtrain.evaluation.report import Report
from vidtrain.files.atomic import write_json_atomic
from vidtrain.models.masked_models import MaskedAutoencoder, MaskedModel
from vidtrain.models.masks import MaskedClips, Masks
from vidtrain.reports.charts import save_png, spread_evenly
from vidtrain.reports.frames import CELL, HEAT, MOST_WRONG, SEEN_FRAMES, WRONG_FRAMES, plot_wrong
from vidtrain.runs.assemble import RunData
from vidtrain.training.distributed import Ranks

WRONG, UNSURE = "wrong", "unsure"
RECORD = "examples.json"
MOST_UNSURE = 8
MOST_ANSWERS = 3  # classes that are listed for a video
MOST_READ = 16  # frames that are kept of a video
MOST_FRAMES = 8  # frames of an animation
LONGEST_SIDE = 128  # pixels of an animation
FRAME_MS, QUALITY = 180, 60
MOST_MASKED = 3  # videos on a sheet of a masked model
GRAY = 0.35

Rows = list[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Example:
    """A wrongly classified video, or a right one with low probability: its most probable classes as `answers`, with
    probabilities. If videos may have several labels, `true` names all of them and `true_probability` is None."""

    kind: str
    row: int  # its row in the view table
    true: str
    true_probability: float | None
    answers: list[tuple[str, float]]


def choose(report: Report, classes: Sequence[str]) -> list[Example]:
    """The mistakes, the most confident first, then the right answers, the least certain first. With several labels, a
    mistake is a video whose most probable class is not one of its labels."""
    labels, confidence = report.table.labels, report.ranked_probabilities[:, 0].numpy()
    multi_label = labels.ndim == 2
    first = report.ranked[:, 0]
    right = (labels.gather(1, first[:, None])[:, 0] > 0 if multi_label else labels == first).numpy()
    by_confidence = np.argsort(-confidence, kind="stable")
    wrong = [(WRONG, row) for row in by_confidence[~right[by_confidence]][:MOST_WRONG].tolist()]
    by_uncertainty = by_confidence[::-1]
    unsure = [(UNSURE, row) for row in by_uncertainty[right[by_uncertainty]][:MOST_UNSURE].tolist()]
    return [_example(report, classes, kind, row) for kind, row in (*wrong, *unsure)]


def _example(report: Report, classes: Sequence[str], kind: str, row: int) -> Example:
    label, probabilities = report.table.labels[row], report.probabilities_of(row)
    multi_label = label.ndim == 1
    true_classes = label.nonzero().flatten().tolist() if multi_label else [int(label)]
    ranked = report.ranked[row, :MOST_ANSWERS].tolist()
    return Example(
        kind=kind,
        row=row,
        true="; ".join(classes[number] for number in true_classes),
        true_probability=None if multi_label else float(probabilities[true_classes[0]]),
        answers=[(classes[number], float(probabilities[number])) for number in ranked],
    )


def read(data: RunData, split: str, report: Report) -> list[tuple[Example, np.ndarray]]:
    """The examples of `choose`, each with at most 16 frames uint8 [t h w 3] that the model saw: of the middle view, or
    of all clips if the model attends over them jointly. Videos that cannot be read any more are left out."""
    chosen = choose(report, data.splits[split].classes)
    if not chosen:
        return []
    manifest = data.splits[split].subset(report.table.indices[[video.row for video in chosen]].tolist())
    videos = data.open_split(split, manifest, Ranks(torch.device("cpu")))
    shown = []
    for batch in videos.loader:
        for place, views in zip(batch.indices.tolist(), batch.clips, strict=True):
            joint = len(views) > report.table.logits.shape[1]
            shown.append((chosen[place], frames_of(views, videos.crops if joint else None).numpy()))
    return shown


def frames_of(views: Tensor, crops: int | None = None) -> Tensor:
    """At most 16 frames [t h w 3] of the views [v 3 t h w] of a video, in order: of the middle view or, if `crops` is
    given, of the middle one of the `crops` crops of every clip."""
    clips = views[len(views) // 2][None] if crops is None else views[crops // 2 :: crops]
    clips = clips[spread_evenly(len(clips), MOST_READ)]
    frames = clips[:, :, spread_evenly(clips.shape[2], MOST_READ // len(clips))]
    return rearrange(frames, "n c t h w -> (n t) h w c")


def draw_wrong(shown: Sequence[tuple[Example, np.ndarray]], split: str, report: Report, path: Path) -> None:
    """Draws the mistakes as strips of frames in order; draws nothing if there are none."""
    wrong = [(video, frames) for video, frames in shown if video.kind == WRONG]
    if not wrong:
        return
    total = len(report.table.labels)
    count = int((report.table.labels != report.ranked[:, 0]).sum())
    which = f"the {len(wrong)} most confident of {count:,}" if count > len(wrong) else f"{count}"
    title = f"wrong on {split}: {which} (of {total:,} videos); frames as the model saw them, first to last"
    strips = [frames[spread_evenly(len(frames), WRONG_FRAMES)] for _, frames in wrong]
    plot_wrong(strips, [(video.true, *video.answers[0]) for video, _ in wrong], title, path)


def write_examples(
    shown: Sequence[tuple[Example, np.ndarray]], report: Report, paths: Sequence[str], folder: Path
) -> None:
    """Writes the animations and examples.json into `folder`, and removes earlier ones; `paths` are those of the whole
    manifest."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = []
    for number, (video, frames) in enumerate(shown, start=1):
        name = f"{number:02d}.webp"
        (folder / name).write_bytes(moving_picture(frames))
        path = paths[int(report.table.indices[video.row])]
        rows.append({**asdict(video), "path": path, "file": name})
    write_json_atomic(folder / RECORD, {"videos": len(report.table.labels), "examples": rows})


def moving_picture(frames: np.ndarray) -> bytes:
    """An endless WebP animation of at most 8 of the `frames`, uint8 [t h w 3], with at most 128 pixels a side."""
    images = [Image.fromarray(frames[place]) for place in spread_evenly(len(frames), MOST_FRAMES)]
    for image in images:
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    options = {"append_images": images[1:], "duration": FRAME_MS, "loop": 0, "quality": QUALITY, "method": 4}
    images[0].save(file, "WEBP", save_all=True, **options)
    return file.getvalue()


# --- predictions and features of a masked model -----------------------------------------------------------


@torch.no_grad()
def draw_masked(model: MaskedModel, clips: Tensor, inputs: MaskedClips, path: Path) -> None:
    """Draws a sheet of uint8 `clips` [b n c t h w]; `inputs` are made from them. For each video it shows the first
    clip, the part that the encoder sees, and the reconstruction or, for a joint-embedding model, the error of each kind
    of masks."""
    model.eval()
    rows: Rows = []
    samples, n = inputs.clips[:, 0], inputs.clips.shape[1]
    masks = [_first_clips(kind, n) for kind in inputs.masks]
    predictions = model.predictions(samples, masks).cpu().numpy()
    size = samples.shape[2:]
    for video in range(min(MOST_MASKED, len(samples))):
        frames = rearrange(clips[video, 0], "c t h w -> t h w c").numpy() / 255
        hidden = [_in_pixels(kind, video, model, size) for kind in masks]
        rows.append(("input", frames))
        if isinstance(model, MaskedAutoencoder):
            rows.append(("visible", np.where(hidden[0][..., None], GRAY, frames)))
            rows.append(("reconstructed", rearrange(predictions[video], "c t h w -> t h w c")))
            continue
        for kind, (places, errors) in enumerate(zip(hidden, predictions[video], strict=True)):
            rows.append((f"visible, kind {kind + 1}", np.where(places[..., None], GRAY, frames)))
            rows.append(("error", heat_colors(_enlarged(np.nan_to_num(errors), size), ~places)))
    note = "videos of val: gray is hidden from the encoder"
    if isinstance(model, MaskedAutoencoder) and model.norm_pix_loss:
        note += "; the reconstruction uses the true mean and contrast of each cube"
    plot_videos(rows, note, path)


@torch.no_grad()
def draw_features(model: MaskedModel, clips: Tensor, inputs: MaskedClips, path: Path) -> None:
    """Draws a sheet of the same clips with their tokens' features as colors: three principal components over all
    tokens, each scaled to its range."""
    model.eval()
    samples = inputs.clips[:MOST_MASKED, 0]
    tokens = model.feature_encoder()(samples).float().cpu()
    flat = tokens.flatten(0, 1)
    _, _, directions = torch.pca_lowrank(flat, q=min(3, *flat.shape), niter=8)
    colors = (tokens - flat.mean(dim=0)) @ directions
    low, high = colors.flatten(0, 1).quantile(0.02, dim=0), colors.flatten(0, 1).quantile(0.98, dim=0)
    colors = ((colors - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    size = samples.shape[2:]
    t, h, w = model.encoder.tubelets(*size)
    rows: Rows = []
    for video in range(len(samples)):
        rows.append(("input", rearrange(clips[video, 0], "c t h w -> t h w c").numpy() / 255))
        grid = rearrange(colors[video], "(t h w) c -> c t h w", t=t, h=h, w=w).numpy()
        rows.append(("features", np.stack([_enlarged(channel, size) for channel in grid], axis=-1)))
    plot_videos(rows, "videos of val and their features: similar colors are similar features", path)


def _first_clips(masks: Masks, n: int) -> Masks:
    """The masks of the first of the `n` clips of each video."""
    visible_valid, hidden_valid = (
        None if valid is None else valid[::n] for valid in (masks.visible_valid, masks.hidden_valid)
    )
    return Masks(masks.visible[::n], masks.hidden[::n], visible_valid, hidden_valid)


def _in_pixels(masks: Masks, row: int, model: MaskedModel, size: Sequence[int]) -> np.ndarray:
    """Which pixels [t h w] of a sample are hidden."""
    grid = model.encoder.tubelets(*size)
    hidden = np.zeros(grid[0] * grid[1] * grid[2], dtype=bool)
    places = masks.hidden[row] if masks.hidden_valid is None else masks.hidden[row][masks.hidden_valid[row]]
    hidden[places.cpu().numpy()] = True
    return _enlarged(hidden.reshape(grid), size)


def _enlarged(values: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Values of tokens [t h w], repeated for every pixel of `size`."""
    for axis, length in enumerate(size):
        values = values.repeat(length // values.shape[axis], axis=axis)
    return values


def plot_videos(rows: Sequence[tuple[str, np.ndarray]], note: str, path: Path) -> None:
    """Draws a sheet of videos below each other: each row has a name and frames float [t h w 3] in [0, 1], at most eight
    of which are shown."""
    columns = spread_evenly(rows[0][1].shape[0], SEEN_FRAMES)
    figure = Figure(figsize=(CELL * len(columns) + 1.4, CELL * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for (name, frames), row_axes in zip(rows, axes, strict=True):
        for column, cell in zip(columns, row_axes, strict=True):
            cell.imshow(frames[column].clip(0, 1), interpolation="nearest")
            cell.set_xticks([])
            cell.set_yticks([])
            cell.spines[:].set_visible(False)
        row_axes[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle(note, fontsize=9)
    save_png(figure, path)


def heat_colors(values: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """Values [t h w] as colors [t h w 3], brighter for larger values; those of `absent`, bool [t h w], are gray."""
    top = values[~absent].max(initial=0.0) or 1.0
    colors = HEAT(np.where(absent, 0.0, values) / top)[..., :3]
    return np.where(absent[..., None], GRAY, colors)
