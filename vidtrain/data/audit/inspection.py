"""What there is to know of one video file: whether and how far it can be read, its shape, and what it looks like."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from vidtrain.data.audit.duplicates import PICTURE, sign
from vidtrain.data.audit.full_decode import Pictures, Seen, decode_all, decode_file
from vidtrain.data.augment.geometry import Crop
from vidtrain.data.decoding.container import damage_error, ffmpeg_errors
from vidtrain.data.decoding.decoder import decode_views, refused_frames, size_error
from vidtrain.data.decoding.index import opened_index
from vidtrain.data.decoding.metadata import file_digest, read_image_folder
from vidtrain.data.decoding.video import MAX_PIXELS, DecodeError, VideoInfo
from vidtrain.data.stores.files import file_status
from vidtrain.data.stores.places import is_plain

FORMAT = 6  # of what is found; a file inspected under another is inspected anew
HIGHEST_RATE = 240.0  # frames per second that a camera is believed to take
# A rate is called variable where more than this share of its intervals is off by more than this part of the median
VARIABLE_SHARE, VARIABLE_PART = 0.02, 0.25
LONGEST_INTERVAL = 1.0  # seconds without a new frame
# A file is called truncated where more frames are missing at its end than these
SLACK_FRAMES, SLACK_SHARE = 2, 0.01
SLACK_SECONDS, SLACK_DURATION = 0.5, 0.05
READ_ALONE = 4  # frames, evenly spread
NAMED = 3  # sizes or formats of a video

OF_SEEN = ("num_frames", "stated_frames", "container", "codec", "pixel_format", "audio")
HDR = {16: "PQ (SMPTE ST 2084)", 18: "HLG (ARIB STD-B67)"}  # transfer functions of ITU-T H.273

ISSUES = {
    "truncated": "fewer frames than the file says it has",
    "damaged": "decoding meets errors: frames are missing or partly made up",
    "frame count": "the header states another number of frames than there are",
    "rate": "no frame rate, or one that no camera takes",
    "variable rate": "frames are not evenly spaced in time",
    "times": "frames without a time, or not in the order of time",
    "size changes": "the picture changes its size: frames are scaled to the first one's",
    "format changes": "pixel format or color range change: each frame is read by its own",
    "non-square pixels": "taken as square, unless clip.sample_aspect=apply",
    "interlaced": "two fields of two moments in a frame: moving edges look like combs",
    "HDR": "a transfer function for bright displays: read as it is, pictures look pale",
    "no contrast": "uniform pictures, such as black: near duplicates of it cannot be found",
}


@dataclass(frozen=True)
class Inspection:
    """What was found of a file. `cause` says why it cannot be read; then only `size` and `digest` are known.

    `issues` are (kind of `ISSUES`, words). `size` is in bytes, `duration` in seconds, `rate` in frames per second
    over the whole video. `width` and `height` are as displayed, `rotation` and `mirrored` as in `Orientation`,
    `sample_aspect` the shape of a displayed pixel, such as 16:15.
    `stated_frames` is the header's count, 0 where it has none. `digest` is the BLAKE2b hash of the bytes in
    hexadecimal, `signature` what the frames look like (`duplicates.Signature.to_text`); `thumbnail` names a JPEG file,
    or is empty.
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
        """Of a file that could not be inspected."""
        return cls(max(0, _stamp(path)[0]), cause)


def inspect_video(
    path: str,
    frame_rate: float | None,
    index: Path | None,
    thumbnails: Path | None,
    max_pixels: int = MAX_PIXELS,
    size_changes: str = "scale",
) -> Inspection:
    """Reads the whole file at `path` and decodes all of it; whatever is wrong with it is in the result.

    What is needed to read it again soon goes into the video index at `index`, a picture of it into the folder
    `thumbnails`. Where there is a `frame_rate`, the video is a folder of images. Pictures of more than `max_pixels`
    cannot be read; what readers would refuse with `size_changes` counts as unreadable.
    """
    with ffmpeg_errors() as log:
        try:
            known = opened_index(index, max_pixels)
            info = known.info(path) if frame_rate is None else read_image_folder(path, frame_rate, max_pixels)
        except DecodeError as error:
            names_setting = "data.max_pixels" in error.cause
            cause = _joined(error.cause, log[0][2].strip(" .\n") if log and not names_setting else "")
            return _unreadable(path, cause, thumbnails, max_pixels)
    try:
        seen = decode_all(info)
    except DecodeError as error:  # which it was not a moment ago
        return _unreadable(path, error.cause, None, max_pixels)
    if not seen.num_frames:
        return _unreadable(path, _joined("no frame of it decodes", _first(seen.errors)), None, max_pixels)
    try:
        refused = _as_readers(info, seen, size_changes)
    except DecodeError as error:
        return _unreadable(path, error.cause, thumbnails, max_pixels)
    return _inspection(path, info, seen, refused, thumbnails)


