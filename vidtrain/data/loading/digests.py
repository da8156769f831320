"""What the files of a split hold, as one hash: what was computed from them is theirs as long as that is the same."""

import hashlib
import os
from collections.abc import Callable
from functools import partial

from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.decoding.video import DecodeError
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.processes.workers import guarded

UNREADABLE = "unreadable"


def manifest_digest(
    manifest: Manifest,
    index: VideoIndex,
    num_workers: int,
    time_limit: float,
    progress: Callable[[int], None] = lambda done: None,
) -> str:
    """BLAKE2b (32 hex digits) over the contents and cuts of all records, in order; where the files lie does not matter.

    Files that `index` does not know are probed by `num_workers` processes, for `time_limit` seconds each at most. A
    folder of images goes by its frame rate and the names, sizes and times of its files.
    """
    found = [UNREADABLE] * len(manifest)
    look = partial(_look, index, manifest.frame_rate)
    items = enumerate(manifest.paths)
    results = guarded(
        look, items, max(1, num_workers), time_limit, preload=("vidtrain.data.loading.digests",)
    )
    for done, result in enumerate(results, start=1):
        if result.value is not None:
            found[result.item[0]] = result.value
        progress(done)
    whole = hashlib.blake2b(digest_size=16)
    for digest, record in zip(found, manifest, strict=True):
        whole.update(f"{digest} {record.start} {record.end}\n".encode())
    return whole.hexdigest()


def _look(index: VideoIndex, frame_rate: float | None, item: tuple[int, str]) -> str:
    try:
        video = index.info(item[1], frame_rate)
    except DecodeError:
        return UNREADABLE
    if not video.images:
        return video.digest.hex()
    whole = hashlib.blake2b(f"{frame_rate}\n".encode(), digest_size=16)
    for image in video.images:
        status = os.stat(image)
        row = f"{os.path.basename(image)} {status.st_size} {status.st_mtime_ns}\n"
        whole.update(row.encode(errors="surrogateescape"))
    return whole.hexdigest()
