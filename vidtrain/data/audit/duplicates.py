"""Finds similar videos by signatures of frames, without comparing all pairs.

A frame's signature is computed from its 32x32 picture: a hash of 64 bits, the signs of the lowest frequencies (without
the mean) of its gray cosine transform, and its colors on a 4x4 grid. A video has the signatures of up to 32 evenly
spread frames, so that a trimmed copy has frames within a few hundredths of a second of the original's.

Each frame of a video is compared with the frame of the other video that has the nearest hash. Only the better half of
the frames counts, in the direction that fits better; so copies that share only a part are found, too. Near duplicates
are pairs whose mean distances in bits and in colors are both within their bounds.

The bounds were measured on 400 UCF-101 clips of 5 classes and 9 altered copies of 60 of them (strongly re-encoded,
halved, doubled, squeezed to a square, at 12 frames/s, 20 % cut from either end, 13 % and 10 % from both, the middle
half). All 540 copies are within 4.9 bits and 4.0 levels of their original; none of 64,000 pairs of different classes is
within 10.6 bits. Of 15,247 pairs of the same class but different groups, 12 are reported, all of the same recording;
the nearest other pair is at 8.1 bits. Very simple pictures give false matches: among 1100 different videos of a plain
shape, 66 pairs are reported. Mirrored, much brighter or darker, and framed copies are not found, nor uniform pictures.
"""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

FRAMES = 32  # frames of a signature
PICTURE = 32  # pixels: the side of a picture
GRID = 4  # the side of the grid of colors
MAX_DISTANCE = 6.5  # bits of 64
MAX_COLOR_DISTANCE = 6.0  # levels of 256
LEAST_CONTRAST = 4.0  # gray levels of 256; with less contrast, the hash would only describe noise
# Videos are compared only if a frame of one differs from a frame of the other by at most 3 bits: then at least one of 4
# bands of 16 bits is equal in both. This loses none of the 540 copies above.
BANDS = 4
FRAME_DISTANCE = BANDS - 1
BLOCK = 1 << 22  # pairs that are compared at once
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# The first 12 rows of the type-II cosine transform of 32 values, without its scale
COSINES = np.cos(np.pi * (2 * np.arange(PICTURE) + 1) * np.arange(12)[:, None] / (2 * PICTURE))
# Indices of the 64 lowest frequencies without the mean, distributed so that every band has low and high ones
DOWN, ACROSS = np.mgrid[:12, :12]
LOWEST = np.lexsort((DOWN.ravel(), (DOWN + ACROSS).ravel()))[1:65].reshape(-1, BANDS).T.ravel()


@dataclass(frozen=True, eq=False)
class Signature:
    """The signatures of n frames: `hashes` uint64 [n] and `colors` uint8 [n 48]."""

    hashes: np.ndarray
    colors: np.ndarray

    def __len__(self) -> int:
        return len(self.hashes)

    def to_text(self) -> str:
        return base64.b64encode(self.hashes.astype("<u8").tobytes() + self.colors.tobytes()).decode()

    @classmethod
    def from_text(cls, text: str) -> "Signature":
        data = base64.b64decode(text)
        count = len(data) // (8 + 3 * GRID**2)
        colors = np.frombuffer(data, np.uint8, offset=8 * count).reshape(count, 3 * GRID**2)
        return cls(np.frombuffer(data, "<u8", count).astype(np.uint64), colors)


@dataclass(frozen=True)
class Pair:
    """Two similar videos, by index; `distance` is in bits per frame."""

    first: int
    second: int
    distance: float


