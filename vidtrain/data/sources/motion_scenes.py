"""What the motion dataset shows: moving shapes on varied backgrounds, drawn with numpy.

Lengths are in the unit of an 80 pixel frame and scaled to the size asked for; time runs from -1/2 to 1/2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

UNIT = 80


@dataclass(frozen=True)
class Path:
    """Where a shape is at each frame: center `x` and `y` (down), `radius` and `opacity` (0 to 1), all [t]."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    opacity: np.ndarray | float = 1.0


def _slide(rng: np.random.Generator, time: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A crossing of the frame at constant speed: position along the way, across it, and radius."""
    travel = rng.uniform(26, 46)
    room = (60 - travel) / 2  # keeps the center 10 from the border
    along = 40 + rng.uniform(-room, room) + travel * time
    across = rng.uniform(20, 60) + rng.uniform(-6, 6) * time
    return along, across, np.full_like(time, rng.uniform(7, 11))


def _move_right(rng: np.random.Generator, time: np.ndarray) -> list[Path]:
    along, across, radius = _slide(rng, time)
    return [Path(along, across, radius)]


def _move_down(rng: np.random.Generator, time: np.ndarray) -> list[Path]:
    along, across, radius = _slide(rng, time)
    return [Path(across, along, radius)]


def _turn_clockwise(rng: np.random.Generator, time: np.ndarray) -> list[Path]:
    """An arc around the center, more often over it than under it; clockwise on the screen, where y points down."""
    angle = rng.normal(-math.pi / 2, 0.7) + rng.uniform(0.5, 0.9) * 2 * math.pi * time
    orbit = rng.uniform(16, 22)
    x, y = rng.uniform(37, 43, 2)
    return [
        Path(x + orbit * np.cos(angle), y + orbit * np.sin(angle), np.full_like(time, rng.uniform(7, 10)))
    ]


def _grow(rng: np.random.Generator, time: np.ndarray) -> list[Path]:
    x, y = rng.uniform(28, 52, 2)
    radius = rng.uniform(11, 15) * rng.uniform(2.5, 3.5) ** time
    return [Path(np.full_like(time, x), np.full_like(time, y), radius)]


def _appear(rng: np.random.Generator, time: np.ndarray) -> list[Path]:
    """Out of the background, while drifting a little in any direction."""
    angle, drift = rng.uniform(0, 2 * math.pi), rng.uniform(0, 8)
    x, y = rng.uniform(24, 56, 2)
    return [
        Path(
            x + drift * math.cos(angle) * time,
            y + drift * math.sin(angle) * time,
            np.full_like(time, rng.uniform(7, 10)),
            opacity=0.5 + rng.uniform(0.7, 0.9) * time,
        )
    ]


# The first class of each pair as it is drawn; the second is the first played backwards.
PAIRS: dict[tuple[str, str], Callable[[np.random.Generator, np.ndarray], list[Path]]] = {
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


def _no_blend(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.zeros_like(x + y)


def _gradient(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    return 0.5 + (math.cos(angle) * (x - 40) + math.sin(angle) * (y - 40)) / (1.2 * UNIT)


def _texture(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    waves = np.full_like(x + y, 0.5)
    for _ in range(3):
        angle, phase = rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi)
        frequency = 2 * math.pi / rng.uniform(18, 60)
        across = frequency * math.cos(angle) * x + phase
        waves += np.cos(across + frequency * math.sin(angle) * y) / 6
    return waves


# How two colors blend into a background: the share of the second at each place.
BACKGROUNDS = {"plain": _no_blend, "gradient": _gradient, "texture": _texture}


def render(class_name: str, frames: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """One video of a class, uint8 RGB [t h w 3]; everything in it is drawn from `rng`."""
    names = next(pair for pair in PAIRS if class_name in pair)
    time = np.linspace(-0.5, 0.5, frames)
    paths = PAIRS[names](rng, time)
    video = _draw(paths, frames, size, rng)
    return video if class_name == names[0] else np.ascontiguousarray(video[::-1])


def _draw(paths: list[Path], frames: int, size: int, rng: np.random.Generator) -> np.ndarray:
    shake = rng.normal(0, 0.4, (2, frames, 1, 1))  # a hand that holds the camera
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
    for path in paths:
        color = _contrasting_color(rng, (first, second))
        shape = SHAPES[rng.choice(list(SHAPES))]
        angle = rng.uniform(0, 2 * math.pi)
        center_x, center_y, radius = (
            values.astype(np.float32)[:, None, None] for values in (path.x, path.y, path.radius)
        )
        dx, dy = (x - center_x) / radius, (y - center_y) / radius
        cos, sin = math.cos(angle), math.sin(angle)
        distance = shape(cos * dx + sin * dy, cos * dy - sin * dx) * (radius / pixel)
        opacity = np.broadcast_to(path.opacity, frames).astype(np.float32)[:, None, None]
        _mix_in(video, color, opacity * np.clip(0.5 - distance, 0, 1))
    video += rng.uniform(0, 0.025) * (rng.random(blend.shape, np.float32) - 0.5)  # gray grain
    video *= 255
    np.clip(video.round(out=video), 0, 255, out=video)
    return np.ascontiguousarray(np.moveaxis(video.astype(np.uint8), 0, -1))


def _mix_in(video: np.ndarray, color: np.ndarray, share: np.ndarray) -> None:
    """Replaces a `share` [t h w] of what `video` [c t h w] shows by a `color` [c]."""
    for plane, value in zip(video, color.tolist(), strict=True):
        plane += share * (value - plane)


def _contrasting_color(rng: np.random.Generator, background: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Of a few random bright colors, the one farthest from both of the darker background."""
    colors = rng.uniform(0.5, 1, (8, 3))
    distances = [np.linalg.norm(colors - color, axis=1) for color in background]
    return colors[np.argmax(np.minimum(*distances))]
