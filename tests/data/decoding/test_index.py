import json
import os
import pickle
import sqlite3
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from fractions import Fraction
from multiprocessing import get_context

import av
import numpy as np
import pytest

from vidtrain.data.augment.geometry import Crop
from vidtrain.data.decoding import index as index_module
from vidtrain.data.decoding.decoder import decode_views
from vidtrain.data.decoding.index import VideoIndex, pack, unpack
from vidtrain.data.decoding.metadata import read_metadata
from vidtrain.data.decoding.video import DecodeError, VideoInfo
from vidtrain.errors import UserError


@pytest.fixture
def clip(tmp_path, write_video, patches) -> str:
    return write_video(tmp_path / "video.mp4", patches(40), options={"x264-params": "keyint=12"})


@pytest.fixture
def probed(monkeypatch) -> list[str]:
    """Paths of the files that are probed."""
    paths = []

    def counted(path: str, *more: int) -> VideoInfo:
        paths.append(path)
        return read_metadata(path, *more)

    monkeypatch.setattr(index_module, "read_metadata", counted)
    return paths


def same(a: VideoInfo, b: VideoInfo) -> bool:
    arrays = ("positions", "sizes", "order", "starts", "disposable", "second")
    one, other = a.packets, b.packets
    return (
        all(
            getattr(a, name) == getattr(b, name)
            for name in ("path", "tick", "width", "height", "orientation", "digest")
        )
        and all(getattr(one, name) == getattr(other, name) for name in ("codec", "tag", "extradata", "color"))
        and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)
        and all(getattr(one, name).dtype == getattr(other, name).dtype for name in arrays)
        and np.array_equal(a.ticks, b.ticks)
    )


def test_an_entry_gives_back_what_was_probed(clip):
    video = read_metadata(clip)
    entry = pack(video)
    assert same(unpack(clip, entry), video)
    assert len(entry) < 1200  # 40 frames: about 900 bytes of extradata and digest, 4 a frame


def test_a_file_is_probed_once_for_all_processes_and_again_when_it_changes(
    tmp_path, clip, probed, write_video, patches
):
    path = tmp_path / "index" / "videos.db"
    first = VideoIndex(path)
    video = first.info(clip)
    assert first.info(clip) is video
    assert same(VideoIndex(path).info(clip), video)
    assert probed == [clip]
    write_video(tmp_path / "video.mp4", patches(24))
    assert VideoIndex(path).info(clip).num_frames == 24
    assert probed == [clip, clip]


def test_what_comes_from_disk_decodes_the_same(tmp_path, clip):
    path = tmp_path / "videos.db"
    views = [(np.array([3, 30, 17]), Crop(0, 0, 96, 64))]
    expected = decode_views(VideoIndex(path).info(clip), views, (64, 96))
    assert decode_views(VideoIndex(path).info(clip), views, (64, 96)).equal(expected)


def _info(index: VideoIndex, path: str) -> int:
    return index.info(path).num_frames


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_processes_share_one_file(tmp_path, write_video, patches, method):
    paths = [write_video(tmp_path / f"{i}.mp4", patches(5 + i)) for i in range(12)]
    index = VideoIndex(tmp_path / "videos.db")
    index.info(paths[0])  # an open connection must not be used by the forked
    with ProcessPoolExecutor(3, mp_context=get_context(method)) as pool:
        jobs = [pool.submit(_info, index, path) for path in paths * 2]
        assert [job.result() for job in jobs] == [5 + i for i in range(12)] * 2
    with sqlite3.connect(tmp_path / "videos.db") as database:
        assert database.execute("SELECT count(*) FROM videos").fetchone() == (12,)


def test_memory_is_bounded(tmp_path, write_video, patches, monkeypatch, probed):
    monkeypatch.setattr(index_module, "REMEMBERED_BYTES", 3000)
    paths = [write_video(tmp_path / f"{i}.mp4", patches(5)) for i in range(4)]
    index = VideoIndex(None)
    for path in paths:
        index.info(path)
    assert [os.path.basename(key[0][0]) for key in index._remembered] == ["2.mp4", "3.mp4"]
    index.info(paths[0])
    assert probed == [*paths, paths[0]]


def test_nothing_of_it_is_pickled_but_its_path(tmp_path, clip):
    index = VideoIndex(tmp_path / "videos.db")
    index.info(clip)
    assert len(pickle.dumps(index)) < 400
    assert pickle.loads(pickle.dumps(index)).info(clip).num_frames == 40


def test_what_cannot_be_an_index_is_named(tmp_path):
    (tmp_path / "text.db").write_text("not a database\n" * 100)
    (tmp_path / "file").touch()
    for path in (tmp_path / "text.db", tmp_path / "file" / "videos.db"):
        with pytest.raises(UserError, match=rf"{path} .*data.index_root"):
            VideoIndex(path)


def test_a_file_that_cannot_be_read_is_not_remembered(tmp_path, write_video, patches):
    index = VideoIndex(tmp_path / "videos.db")
    path = tmp_path / "video.mp4"
    with pytest.raises(DecodeError, match="No such file"):
        index.info(str(path))
    path.touch()
    with pytest.raises(DecodeError, match="the file is empty"):
        index.info(str(path))
    write_video(path, patches(5))
    assert index.info(str(path)).num_frames == 5