def sign(pictures: np.ndarray) -> Signature:
    """The signature of RGB `pictures`, uint8 [n 32 32 3]; those without contrast are left out."""
    gray = pictures @ LUMA
    kept = gray.std(axis=(1, 2)) >= LEAST_CONTRAST
    gray, pictures = gray[kept], pictures[kept]
    if not len(gray):
        return Signature(np.zeros(0, np.uint64), np.zeros((0, 3 * GRID**2), np.uint8))
    coefficients = (COSINES @ gray @ COSINES.T).reshape(len(gray), -1)
    bits = np.packbits(coefficients[:, LOWEST] > 0, axis=1)
    cell = PICTURE // GRID
    colors = pictures.reshape(-1, GRID, cell, GRID, cell, 3).mean(axis=(2, 4)).round().astype(np.uint8)
    return Signature(np.ascontiguousarray(bits).view(np.uint64)[:, 0], colors.reshape(len(colors), -1))


def near_duplicates(videos: Sequence[Signature], max_distance: float = MAX_DISTANCE) -> list[Pair]:
    """Pairs of videos within `max_distance` bits, nearest first. At least one pair of their frames must be within 3
    bits."""
    pairs = []
    for first, second in _candidates([video.hashes for video in videos]):
        bits, levels = distance(videos[first], videos[second])
        if bits <= max_distance and levels <= MAX_COLOR_DISTANCE:
            pairs.append(Pair(first, second, bits))
    return sorted(pairs, key=lambda pair: (pair.distance, pair.first, pair.second))


def distance(first: Signature, second: Signature) -> tuple[float, float]:
    """The distance of two videos: mean bits and mean color levels over the better half of frames (see the module)."""
    bits = _bit_count(first.hashes[:, None] ^ second.hashes[None])
    return min(_fit(bits, first.colors, second.colors), _fit(bits.T, second.colors, first.colors))


def _fit(bits: np.ndarray, colors: np.ndarray, other_colors: np.ndarray) -> tuple[float, float]:
    """The distance of the frames in rows to their nearest frames in columns, over the better half."""
    nearest = bits.argmin(axis=1)
    least = bits.min(axis=1)
    half = np.argsort(least, kind="stable")[: (len(least) + 1) // 2]
    apart = np.abs(colors[half].astype(np.int16) - other_colors[nearest[half]])
    return float(least[half].mean()), float(apart.mean())


def _candidates(hashes: Sequence[np.ndarray]) -> Iterator[tuple[int, int]]:
    """Yields each pair of videos that have frames within 3 bits once, the lower index first."""
    count = len(hashes)
    videos = np.repeat(np.arange(count, dtype=np.uint64), list(map(len, hashes)))
    if not len(videos):
        return
    values, videos = np.unique(np.stack([np.concatenate(hashes), videos]), axis=1)
    videos = videos.astype(np.int64)
    # a pair is stored as one number, as a set of tuples would need twenty times the memory
    pairs = [np.zeros(0, dtype=np.int64)]
    for band in range(BANDS):
        keys = (values >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(keys, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            if len(bucket) < 2:
                continue
            # blocks of rows, so that comparing a block with the whole bucket takes bounded memory
            blocks = range(0, len(bucket), max(1, BLOCK // len(bucket)))
            for rows in np.split(bucket, blocks[1:]):
                close = _bit_count(values[rows][:, None] ^ values[bucket][None]) <= FRAME_DISTANCE
                close &= videos[rows][:, None] < videos[bucket][None]
                one, other = np.nonzero(close)
                if len(one):
                    pairs.append(np.unique(videos[rows[one]] * count + videos[bucket[other]]))
    for pair in np.unique(np.concatenate(pairs)):
        yield divmod(int(pair), count)


def _bit_count(values: np.ndarray) -> np.ndarray:
    """The number of bits set in each of uint64 `values`; numpy 1 has no np.bitwise_count."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(values)
    return np.unpackbits(values[..., None].view(np.uint8), axis=-1).sum(axis=-1)


def clusters(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The connected components, of two or more, of a graph with `count` nodes and the edges `pairs`."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(first)), (first, second)), shape=(count, count))
    members: dict[int, list[int]] = {}
    for node, label in enumerate(connected_components(graph, directed=False)[1].tolist()):
        members.setdefault(label, []).append(node)
    return [nodes for nodes in members.values() if len(nodes) > 1]
