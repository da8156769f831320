"""What is known of videos in stores of which little was fetched is what all of them says."""

import tarfile
from dataclasses import fields
from fractions import Fraction

import av
import numpy as np
import pytest
from store_server import serving

from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.decoding.metadata import read_metadata
from vidtrain.data.decoding.video import PacketTable
from vidtrain.data.stores import outlines

from .test_files import assert_same, batches

FRAMES = 400
KINDS = {
    "front": ("libx264", {}, {"movflags": "+faststart"}),
    "end": ("libx264", {"bf": "3"}, {}),
    "open": ("libx264", {"x264-params": "open-gop=1:bframes=3"}, {}),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": "keyint=50:log-level=none"}, {}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, {"movflags": "+faststart"}),
    "turned": ("libx264", {}, {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A file of each kind, with sound, of a window that moves over a picture, and one in fragments."""
    root = tmp_path_factory.mktemp("outlines")
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 256, (40, 220, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
    pictures = [np.ascontiguousarray(picture[at // 4 :, 2 * at :][:48, :64]) for at in range(FRAMES)]
    fragments = {"fragments": ("libx264", {}, {"movflags": "+frag_keyframe+empty_moov"})}
    for name, (codec, options, flags) in {**KINDS, **fragments}.items():
        with av.open(str(root / f"{name}.mp4"), "w", options=flags) as container:
            stream = container.add_stream(codec, rate=25)
            stream.options, stream.gop_size, stream.bit_rate = options, 50, 600_000
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            if name == "turned":
                stream.set_display_rotation(90)
            sound = container.add_stream("aac", rate=16000)
            for number in range(FRAMES):
                frame = av.VideoFrame.from_ndarray(pictures[number])
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
                audio = av.AudioFrame.from_ndarray(np.zeros((1, 640), np.float32), format="fltp", layout="mono")
                audio.rate, audio.pts = 16000, 640 * number
                container.mux(sound.encode(audio))
            container.mux([*stream.encode(None), *sound.encode(None)])
    with tarfile.open(root / "all.tar", "w") as archive:
        archive.add(root / "end.mp4", "end.mp4")
    return root


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(outlines, "SMALLEST", 0)
    monkeypatch.setattr(outlines, "AT_ONCE", 16 << 10)


def member(folder):
    with tarfile.open(folder / "all.tar") as archive:
        (header,) = archive
    return f"all.tar::{header.name}@{header.offset_data}+{header.size}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KINDS, "member"])
def test_what_is_found_is_what_the_whole_file_says(folder, name, tmp_path):
    place = member(folder) if name == "member" else f"{name}.mp4"
    path, size = str(folder / place), (folder / f"{'end' if name == 'member' else name}.mp4").stat().st_size
    with serving(folder) as store:
        ours, theirs = read_metadata(f"{store.url}/{place}", whole=False), read_metadata(path)
        assert store.bytes_asked < 0.6 * size and len(store.requests) < 16
        assert ours.digest == b"" and len(theirs.digest) == 16
        assert np.array_equal(ours.ticks, theirs.ticks) and (ours.tick, ours.aspect) == (
            theirs.tick,
            theirs.aspect,
        )
        shape = (theirs.width, theirs.height, theirs.rotation, theirs.mirrored)
        assert (ours.width, ours.height, ours.rotation, ours.mirrored) == shape
        for field in fields(PacketTable):
            one, other = getattr(ours.packets, field.name), getattr(theirs.packets, field.name)
            if field.name == "disposable":
                assert not one.any()
            else:
                assert np.array_equal(one, other), field.name
        index = VideoIndex(tmp_path / "videos.sqlite")
        assert_same(batches([f"{store.url}/{place}"], index=index), batches([path]))
        assert index.info(f"{store.url}/{place}").digest == b""
        assert index.info(f"{store.url}/{place}", whole=True).digest == theirs.digest
        assert index.info(f"{store.url}/{place}").digest == theirs.digest


def test_a_file_in_fragments_is_read_whole(folder):
    with serving(folder) as store:
        ours = read_metadata(f"{store.url}/fragments.mp4", whole=False)
    assert ours.digest == read_metadata(str(folder / "fragments.mp4")).digest != b""


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_are_fetched_whole_are_told_of_once(folder, workers, caplog, tmp_path):
    told = []
    with serving(folder) as store:
        index = VideoIndex(tmp_path / "videos.sqlite")
        for _ in range(2):  # the second time the index knows them
            batches([f"{store.url}/{name}.mp4" for name in ("fragments", "front")], workers, index)
            told += [record.args for record in caplog.records if record.name.endswith("loading.loaders")]
            caplog.clear()
    ((count, among),) = told
    assert count == 1 and among in (3, 6)


def test_small_files_are_fetched_whole_without_a_word(folder, caplog, monkeypatch):
    monkeypatch.setattr(outlines, "SMALLEST", 1 << 30)
    with serving(folder) as store:
        (first, *_) = batches([f"{store.url}/fragments.mp4"])
    assert first.store.bytes and not first.store.whole and not caplog.records


def test_a_cut_or_damaged_file_is_read_whole(folder, tmp_path):
    data = (folder / "front.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "zeros.mp4").write_bytes(data[:40] + bytes(len(data) - 40))
    with serving(tmp_path) as store:
        for name in ("cut.mp4", "zeros.mp4"):
            causes = []
            for path in (f"{store.url}/{name}", str(tmp_path / name)):
                try:
                    causes.append(read_metadata(path, whole=False).num_frames)
                except Exception as error:
                    causes.append(error.cause)
            assert causes[0] == causes[1]
