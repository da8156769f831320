"""A prepared file has the frames, the times and the colors of its source, and is quick to read at random."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vidtrain.data.augment.geometry import Crop
from vidtrain.data.decoding.decoder import decode_views
from vidtrain.data.decoding.entry_points import coded_picture
from vidtrain.data.decoding.metadata import read_metadata
from vidtrain.data.decoding.video import DecodeError, VideoInfo
from vidtrain.data.prepared.reencode import EncodeSettings, Job, Timing, prepare_file
from vidtrain.errors import UserError

SETTINGS = EncodeSettings(short_side=64, gop=12, b_frames=3, crf=18, preset="fast")
LIMITED, FULL = 1, 2
BT709, UNLABELED, BT601, BT2020 = 1, 2, 6, 9


@pytest.fixture
def prepared(tmp_path):
    def prepare(source: str, settings: EncodeSettings = SETTINGS, frame_rate: float | None = None) -> VideoInfo:
        target = tmp_path / "copies" / "copy.mp4"
        made = prepare_file(Job(source, target, settings, frame_rate))
        assert (made.cause, made.refusal) == ("", "")
        assert made.bytes == target.stat().st_size
        assert [path.name for path in target.parent.iterdir()] == ["copy.mp4"]
        return read_metadata(str(target))

    return prepare


def waves(count: int, width: int = 96, height: int = 64, pixel_format: str = "yuv420p") -> list[av.VideoFrame]:
    """Smooth colors all over the range, moving so fast that one frame is within 25 dB of no other near it.

    Smooth, so that fewer color samples and fewer pixels lose little: what differs then is the matrix or the range.
    """
    y, x = np.mgrid[:height, :width] / 96
    frames = []
    for i in range(count):
        phases = 2 * np.pi * np.stack([x + 0.13 * i, y - 0.11 * i, x + y + 0.17 * i], axis=-1)
        picture = np.round(127.5 + 110 * np.sin(phases)).astype(np.uint8)
        frames.append(av.VideoFrame.from_ndarray(picture, format="rgb24"))
    return [frame.reformat(format=pixel_format) for frame in frames]


def pixels(video: VideoInfo, size: tuple[int, int]) -> np.ndarray:
    """All frames in RGB, float [t h w c]."""
    whole = Crop(0, 0, video.width, video.height)
    views = decode_views(video, [(np.arange(video.num_frames), whole)], size)
    return views[0].permute(1, 2, 3, 0).numpy().astype(np.float64)


def psnr(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Decibels of each frame."""
    return 10 * np.log10(255**2 / ((one - other) ** 2).mean(axis=(1, 2, 3)).clip(1e-9))


def assert_looks_the_same(source: VideoInfo, copy: VideoInfo, least: float, most_shift: float = 0.5) -> None:
    size = (copy.height, copy.width)
    one, other = pixels(source, size), pixels(copy, size)
    assert psnr(one, other).min() > least
    assert np.abs((other - one).mean(axis=(0, 1, 2))).max() < most_shift


# --- times --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "times",
    [
        [40 * i for i in range(30)],
        [0, 7, 50, 51, 52, 900, 901, 5000, 5033, 5066, 5100, 60_000, 60_001, 60_002, 60_003, 60_004],
        [1234 + 33 * i + i % 2 for i in range(20)],
        [500],
    ],
    ids=["constant", "variable", "late start", "one frame"],
)
@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_the_frames_keep_their_times(tmp_path, write_video, prepared, times, suffix):
    source = write_video(tmp_path / f"source.{suffix}", waves(len(times)), times=times)
    copy = prepared(source)
    assert [tick * copy.tick for tick in copy.ticks.tolist()] == [Fraction(time, 1000) for time in times]
    assert copy.packets is not None  # it is read from byte ranges
    assert_looks_the_same(read_metadata(source), copy, least=36)  # of every frame, so none took another's place


def test_a_beginning_between_milliseconds_is_kept(tmp_path, patches, prepared):
    source = tmp_path / "source.ts"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30000, 1001))
        stream.width, stream.height = 96, 64
        for i, frame in enumerate(patches(10)):
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    ticks = read_metadata(str(source)).ticks
    assert ticks[0] % 90 != 0 and np.diff(ticks).tolist() == [3003] * 9
    copy = prepared(str(source))
    assert (copy.ticks.tolist(), copy.tick) == (ticks.tolist(), Fraction(1, 90_000))


