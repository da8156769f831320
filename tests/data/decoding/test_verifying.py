"""Pictures that claim that nothing refers to them, but that others change without."""

from pathlib import Path

import av
import numpy as np
import pytest
from field_streams import HEIGHT, mpeg2_fields, muxed

from vidtrain.data.decoding import packets
from vidtrain.data.decoding.container import opened
from vidtrain.data.decoding.decoder import read_frames
from vidtrain.data.decoding.metadata import read_metadata
from vidtrain.data.decoding.video import VideoInfo

NO_REFERENCE = 0b1_00_11111  # of a unit's header: nal_ref_idc becomes 0


def differing(video: VideoInfo) -> int:
    """How many frames differ when read in strides from those of decoding in order."""
    with opened(video.path, video.max_pixels) as (
        container,
        stream,
    ):  # on one thread: with more, errors are concealed otherwise
        every = [frame.to_ndarray() for frame in container.decode(stream)]
    assert len(every) == video.num_frames
    wrong = 0
    for wanted in (list(range(phase, len(every), stride)) for stride in (2, 5, 7) for phase in (0, 1)):
        found = dict(read_frames(video, wanted))
        wrong += sum(not np.array_equal(found[index].to_ndarray(), every[index]) for index in wanted)
    return wrong


def lying(path: str) -> None:
    """Every other P picture of an H.264 file says that nothing refers to it."""
    data = bytearray(Path(path).read_bytes())
    at, count = -1, 0
    with av.open(path) as container:
        for packet in container.demux(video=0):
            for unit in units(bytes(packet)):
                if unit[0] & 31 == 1 and len(unit) > 8:
                    at = data.index(unit[:64], at + 1)
                    if count % 2:
                        data[at] &= NO_REFERENCE
            count += 1
    Path(path).write_bytes(data)


def units(packet: bytes) -> list[bytes]:
    if packet[:3] == b"\0\0\1" or packet[:4] == b"\0\0\0\1":
        return [part.strip(b"\0") for part in packet.split(b"\0\0\1") if part.strip(b"\0")]
    found, at = [], 0
    while at < len(packet):
        size = int.from_bytes(packet[at : at + 4], "big")
        found.append(packet[at + 4 : at + 4 + size])
        at += 4 + size
    return found


@pytest.mark.parametrize("slices", [1, 4])
@pytest.mark.parametrize("name", ["video.h264", "video.mp4", "video.mkv", "video.avi"])
def test_nothing_is_left_out_where_that_changes_others(tmp_path, write_video, patches, monkeypatch, name, slices):
    # the decoder misses pictures that these files lie about, in order too, so their frames count as damaged
    monkeypatch.setattr(packets, "_dependent", lambda *_: [])
    options = {"x264-params": f"bframes=0:ref=2:keyint=16:slices={slices}"}
    path = write_video(tmp_path / name, patches(48), options=options)
    assert not read_metadata(path).packets.disposable.any()
    lying(path)
    video = read_metadata(path)
    assert not video.packets.disposable.any()
    assert differing(video) == 0


def test_fields_of_mpeg4(tmp_path, write_video, patches):
    """How far apart the first two fields were decides for all later B pictures of the decoder."""
    options = {"flags": "+ildct+ilme"}
    video = read_metadata(write_video(tmp_path / "video.avi", patches(60), "mpeg4", options, b_frames=2))
    assert not video.packets.disposable.any()
    assert differing(video) == 0


@pytest.mark.parametrize(
    ("name", "apart"),
    [
        ("video.mkv", True),
        ("video.avi", True),
        ("video.mp4", True),
        ("video.mp4", False),
        ("video.ts", False),
    ],
)
def test_fields_of_mpeg2(tmp_path, name, apart):
    """Parsers put the two fields of a frame into one packet, but not every file was made by one."""
    pictures, lumas = mpeg2_fields(14)
    video = read_metadata(muxed(tmp_path / name, pictures, apart, bare=".m2v"))
    assert video.num_frames == 14
    np.testing.assert_allclose(video.timestamps - video.timestamps[0], np.arange(14) / 25, atol=0.001)
    for wanted in [*([index] for index in range(14)), list(range(0, 14, 3))]:
        found = dict(read_frames(video, wanted))
        assert sorted(found) == wanted
        assert all(np.array_equal(found[index].to_ndarray()[:HEIGHT], lumas[index]) for index in wanted)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("slices.mp4", "libx264", {"x264-params": "slices=4:bframes=3:b-adapt=0"}),
        ("slices.h264", "libx264", {"x264-params": "slices=4:bframes=3:b-adapt=0"}),
        ("bare.hevc", "libx265", {"x265-params": "log-level=none:bframes=3:b-adapt=0"}),
        ("layers.mp4", "libx265", {"x265-params": "log-level=none:bframes=3:b-adapt=0:temporal-layers=3"}),
        ("packed.avi", "mpeg4", {}),
    ],
)
def test_what_can_be_left_out_still_is(tmp_path, write_video, patches, name, codec, options):
    video = read_metadata(
        write_video(tmp_path / name, patches(40), codec, options, b_frames=2 if codec == "mpeg4" else 3)
    )
    assert video.packets.disposable.sum() >= 9
    assert differing(video) == 0


@pytest.mark.parametrize(("slices", "left_out"), [(1, True), (4, False)])
def test_long_streams_of_an_unusual_kind_are_not_tried(tmp_path, write_video, patches, monkeypatch, slices, left_out):
    monkeypatch.setattr(packets, "MOST_TRIED", 40 * 96 * 64 - 1)
    options = {"x264-params": f"slices={slices}:bframes=3"}
    video = read_metadata(write_video(tmp_path / "video.mp4", patches(40), options=options))
    assert video.packets.disposable.any() == left_out
    assert differing(video) == 0
