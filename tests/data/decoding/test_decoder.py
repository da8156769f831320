import csv
import errno
import os
import pickle
import struct
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vidtrain.data.augment.geometry import Crop
from vidtrain.data.decoding.conversion import ViewConverter
from vidtrain.data.decoding.decoder import decode_views
from vidtrain.data.decoding.metadata import read_metadata
from vidtrain.data.decoding.video import DecodeError, VideoInfo


def flat(rgb: np.ndarray, pixel_format: str = "yuv444p") -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=pixel_format)


def full_frame(video: VideoInfo) -> tuple[Crop, tuple[int, int]]:
    return Crop(0, 0, video.width, video.height), (video.height, video.width)


def sequential(video: VideoInfo, wanted: set[int]) -> tuple[dict[int, np.ndarray], int]:
    """The `wanted` frames as decoding the whole file in order gives them, and how many there are in all."""
    crop, size = full_frame(video)
    convert = ViewConverter(crop, size, video.orientation)
    pixels, count = {}, 0
    with av.open(video.path, metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        for count, frame in enumerate(container.decode(stream), start=1):
            if count - 1 in wanted:
                pixels[count - 1] = np.empty((3, *size), np.uint8)
                convert(frame, pixels[count - 1])
        return pixels, count


def compare_at_random(video: VideoInfo, requests: int) -> tuple[int, int]:
    """Frames compared and frames that differ, over `requests` of one to six random indices in any order."""
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, video.num_frames, rng.integers(1, 7)) for _ in range(requests)]
    expected, count = sequential(video, {int(index) for clip in clips for index in clip})
    assert video.num_frames == count, video.path
    crop, size = full_frame(video)
    differing = 0
    for clip in clips:
        found = decode_views(video, [(clip, crop)], size)[0].numpy()
        differing += sum(not np.array_equal(found[:, t], expected[int(i)]) for t, i in enumerate(clip))
    return sum(map(len, clips)), differing


