"""Which videos of a split a protocol cannot be used on, found before anything is computed."""

from collections.abc import Callable
from functools import partial

from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.decoding.video import DecodeError
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.processes.workers import guarded
from vidtrain.data.sampling.clips import ClipProtocol, clip_indices
from vidtrain.data.sampling.temporal import EmptyCut
from vidtrain.errors import UserError

Cut = tuple[str, float | None, float | None]


def refused_videos(
    manifest: Manifest,
    protocol: ClipProtocol,
    index: VideoIndex,
    num_workers: int,
    time_limit: float,
    progress: Callable[[int], None] = lambda done: None,
) -> list[tuple[str, str]]:
    """The (path, why) of the records that `protocol` gives no clips of, in the order of the manifest.

    Files that `index` does not know are probed by `num_workers` processes, for `time_limit` seconds each at most. One
    that cannot be read, or has nothing between a record's start and end, is not among them: that shows when it is read.
    """
    cuts = ((place, (record.path, record.start, record.end)) for place, record in enumerate(manifest))
    look = partial(_look, protocol, index, manifest.frame_rate)
    found = []
    results = guarded(
        look, cuts, max(1, num_workers), time_limit, preload=("vidtrain.data.loading.short_videos",)
    )
    for done, result in enumerate(results, start=1):
        if result.value is not None:
            place, (path, _, _) = result.item
            found.append((place, path, result.value))
        progress(done)
    return [(path, why) for _, path, why in sorted(found)]


def _look(
    protocol: ClipProtocol, index: VideoIndex, frame_rate: float | None, item: tuple[int, Cut]
) -> str | None:
    path, start, end = item[1]
    try:
        video = index.info(path, frame_rate)
        clip_indices(video.num_frames, video.timestamps, protocol, None, start=start, end=end)
    except (DecodeError, EmptyCut):
        return None
    except UserError as error:
        return str(error)
    return None
