"""What is broken or odd about a file that can be read. An issue is its kind and a text:

truncated          fewer frames than the file says it has
damaged            decoding meets errors: frames are missing or partly made up
frame count        the header states another number of frames than there are
rate               no frame rate, or one that no camera takes
variable rate      frames are not evenly spaced in time
times              frames without a time, or not in the order of time
size changes       the picture changes its size: frames are scaled to the first one's
format changes     pixel format or color range change: each frame is read by its own
non-square pixels  taken as square, unless clip.sample_aspect=apply
interlaced         two fields of two moments in a frame: moving edges look like combs
HDR                a transfer function for bright displays: read as it is, pictures look pale
no contrast        uniform pictures, such as black: near duplicates of it cannot be found
"""

from collections.abc import Iterator

import numpy as np

from vidtrain.data.audit.full_decode import Seen
from vidtrain.data.decoding.video import VideoInfo

HIGHEST_RATE = 240.0  # frames per second that a camera is believed to take
# A rate is called variable where more than this share of its intervals is off by more than this part of the median
VARIABLE_SHARE, VARIABLE_PART = 0.02, 0.25
LONGEST_INTERVAL = 1.0  # seconds without a new frame
# A file is called truncated where more frames, or more seconds, are missing at its end than these
SLACK_FRAMES, SLACK_SHARE = 2, 0.01
SLACK_SECONDS, SLACK_DURATION = 0.5, 0.05
NAMED = 3  # sizes or formats of a video
HDR = {16: "PQ (SMPTE ST 2084)", 18: "HLG (ARIB STD-B67)"}  # transfer functions of ITU-T H.273

Issue = tuple[str, str]


def find_issues(
    info: VideoInfo, seen: Seen, rate: float, duration: float, refused: int, has_contrast: bool
) -> tuple[Issue, ...]:
    """All issues of a file. `rate` (frames per second) and `duration` (seconds) are those of the whole video;
    training refuses `refused` of its frames."""
    issues = [
        *_missing_frames(info, seen, duration, refused),
        *_odd_times(info, seen, rate),
        *_changes(seen),
        *_odd_pictures(info, seen),
    ]
    return tuple(issues if has_contrast else [*issues, ("no contrast", "uniform pictures throughout")])


def _missing_frames(info: VideoInfo, seen: Seen, duration: float, refused: int) -> list[Issue]:
    stated = max(seen.stated_frames, info.num_frames)
    missing = stated - seen.num_frames
    first = first_error(seen.errors)
    if missing > max(SLACK_FRAMES, SLACK_SHARE * stated) or (missing > 0 and info.num_frames < stated):
        return [("truncated", joined(f"{seen.num_frames} of {stated} frames", first))]
    if seen.stated_duration - duration > max(SLACK_SECONDS, SLACK_DURATION * duration):
        return [("truncated", joined(f"{duration:.1f} of {seen.stated_duration:.1f} s", first))]
    # Matroska's word for it
    if not seen.stated_duration and any("prematurely" in error for error in seen.errors):
        return [("truncated", first)]
    if seen.errors or seen.corrupt or seen.num_frames < info.num_frames:
        lost = f"frames lost: {max(0, info.num_frames - seen.num_frames)}, partly made up: {seen.corrupt}"
        if refused:
            lost += f", refused with those that depend on them: {refused} of {info.num_frames}"
        return [("damaged", joined(lost, first))]
    if seen.stated_frames not in (0, seen.num_frames):
        return [("frame count", f"the header says {seen.stated_frames}, there are {seen.num_frames}")]
    return []


def _odd_times(info: VideoInfo, seen: Seen, rate: float) -> Iterator[Issue]:
    if not 0 < rate <= HIGHEST_RATE:
        yield "rate", f"{rate:g} frames/s"
    intervals = np.diff(info.timestamps)
    if len(intervals):
        usual, longest = float(np.median(intervals)), float(intervals.max())
        off = np.abs(intervals - usual) > VARIABLE_PART * usual
        if off.mean() > VARIABLE_SHARE or longest > max(LONGEST_INTERVAL, 2 * usual):
            spread = f"{1000 * intervals.min():.0f} to {1000 * longest:.0f} ms"
            yield "variable rate", f"{spread} from frame to frame, mostly {1000 * usual:.0f}"
    if (seen.untimed or seen.late) and seen.container != "avi":  # which has no times of presentation
        yield "times", f"{seen.untimed} frames without a time, {seen.late} not after the one before"


def _changes(seen: Seen) -> Iterator[Issue]:
    sizes = [f"{width}x{height} from frame {index}" for index, (width, height) in seen.sizes]
    formats = [f"{name} from frame {index}" for index, name in seen.formats]
    for kind, changes in (("size changes", sizes), ("format changes", formats)):
        if len(changes) > 1:
            more = f" and {len(changes) - NAMED} more changes" if len(changes) > NAMED else ""
            yield kind, f"{'; '.join(changes[:NAMED])}{more}"


def _odd_pictures(info: VideoInfo, seen: Seen) -> Iterator[Issue]:
    """What is sound, and not what models have mostly been trained on."""
    if info.aspect != 1:
        square = info.with_square_pixels()
        shape = f"{info.width}x{info.height} pixels of {info.aspect.numerator}:{info.aspect.denominator}"
        yield "non-square pixels", f"{shape}, shown as {square.width}x{square.height}"
    if seen.interlaced:
        yield "interlaced", f"{seen.interlaced} of {seen.num_frames} frames"
    if seen.transfer in HDR:
        yield "HDR", HDR[seen.transfer]


def first_error(errors: list[str]) -> str:
    """The first error, which later ones mostly follow from, and how many there are."""
    return f"{errors[0]} (and {len(errors) - 1} more errors)" if len(errors) > 1 else "".join(errors)


def joined(cause: str, reason: str) -> str:
    return f"{cause}; {reason}" if reason else cause