X264 = {
    "gop12": "keyint=12:bframes=3:scenecut=0",
    "gop250": "keyint=250:bframes=3:scenecut=0",
    "no_b_frames": "keyint=12:bframes=0",
    "open_gop": "keyint=12:bframes=3:open-gop=1:scenecut=0",
    "intra_refresh": "keyint=12:bframes=0:intra-refresh=1",
}
STARTS = {"gop12": 6, "gop250": 1, "open_gop": 6, "intra_refresh": 1}


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The boxes of an MP4, as (kind, content)."""
    at = 0
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        yield kind, data[at + 8 : at + size]
        at += size


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, kind) + content


def joined(one: str, other: str) -> bytes:
    """An MP4 of the pictures of two files without B pictures, each with a sample description of its own."""
    files = [Path(path).read_bytes() for path in (one, other)]
    descriptions, samples = [], []
    for path, data in zip((one, other), files, strict=True):
        node = data
        for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
            node = dict(boxes(node))[kind]
        descriptions.append(node[8:])
        with av.open(path) as container:
            samples.append([(bytes(p), p.is_keyframe) for p in container.demux(video=0) if p.size])
    every = samples[0] + samples[1]
    head = box(b"ftyp", b"isom\0\0\2\0isomiso2avc1mp41")
    begin = len(head) + 8
    keys = [number for number, (_, is_key) in enumerate(every, start=1) if is_key]

    def table(kind: bytes, *numbers: int, more: bytes = b"") -> bytes:
        return box(kind, bytes(4) + struct.pack(f">{len(numbers)}I", *numbers) + more)

    tables = box(
        b"stbl",
        table(b"stsd", 2, more=b"".join(descriptions))
        + table(b"stts", 1, len(every), 512)
        + table(b"stss", len(keys), *keys)
        + table(b"stsc", 2, 1, len(samples[0]), 1, 2, len(samples[1]), 2)
        + table(b"stsz", 0, len(every), *(len(sample) for sample, _ in every))
        + table(b"stco", 2, begin, begin + sum(len(sample) for sample, _ in samples[0])),
    )

    def rebuilt(kind: bytes, content: bytes) -> bytes:
        if kind in (b"moov", b"trak", b"mdia", b"minf"):
            return box(kind, b"".join(rebuilt(*each) for each in boxes(content)))
        return {b"stbl": tables, b"edts": b""}[kind] if kind in (b"stbl", b"edts") else box(kind, content)

    moov = rebuilt(b"moov", dict(boxes(files[0]))[b"moov"])
    return head + box(b"mdat", b"".join(sample for sample, _ in every)) + moov


class TestExactness:
    """A frame read at random is, byte for byte, the one that reading in order gives."""

    @pytest.mark.parametrize("suffix", ["mp4", "mkv"])
    @pytest.mark.parametrize("kind", X264)
    def test_h264(self, tmp_path, kind, suffix, write_video, patches):
        path = write_video(tmp_path / f"video.{suffix}", patches(72), options={"x264-params": X264[kind]})
        video = read_metadata(path)
        if kind in STARTS:  # keyframes that only begin a recovery do not count
            assert len(video.packets.starts) == STARTS[kind]
        assert compare_at_random(video, 25)[1] == 0

    @pytest.mark.parametrize(
        ("name", "codec", "pixel_format", "b_frames"),
        [
            ("video.avi", "mpeg4", "yuv420p", 0),
            ("b_frames.avi", "mpeg4", "yuv420p", 2),
            ("h264.avi", "libx264", "yuv420p", 2),
            ("stream.ts", "libx264", "yuv420p", 2),
            ("program.mpg", "mpeg2video", "yuv420p", 2),
            ("video.webm", "libvpx-vp9", "yuv420p", None),
            ("hevc.mp4", "libx265", "yuv420p", None),
            ("odd.mp4", "libx264", "yuv444p", 2),
            ("odd.avi", "mpeg4", "yuv420p", 2),
            ("odd.mpg", "mpeg2video", "yuv420p", 2),
            ("odd.webm", "libvpx", "yuv420p", None),
            ("odd_motion_jpeg.avi", "mjpeg", "yuvj420p", None),
            ("ten_bits.mkv", "libx264", "yuv420p10le", 2),
            ("old.webm", "libvpx", "yuv420p", None),
            ("fragmented.mp4", "libx264", "yuv420p", 2),
            ("flash.flv", "libx264", "yuv420p", 2),
            ("motion_jpeg.mov", "mjpeg", "yuvj420p", None),
            ("temporal_layers.mp4", "libx265", "yuv420p", None),
        ],
    )
    def test_other_codecs_and_containers(self, tmp_path, name, codec, pixel_format, b_frames, write_video, patches):
        width, height = (97, 63) if name.startswith("odd") else (96, 64)
        layers = ":temporal-layers=3:b-adapt=0" if name.startswith("temporal") else ""
        options = {"x265-params": f"log-level=none:keyint=12:open-gop=1{layers}"} if codec == "libx265" else None
        container = {"movflags": "frag_keyframe+empty_moov"} if name.startswith("fragmented") else None
        frames = patches(40, width, height, pixel_format)
        path = write_video(tmp_path / name, frames, codec, options, b_frames=b_frames, container_options=container)
        video = read_metadata(path)
        assert (video.num_frames, video.width, video.height) == (40, width, height)
        if not name.endswith((".ts", ".mpg")):  # which put frames into pieces, apart in the file
            assert video.packets is not None
        assert compare_at_random(video, 15)[1] == 0

    @pytest.mark.parametrize("suffix", ["mp4", "mkv"])
    def test_variable_frame_rate(self, tmp_path, suffix, write_video, patches):
        times = 500 + np.cumsum(np.random.default_rng(0).integers(5, 90, 50))
        video = read_metadata(write_video(tmp_path / f"video.{suffix}", patches(50), times=times))
        assert np.allclose(video.timestamps, times / 1000, atol=1e-9)
        assert compare_at_random(video, 20)[1] == 0

    def test_edit_list(self, tmp_path, write_video, patches):
        """The first ten frames lie before the start of the edit: decoded, never shown."""
        path = write_video(
            tmp_path / "video.mp4",
            patches(40),
            times=40 * (np.arange(40) - 10),
            container_options={"avoid_negative_ts": "disabled"},
        )
        video = read_metadata(path)
        assert video.num_frames == 30
        assert compare_at_random(video, 10)[1] == 0

    def test_pictures_far_apart_between_much_sound(self, tmp_path, patches):
        """So that a clip's packets are read one by one, not with all that lies between them."""
        path = tmp_path / "video.mov"
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=25, options={"x264-params": "keyint=250:scenecut=0"})
            video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
            audio = container.add_stream("pcm_s16le", rate=48000, layout="stereo")
            for i, frame in enumerate(patches(250)):
                frame.pts, frame.time_base = i, Fraction(1, 25)
                container.mux(video.encode(frame))
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 3840), np.int16), format="s16", layout="stereo")
                sound.sample_rate, sound.pts = 48000, 1920 * i
                container.mux(audio.encode(sound))
            container.mux(video.encode(None))
        assert path.stat().st_size > 1_900_000
        assert compare_at_random(read_metadata(str(path)), 20)[1] == 0

    def test_headers_that_change_within_a_file(self, tmp_path, write_video, patches):
        """An MP4 with two sample descriptions, as joined files have: only its container tells them apart."""
        parts = [
            write_video(tmp_path / f"{i}.mp4", patches(20), options={"x264-params": x264, "profile": profile})
            for i, (x264, profile) in enumerate(
                [("bframes=0:cabac=1:8x8dct=1", "high"), ("bframes=0:cabac=0:ref=3", "baseline")]
            )
        ]
        (tmp_path / "joined.mp4").write_bytes(joined(*parts))
        video = read_metadata(str(tmp_path / "joined.mp4"))
        assert video.num_frames == 40 and video.packets is None
        assert compare_at_random(video, 10)[1] == 0

    @pytest.mark.slow
    def test_real_files(self, shared_data):
        index = list(csv.DictReader((shared_data / "clips" / "INDEX.csv").open()))
        sound = [shared_data / "clips" / row["path"] for row in index if row["status"] == "ok"]
        compared = differing = 0
        wrong = []
        for path in sound:
            some, bad = compare_at_random(read_metadata(str(path)), 1)
            compared, differing = compared + some, differing + bad
            wrong += [path.name] * bool(bad)
        outcome = f"{len(sound)} files, {compared} frames compared, {differing} differ: {wrong}"
        assert len(sound) > 50 and differing == 0, outcome

    def test_broken_files_are_named(self, shared_data):
        index = csv.DictReader((shared_data / "clips" / "INDEX.csv").open())
        paths = [str(shared_data / "clips" / row["path"]) for row in index if row["status"] != "ok"]
        read = []
        for path in paths:
            try:
                video = read_metadata(path)
                crop, size = full_frame(video)
                decode_views(video, [(np.arange(video.num_frames), crop)], size)
                read.append(path)
            except DecodeError as error:
                assert error.path == path and path in str(error) and error.cause
        assert len(paths) > 30 and not read


