"""Pictures of one prediction: a sheet of the frames that the model saw with heat maps, and a labeled video."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from torch import nn

from vidtrain.data.augment.geometry import Crop
from vidtrain.data.decoding.decoder import all_frames, decode_views, write_video
from vidtrain.data.decoding.video import VideoInfo
from vidtrain.data.loading.windows import Views, WindowDataset
from vidtrain.errors import UserError
from vidtrain.files.escaping import shown
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.exporting import OnnxClassifier
from vidtrain.models.heads import AttentiveClassifier, kinds_of
from vidtrain.prediction.run import Prediction, Segment, window_edges
from vidtrain.reports.charts import COLORS, Legend, drawable
from vidtrain.reports.frames import (
    BAR,
    Box,
    SeenClip,
    Span,
    caption,
    draw_contact_sheet,
    labeled,
    outlined,
    shade,
    step_of,
    strip,
)

TopOf = Callable[[np.ndarray], list[dict[str, Any]]]  # maps probabilities [k] to the most probable classes

SHORT_SIDE = (240, 480)  # pixels, least and most, of labeled videos: captions need some room
MOST_LINES = 5
LEAST_RISE = 1.5
BRIGHTEST = 99.5  # percentile of the heat that is drawn brightest: a single place would leave the rest dark


# --- heat -----------------------------------------------------------------------------------------------------


def heat_kind(
    wanted: str, heat_class: str | None, model: VideoClassifier | OnnxClassifier, clip_shape: tuple[int, int, int]
) -> tuple[str | None, str]:
    """The kind of heat map to draw for clips [t h w], or None and the reason. Raises `UserError` for a kind that the
    model does not allow."""
    if wanted == "none":
        return None, "heat=none"
    kinds = kinds_of(model, *clip_shape)
    if not isinstance(model, VideoClassifier):
        why = "an exported graph gives logits alone; name the run or its checkpoint"
    elif not kinds:
        why = "the model's head sees one token, which has no place"
    else:
        why = "it needs an attentive pooler, and the model's head is another; set heat=grad_cam"
    if wanted == "auto" and heat_class is None:
        return (kinds[0], "") if kinds else (None, why)
    kind = "grad_cam" if wanted == "auto" else wanted
    if kind not in kinds:
        raise UserError(f"heat={kind} cannot be drawn: {why}")
    return kind, ""


def heat_note(kind: str | None, head: nn.Module | None, heat_class: str | None, why_none: str) -> str:
    """Explains the colors of a sheet, with `{}` for the most probable class unless `heat_class` is given."""
    if isinstance(head, AttentiveClassifier) and kind == "attention":
        blocks, heads = len(head.pooler.blocks), head.pooler.num_heads
        before = f", after {blocks} blocks of self-attention over all of them" if blocks else ""
        return (
            f"Heat: attention that the pooler gives to the tokens, the mean of its {heads} heads{before}. "
            "Below: the share of each time step in the clip's attention."
        )
    if kind == "grad_cam":
        named = "{}" if heat_class is None else _braced(heat_class)
        return (
            f"Heat: Grad-CAM, what in the encoder's last features speaks for {named}. Below: the share of each "
            "time step in the clip's heat."
        )
    return _braced(f"No heat map: {why_none}.")


def _braced(text: str) -> str:
    """The text with doubled braces, as `str.format` needs them."""
    return text.replace("{", "{{").replace("}", "}}")


def scaled(heat: np.ndarray, from_even: bool) -> tuple[np.ndarray, float | None]:
    """Scales heat to 0 to 1, float32, with one scale for the whole video. Also returns the heat at 1 as a multiple of
    the mean, or None if there is no heat at all.

    0 stands for no heat or, with `from_even`, for the mean, as attention is nowhere 0. Then 1 stands for at least
    `LEAST_RISE` times the mean, so that almost even attention looks even.
    """
    heat = heat.astype(np.float32)
    if not np.isfinite(heat).any() or np.nanmax(heat) <= 0:
        return np.zeros_like(heat), None
    mean, brightest = float(np.nanmean(heat)), float(np.nanpercentile(heat, BRIGHTEST))
    floor = mean if from_even else 0.0
    brightest = max(brightest, LEAST_RISE * mean) if from_even else brightest or float(np.nanmax(heat))
    return np.nan_to_num((heat - floor) / (brightest - floor)).clip(0, 1), brightest / mean


# --- pictures -------------------------------------------------------------------------------------------------


def draw_sheet(
    prediction: Prediction,
    dataset: WindowDataset,
    top: Sequence[tuple[str, float]],
    title: str,
    note: str,
    from_even: bool,
    path: Path,
) -> None:
    """Draws sheet.png of a video that was classified as a whole. Raises `DecodeError`."""
    assert prediction.pixels is not None, "the sheet needs the pixels that the model saw"
    seen = dataset.views(prediction.chunks[0])
    video, frames = seen.video, seen.frames[0]
    times = video.timestamps - video.timestamps[0]
    heat = None
    if prediction.heat is not None:
        heat, times_mean = scaled(prediction.heat[0], from_even)
        begin = "the mean" if from_even else "none"
        colors = "there is none here" if times_mean is None else f"from {begin} to {times_mean:.1f} times the mean"
        note += f" Colors: {colors}."
    clips = []
    for view, pixels in enumerate(rearrange(prediction.pixels[0].numpy(), "v c t h w -> v t h w c")):
        clip, crop = divmod(view, len(seen.crops))
        name = f"clip {clip + 1}" + (f", crop {crop + 1}" if len(seen.crops) > 1 else "")
        shares = None
        if prediction.heat is not None:
            sums = prediction.heat[0, view].astype(np.float64).sum(axis=(1, 2))
            shares = sums / max(float(sums.sum()), 1e-12)
        clips.append(SeenClip(name, pixels, times[frames[clip]], None if heat is None else heat[view], shares))
    middle = frames[0][len(frames[0]) // 2 : len(frames[0]) // 2 + 1]
    size = _even_size(video, SHORT_SIDE)
    whole = decode_views(video, [(middle, Crop(0, 0, video.width, video.height))], size)
    picture = rearrange(whole[0, :, 0].numpy(), "c h w -> h w c")
    draw_contact_sheet(path, title, note, top, picture, [_box(crop, video, size) for crop in seen.crops], clips)


def draw_labeled_video(
    prediction: Prediction,
    dataset: WindowDataset,
    top_of: TopOf,
    title: str,
    segments: Sequence[Segment],
    from_even: bool,
    path: Path,
) -> None:
    """Writes labeled.mp4: every frame with its prediction, and the heat of the clip that shows it. A video that was
    classified as a whole has one prediction; frames outside of all clips stay as they are. Raises `DecodeError`."""
    seen = dataset.views(prediction.chunks[0])
    video = seen.video
    size = _even_size(video, SHORT_SIDE)
    times = video.timestamps - video.timestamps[0]
    heat = None if prediction.heat is None else scaled(prediction.heat, from_even)[0]
    windows = prediction.chunks[0].length is not None
    lines = min(MOST_LINES, prediction.probabilities.shape[1], len(top_of(prediction.probabilities[0])))
    edges = window_edges(prediction.starts, prediction.ends, prediction.seconds) if windows else None
    seconds = prediction.seconds if windows else max(float(times[-1]), 1e-6)
    spans: list[Span] = [(times[clip.min()] / seconds, times[clip.max()] / seconds, BAR) for clip in seen.frames[0]]
    if windows:
        classes = list(dict.fromkeys(segment.class_index for segment in segments))
        color_of = {number: COLORS[place % len(COLORS)] for place, number in enumerate(classes)}
        spans = [(part.start / seconds, part.end / seconds, color_of[part.class_index]) for part in segments]
    band = strip(size[1], spans)
    chunk_of = [number for number, chunk in enumerate(prediction.chunks) for _ in chunk.starts]
    legend = Legend()

    def panel_of(window: int) -> np.ndarray:
        return _panel(prediction.probabilities[window], top_of, size[1], title, lines, legend)

    def pictures() -> Iterator[np.ndarray]:
        window, panel = 0, panel_of(0)
        chunk, views = 0, seen
        for index, picture in enumerate(all_frames(video, size)):
            if edges is not None:
                current = int(np.searchsorted(edges, times[index], side="right")) - 1
                current = min(current, len(prediction.starts) - 1)
                if current != window:
                    window, panel = current, panel_of(current)
            if chunk_of[window] != chunk:
                chunk = chunk_of[window]
                views = dataset.views(prediction.chunks[chunk])
            frames = views.frames[window - chunk_of.index(chunk)]
            maps = None if heat is None else heat[window]
            drawn = _with_heat(picture, index, views, frames, maps, size)
            yield labeled(drawn, panel, band, times[index] / seconds)

    write_video(path, pictures(), times)
    legend.write(path)


def _panel(probabilities: np.ndarray, top_of: TopOf, width: int, title: str, lines: int, legend: Legend) -> np.ndarray:
    title = drawable(shown(title), legend)
    if np.isnan(probabilities).any():
        return caption(width, f"{title}: could not be read here", [], lines)
    rows = [(drawable(shown(top["class"]), legend), top["probability"]) for top in top_of(probabilities)[:lines]]
    return caption(width, title, rows, lines)


def _with_heat(
    picture: np.ndarray, index: int, views: Views, clips: np.ndarray, heat: np.ndarray | None, size: tuple[int, int]
) -> np.ndarray:
    """The picture of frame `index` with the box that the model saw, and the heat [v t h w] of the clips [n t] that span
    it: the maximum if several do."""
    warmest: dict[Crop, np.ndarray] = {}
    spanned = False
    for number, clip in enumerate(clips):
        if not clip.min() <= index <= clip.max():
            continue
        spanned = True
        for place, crop in enumerate(views.crops):
            if heat is None:
                continue
            maps = heat[number * len(views.crops) + place]
            nearest = int(np.abs(clip - index).argmin())
            now = maps[step_of(nearest, len(clip), len(maps))]
            warmest[crop] = now if crop not in warmest else np.maximum(warmest[crop], now)
    for crop, now in warmest.items():
        picture = shade(picture, now, _box(crop, views.video, size))
    if spanned:
        for crop in views.crops:
            picture = outlined(picture, _box(crop, views.video, size))
    return picture


def _even_size(video: VideoInfo, bounds: tuple[int, int]) -> tuple[int, int]:
    """Even (height, width) of the displayed frame, scaled so that its short side lies within `bounds`."""
    short = min(video.width, video.height)
    scale = min(max(short, bounds[0]), bounds[1]) / short
    height, width = (max(2, round(side * scale / 2) * 2) for side in (video.height, video.width))
    return height, width


def _box(crop: Crop, video: VideoInfo, size: tuple[int, int]) -> Box:
    """A crop in pixels of a picture of `size`."""
    down, across = size[0] / video.height, size[1] / video.width
    left, top = round(crop.left * across), round(crop.top * down)
    right, bottom = round((crop.left + crop.width) * across), round((crop.top + crop.height) * down)
    return left, top, right - left, bottom - top
