"""Videos that show a model best. Of a classifier its most confident mistakes and least certain right answers, as frames
that it saw; of a masked model what it makes of hidden parts, and its features as colors.

plots/examples_SPLIT/
  examples.json   what each picture shows: path, true class, the first answers with their probabilities
  NN.webp         eight frames at most of the middle view, or of all clips that were judged together, moving
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
MOST_ANSWERS = 3  # of a video
MOST_READ = 16  # frames of a view that are kept
MOST_FRAMES = 8  # of a moving picture
LONGEST_SIDE = 128  # pixels of it
FRAME_MS, QUALITY = 180, 60
MOST_MASKED = 3  # videos of a sheet of a masked model
GRAY = 0.35

Rows = list[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Example:
    """A video that was answered wrongly, or rightly with little certainty: its first `answers` with their
    probabilities. `true_probability` is None where a video may have several labels, which `true` then names."""

    kind: str
    row: int  # of the view table
    true: str
    true_probability: float | None
    answers: list[tuple[str, float]]


def choose(report: Report, classes: Sequence[str]) -> list[Example]:
    """The most confident mistakes and the least certain right answers, each in that order. With several labels a
    mistake is a video whose most probable label is none of its own."""
    labels, confidence = report.table.labels, report.ranked_chances[:, 0].numpy()
    several = labels.ndim == 2
    first = report.ranked[:, 0]
    right = (labels.gather(1, first[:, None])[:, 0] > 0 if several else labels == first).numpy()
    by_confidence = np.argsort(-confidence, kind="stable")
    wrong = [(WRONG, row) for row in by_confidence[~right[by_confidence]][:MOST_WRONG].tolist()]
    least = by_confidence[::-1]
    unsure = [(UNSURE, row) for row in least[right[least]][:MOST_UNSURE].tolist()]
    return [_example(report, classes, kind, row) for kind, row in (*wrong, *unsure)]


def _example(report: Report, classes: Sequence[str], kind: str, row: int) -> Example:
    label, chances = report.table.labels[row], report.chances_of(row)
    several = label.ndim == 1
    own = label.nonzero().flatten().tolist() if several else [int(label)]
    ranked = report.ranked[row, :MOST_ANSWERS].tolist()
    return Example(
        kind=kind,
        row=row,
        true="; ".join(classes[number] for number in own),
        true_probability=None if several else float(chances[own[0]]),
        answers=[(classes[number], float(chances[number])) for number in ranked],
    )


def read(data: RunData, split: str, report: Report) -> list[tuple[Example, np.ndarray]]:
    """What `choose` gives, each with frames uint8 [t h w 3] that the model saw, 16 at most: of the middle view, or of
    all clips where it judged them together. Without videos that cannot be read any more."""
    chosen = choose(report, data.splits[split].classes)
    if not chosen:
        return []
    manifest = data.splits[split].subset(report.table.indices[[video.row for video in chosen]].tolist())
    videos = data.open_split(split, manifest, Ranks(torch.device("cpu")))
    shown = []
    for batch in videos.loader:
        for place, views in zip(batch.indices.tolist(), batch.clips, strict=True):
            together = len(views) > report.table.logits.shape[1]
            shown.append((chosen[place], frames_of(views, videos.crops if together else None).numpy()))
    return shown


def frames_of(views: Tensor, crops: int | None = None) -> Tensor:
    """At most 16 frames [t h w 3] of the views [v 3 t h w] of a video, in order: of the middle view, or, where clips of
    `crops` each were judged together, of the middle crop of every clip."""
    own = views[len(views) // 2][None] if crops is None else views[crops // 2 :: crops]
    clips = own[spread_evenly(len(own), MOST_READ)]
    frames = clips[:, :, spread_evenly(clips.shape[2], MOST_READ // len(clips))]
    return rearrange(frames, "n c t h w -> (n t) h w c")


def draw_wrong(shown: Sequence[tuple[Example, np.ndarray]], split: str, report: Report, path: Path) -> None:
    """Draws the mistakes as strips of frames, from the first to the last; nothing where there is none."""
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
    """Writes the moving pictures and their record into `folder`, in place of earlier ones; `paths` are those of the
    whole manifest."""
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
    """Frames uint8 [t h w 3], at most 8 of them, as an endless WebP of at most 128 pixels a side."""
    images = [Image.fromarray(frames[place]) for place in spread_evenly(len(frames), MOST_FRAMES)]
    for image in images:
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    more = {"append_images": images[1:], "duration": FRAME_MS, "loop": 0, "quality": QUALITY, "method": 4}
    images[0].save(file, "WEBP", save_all=True, **more)
    return file.getvalue()


# --- what a masked model makes of videos ------------------------------------------------------------------


@torch.no_grad()
def draw_masked(model: MaskedModel, clips: Tensor, inputs: MaskedClips, path: Path) -> None:
    """Writes a sheet of uint8 clips [b n c t h w], of which `inputs` are made: each first clip as it is, what the
    encoder saw of it, and the rest as reconstructed, or its error by kind of masks."""
    model.eval()
    rows: Rows = []
    samples, n = inputs.clips[:, 0], inputs.clips.shape[1]
    masks = [_first_clips(kind, n) for kind in inputs.masks]
    predictions = model.predictions(samples, masks).cpu().numpy()
    size = samples.shape[2:]
    for video in range(min(MOST_MASKED, len(samples))):
        frames = rearrange(clips[video, 0], "c t h w -> t h w c").numpy() / 255
        hidden = [_in_pixels(kind, video, model, size) for kind in masks]
        rows.append(("as it is", frames))
        if isinstance(model, MaskedAutoencoder):
            rows.append(("shown", np.where(hidden[0][..., None], GRAY, frames)))
            rows.append(("made up", rearrange(predictions[video], "c t h w -> t h w c")))
            continue
        for kind, (places, errors) in enumerate(zip(hidden, predictions[video], strict=True)):
            rows.append((f"shown, kind {kind + 1}", np.where(places[..., None], GRAY, frames)))
            rows.append(("error", heat_colors(_enlarged(np.nan_to_num(errors), size), ~places)))
    note = "videos of val: gray is not shown to the encoder"
    if isinstance(model, MaskedAutoencoder) and model.norm_pix_loss:
        note += "; what was made up has the true mean and contrast of each cube"
    plot_videos(rows, note, path)


@torch.no_grad()
def draw_features(model: MaskedModel, clips: Tensor, inputs: MaskedClips, path: Path) -> None:
    """Writes a sheet of the same clips and their tokens' features as colors: three principal components over all
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
        rows.append(("as it is", rearrange(clips[video, 0], "c t h w -> t h w c").numpy() / 255))
        grid = rearrange(colors[video], "(t h w) c -> c t h w", t=t, h=h, w=w).numpy()
        rows.append(("features", np.stack([_enlarged(channel, size) for channel in grid], axis=-1)))
    plot_videos(rows, "videos of val, and their features: like colors are alike to the encoder", path)


