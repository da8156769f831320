"""Fields: two of them are one frame, whether they are in one packet or in two."""

from collections.abc import Sequence

import av
import numpy as np
import pytest
from field_streams import HEIGHT, fields, muxed, parameters, picture

from vidtrain.data.audit.inspection import inspect_video
from vidtrain.data.decoding.container import opened
from vidtrain.data.decoding.decoder import read_frames
from vidtrain.data.decoding.entry_points import coded_picture
from vidtrain.data.decoding.headers import Survey, survey
from vidtrain.data.decoding.index import pack, unpack
from vidtrain.data.decoding.metadata import read_metadata
from vidtrain.data.decoding.video import VideoInfo

FRAMES = 20
PACKETS = 34  # frames 2, 5, 8 and so on are coded as frames, but for those that begin a group of 6


@pytest.fixture(scope="module")
def stream() -> tuple[list[list[bytes]], list[np.ndarray]]:
    return fields(FRAMES)


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("name", ["video.mp4", "video.mkv", "video.mov", "video.avi", "video.ts", "video.flv"])
def test_two_fields_are_one_frame(tmp_path, stream, name, apart):
    pictures, lumas = stream
    path = muxed(tmp_path / name, pictures, apart, sound=name.endswith("mov"))
    video = read_metadata(path)
    assert video.num_frames == FRAMES
    if not name.endswith("avi"):  # without times of presentation
        np.testing.assert_allclose(video.timestamps - video.timestamps[0], np.arange(FRAMES) / 25, atol=0.001)
    if not name.endswith(".ts"):
        assert len(video.packets.positions) == (PACKETS if apart else FRAMES)
        assert len(video.packets.starts) == 4 and video.packets.disposable.any()
    assert_frames(video, lumas)
    assert_frames(unpack(path, pack(video)), lumas)
    found = inspect_video(path, None, None, None)
    assert not {"truncated", "frame count", "damaged"} & {kind for kind, _ in found.issues}, found.issues


def test_a_bare_stream(tmp_path, stream):
    pictures, lumas = stream
    path = tmp_path / "video.h264"
    path.write_bytes(b"".join(b"".join(parts) for parts in pictures))
    video = read_metadata(str(path))
    assert (video.num_frames, video.packets.second.sum()) == (FRAMES, PACKETS - FRAMES)
    assert_frames(video, lumas)


def assert_frames(video: VideoInfo, lumas: Sequence[np.ndarray]) -> None:
    """Every frame alone, in strides, and the last ones of a read are the pictures that were coded."""
    count = len(lumas)
    for wanted in [
        *([index] for index in range(count)),
        list(range(0, count, 3)),
        [4, 5, 9],
        list(range(count)),
    ]:
        found = dict(read_frames(video, wanted))
        assert sorted(found) == wanted
        for index, frame in found.items():
            assert np.array_equal(frame.to_ndarray()[:HEIGHT], lumas[index]), index


def test_a_field_without_the_other_is_left_to_the_decoder(tmp_path, stream):
    pictures, lumas = stream
    lost = [parts[:1] if number == 10 else parts for number, parts in enumerate(pictures)]
    video = read_metadata(muxed(tmp_path / "video.mp4", lost, apart=True))
    with opened(video.path, video.max_pixels) as (container, decoded):
        every = [frame.to_ndarray() for frame in container.decode(decoded)]
    assert video.num_frames == len(every) < FRAMES
    for index in range(len(every)):
        ((_, frame),) = read_frames(video, [index])
        assert np.array_equal(frame.to_ndarray(), every[index])


def surveyed(*packets: bytes) -> Survey:
    return survey(b"", [coded_picture("h264", packet, b"").headers for packet in packets])


def test_what_headers_tell():
    top, bottom, frame = (
        lambda number, parity=parity, **options: picture(None, number, 2 * number, parity, **options)
        for parity in (1, 2, 0)
    )
    start = parameters() + picture(None, 0, 0, 0, idr=True)
    found = surveyed(start, top(1), bottom(1), frame(2, kept=False), bottom(2), top(2), frame(3))
    assert found.second == [False, False, True, False, False, True, False]
    assert found.paired and found.regular and not found.has_b
    # two top fields, two numbers, one that is kept and one that is not, one alone at the end
    for others in ([top(1), top(1)], [top(1), bottom(2)], [top(1), bottom(1, kept=False)], [top(1)]):
        found = surveyed(start, *others)
        assert not any(found.second) and not found.paired
    assert surveyed(start, top(1) + bottom(1), frame(2)).paired  # both in one packet
    assert not surveyed(start, frame(1), frame(3)).regular  # a picture is missing
    assert not surveyed(start, frame(1, kept=False), frame(2)).regular  # or is referred to
    assert surveyed(start, frame(1)[:6], frame(7)).regular  # damaged: left to the decoder
    assert surveyed(frame(4), frame(9)).regular  # without parameters nothing can be told


@pytest.mark.parametrize(
    "x264",
    [
        "keyint=10",
        "interlaced=1",
        "keyint=8:slices=4",
        "profile=high444",
        "keyint=6:open-gop=1",
        "cqm=jvt",
        "ref=5:keyint=300",
    ],
)
def test_headers_of_an_encoder(tmp_path, write_video, patches, x264):
    """Frame numbers run on, whatever else is in the parameters; both in MP4 and with start codes."""
    pixel_format = "yuv444p" if "444" in x264 else "yuv420p"
    frames = patches(300 if "300" in x264 else 30, pixel_format=pixel_format)  # more than frame numbers have bits
    options = {"x264-params": "" if "444" in x264 else x264}
    for name in ("video.mp4", "video.h264"):
        path = write_video(tmp_path / name, frames, options=options, b_frames=2)
        with av.open(path) as container:
            extradata = container.streams.video[0].codec_context.extradata or b""
            packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        coded = [coded_picture("h264", packet, extradata) for packet in packets]
        found = survey(extradata, [each.headers for each in coded])
        assert found.regular and found.paired and not any(found.second) and found.has_b
        assert max(each.slices for each in coded) == (4 if "slices" in x264 else 1)
        assert sum(each.disposable for each in coded) >= 8
