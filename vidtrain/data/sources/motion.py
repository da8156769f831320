"""The default dataset: small videos whose classes form pairs that differ only in the order of frames.

A video is a pure function of (seed, split, class, number). A video of the second class of a pair is drawn like one of
the first and played backwards, so single frames are distributed equally, and a model that does not use time cannot
distinguish the classes. The dataset is written to disk once; its frames are drawn with numpy.
"""

import fcntl
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np

from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.sources.folders import ClassFolders
from vidtrain.errors import UserError

FPS = 25
# High quality, as with a lower one the artifacts behind a moving object show its direction in a single frame. Settings
# for reproducible bytes: x264's output depends on its threads, and with its macroblock tree (in AVX-512) on
# uninitialized memory.
X264 = {"crf": "20", "preset": "veryfast", "threads": "1", "mbtree": "0"}
MARKER = "dataset.json"
# Stored in the marker; increase it when the same parameters give other videos
RECIPE = 1
UNIT = 80  # pixels; lengths in scenes are for frames of this size, and are scaled to `size`
LEAST = {"train_per_class": 1, "val_per_class": 1, "test_per_class": 0, "frames": 2, "size": 16, "seed": 0}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Motion:
    """A source that makes its videos if `root` does not contain them, then reads them as class folders.

    The files are H.264, `root/{train,val,test}/<class>/<class>_NNN.mp4`, of `frames` frames of `size` x `size` pixels.
    They are made next to `root` under a lock and then moved into place, so that processes that start together make them
    once, and a killed process leaves no incomplete dataset.

    Raises `UserError` for invalid parameters, and if `root` contains anything else.
    """

    root: str
    train_per_class: int = 80
    val_per_class: int = 10
    test_per_class: int = 20
    frames: int = 32
    size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: must be {least} or more")
        if self.size % 2:
            raise UserError(f"size={self.size}: must be even, as H.264's color planes are half as large")

    def manifests(self) -> dict[str, Manifest]:
        """The splits, as `ClassFolders` reads them; makes missing ones first."""
        root = Path(self.root)
        if not (root / MARKER).is_file():
            try:
                with _locked(root):
                    self._make_unless_made(root)
            except OSError as error:
                raise UserError(f"cannot make the videos of {root} ({error}); choose another root") from error
        again = "delete it to have it made again"
        stored = json.loads((root / MARKER).read_text(encoding="utf-8"))
        marker = self._marker().items()
        changed = ((key, stored.get(key), value) for key, value in marker if stored.get(key) != value)
        differing = [f"{key} is {before}, not {value}" for key, before, value in changed]
        if differing:
            what = f"{root} holds a motion dataset with other parameters: {'; '.join(differing)}"
            raise UserError(f"{what}; choose another root, or {again}")
        manifests = ClassFolders(self.root, splits=tuple(self._splits())).manifests()
        count = sum(map(len, manifests.values()))
        if count != self._count():
            raise UserError(f"{root} holds {count} of the {self._count()} videos made; {again}")
        return manifests

    def _splits(self) -> dict[str, int]:
        counts = {"train": self.train_per_class, "val": self.val_per_class, "test": self.test_per_class}
        return {split: count for split, count in counts.items() if count}

    def _count(self) -> int:
        return len(CLASSES) * sum(self._splits().values())

    def _marker(self) -> dict[str, int]:
        parameters = {name: value for name, value in asdict(self).items() if name != "root"}
        return {"recipe": RECIPE, **parameters, "videos": self._count()}

    def _make_unless_made(self, root: Path) -> None:
        if (root / MARKER).is_file():  # another process made it while this one waited for the lock
            return
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UserError(f"{root} exists and is not a motion dataset (no {MARKER}); choose another root")
        started = time.perf_counter()
        logger.info("making the motion dataset: %d videos in %s", self._count(), root)
        # under the lock, so these are files of a killed process
        unfinished = root.with_name(f".{root.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        self._write_videos(unfinished)
        (unfinished / MARKER).write_text(json.dumps(self._marker(), indent=2) + "\n", encoding="utf-8")
        megabytes = sum(path.stat().st_size for path in unfinished.rglob("*.mp4")) / 1e6
        unfinished.rename(root)
        logger.info("made %.1f MB in %.1f s", megabytes, time.perf_counter() - started)

    def _write_videos(self, root: Path) -> None:
        def write(key: tuple[int, int, int], path: Path) -> None:
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, *key]))
            _encode(path, render(CLASSES[key[1]], self.frames, self.size, rng))

        videos: dict[tuple[int, int, int], Path] = {}  # keyed by the numbers of split, class and video
        for split, (split_name, count) in enumerate(self._splits().items()):
            for label, name in enumerate(CLASSES):
                folder = root / split_name / name
                folder.mkdir(parents=True)
                videos |= {(split, label, n): folder / f"{name}_{n:03d}.mp4" for n in range(count)}
        # numpy and x264 release the GIL, so threads are enough
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            list(pool.map(write, videos.keys(), videos.values()))  # raises the exceptions of threads


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
    """Holds the lock file next to `root`; the system releases it when the process ends."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with open(root.with_name(f".{root.name}.lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- the scenes: moving shapes on varied backgrounds; time runs from -1/2 to 1/2 ------------------

Draws = np.random.Generator


@dataclass(frozen=True)
class Track:
    """A shape in each frame: center `x` and `y` (down), `radius` and `opacity` (0 to 1), all [t]."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    opacity: np.ndarray | float = 1.0


