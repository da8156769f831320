"""What shows a model best: its most confident mistakes and least certain right answers, as frames that it saw.

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
from PIL import Image
from torch import Tensor

from vidtrain.evaluation.report import Report
from vidtrain.files.atomic import write_json_atomic
from vidtrain.reports.charts import spread_evenly
from vidtrain.reports.frames import MOST_WRONG, WRONG_FRAMES, Wrong, plot_wrong
from vidtrain.runs.assemble import RunData
from vidtrain.training.ranks.distributed import Ranks

WRONG, UNSURE = "wrong", "unsure"
RECORD = "examples.json"
MOST_UNSURE = 8
MOST_ANSWERS = 3  # of a video
MOST_READ = 16  # frames of a view that are kept
MOST_FRAMES = 8  # of a moving picture
LONGEST_SIDE = 128  # pixels of it
FRAME_MS, QUALITY = 180, 60


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
    """At most 16 frames [t h w 3] of the views [v 3 t h w] of a video, in order: of the middle view, or where clips of
    so many `crops` were judged together, of the middle crop of every clip."""
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
    plot_wrong(strips, [Wrong(video.true, *video.answers[0]) for video, _ in wrong], title, path)


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