def _inspection(path: str, info: VideoInfo, seen: Seen, refused: int, thumbnails: Path | None) -> Inspection:
    """The report on a file that can be read, except for `refused` of its frames."""
    signature = sign(np.stack(seen.pictures))
    rate, duration = _rate_and_duration(info, seen)
    issues = [
        *_missing_frames(info, seen, duration, refused),
        *_odd_times(info, seen, rate),
        *_changes(seen),
        *_odd_pictures(info, seen),
    ]
    if not len(signature):
        issues.append(("no contrast", "uniform pictures throughout"))
    return Inspection(
        size=sum(file_status(path).size for path in info.images or (info.path,)),
        issues=tuple(issues),
        sample_aspect=f"{info.aspect.numerator}:{info.aspect.denominator}",
        duration=duration,
        rate=rate,
        **{name: getattr(info, name) for name in ("width", "height", "rotation", "mirrored")},
        **{name: getattr(seen, name) for name in OF_SEEN},
        digest=(info.digest or file_digest(info.images)).hex(),
        signature=signature.to_text(),
        thumbnail=_thumbnail(path, seen, thumbnails),
    )


def inspect_job(
    job: tuple[str, float | None, int, str], index: Path | None, thumbnails: Path | None
) -> Inspection:
    """`inspect_video` of (path, frame rate, pixels at most, size changes), for worker processes."""
    path, frame_rate, max_pixels, size_changes = job
    return inspect_video(path, frame_rate, index, thumbnails, max_pixels, size_changes)


def _as_readers(info: VideoInfo, seen: Seen, size_changes: str) -> int:
    """How many frames training, evaluation and prediction refuse. Raises `DecodeError` where they refuse all, or the
    picture changes its size and `size_changes` refuses that.

    A few frames are read alone, as training does, those among them at which size or format change.
    """
    if size_changes == "refuse" and len(seen.sizes) > 1:
        index, (width, height) = seen.sizes[1]
        raise size_error(info.path, index, seen.sizes[0][1], width, height)
    damaged = refused_frames(info) if seen.errors or seen.corrupt else []
    if len(damaged) >= info.num_frames:
        raise damage_error(info.path, 0, info.num_frames)
    changed = [index for index, _ in (*seen.sizes[1:2], *seen.formats[1:2])]
    spread = ((np.arange(READ_ALONE) + 0.5) / READ_ALONE * info.num_frames).astype(int).tolist()
    whole = Crop(0, 0, info.width, info.height)
    for index in sorted({*spread, *changed}.difference(damaged)):
        if index < info.num_frames:
            decode_views(info, [(np.array([index]), whole)], (PICTURE, PICTURE))
    return len(damaged)


def _unreadable(path: str, cause: str, thumbnails: Path | None, max_pixels: int) -> Inspection:
    """With how far it can be decoded by who passes over every error, and its first frame, where there is one."""
    try:
        size, _ = file_status(path)
        digest = file_digest([path]).hex() if not is_plain(path) or os.path.isfile(path) else None
    except OSError:
        digest = None
    if digest is None:
        return Inspection(size=0, cause=cause)
    try:
        seen = decode_file(path, Pictures(num_frames=0, orientation=None), max_pixels)
    except DecodeError:
        seen = None
    if seen is not None and seen.num_frames:
        stated = f" of {seen.stated_frames}" if seen.stated_frames else ""
        cause = f"{cause}; {seen.num_frames}{stated} frames can be decoded"
    return Inspection(
        size=size,
        cause=cause,
        digest=digest,
        thumbnail=_thumbnail(path, seen, thumbnails) if seen is not None else "",
    )


def _thumbnail(path: str, seen: Seen, folder: Path | None) -> str:
    if folder is None or seen.thumbnail is None:
        return ""
    name = hashlib.blake2b(os.fsencode(path), digest_size=12).hexdigest() + ".jpg"
    av.VideoFrame.from_ndarray(seen.thumbnail, format="rgb24").save(str(folder / name), qscale=4)
    return name


def _rate_and_duration(info: VideoInfo, seen: Seen) -> tuple[float, float]:
    """The last frame is taken to stay as long as frames do on average."""
    times = info.timestamps
    if len(times) < 2 or times[-1] <= times[0]:
        rate = seen.stated_rate
    else:
        rate = float((len(times) - 1) / (times[-1] - times[0]))
    return round(rate, 3), round(len(times) / rate, 3) if rate else 0.0


def _changes(seen: Seen) -> list[tuple[str, str]]:
    issues = []
    if len(seen.sizes) > 1:
        changes = [f"{width}x{height} from frame {index}" for index, (width, height) in seen.sizes]
        issues.append(("size changes", _listed(changes)))
    if len(seen.formats) > 1:
        changes = [f"{name} from frame {index}" for index, name in seen.formats]
        issues.append(("format changes", _listed(changes)))
    return issues


def _listed(changes: list[str]) -> str:
    more = f" and {len(changes) - NAMED} more changes" if len(changes) > NAMED else ""
    return f"{'; '.join(changes[:NAMED])}{more}"


