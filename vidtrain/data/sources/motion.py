"""The default dataset: small videos whose classes come in pairs that only the order of frames tells apart.

A video is a pure function of (seed, split, class, number). The second class of a pair is drawn exactly as the
first and then played backwards, so the two have the same single frames, and a model that does not use time
cannot tell them apart. `motion_scenes` says what is drawn; this file makes the dataset, once, on disk.
"""

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np

from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.sources.class_folders import ClassFolders
from vidtrain.data.sources.motion_scenes import CLASSES, render
from vidtrain.errors import UserError

FPS = 25
# High quality: coarser, the trail that prediction leaves behind a moving object would show its direction in a
# single frame. The same bytes every time: x264's output depends on its threads, and its macroblock tree
# (in AVX-512) on memory that it never set.
X264 = {"crf": "20", "preset": "veryfast", "threads": "1", "mbtree": "0"}
MARKER = "dataset.json"
# Written into the marker; to be raised when the same parameters give other videos.
RECIPE = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Motion:
    """A source that makes its videos when `root` does not hold them yet, then reads them as class folders.

    Makes H.264 files `root/{train,val,test}/<class>/<class>_NNN.mp4` of `frames` frames, `size` x `size`
    pixels. They are made beside `root` under a lock and moved into place whole, so that processes that start
    together share one making and one that was killed leaves nothing behind that counts.

    Raises `UserError` for parameters that make no dataset, and where `root` holds anything else.
    """

    root: str
    train_per_class: int = 80
    val_per_class: int = 10
    test_per_class: int = 20
    frames: int = 32
    size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        smallest = {
            "train_per_class": 1,
            "val_per_class": 1,
            "test_per_class": 0,
            "frames": 2,
            "size": 16,
            "seed": 0,
        }
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: must be {least} or more")
        if self.size % 2:
            raise UserError(f"size={self.size}: must be even, as H.264's color planes are half as large")

    def manifests(self) -> dict[str, Manifest]:
        """The splits as `ClassFolders` reads them, made first where they are absent."""
        root = Path(self.root)
        if not (root / MARKER).is_file():
            try:
                with _locked(root):
                    self._make_unless_made(root)
            except OSError as error:
                raise UserError(
                    f"cannot make the motion dataset in {root}: {error}; choose another root"
                ) from error
        self._check_marker(root)
        manifests = ClassFolders(self.root, splits=tuple(self._splits())).manifests()
        found, made = sum(map(len, manifests.values())), self._count()
        if found != made:
            raise UserError(
                f"{root} holds {found} of the {made} videos made; delete it to have it made again"
            )
        return manifests

    def _splits(self) -> dict[str, int]:
        counts = {"train": self.train_per_class, "val": self.val_per_class, "test": self.test_per_class}
        return {split: count for split, count in counts.items() if count}

    def _count(self) -> int:
        return len(CLASSES) * sum(self._splits().values())

    def _marker(self) -> dict[str, int]:
        parameters = {name: value for name, value in asdict(self).items() if name != "root"}
        return {"recipe": RECIPE, **parameters, "videos": self._count()}

    def _check_marker(self, root: Path) -> None:
        found, wanted = json.loads((root / MARKER).read_text(encoding="utf-8")), self._marker()
        differing = [
            f"{name} is {found.get(name)}, not {value}"
            for name, value in wanted.items()
            if found.get(name) != value
        ]
        if differing:
            raise UserError(
                f"{root} holds a motion dataset with other parameters: {'; '.join(differing)}; "
                "choose another root, or delete it to have it made again"
            )

    def _make_unless_made(self, root: Path) -> None:
        if (root / MARKER).is_file():  # by another process, while this one waited for the lock
            return
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UserError(
                f"{root} exists and is no motion dataset ({MARKER} is missing); choose another root"
            )
        started = time.perf_counter()
        logger.info("making the motion dataset: %d videos in %s", self._count(), root)
        # under the lock, so what a killed process left here belongs to nobody
        unfinished = root.with_name(f".{root.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        self._write_videos(unfinished)
        (unfinished / MARKER).write_text(json.dumps(self._marker(), indent=2) + "\n", encoding="utf-8")
        megabytes = sum(path.stat().st_size for path in unfinished.rglob("*.mp4")) / 1e6
        unfinished.rename(root)
        logger.info("made %.1f MB in %.1f s", megabytes, time.perf_counter() - started)

    def _write_videos(self, root: Path) -> None:
        def write(split: int, label: int, number: int) -> None:
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, split, label, number]))
            path = folders[split, label] / f"{CLASSES[label]}_{number:03d}.mp4"
            _encode(path, render(CLASSES[label], self.frames, self.size, rng))

        folders, videos = {}, []
        for split, (name, count) in enumerate(self._splits().items()):
            for label, class_name in enumerate(CLASSES):
                folders[split, label] = root / name / class_name
                folders[split, label].mkdir(parents=True)
                videos += [(split, label, number) for number in range(count)]
        # numpy and x264 let go of the interpreter, so threads are enough
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for _ in pool.map(write, *zip(*videos, strict=True)):  # raises what a thread raised
                pass


def _encode(path: Path, frames: np.ndarray) -> None:
    """Writes uint8 RGB `frames` [t h w 3] as H.264 in MP4."""
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options=X264)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Holds the lock file beside `root`; the system frees it when its holder dies, however that happens."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with open(root.with_name(f".{root.name}.lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
