"""Leaving out training videos that are too short, too long or too large, before anything is drawn from them."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.decoding.video import DecodeError
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.processes.workers import guarded
from vidtrain.errors import UserError


@dataclass(frozen=True)
class VideoFilter:
    """Bounds on videos, both ends allowed; None is no bound. Lengths are those of a record's cut of its file.

    Raises `UserError` for bounds that nothing can meet, with a line for each.
    """

    min_frames: int | None = None
    min_seconds: float | None = None
    max_seconds: float | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        faults = [
            f"data.{name}={value} must be above 0; null is no bound"
            for name, value in vars(self).items()
            if value is not None and value <= 0
        ]
        if self.min_seconds and self.max_seconds and self.min_seconds > self.max_seconds:
            faults.append(f"data.min_seconds={self.min_seconds} is above data.max_seconds={self.max_seconds}")
        if faults:
            raise UserError("\n".join(faults))

    @property
    def keeps_all(self) -> bool:
        return all(value is None for value in vars(self).values())

    def why_not(
        self, index: VideoIndex, frame_rate: float | None, cut: tuple[str, float | None, float | None]
    ) -> str | None:
        """The bound that a (path, start, end) does not meet. A file that cannot be read is left for training to
        report."""
        path, start, end = cut
        try:
            if self.max_bytes is not None and os.path.getsize(path) > self.max_bytes:
                return "max_bytes"
            if self.min_frames is None and self.min_seconds is None and self.max_seconds is None:
                return None
            video = index.info(path, frame_rate)
        except (DecodeError, OSError):
            return None
        times = video.timestamps - video.timestamps[0]
        inside = times[(times >= (start or 0)) & (times < (np.inf if end is None else end))]
        shown = float(np.median(np.diff(times))) if len(times) > 1 else 0.0  # for as long as a frame is
        seconds = inside[-1] - inside[0] + shown if len(inside) else 0.0
        if self.min_frames is not None and len(inside) < self.min_frames:
            return "min_frames"
        if self.min_seconds is not None and seconds < self.min_seconds:
            return "min_seconds"
        if self.max_seconds is not None and seconds > self.max_seconds:
            return "max_seconds"
        return None

    def kept(
        self,
        manifest: Manifest,
        index: VideoIndex,
        num_workers: int,
        time_limit: float,
        progress: Callable[[int], None] = lambda done: None,
    ) -> tuple[np.ndarray, dict[str, int]]:
        """Which records to keep, int64 [k], and how many others by the bound that they do not meet.

        Files are looked at by `num_workers` processes, for `time_limit` seconds each at most. Raises `UserError`
        where nothing is left.
        """
        cuts = ((place, (record.path, record.start, record.end)) for place, record in enumerate(manifest))
        look = partial(_look, self, index, manifest.frame_rate)
        kept, dropped = [], Counter()
        # each file in its own guarded process: one that crashes or hangs is left for training to report
        results = guarded(
            look, cuts, max(1, num_workers), time_limit, preload=("vidtrain.data.loading.filters",)
        )
        for done, result in enumerate(results, start=1):
            if result.value is None:
                kept.append(result.item[0])
            else:
                dropped[result.value] += 1
            progress(done)
        if not kept:
            raise UserError(
                f"no training video is left of {len(manifest)}: "
                + ", ".join(f"data.{name} drops {count}" for name, count in sorted(dropped.items()))
            )
        return np.sort(np.array(kept, dtype=np.int64)), dict(dropped)


def _look(
    bounds: VideoFilter,
    index: VideoIndex,
    frame_rate: float | None,
    item: tuple[int, tuple[str, float | None, float | None]],
) -> str | None:
    return bounds.why_not(index, frame_rate, item[1])