class TestPixels:
    # pure red by the matrix and range that the file states: (matrix, range), its code in Y, Cb, Cr
    @pytest.mark.parametrize(
        ("color", "code"),
        [
            ((1, 1), (63, 102, 240)),  # BT.709, limited
            ((5, 1), (81, 90, 240)),  # BT.601, limited
            ((2, 0), (81, 90, 240)),  # not stated: as BT.601, limited
            ((1, 2), (54, 99, 255)),  # BT.709, full
        ],
    )
    def test_color(self, tmp_path, color, code, write_video):
        planes = np.tile(np.array(code, np.uint8)[:, None, None], (1, 64, 64))
        frames = [av.VideoFrame.from_ndarray(planes, format="yuv444p") for _ in range(3)]
        path = write_video(tmp_path / "red.mp4", frames, options={"crf": "1"}, color=color)
        for size in ((64, 64), (24, 40)):
            pixels = decode_views(read_metadata(path), [(np.array([1]), Crop(0, 0, 64, 64))], size).numpy().astype(int)
            assert pixels.shape == (1, 3, 1, *size)
            assert (abs(pixels - np.array([255, 0, 0]).reshape(1, 3, 1, 1, 1)) <= 3).all(), pixels[0, :, 0, 0, 0]

    def test_bicubic_is_sharper_than_bilinear(self, tmp_path, write_video, patches):
        video = read_metadata(write_video(tmp_path / "video.mp4", patches(3)))
        crop, size = full_frame(video)
        view = [(np.array([1]), crop)]
        bicubic, again, bilinear = (
            decode_views(video, view, (32, 48), *given).float() for given in ((), ("bicubic",), ("bilinear",))
        )
        assert bicubic.equal(again)
        assert bicubic.std() > 1.01 * bilinear.std() and abs(bicubic.mean() - bilinear.mean()) < 0.5

    def test_crop_scale_and_flip(self, tmp_path, write_video):
        picture = np.zeros((64, 96, 3), np.uint8)
        picture[:, :32, 0] = picture[:, 32:64, 1] = picture[:32, 64:, 2] = 255  # red, green, blue over black
        path = write_video(tmp_path / "video.mp4", [flat(picture)] * 3, options={"crf": "1"})
        video = read_metadata(path)
        views = [
            (np.array([0, 2]), Crop(0, 0, 32, 64)),
            (np.array([0, 2]), Crop(32, 32, 64, 32)),
            (np.array([0, 2]), Crop(32, 32, 64, 32, flip=True)),
        ]
        pixels = decode_views(video, views, (16, 16)).numpy()
        assert pixels.shape == (3, 3, 2, 16, 16)
        corners = pixels[:, :, 1][:, :, [2, 2], [2, 13]].astype(int)  # view, color, left and right
        red, green, black = (255, 0, 0), (0, 255, 0), (0, 0, 0)
        expected = np.array([[red, red], [green, black], [black, green]]).transpose(0, 2, 1)
        assert abs(corners - expected).max() <= 3
        assert np.array_equal(pixels[2], pixels[1][..., ::-1])

    def test_close_to_a_plain_conversion(self, tmp_path, write_video, patches):
        """Against PyAV's own, at full size; its one-step RGB is some 40 dB from exact, biased by 2."""
        smooth = [frame.reformat(width=192, height=128) for frame in patches(12, 24, 16, "rgb24")]
        frames = [frame.reformat(format="yuv420p") for frame in smooth]
        video = read_metadata(write_video(tmp_path / "video.mp4", frames))
        crop, size = full_frame(video)
        found = decode_views(video, [(np.arange(12), crop)], size)[0].numpy().transpose(1, 2, 3, 0)
        with av.open(video.path) as container:
            plain = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        error = found.astype(float) - plain
        assert 10 * np.log10(255**2 / (error**2).mean()) > 36
        assert abs(error.mean()) < 2.5

    @pytest.mark.parametrize(
        ("rotation", "corner"), [(0, (0, 0)), (90, (1, 0)), (180, (1, 1)), (-90, (0, 1)), (270, (0, 1))]
    )
    def test_rotation(self, tmp_path, rotation, corner, write_video):
        """A red top left corner turns counterclockwise: to bottom left, bottom right, top right."""
        picture = np.zeros((64, 96, 3), np.uint8)
        picture[:32, :48, 0] = 255
        path = write_video(tmp_path / "video.mp4", [flat(picture, "yuv420p")] * 3, rotation=rotation)
        video = read_metadata(path)
        assert video.rotation == rotation % 360
        assert (video.width, video.height) == ((64, 96) if rotation in (90, -90, 270) else (96, 64))
        crop, _ = full_frame(video)
        red = decode_views(video, [(np.array([1]), crop)], (8, 8))[0, 0, 0].numpy()
        bright = {(y, x) for y in (0, 1) for x in (0, 1) if red[1 + 5 * y, 1 + 5 * x] > 200}
        assert bright == {corner}

    def test_one_pass_serves_repeated_frames_and_boxes(self, tmp_path, write_video, patches):
        video = read_metadata(write_video(tmp_path / "video.mp4", patches(40)))
        crop, size = full_frame(video)
        part = Crop(10, 6, 48, 40)
        clips = [np.array([5, 5, 30]), np.array([30, 0, 5])]
        together = decode_views(video, [(clip, box) for clip in clips for box in (crop, part)], size)
        alone = [decode_views(video, [(clip, box)], size)[0] for clip in clips for box in (crop, part)]
        assert all(a.equal(b) for a, b in zip(together, alone, strict=True))
        assert together[0, :, 0].equal(together[0, :, 1])


