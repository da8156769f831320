"""Inspects one video file: whether and how far it can be read, its properties, and its signature."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from vidtrain.data.audit.duplicates import PICTURE, sign
from vidtrain.data.audit.full_decode import (
    DecodeReport,
    Pictures,
    decode_all,
    decode_file,
    find_issues,
    first_error,
    joined,
)
from vidtrain.data.augment.geometry import Crop
from vidtrain.data.decoding.container import damage_error, ffmpeg_errors
from vidtrain.data.decoding.decoder import decode_views, refused_frames, size_error
from vidtrain.data.decoding.index import opened_index
from vidtrain.data.decoding.metadata import file_digest, read_image_folder
from vidtrain.data.decoding.video import MAX_PIXELS, DecodeError, VideoInfo
from vidtrain.data.stores.files import file_status
from vidtrain.data.stores.places import is_plain

FORMAT = 6  # version of an `Inspection`; files with another version in the ledger are inspected again
READ_ALONE = 4  # number of evenly spread frames that are decoded by random access
Job = tuple[str, float | None, int, str]  # path, frame rate, max_pixels, size_changes
OF_INFO = ("width", "height", "rotation", "mirrored")
OF_REPORT = ("num_frames", "stated_frames", "container", "codec", "pixel_format", "audio")


@dataclass(frozen=True)
class Inspection:
    """The report on one file. `cause` says why it cannot be read; then only `size` and `digest` are known.

    `issues` are (kind, text), see full_decode.py. `size` is in bytes, `duration` in seconds, `rate` in frames per
    second over the whole video. `width` and `height` are as displayed, `rotation` and `mirrored` as in `Orientation`;
    `sample_aspect` is the shape of a displayed pixel, such as 16:15. `stated_frames` is the header's count, 0 if it has
    none. `digest` is the hexadecimal BLAKE2b hash of the bytes, `signature` that of the frames
    (`duplicates.Signature.to_text`). `thumbnail` is the name of a JPEG file, or empty.
    """

    size: int
    cause: str = ""
    issues: tuple[tuple[str, str], ...] = ()
    num_frames: int = 0
    stated_frames: int = 0
    width: int = 0
    height: int = 0
    rotation: int = 0
    mirrored: bool = False
    sample_aspect: str = ""
    duration: float = 0.0
    rate: float = 0.0
    container: str = ""
    codec: str = ""
    pixel_format: str = ""
    audio: bool = False
    digest: str = ""
    signature: str = ""
    thumbnail: str = ""

    @classmethod
    def of_failure(cls, path: str, cause: str) -> "Inspection":
        """The report on a file whose inspection crashed or hung."""
        return cls(max(0, _stamp(path)[0]), cause)


def inspect_job(job: Job, index: Path | None, thumbnails: Path | None) -> Inspection:
    """`inspect_video` for worker processes."""
    path, frame_rate, max_pixels, size_changes = job
    return inspect_video(path, frame_rate, index, thumbnails, max_pixels, size_changes)


def inspect_video(
    path: str,
    frame_rate: float | None,
    index: Path | None,
    thumbnails: Path | None,
    max_pixels: int = MAX_PIXELS,
    size_changes: str = "scale",
) -> Inspection:
    """Reads and decodes the whole file at `path`; problems are reported in the result.

    The file's metadata are added to the video index at `index`, and a picture is written into the folder `thumbnails`.
    With a `frame_rate` the video is a folder of images. A file counts as unreadable if readers would refuse it because
    of `max_pixels` or `size_changes`.
    """
    with ffmpeg_errors() as log:
        try:
            known = opened_index(index, max_pixels)
            info = (
                known.info(path, whole=True) if frame_rate is None else read_image_folder(path, frame_rate, max_pixels)
            )
        except DecodeError as error:
            names_setting = "data.max_pixels" in error.cause
            cause = joined(error.cause, log[0][2].strip(" .\n") if log and not names_setting else "")
            return _unreadable(path, cause, thumbnails, max_pixels)
    try:
        report = decode_all(info)
        if not report.num_frames:
            raise DecodeError(path, joined("no frame decodes", first_error(report.errors)))
        refused = _count_refused(info, report, size_changes)
    except DecodeError as error:
        return _unreadable(path, error.cause, thumbnails, max_pixels)
    signature = sign(np.stack(report.pictures))
    rate, duration = _rate_and_duration(info, report)
    return Inspection(
        size=sum(file_status(path).size for path in info.images or (info.path,)),
        issues=find_issues(info, report, rate, duration, refused, has_contrast=len(signature) > 0),
        sample_aspect=f"{info.aspect.numerator}:{info.aspect.denominator}",
        duration=duration,
        rate=rate,
        **{name: getattr(info, name) for name in OF_INFO},
        **{name: getattr(report, name) for name in OF_REPORT},
        digest=(info.digest or file_digest(info.images)).hex(),
        signature=signature.to_text(),
        thumbnail=_thumbnail(path, report, thumbnails),
    )


def _count_refused(info: VideoInfo, report: DecodeReport, size_changes: str) -> int:
    """The number of frames that training, evaluation and prediction refuse. Raises `DecodeError` if they refuse the
    video.

    A few frames are decoded by random access, as in training, including those at which size or format change.
    """
    if size_changes == "refuse" and len(report.sizes) > 1:
        index, (width, height) = report.sizes[1]
        raise size_error(info.path, index, report.sizes[0][1], width, height)
    damaged = refused_frames(info) if report.errors or report.corrupt else []
    if len(damaged) >= info.num_frames:
        raise damage_error(info.path, 0, info.num_frames)
    changed = [index for index, _ in (*report.sizes[1:2], *report.formats[1:2])]
    spread = ((np.arange(READ_ALONE) + 0.5) / READ_ALONE * info.num_frames).astype(int).tolist()
    whole = Crop(0, 0, info.width, info.height)
    for index in sorted({*spread, *changed}.difference(damaged)):
        if index < info.num_frames:
            decode_views(info, [(np.array([index]), whole)], (PICTURE, PICTURE))
    return len(damaged)


def _unreadable(path: str, cause: str, thumbnails: Path | None, max_pixels: int) -> Inspection:
    """The report on a file that cannot be read: the cause, the number of frames that can be decoded if errors are
    ignored, and the first of them as a picture."""
    try:
        size = file_status(path).size
        if is_plain(path) and not os.path.isfile(path):
            return Inspection(size=0, cause=cause)
        digest = file_digest([path]).hex()
    except OSError:
        return Inspection(size=0, cause=cause)
    thumbnail = ""
    with suppress(DecodeError):  # the file cannot be opened, as `cause` says
        report = decode_file(path, Pictures(num_frames=0, orientation=None), max_pixels)
        thumbnail = _thumbnail(path, report, thumbnails)
        if report.num_frames:
            stated = f" of {report.stated_frames}" if report.stated_frames else ""
            cause = f"{cause}; {report.num_frames}{stated} frames can be decoded"
    return Inspection(size=size, cause=cause, digest=digest, thumbnail=thumbnail)


def _thumbnail(path: str, report: DecodeReport, folder: Path | None) -> str:
    """Writes the thumbnail of a file; returns its name."""
    if folder is None or report.thumbnail is None:
        return ""
    name = hashlib.blake2b(os.fsencode(path), digest_size=12).hexdigest() + ".jpg"
    av.VideoFrame.from_ndarray(report.thumbnail, format="rgb24").save(str(folder / name), qscale=4)
    return name


def _rate_and_duration(info: VideoInfo, report: DecodeReport) -> tuple[float, float]:
    """Frames per second and seconds of a video; the last frame is assumed to last as long as the average frame."""
    times = info.timestamps
    rate = report.stated_rate
    if len(times) > 1 and times[-1] > times[0]:
        rate = float((len(times) - 1) / (times[-1] - times[0]))
    return round(rate, 3), round(len(times) / rate, 3) if rate else 0.0


class KnownFiles:
    """Inspections of an earlier audit, from the rows of its ledger.

    A file is identified by path, size and modification time. Some files are inspected again: those that hung, if
    `timeout_s` (seconds) is longer now; unreadable ones with `retry`; those whose picture changes its size, if
    `size_changes` differs.
    """

    def __init__(self, rows: Iterable[dict[str, Any]], timeout_s: float, retry: bool, size_changes: str):
        self._rows = {row["path"]: row for row in rows}
        self._timeout_s, self._retry, self._size_changes = timeout_s, retry, size_changes

    def find(self, path: str) -> Inspection | None:
        """The stored inspection of the file, or None if it must be inspected."""
        row = self._rows.get(path)
        if row is None or (row["stamp"], row["format"]) != (_stamp(path), FORMAT):
            return None
        stored = row["found"]
        bounded = "data.max_pixels" in stored["cause"]  # the limit may have changed since
        longer = row["hung"] and self._timeout_s > row["time_limit"]
        if stored["cause"] and (self._retry or bounded or longer):
            return None
        changes_size = "size changes" in str((stored["cause"], stored["issues"]))
        if changes_size and row["size_changes"] != self._size_changes:
            return None
        return Inspection(**{**stored, "issues": tuple(map(tuple, stored["issues"]))})

    def row(self, path: str, inspection: Inspection, hung: bool) -> dict[str, Any]:
        """The ledger's row for an inspection."""
        return {
            "path": path,
            "stamp": _stamp(path),
            "format": FORMAT,
            "time_limit": self._timeout_s,
            "hung": hung,
            "size_changes": self._size_changes,
            "found": asdict(inspection),
        }


def _stamp(path: str) -> list[int]:
    """Size and modification time, by which a changed file is recognized."""
    try:
        return list(file_status(path))
    except OSError:  # reading the file reports the cause
        return [-1, -1]
