"""What a network that was pretrained makes of some videos of val, as sheets of frames."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from matplotlib.figure import Figure
from torch import Tensor

from vidtrain.models.pretraining.masked_autoencoder import MaskedAutoencoder
from vidtrain.models.pretraining.masked_model import MaskedModel
from vidtrain.models.pretraining.masks import MaskedClips, Masks
from vidtrain.reports.charts import save_png, spread_evenly
from vidtrain.reports.frames import CELL, HEAT, SEEN_FRAMES

MOST_VIDEOS = 3
Rows = list[tuple[str, np.ndarray]]


@torch.no_grad()
def draw_masked(model: MaskedModel, clips: Tensor, inputs: MaskedClips, path: Path) -> None:
    """Writes a sheet of uint8 clips [b n c t h w], which `inputs` are made of: each first clip as it is, what of it the
    encoder saw, and what came of the rest: the reconstruction, or by kind of masks the error over time and place."""
    model.eval()
    rows: Rows = []
    samples, n = inputs.clips[:, 0], inputs.clips.shape[1]
    masks = [_first_clips(kind, n) for kind in inputs.masks]
    predictions = model.predictions(samples, masks).cpu().numpy()
    size = samples.shape[2:]
    for video in range(min(MOST_VIDEOS, len(samples))):
        frames = rearrange(clips[video, 0], "c t h w -> t h w c").numpy() / 255
        hidden = [_in_pixels(kind, video, model, size) for kind in masks]
        rows.append(("as it is", frames))
        if isinstance(model, MaskedAutoencoder):
            rows.append(("shown", np.where(hidden[0][..., None], 0.35, frames)))
            rows.append(("made up", rearrange(predictions[video], "c t h w -> t h w c")))
            continue
        for kind, (places, errors) in enumerate(zip(hidden, predictions[video], strict=True)):
            rows.append((f"shown, kind {kind + 1}", np.where(places[..., None], 0.35, frames)))
            rows.append(("error", heat_colors(_enlarged(np.nan_to_num(errors), size), ~places)))
    note = "videos of val: gray is not shown to the encoder"
    if isinstance(model, MaskedAutoencoder) and model.norm_pix_loss:
        note += "; what was made up has the true mean and contrast of each cube"
    plot_videos(rows, note, path)


@torch.no_grad()
def draw_features(model: MaskedModel, clips: Tensor, inputs: MaskedClips, path: Path) -> None:
    """Writes a sheet of the same clips with their tokens' features as colors: the three principal components over all
    tokens of all of them, each scaled to its range."""
    model.eval()
    samples = inputs.clips[:MOST_VIDEOS, 0]
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
    return np.where(absent[..., None], 0.35, colors)
