"""Perceptual hashes against their definition, and the search against a comparison of all pairs."""

import math

import av
import numpy as np

from vidtrain.data.audit import duplicates
from vidtrain.data.audit.duplicates import Signature, clusters, distance, near_duplicates, sign


def scene(seed: int) -> np.ndarray:
    """A smooth colored picture, uint8 [32 32 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(coarse, format="rgb24").reformat(32, 32, interpolation="BICUBIC")
    return frame.to_ndarray()


def video(*hashes: int, color: int = 0) -> Signature:
    return Signature(np.array(hashes, np.uint64), np.full((len(hashes), 48), color, np.uint8))


def test_a_hash_holds_the_signs_of_the_64_lowest_frequencies():
    gray = scene(1) @ np.array([0.299, 0.587, 0.114])
    frequencies = sorted(((v, u) for v in range(12) for u in range(12)), key=lambda p: (p[0] + p[1], p[0]))
    signs = []
    for v, u in frequencies[1:65]:
        total = sum(
            gray[y, x] * math.cos(math.pi * (2 * y + 1) * v / 64) * math.cos(math.pi * (2 * x + 1) * u / 64)
            for y in range(32)
            for x in range(32)
        )
        signs.append(int(total > 0))
    # the bits are dealt out to the bands: every fourth frequency goes to the same 16 bits
    stored = np.unpackbits(sign(scene(1)[None]).hashes.view(np.uint8)).tolist()
    assert stored == [signs[n] for start in range(4) for n in range(start, 64, 4)]


def test_colors_are_the_means_of_16_cells():
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[8:16, 24:] = (10, 20, 30)
    picture[0, 0] = 64
    colors = sign(picture[None]).colors[0].reshape(4, 4, 3)
    assert colors[1, 3].tolist() == [10, 20, 30]
    assert colors[0, 0].tolist() == [1, 1, 1]
    assert colors.sum() == 63


def test_size_and_slight_changes_hardly_change_a_signature():
    picture = scene(2).astype(float)
    small = av.VideoFrame.from_ndarray(scene(2), format="rgb24").reformat(20, 20, interpolation="AREA")
    back = small.reformat(32, 32, interpolation="BICUBIC").to_ndarray()
    for other in (back, (picture * 0.97 + 4).astype(np.uint8)):
        bits, levels = distance(sign(scene(2)[None]), sign(other[None]))
        assert bits <= 3 and levels <= 4
    bits, levels = distance(sign(scene(2)[None]), sign(scene(3)[None]))
    assert bits > 16 and levels > 20


def test_uniform_pictures_have_no_signature():
    noise = np.random.default_rng(0).integers(118, 123, (32, 32, 3), dtype=np.uint8)
    black = np.zeros((32, 32, 3), np.uint8)
    assert len(sign(np.stack([black, noise, scene(4)]))) == 1
    assert len(sign(np.stack([black, noise]))) == 0
    assert near_duplicates([sign(black[None])] * 2) == []


def test_a_signature_as_text():
    signature = sign(np.stack([scene(5), scene(6)]))
    again = Signature.from_text(signature.to_text())
    assert again.hashes.tolist() == signature.hashes.tolist()
    assert again.colors.tolist() == signature.colors.tolist()
    assert len(Signature.from_text("")) == 0


def test_distance_is_that_of_the_better_half_in_the_better_direction():
    # each frame of the first to the nearest of the second: 1, 2, 4 and 64 bits; back: 1 bit
    first, second = video(0b1, 0b11, 0b1111, 2**64 - 1, color=7), video(0b0, color=9)
    assert distance(first, second) == distance(second, first) == (1.0, 2.0)
    assert distance(video(0b1, 0b11, 0xFFFF, 0xFFFFFF), video(0, 0xFF000000)) == (1.0, 0.0)  # back: 1 and 5
    assert distance(video(0b1, 0b111), video(0b1111, 0b1111111)) == (1.0, 0.0)


def test_other_colors_are_other_videos():
    assert [pair.distance for pair in near_duplicates([video(5, 9, color=50), video(5, 9, color=56)])] == [0.0]
    assert near_duplicates([video(5, 9, color=50), video(5, 9, color=57)]) == []


def test_the_search_finds_what_comparing_all_pairs_does():
    rng = np.random.default_rng(0)
    videos = [video(*rng.integers(0, 2**64, 6, dtype=np.uint64).tolist()) for _ in range(60)]
    for number in range(20):  # copies, with up to 3 bits of every frame turned
        flips = [sum(1 << int(bit) for bit in rng.choice(64, number % 4, replace=False)) for _ in range(6)]
        videos.append(video(*(videos[number].hashes ^ np.array(flips, np.uint64)).tolist()))
    expected = {(i, j) for j in range(len(videos)) for i in range(j) if distance(videos[i], videos[j])[0] <= 6.5}
    found = near_duplicates(videos, 6.5)
    assert {(pair.first, pair.second) for pair in found} == expected == {(n, 60 + n) for n in range(20)}
    assert [pair.distance for pair in found] == sorted(pair.distance for pair in found)


def test_blocks_do_not_change_what_is_found(monkeypatch):
    videos = [video(7, 9)] * 30 + [video(0xFFFF0000FFFF0000)]
    whole = near_duplicates(videos)
    monkeypatch.setattr(duplicates, "BLOCK", 40)
    assert near_duplicates(videos) == whole
    assert len(whole) == 30 * 29 // 2


def test_bits_are_counted_alike_without_numpy_2(monkeypatch):
    values = np.array([[0, 1, 255], [2**64 - 1, 2**63, 12]], np.uint64)
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert duplicates._bit_count(values).tolist() == [[0, 1, 8], [64, 1, 2]]


def test_clusters():
    assert clusters(7, [(5, 3), (1, 2), (3, 6)]) == [[1, 2], [3, 5, 6]]
    assert clusters(3, []) == []
    assert clusters(0, []) == []