def test_a_file_without_times_has_those_of_its_rate(tmp_path, write_video, patches, prepared):
    source = write_video(tmp_path / "source.avi", patches(20), codec="mpeg4", b_frames=2)
    times = prepared(source).timestamps
    np.testing.assert_allclose(times - times[0], np.arange(20) / 25, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(times, read_metadata(source).timestamps)


def video(ticks: list[int], tick: Fraction) -> VideoInfo:
    return VideoInfo("file", np.array(ticks), tick, 64, 64, 0)


def test_times_as_mp4_can_hold_them():
    timing = Timing.of(video([0, 1, 2], Fraction(1001, 30000)))
    assert (timing.units.tolist(), timing.scale) == ([0, 1001, 2002], 30000)
    assert timing.durations.tolist() == [1001, 1001, 1001]
    assert timing.rate == Fraction(30000, 1001)
    # too fine for 32 bits: microseconds
    timing = Timing.of(video([0, 10**11, 2 * 10**11], Fraction(1, 3 * 10**12)))
    assert (timing.units.tolist(), timing.scale) == ([0, 33333, 66667], 1_000_000)
    # before time 0 there is nothing in MP4
    timing = Timing.of(video([-5, 0, 7], Fraction(1, 10)))
    assert (timing.units.tolist(), timing.shift) == ([0, 5, 12], 0.5)
    with pytest.raises(DecodeError, match="too far apart"):
        Timing.of(video([0, 1, 10**12], Fraction(1, 1000)))


# --- pixels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("color", "pixel_format", "kept"),
    [
        ((BT601, LIMITED), "yuv420p", (BT601, LIMITED)),
        ((BT709, LIMITED), "yuv420p", (BT709, LIMITED)),
        ((BT709, FULL), "yuv420p", (BT709, FULL)),
        ((BT601, FULL), "yuv444p", (BT601, FULL)),
        ((BT2020, LIMITED), "yuv420p10le", (BT2020, LIMITED)),
        ((BT709, FULL), "yuv420p10le", (BT709, FULL)),
        ((UNLABELED, 0), "yuv422p", (BT601, LIMITED)),
    ],
)
@pytest.mark.parametrize("short_side", [96, 64])
def test_colors(tmp_path, write_video, prepared, color, pixel_format, kept, short_side):
    frames = waves(13, width=144, height=96, pixel_format=pixel_format)
    source = write_video(tmp_path / "source.mp4", frames, color=color, options={"crf": "5"})
    copy = prepared(source, EncodeSettings(short_side, 12, 3, 5, "fast"))
    assert_looks_the_same(read_metadata(source), copy, least=36)
    with av.open(copy.path) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == kept
        assert frame.format.name == ("yuvj420p" if kept[1] == FULL else "yuv420p")


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_is_baked_in(tmp_path, write_video, prepared, rotation):
    source = read_metadata(write_video(tmp_path / "source.mp4", waves(8, 192, 128), rotation=rotation))
    copy = prepared(source.path)
    assert source.rotation == rotation
    assert (copy.width, copy.height, copy.rotation) == ((64, 96, 0) if rotation % 180 else (96, 64, 0))
    assert_looks_the_same(source, copy, least=30)


@pytest.mark.parametrize(
    ("width", "height", "short_side", "expected"),
    [
        (1280, 720, 256, (456, 256)),
        (720, 1280, 256, (256, 456)),
        (340, 256, 256, (340, 256)),
        (320, 240, 256, (320, 240)),
        (426, 241, 256, (426, 240)),
        (1, 1, 256, (2, 2)),
        (257, 400, 256, (256, 398)),
        (1000, 1001, 256, (256, 256)),
    ],
)
def test_the_size_is_even_and_never_grows(width, height, short_side, expected):
    assert EncodeSettings(short_side, 12, 3, 20, "fast").size(width, height) == expected


def test_an_odd_size_is_made_even(tmp_path, write_video, patches, prepared):
    source = write_video(tmp_path / "source.mp4", patches(3, 97, 63, "yuv444p"))
    assert (prepared(source).width, prepared(source).height) == (96, 62)


# --- what makes it quick ------------------------------------------------------------------------------------