def _move_right(rng: Draws, time: np.ndarray) -> Track:
    """A crossing of the frame at constant speed."""
    travel = rng.uniform(26, 46)
    room = (60 - travel) / 2  # keeps the center 10 pixels away from the border
    along = 40 + rng.uniform(-room, room) + travel * time
    across = rng.uniform(20, 60) + rng.uniform(-6, 6) * time
    return Track(along, across, np.full_like(time, rng.uniform(7, 11)))


def _move_down(rng: Draws, time: np.ndarray) -> Track:
    right = _move_right(rng, time)
    return Track(right.y, right.x, right.radius)


def _turn_clockwise(rng: Draws, time: np.ndarray) -> Track:
    """An arc around the center, more often over it than under it; clockwise on the screen, where y points down."""
    angle = rng.normal(-math.pi / 2, 0.7) + rng.uniform(0.5, 0.9) * 2 * math.pi * time
    orbit = rng.uniform(16, 22)
    x, y = rng.uniform(37, 43, 2)
    radius = np.full_like(time, rng.uniform(7, 10))
    return Track(x + orbit * np.cos(angle), y + orbit * np.sin(angle), radius)


def _grow(rng: Draws, time: np.ndarray) -> Track:
    x, y = rng.uniform(28, 52, 2)
    radius = rng.uniform(11, 15) * rng.uniform(2.5, 3.5) ** time
    return Track(np.full_like(time, x), np.full_like(time, y), radius)


def _appear(rng: Draws, time: np.ndarray) -> Track:
    """Appears from the background, and drifts a little in any direction."""
    angle, drift = rng.uniform(0, 2 * math.pi), rng.uniform(0, 8)
    x, y = rng.uniform(24, 56, 2)
    across, down = drift * math.cos(angle) * time, drift * math.sin(angle) * time
    radius = np.full_like(time, rng.uniform(7, 10))
    return Track(x + across, y + down, radius, opacity=0.5 + rng.uniform(0.7, 0.9) * time)


# The first class of each pair is drawn; the second is the first played backwards
PAIRS: dict[tuple[str, str], Callable[[Draws, np.ndarray], Track]] = {
    ("move_right", "move_left"): _move_right,
    ("move_down", "move_up"): _move_down,
    ("turn_clockwise", "turn_counterclockwise"): _turn_clockwise,
    ("grow", "shrink"): _grow,
    ("appear", "vanish"): _appear,
}
CLASSES = tuple(sorted(name for pair in PAIRS for name in pair))


