"""Checks every file of a split before training, in guarded worker processes."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.decoding.video import DecodeError
from vidtrain.data.loading.workers import guarded
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.sampling.clips import ClipProtocol, clip_indices
from vidtrain.data.sampling.temporal import EmptyCut
from vidtrain.data.stores.files import file_status
from vidtrain.errors import UserError

Cut = tuple[str, float | None, float | None]  # path, start and end in seconds
Item = TypeVar("Item")
Finding = TypeVar("Finding")
UNREADABLE = "unreadable"


def _no_progress(done: int) -> None:
    pass


def _check_all(
    check: Callable[[Item], Finding],
    items: Iterable[Item],
    num_workers: int,
    time_limit: float,
    progress: Callable[[int], None],
) -> list[Finding | None]:
    """The result of `check` for each item, in order; None for a file that crashes or takes more than `time_limit`
    seconds. `num_workers` processes check each distinct item once."""
    items = list(items)
    repeated = Counter(items)
    findings: dict[Item, Finding | None] = {}
    done = 0
    for result in guarded(check, repeated, max(1, num_workers), time_limit, (__name__,)):
        findings[result.item] = result.value
        done += repeated[result.item]
        progress(done)
    return [findings[item] for item in items]


def _cuts(manifest: Manifest) -> Iterable[Cut]:
    return ((record.path, record.start, record.end) for record in manifest)


@dataclass(frozen=True)
class VideoFilter:
    """Inclusive bounds on videos; None is no bound. Lengths are those of a record's part of its file.

    Raises `UserError` for bounds that no video can meet, with a line for each.
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

    def kept(
        self,
        manifest: Manifest,
        index: VideoIndex,
        num_workers: int,
        time_limit: float,
        progress: Callable[[int], None] = _no_progress,
    ) -> tuple[np.ndarray, dict[str, int]]:
        """The records to keep, int64 [k], and the number of dropped records by the bound that they do not meet.

        Unreadable files are kept, as training reports them. Raises `UserError` if no record is left.
        """
        check = partial(self._unmet_bound, index, manifest.frame_rate)
        unmet = _check_all(check, _cuts(manifest), num_workers, time_limit, progress)
        kept = [number for number, bound in enumerate(unmet) if bound is None]
        dropped = Counter(bound for bound in unmet if bound is not None)
        if not kept:
            counts = ", ".join(f"data.{name} drops {count}" for name, count in sorted(dropped.items()))
            raise UserError(f"no training video is left of {len(manifest)}: {counts}")
        return np.array(kept, dtype=np.int64), dict(dropped)

    def _unmet_bound(self, index: VideoIndex, frame_rate: float | None, cut: Cut) -> str | None:
        path, start, end = cut
        try:
            if self.max_bytes is not None and file_status(path).size > self.max_bytes:
                return "max_bytes"
            if self.min_frames is None and self.min_seconds is None and self.max_seconds is None:
                return None
            video = index.info(path, frame_rate)
        except (DecodeError, OSError):
            return None
        times = video.timestamps - video.timestamps[0]
        inside = times[(times >= (start or 0)) & (times < (np.inf if end is None else end))]
        frame_seconds = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        seconds = inside[-1] - inside[0] + frame_seconds if len(inside) else 0.0
        if self.min_frames is not None and len(inside) < self.min_frames:
            return "min_frames"
        if self.min_seconds is not None and seconds < self.min_seconds:
            return "min_seconds"
        if self.max_seconds is not None and seconds > self.max_seconds:
            return "max_seconds"
        return None


def refused_videos(
    manifest: Manifest,
    protocol: ClipProtocol,
    index: VideoIndex,
    num_workers: int,
    time_limit: float,
    progress: Callable[[int], None] = _no_progress,
) -> list[tuple[str, str]]:
    """(path, reason) of the records from which `protocol` cannot take clips, in the order of the manifest. Files that
    cannot be read, or have no frame between a record's start and end, are not included."""
    check = partial(_refusal, protocol, index, manifest.frame_rate)
    refusals = _check_all(check, _cuts(manifest), num_workers, time_limit, progress)
    return [(path, why) for path, why in zip(manifest.paths, refusals, strict=True) if why is not None]


def _refusal(protocol: ClipProtocol, index: VideoIndex, frame_rate: float | None, cut: Cut) -> str | None:
    path, start, end = cut
    try:
        video = index.info(path, frame_rate)
        clip_indices(video.num_frames, video.timestamps, protocol, None, start=start, end=end)
    except (DecodeError, EmptyCut):
        return None
    except UserError as error:
        return str(error)
    return None


def record_digests(
    manifest: Manifest,
    index: VideoIndex,
    num_workers: int,
    time_limit: float,
    progress: Callable[[int], None] = _no_progress,
) -> list[str]:
    """A text for each record that identifies its content: the digest of its file, and its start and end. Cached results
    of a record are valid while it is the same. For a folder of images, the digest is that of its frame rate and the
    names, sizes and modification times of its files."""
    check = partial(_file_digest, index, manifest.frame_rate)
    digests = _check_all(check, manifest.paths, num_workers, time_limit, progress)
    pairs = zip(digests, manifest, strict=True)
    return [f"{digest or UNREADABLE} {record.start} {record.end}" for digest, record in pairs]


def joint_digest(digests: Iterable[str]) -> str:
    """BLAKE2b (32 hex digits) of the texts of `record_digests`, in order."""
    return hashlib.blake2b("".join(f"{digest}\n" for digest in digests).encode(), digest_size=16).hexdigest()


def _file_digest(index: VideoIndex, frame_rate: float | None, path: str) -> str:
    try:
        video = index.info(path, frame_rate)
    except DecodeError:
        return UNREADABLE
    if not video.images:
        return (video.digest or index.info(path, whole=True).digest).hex()
    whole = hashlib.blake2b(f"{frame_rate}\n".encode(), digest_size=16)
    for image in video.images:
        status = os.stat(image)
        row = f"{os.path.basename(image)} {status.st_size} {status.st_mtime_ns}\n"
        whole.update(row.encode(errors="surrogateescape"))
    return whole.hexdigest()
