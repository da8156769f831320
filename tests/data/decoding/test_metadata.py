"""When frames are shown, where a file does not say so of every one."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vidtrain.data.audit.inspection import inspect_video
from vidtrain.data.decoding.decoder import read_frames
from vidtrain.data.decoding.metadata import read_metadata
from vidtrain.data.decoding.video import VideoInfo
from vidtrain.data.sampling.clips import ClipProtocol, clip_indices
from vidtrain.data.sampling.temporal import cut

X265_QUIET = {"x265-params": "log-level=none"}


@pytest.fixture
def encoded(tmp_path, patches):
    """Writes a file of frames that are shown in the intervals `shown` of a clock of `rate`."""

    def encode(name: str, codec: str, shown: Sequence[int], rate: int = 30, b_frames: int = 2, **options: str) -> str:
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=rate, options=options or {})
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            context = stream.codec_context
            context.thread_count, context.gop_size, context.max_b_frames = 1, 12, b_frames
            context.time_base = Fraction(1, rate)
            for number, frame in zip(shown, patches(len(shown)), strict=True):
                frame.pts, frame.time_base = number, Fraction(1, rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return str(tmp_path / name)

    return encode


def copied(source: str, target: Path) -> str:
    """The packets of a file in another container, as `ffmpeg -c copy` puts them there."""
    with av.open(source) as read, av.open(str(target), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = stream
                write.mux(packet)
    return str(target)


def assert_exact(video: VideoInfo) -> None:
    """Frames read alone, and every third one, are those of decoding in order."""
    with av.open(video.path) as container:
        every = [frame.to_ndarray() for frame in container.decode(video=0)]
    assert len(every) == video.num_frames
    for wanted in ([0], [len(every) - 1], [len(every) // 2], list(range(1, len(every), 3))):
        found = dict(read_frames(video, wanted))
        assert sorted(found) == wanted
        assert all(np.array_equal(frame.to_ndarray(), every[index]) for index, frame in found.items())


@pytest.mark.parametrize("rate", [15, 30, 50])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("bare.h264", "libx264", {}),
        ("interlaced.h264", "libx264", {"x264-params": "interlaced=1"}),
        ("marked.h264", "libx264", {"x264-params": "fake-interlaced=1"}),
        ("bare.hevc", "libx265", X265_QUIET),
        ("bare.m2v", "mpeg2video", {}),
        ("b_pictures.avi", "libx264", {}),
        ("no_b.avi", "libx264", {"x264-params": "bframes=0"}),
        ("b_pictures.avi", "mpeg4", {}),
        ("interlaced.avi", "mpeg4", {"flags": "+ildct+ilme"}),
        ("interlaced.mpg", "mpeg2video", {"flags": "+ildct+ilme"}),
        ("program.mpg", "mpeg2video", {}),
        ("stream.ts", "libx264", {}),
        ("interlaced.mp4", "libx264", {"x264-params": "interlaced=1"}),
    ],
)
def test_the_rate_is_that_of_the_encoder(encoded, name, codec, options, rate):
    if codec == "mpeg2video" and rate == 15:
        pytest.skip("MPEG-2 knows no such rate")
    video = read_metadata(encoded(name, codec, range(40), rate, **options))
    times = video.timestamps - video.timestamps[0]
    np.testing.assert_allclose(times, np.arange(40) / rate, atol=1e-4)
    assert_exact(video)


@pytest.mark.parametrize("rate", [12, 120, 240])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("bare.h264", "libx264", {}),
        ("interlaced.h264", "libx264", {"x264-params": "interlaced=1"}),
        ("bare.hevc", "libx265", X265_QUIET),
    ],
)
def test_bare_streams_of_an_unusual_rate(encoded, name, codec, options, rate):
    """FFmpeg guesses 25 or twice the rate of such ones; their own parameters say it."""
    video = read_metadata(encoded(name, codec, range(40), rate, **options))
    assert (video.num_frames, 1 / video.tick) == (40, rate)
    assert video.ticks.tolist() == list(range(40))


def test_a_bare_stream_that_counts_in_a_clock(encoded):
    """Its parameters say 90,000 fields a second, which is a clock, and no rate of frames."""
    assert 1 / read_metadata(encoded("bare.h264", "libx264", range(40), 45_000)).tick == 25


def test_copied_into_avi(tmp_path, encoded):
    video = read_metadata(copied(encoded("source.ts", "libx264", range(40)), tmp_path / "copy.avi"))
    np.testing.assert_allclose(video.timestamps, np.arange(40) / 30, atol=1e-6)
    assert_exact(video)
    found = inspect_video(video.path, None, None, None)
    assert (found.issues, found.num_frames, found.stated_frames, found.rate) == ((), 40, 40, 30.0)


@pytest.mark.parametrize("b_frames", [0, 2])
def test_frames_dropped_from_an_avi(tmp_path, encoded, b_frames):
    shown = [number for number in range(60) if number % 5 != 3 and not 30 <= number < 40]
    source = encoded("source.ts", "libx264", shown, b_frames=b_frames)
    video = read_metadata(copied(source, tmp_path / "copy.avi"))
    times = 30 * (video.timestamps - video.timestamps[0])
    held_back = 2 if b_frames else 0  # which the file does not say anything of
    np.testing.assert_allclose(times[: len(shown) - held_back], shown[: len(shown) - held_back], atol=1e-6)
    assert 56 < times[-1] < 60
    assert_exact(video)
    found = inspect_video(video.path, None, None, None)
    assert [kind for kind, _ in found.issues] == ["variable rate"]
    assert (found.num_frames, found.stated_frames) == (len(shown), len(shown))


def test_an_avi_that_is_cut_is_still_truncated(tmp_path, encoded):
    path = Path(encoded("whole.avi", "mpeg4", range(60), b_frames=0))
    data = path.read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    found = inspect_video(str(tmp_path / "cut.avi"), None, None, None)
    assert "truncated" in [kind for kind, _ in found.issues]
    assert found.stated_frames == 60 and 0 < found.num_frames < 45


def test_two_pictures_in_a_packet(tmp_path, encoded):
    """As DivX and Xvid keep B pictures in AVI: behind the one that is shown after them, and a filler comes next."""
    source = encoded("source.avi", "mpeg4", range(41), b_frames=1)
    filler = bytes.fromhex("000001b650f0")  # a P picture that is not coded
    with av.open(source) as read, av.open(str(tmp_path / "packed.avi"), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        parts = [bytes(packet) for packet in read.demux(video=0) if packet.size]
        at = parts[0].index(b"\0\0\1\xb6")
        packed = [parts[0][:at] + b"\0\0\1\xb2DivX503b1393p" + parts[0][at:]]
        for part in parts[1:]:
            is_b = part[part.index(b"\0\0\1\xb6") + 4] >> 6 == 2
            packed[-1:] = [packed[-1] + part, filler] if is_b else [packed[-1], part]
        assert packed.count(filler) == 20
        for number, part in enumerate(packed):
            packet = av.Packet(part)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 30), stream, number == 0
            write.mux(packet)
    video = read_metadata(str(tmp_path / "packed.avi"))
    np.testing.assert_allclose(video.timestamps - video.timestamps[0], np.arange(video.num_frames) / 30, atol=1e-6)
    assert_exact(video)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_an_mp4_that_has_decode_times_only(tmp_path, encoded, codec):
    """Its pictures are not shown in the order of its times, which FFmpeg takes for those of presentation."""
    path = Path(encoded("video.mp4", codec, range(40), **(X265_QUIET if codec == "libx265" else {})))
    data = path.read_bytes()
    at = data.index(b"ctts") + 8
    half = int.from_bytes(data[at : at + 4], "big") // 2
    for changed, frames in (
        (data.replace(b"ctts", b"free").replace(b"edts", b"free"), 40),
        (data.replace(b"ctts", b"free"), None),
        (data[:at] + half.to_bytes(4, "big") + data[at + 4 :], None),  # of some
    ):
        assert changed != data
        (tmp_path / "changed.mp4").write_bytes(changed)
        video = read_metadata(str(tmp_path / "changed.mp4"))
        assert video.num_frames == frames or (frames is None and 36 < video.num_frames <= 40)
        np.testing.assert_allclose(np.diff(video.timestamps), 1 / 30, atol=1e-6)
        assert_exact(video)
    assert read_metadata(str(path)).num_frames == 40


def test_cuts_and_clips_by_time_are_those_of_the_source(tmp_path, encoded):
    source = encoded("source.ts", "libx264", range(60))
    videos = [
        read_metadata(source),
        read_metadata(copied(source, tmp_path / "copy.avi")),
        read_metadata(copied(source, tmp_path / "bare.h264")),
    ]
    by_rate, by_length = ClipProtocol(8, fps=7.5), ClipProtocol(8, duration=1.6)
    for video in videos:
        stretch = cut(video.timestamps, 0.5, 1.5, alone=1.0)
        assert (stretch.first, len(stretch.clock)) == (15, 30)
        for protocol in (by_rate, by_length):
            (indices,) = clip_indices(60, video.timestamps, protocol, None)
            assert np.diff(indices).tolist() == [4 if protocol is by_rate else 6] * 7
        (windowed,) = clip_indices(60, video.timestamps, by_rate, None, start=1.0, end=2.0)
        assert windowed.min() == 30


@pytest.mark.parametrize(
    ("name", "frames", "rate"),
    [
        ("base.mp4", 60, 30),
        ("copy_base.avi", 60, 30),
        ("sm.h264", 30, 30),
        ("paff.ts", 40, 12.5),
        ("paff_ts.mp4", 40, 12.5),
    ],
)
def test_files_that_were_read_wrong(shared_data, name, frames, rate):
    if not (shared_data / "odd" / name).is_file():
        pytest.skip(f"needs odd/{name} among the real videos")
    video = read_metadata(str(shared_data / "odd" / name))
    np.testing.assert_allclose(np.diff(video.timestamps), 1 / rate, atol=1e-4)
    assert video.num_frames == frames
    assert_exact(video)
    found = inspect_video(video.path, None, None, None)
    assert found.rate == rate and not {"truncated", "frame count"} & {kind for kind, _ in found.issues}