def _first_clips(masks: Masks, n: int) -> Masks:
    """Of every n-th sample, the first clip of each video."""
    visible_valid, hidden_valid = (
        None if part is None else part[::n] for part in (masks.visible_valid, masks.hidden_valid)
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
    """Values of tokens [t h w] at every pixel."""
    for axis, length in enumerate(size):
        values = values.repeat(length // values.shape[axis], axis=axis)
    return values


def plot_videos(rows: Sequence[tuple[str, np.ndarray]], note: str, path: Path) -> None:
    """A sheet of videos below each other: each row has a name and frames float [t h w 3] in [0, 1], of which eight at
    most are shown."""
    columns = spread_evenly(rows[0][1].shape[0], SEEN_FRAMES)
    figure = Figure(figsize=(CELL * len(columns) + 1.4, CELL * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for (name, frames), line in zip(rows, axes, strict=True):
        for column, place in zip(columns, line, strict=True):
            place.imshow(frames[column].clip(0, 1), interpolation="nearest")
            place.set_xticks([])
            place.set_yticks([])
            place.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle(note, fontsize=9)
    save_png(figure, path)


def heat_colors(values: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """Numbers [t h w] as colors [t h w 3], the greatest the brightest; `absent` bool [t h w] ones are gray."""
    top = values[~absent].max(initial=0.0) or 1.0
    colors = HEAT(np.where(absent, 0.0, values) / top)[..., :3]
    return np.where(absent[..., None], GRAY, colors)