def test_an_index_that_fails_later_costs_time_only(tmp_path, write_video, patches, monkeypatch, caplog, probed):
    """Locked for too long, then with a damaged entry."""
    monkeypatch.setattr(index_module, "WAIT_SECONDS", 0.05)
    path, clip = tmp_path / "videos.db", write_video(tmp_path / "video.mp4", patches(5))
    index = VideoIndex(path)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert index.info(clip).num_frames == 5
        other.execute("COMMIT")
    assert [record.message for record in caplog.records] == [
        f"the video index {path} fails (database is locked): files are read without it"
    ]
    VideoIndex(path).info(clip)
    with sqlite3.connect(path) as other:
        other.execute("UPDATE videos SET entry = x'00'")
    assert VideoIndex(path).info(clip).num_frames == 5
    assert len(caplog.records) == 2 and "fails" in caplog.records[1].message


def test_names_that_are_not_text(tmp_path, write_video, patches):
    plain = write_video(tmp_path / "video.mp4", patches(5))
    strange = os.path.join(os.fsencode(tmp_path), b"caf\xe9.mp4")
    os.rename(plain, strange)
    for _ in range(2):
        assert VideoIndex(tmp_path / "videos.db").info(os.fsdecode(strange)).num_frames == 5
    with pytest.raises(DecodeError, match="null byte"):
        VideoIndex(None).info("a\0.mp4")


def test_folders_of_images_at_two_rates(tmp_path):
    av.VideoFrame(16, 16, "rgb24").save(str(tmp_path / "1.png"))
    index = VideoIndex(None)
    assert [index.info(str(tmp_path), rate).tick for rate in (10, 25)] == [Fraction(1, 10), Fraction(1, 25)]


def changed(entry: bytes, **parts) -> bytes:
    """An entry whose head has other `parts`; those of its decoder have names that begin with `decoder_`."""
    data = zlib.decompress(entry)
    length = int.from_bytes(data[:4], "little")
    head = json.loads(data[4 : 4 + length])
    for key, value in parts.items():
        if key.startswith("decoder_"):
            head["decoder"][key.removeprefix("decoder_")] = value
        else:
            head[key] = value
    text = json.dumps(head).encode()
    return zlib.compress(len(text).to_bytes(4, "little") + text + data[4 + length :])


CRAFTED = {
    "a number": lambda entry: 7,
    "text": lambda entry: "x",
    "nothing": lambda entry: None,
    "no bytes": lambda entry: b"",
    "cut": lambda entry: entry[:-9],
    "a list": lambda entry: zlib.compress((2).to_bytes(4, "little") + b"[]"),
    "nested": lambda entry: zlib.compress((200_000).to_bytes(4, "little") + b"[" * 200_000),
    "a shape of text": lambda entry: changed(entry, shape=["a", 64, 0, False]),
    "a shape of nothing": lambda entry: changed(entry, shape=None),
    "no height": lambda entry: changed(entry, shape=[64, 0, 0, False]),
    "turned by a degree": lambda entry: changed(entry, shape=[64, 64, 1, False]),
    "a tick of zero": lambda entry: changed(entry, tick=[1, 0]),
    "a tick of text": lambda entry: changed(entry, tick=["a", "b"]),
    "no frames": lambda entry: changed(entry, arrays={"ticks": 0}),
    "too many frames": lambda entry: changed(entry, arrays={"ticks": 1 << 40}),
    "a digest of a number": lambda entry: changed(entry, digest=5),
    "a codec of a list": lambda entry: changed(entry, decoder_codec=["h264"]),
    "a color of text": lambda entry: changed(entry, decoder_color="xy"),
    "extradata of a number": lambda entry: changed(entry, decoder_extradata=1),
    "a decoder of nothing": lambda entry: changed(entry, decoder=None),
}


@pytest.mark.parametrize("craft", CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_row_is_passed_over_and_made_anew(tmp_path, clip, probed, caplog, craft):
    index = VideoIndex(tmp_path / "index.sqlite")
    video = index.info(clip)
    with index._connect() as database:
        database.execute("UPDATE videos SET entry = ?", (craft(pack(video)),))
    again = VideoIndex(tmp_path / "index.sqlite")
    assert same(again.info(clip), video) and probed == [clip, clip]
    assert "the video index" in caplog.text and "fails" in caplog.text
    assert same(VideoIndex(tmp_path / "index.sqlite").info(clip), video) and probed == [clip, clip]


def test_a_row_that_points_outside_of_its_file_is_passed_over(clip):
    video = read_metadata(clip)
    table = video.packets
    for name, value in (("order", 10**6), ("starts", -1), ("sizes", -5), ("positions", -1)):
        array = getattr(table, name).copy()
        array[-1] = value
        with pytest.raises(ValueError, match="values that no file has"):
            unpack(clip, pack(replace(video, packets=replace(table, **{name: array}))))