def _missing_frames(info: VideoInfo, seen: Seen, duration: float, refused: int) -> list[tuple[str, str]]:
    stated = max(seen.stated_frames, info.num_frames)
    missing = stated - seen.num_frames
    cut_short = any("prematurely" in error for error in seen.errors)  # Matroska's word for it
    late_end = seen.stated_duration - duration
    first = _first(seen.errors)
    if missing > max(SLACK_FRAMES, SLACK_SHARE * stated) or (missing > 0 and info.num_frames < stated):
        return [("truncated", _joined(f"{seen.num_frames} of {stated} frames", first))]
    if late_end > max(SLACK_SECONDS, SLACK_DURATION * duration):
        return [("truncated", _joined(f"{duration:.1f} of {seen.stated_duration:.1f} s", first))]
    if cut_short and not seen.stated_duration:
        return [("truncated", first)]
    if seen.errors or seen.corrupt or seen.num_frames < info.num_frames:
        lost = max(0, info.num_frames - seen.num_frames)
        lost_frames = f"frames lost: {lost}, partly made up: {seen.corrupt}"
        if refused:
            lost_frames += f", refused with those that depend on them: {refused} of {info.num_frames}"
        return [("damaged", _joined(lost_frames, first))]
    if seen.stated_frames not in (0, seen.num_frames):
        return [("frame count", f"the header says {seen.stated_frames}, there are {seen.num_frames}")]
    return []


def _odd_times(info: VideoInfo, seen: Seen, rate: float) -> list[tuple[str, str]]:
    issues = []
    if not 0 < rate <= HIGHEST_RATE:
        issues.append(("rate", f"{rate:g} frames/s"))
    intervals = np.diff(info.timestamps)
    if len(intervals):
        usual = float(np.median(intervals))
        off = np.abs(intervals - usual) > VARIABLE_PART * usual
        longest = float(intervals.max())
        if off.mean() > VARIABLE_SHARE or longest > max(LONGEST_INTERVAL, 2 * usual):
            spread = f"{1000 * intervals.min():.0f} to {1000 * longest:.0f} ms"
            issues.append(("variable rate", f"{spread} from frame to frame, mostly {1000 * usual:.0f}"))
    if (seen.untimed or seen.late) and seen.container != "avi":  # which has no times of presentation
        issues.append(
            ("times", f"{seen.untimed} frames without a time, {seen.late} not after the one before")
        )
    return issues


def _odd_pictures(info: VideoInfo, seen: Seen) -> Iterator[tuple[str, str]]:
    """What is sound, and not what models have mostly been trained on."""
    if info.aspect != 1:
        square = info.with_square_pixels()
        shape = f"{info.width}x{info.height} pixels of {info.aspect.numerator}:{info.aspect.denominator}"
        yield ("non-square pixels", f"{shape}, shown as {square.width}x{square.height}")
    if seen.interlaced:
        yield ("interlaced", f"{seen.interlaced} of {seen.num_frames} frames")
    if seen.transfer in HDR:
        yield ("HDR", HDR[seen.transfer])


def _first(errors: list[str]) -> str:
    """The first error, which later ones mostly follow from, and how many there are."""
    if len(errors) < 2:
        return "".join(errors)
    return f"{errors[0]} (and {len(errors) - 1} more errors)"


def _joined(cause: str, reason: str) -> str:
    return f"{cause}; {reason}" if reason else cause


class KnownFiles:
    """What was found of files so far, by path, size and time of modification, from the rows of a ledger.

    A file that hung is read again under a longer `timeout_s` (seconds), with `retry` every one that could not be read,
    and with other `size_changes` every one whose picture changes its size.
    """

    def __init__(self, rows: Iterable[dict[str, Any]], timeout_s: float, retry: bool, size_changes: str):
        self._rows = {row["path"]: row for row in rows}
        self._timeout_s, self._retry, self._size_changes = timeout_s, retry, size_changes

    def find(self, path: str) -> Inspection | None:
        """What is known of the file as it is now."""
        row = self._rows[path] if path in self._rows else None
        if row is None or (row["stamp"], row["format"]) != (_stamp(path), FORMAT):
            return None
        stored = row["found"]
        bounded = "data.max_pixels" in stored["cause"]  # which may be another by now
        longer = row["hung"] and self._timeout_s > row["time_limit"]
        if stored["cause"] and (self._retry or bounded or longer):
            return None
        changes_size = "size changes" in str((stored["cause"], stored["issues"]))
        if changes_size and row["size_changes"] != self._size_changes:
            return None
        return Inspection(**{**stored, "issues": tuple(map(tuple, stored["issues"]))})

    def row(self, path: str, inspection: Inspection, hung: bool) -> dict[str, Any]:
        """The row of a ledger that says what was found of a file."""
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
    """Size and time of modification, by which a changed file is known."""
    try:
        return list(file_status(path))
    except OSError:  # that it cannot be reached is found, with the cause, by reading it
        return [-1, -1]