def _box(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


# Signed distances to the edge of shapes of radius 1, negative inside (exact along the sides, which is enough
# to smooth an edge over one pixel).
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda x, y: np.hypot(x, y) - 1,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.3,
    "square": lambda x, y: _box(x, y, 0.85, 0.85),
    "bar": lambda x, y: _box(x, y, 1.1, 0.55),
    "cross": lambda x, y: np.minimum(_box(x, y, 1.1, 0.38), _box(x, y, 0.38, 1.1)),
    "triangle": lambda x, y: np.maximum(np.abs(x) * 0.866 + y * 0.5, -y) - 0.6,
}


def _gradient(rng: Draws, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    return 0.5 + (math.cos(angle) * (x - 40) + math.sin(angle) * (y - 40)) / (1.2 * UNIT)


def _texture(rng: Draws, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    waves = np.full_like(x + y, 0.5)
    for _ in range(3):
        angle, phase = rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi)
        frequency = 2 * math.pi / rng.uniform(18, 60)
        across = frequency * math.cos(angle) * x + phase
        waves += np.cos(across + frequency * math.sin(angle) * y) / 6
    return waves


# Backgrounds of two colors: the share of the second color at each pixel
BACKGROUNDS: dict[str, Callable[[Draws, np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": lambda rng, x, y: np.zeros_like(x + y),
    "gradient": _gradient,
    "texture": _texture,
}


def render(class_name: str, frames: int, size: int, rng: Draws) -> np.ndarray:
    """One video of a class, uint8 RGB [t h w 3]; everything in it is drawn from `rng`."""
    names = next(pair for pair in PAIRS if class_name in pair)
    track = PAIRS[names](rng, np.linspace(-0.5, 0.5, frames))
    video = _draw(track, frames, size, rng)
    return video if class_name == names[0] else np.ascontiguousarray(video[::-1])


def _draw(track: Track, frames: int, size: int, rng: Draws) -> np.ndarray:
    shake = rng.normal(0, 0.4, (2, frames, 1, 1))  # camera shake
    pixel = UNIT / size
    places = (np.arange(size) + 0.5) * pixel
    x = (places[None, None, :] + shake[0]).astype(np.float32)  # [t 1 w]
    y = (places[None, :, None] + shake[1]).astype(np.float32)  # [t h 1]

    first = rng.uniform(0, 0.4, 3)
    second = np.clip(first + rng.uniform(-0.15, 0.15, 3), 0, 1)
    blend = BACKGROUNDS[rng.choice(list(BACKGROUNDS))](rng, x, y)
    video = np.empty((3, *blend.shape), np.float32)  # c t h w: numpy is slow over a last axis of 3
    video[:] = first[:, None, None, None]
    _mix_in(video, second, blend)

    color = _contrasting_color(rng, (first, second))
    shape = SHAPES[rng.choice(list(SHAPES))]
    angle = rng.uniform(0, 2 * math.pi)
    tracks = (track.x, track.y, track.radius)
    center_x, center_y, radius = (values.astype(np.float32)[:, None, None] for values in tracks)
    dx, dy = (x - center_x) / radius, (y - center_y) / radius
    cos, sin = math.cos(angle), math.sin(angle)
    distance = shape(cos * dx + sin * dy, cos * dy - sin * dx) * (radius / pixel)
    opacity = np.broadcast_to(track.opacity, frames).astype(np.float32)[:, None, None]
    _mix_in(video, color, opacity * np.clip(0.5 - distance, 0, 1))
    video += rng.uniform(0, 0.025) * (rng.random(blend.shape, np.float32) - 0.5)  # gray grain
    video *= 255
    np.clip(video.round(out=video), 0, 255, out=video)
    return np.ascontiguousarray(np.moveaxis(video.astype(np.uint8), 0, -1))


def _mix_in(video: np.ndarray, color: np.ndarray, share: np.ndarray) -> None:
    """Blends `color` [c] into `video` [c t h w] with the weight `share` [t h w]."""
    for plane, value in zip(video, color.tolist(), strict=True):
        plane += share * (value - plane)


def _contrasting_color(rng: Draws, background: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Of a few random bright colors, the one farthest from both of the darker background."""
    colors = rng.uniform(0.5, 1, (8, 3))
    distances = [np.linalg.norm(colors - color, axis=1) for color in background]
    return colors[np.argmax(np.minimum(*distances))]