def test_clean_starts_and_pictures_to_pass_over(tmp_path, write_video, patches, prepared):
    frames = patches(30)
    for frame in frames[17:]:  # a cut, which is no reason for a start of its own
        for plane in frame.planes:
            plane.update(bytes([40]) * plane.buffer_size)
    copy = prepared(write_video(tmp_path / "source.mp4", frames))
    with av.open(copy.path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        stream = container.streams.video[0]
        extradata = stream.codec_context.extradata
        assert stream.duration * stream.time_base == Fraction(30, 25)
    shown = [round(packet.pts * packet.time_base * 25) for packet in packets]
    assert [index for index, packet in zip(shown, packets, strict=True) if packet.is_keyframe] == [0, 12, 24]
    passed = [
        index
        for index, packet in zip(shown, packets, strict=True)
        if coded_picture("h264", bytes(packet), extradata).disposable
    ]
    assert sorted(passed) == [1, 2, 3, 5, 6, 7, 9, 10, 13, 14, 15, 17, 18, 19, 21, 22, 25, 26, 27]
    assert sorted(set(range(30)) - set(passed)) == [0, 4, 8, 11, 12, 16, 20, 23, 24, 28, 29]


def test_no_sound_and_the_index_in_front(tmp_path, patches, prepared):
    source = tmp_path / "source.mp4"
    with av.open(str(source), "w") as container:
        picture, sound = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=48000)
        picture.width, picture.height = 96, 64
        for i, frame in enumerate(patches(10)):
            frame.pts = i
            container.mux(picture.encode(frame))
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        tone.sample_rate = 48000
        container.mux(sound.encode(tone))
        container.mux([*picture.encode(None), *sound.encode(None)])
    copy = prepared(str(source))
    with av.open(copy.path) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    data = Path(copy.path).read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_a_folder_of_images(tmp_path, prepared):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, frame in enumerate(waves(12, pixel_format="rgb24")):
        frame.to_image().save(folder / f"img_{i}.png")  # 10 comes after 9
    copy = prepared(str(folder), frame_rate=12.5)
    np.testing.assert_allclose(copy.timestamps, np.arange(12) / 12.5)
    expected = np.stack([frame.to_ndarray(format="rgb24") for frame in waves(12, pixel_format="rgb24")]).astype(
        np.float64
    )
    assert psnr(expected, pixels(copy, (64, 96))).min() > 36


# --- what goes wrong ----------------------------------------------------------------------------------------


def test_unreadable_files_leave_nothing(tmp_path, write_video, patches):
    damaged = write_video(tmp_path / "damaged.mp4", patches(40))
    table = read_metadata(damaged).packets
    with open(damaged, "r+b") as file:
        file.seek(int(table.positions[20]))
        file.write(b"\xff" * int(table.sizes[20]))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    for name, why in (
        ("damaged", "Invalid data"),
        ("empty", "the file is empty"),
        ("text", "Invalid data"),
        ("absent", "No such file"),
    ):
        made = prepare_file(Job(str(tmp_path / f"{name}.mp4"), tmp_path / "copies" / name, SETTINGS, None))
        assert (made.bytes, made.refusal) == (0, "")
        assert why in made.cause
    assert list((tmp_path / "copies").iterdir()) == []


def test_a_file_with_fewer_frames_than_it_says_is_not_taken_for_whole(tmp_path, write_video, patches, monkeypatch):
    source = write_video(tmp_path / "source.mp4", patches(20))
    found = read_metadata(source)
    ticks = np.append(found.ticks, found.ticks[-1] + 1)
    monkeypatch.setattr("vidtrain.data.prepared.reencode.read_metadata", lambda path, *_: replace(found, ticks=ticks))
    made = prepare_file(Job(source, tmp_path / "copy.mp4", SETTINGS, None))
    assert made.cause == "1 of 21 frames do not decode"
    assert [path.name for path in tmp_path.iterdir()] == ["source.mp4"]


def test_a_copy_that_cannot_be_written_is_no_fault_of_the_source(tmp_path, write_video, patches):
    source = write_video(tmp_path / "source.mp4", patches(3))
    (tmp_path / "occupied").write_text("")
    made = prepare_file(Job(source, tmp_path / "occupied" / "copy.mp4", SETTINGS, None))
    assert made.cause == "" and "cannot write" in made.refusal and "occupied" in made.refusal


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"short_side": 255}, "short_side=255"),
        ({"gop": 0}, "gop=0"),
        ({"b_frames": 17}, "b_frames=17"),
        ({"crf": 52}, "crf=52"),
        ({"preset": "quick"}, "preset=quick"),
    ],
)
def test_settings_that_x264_does_not_take(changed, message):
    with pytest.raises(UserError, match=message):
        EncodeSettings(**{"short_side": 256, "gop": 12, "b_frames": 3, "crf": 20, "preset": "fast"} | changed)