class TestFaults:
    def test_what_is_no_video(self, tmp_path, write_video, patches):
        (tmp_path / "empty.mp4").touch()
        (tmp_path / "text.mp4").write_text("not a video\n" * 100)
        with av.open(str(tmp_path / "sound.wav"), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            sound.sample_rate = 8000
            container.mux(stream.encode(sound))
        whole = Path(write_video(tmp_path / "whole.mp4", patches(20)))
        (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:2000])
        for name, cause in {
            "absent.mp4": "No such file",
            "": "not a file",
            "empty.mp4": "the file is empty",
            "text.mp4": "Invalid data",
            "cut.mp4": "Invalid data",
            "sound.wav": "no video stream",
        }.items():
            path = str(tmp_path / name)
            with pytest.raises(DecodeError, match=cause) as caught:
                read_metadata(path)
            assert caught.value.path == path
            assert str(caught.value).startswith(f"cannot read video {path}: ")

    def test_a_cover_and_a_text_are_no_videos(self, tmp_path):
        song, text = tmp_path / "song.mp3", tmp_path / "notes.txt"
        with av.open(str(song), "w") as container:
            audio = container.add_stream("libmp3lame", rate=44100)
            cover = container.add_stream("mjpeg")
            cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
            for i in range(20):
                sound = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.int32), format="s32p", layout="stereo")
                sound.sample_rate, sound.pts = 44100, 1152 * i
                container.mux(audio.encode(sound))
            picture = av.VideoFrame.from_ndarray(np.zeros((72, 64), np.uint8), format="yuvj420p")
            picture.pts = 0
            for stream, frame in ((cover, picture), (cover, None), (audio, None)):
                container.mux(stream.encode(frame))
        text.write_text("path,label\n" * 50)
        for path, cause in ((song, "it has no video stream"), (text, "it is a text file")):
            with pytest.raises(DecodeError, match=cause):
                read_metadata(str(path))

    def test_storage_that_fails_is_named(self, tmp_path, write_video, patches, monkeypatch):
        path = write_video(tmp_path / "video.mp4", patches(5))

        def fail(*_):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(DecodeError, match="Input/output error"):
            read_metadata(path)

    def test_frames_that_are_not_there(self, tmp_path, write_video, patches):
        video = read_metadata(write_video(tmp_path / "video.mp4", patches(20)))
        table = video.packets
        lying = replace(
            video,
            ticks=np.append(video.ticks, video.ticks[-1] + [512, 1024]),
            packets=replace(
                table,
                order=np.append(table.order, [20, 21]).astype(np.int32),
                positions=np.append(table.positions, table.positions[[3, 4]]),
                sizes=np.append(table.sizes, [9, 9]).astype(np.int32),  # a piece of a picture
                disposable=np.append(table.disposable, [False, False]),
                second=np.append(table.second, [False, False]),
            ),
        )
        crop, size = full_frame(video)
        for packets, cause in (
            (None, "2 of 4 requested frames do not decode, the first is 20"),
            (lying.packets, "2 requested frames, from frame 20 on, are damaged"),
        ):
            with pytest.raises(DecodeError, match=cause):
                decode_views(replace(lying, packets=packets), [(np.array([3, 19, 20, 21]), crop)], size)

    def test_callers_mistakes_are_not_the_files(self, tmp_path, write_video, patches):
        video = read_metadata(write_video(tmp_path / "video.mp4", patches(20)))
        crop, size = full_frame(video)
        with pytest.raises(ValueError, match=r"frames 0\.\.20 of 20 of .*video\.mp4"):
            decode_views(video, [(np.array([0, 20]), crop)], size)
        with pytest.raises(ValueError, match="in the 96x64 frame"):
            decode_views(video, [(np.array([0]), Crop(1, 0, 96, 64))], size)

    def test_error_survives_a_process_border(self):
        error = pickle.loads(pickle.dumps(DecodeError("a.mp4", "broken")))
        assert (error.path, error.cause, str(error)) == ("a.mp4", "broken", "cannot read video a.mp4: broken")
