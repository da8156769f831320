"""Pictures that change in mid-stream, as video calls and screen recordings do: read, refused or named."""

import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vidtrain.data.audit.inspection import KnownFiles, inspect_video
from vidtrain.data.augment.geometry import CenterCrops, Crop
from vidtrain.data.decoding.decoder import all_frames, decode_views
from vidtrain.data.decoding.metadata import read_image_folder, read_metadata
from vidtrain.data.decoding.video import DecodeError, VideoInfo
from vidtrain.data.loading.dataset import VideoDataset
from vidtrain.data.loading.samplers import SampleKey
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.data.prepared.reencode import EncodeSettings, Job, prepare_file
from vidtrain.data.sampling.clips import ClipProtocol

WHOLE = Crop(0, 0, 96, 64)
FLAGS = "bicubic+accurate_rnd+full_chroma_int"


def ramp(width: int, height: int, shift: int) -> av.VideoFrame:
    """Brighter to the right and greener downwards, in any size, and a little brighter with every frame."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.linspace(20, 200, width)[None, :] + shift
    picture[..., 1] = np.linspace(40, 180, height)[:, None]
    picture[..., 2] = 90
    return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")


def joined(path: Path, *sizes: tuple[int, int], full_range: bool = False) -> str:
    """A transport stream of 12 frames of each size, one after the other; the last of them perhaps in full range."""
    with open(path, "wb") as file:
        for part, (width, height) in enumerate(sizes):
            piece = path.with_suffix(f".{part}.ts")
            with av.open(str(piece), "w", options={"mpegts_flags": "resend_headers"}) as container:
                stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "4"})
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.codec_context.gop_size, stream.codec_context.max_b_frames = 6, 0
                stream.codec_context.thread_count = 1
                full = full_range and part == len(sizes) - 1
                stream.codec_context.color_range = 2 if full else 1
                for number in range(12):
                    frame = ramp(width, height, 3 * part)
                    if full:
                        frame = frame.reformat(format="yuv420p", src_color_range=1, dst_color_range=2)
                    frame.pts, frame.time_base = 12 * part + number, Fraction(1, 25)
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
            file.write(piece.read_bytes())
    return str(path)


@pytest.fixture
def changing(tmp_path) -> str:
    return joined(tmp_path / "changing.ts", (96, 64), (192, 160), (64, 96))


def read(video: VideoInfo, *indices: int, crop: Crop = WHOLE, **how) -> np.ndarray:
    """[t h w 3] of the crop in its own size."""
    clip = decode_views(video, [(np.array(indices), crop)], (crop.height, crop.width), **how)
    return clip[0].permute(1, 2, 3, 0).numpy().astype(int)


def test_frames_are_scaled_to_the_first_ones_shape(changing):
    video = read_metadata(changing)
    assert (video.width, video.height, video.num_frames) == (96, 64, 36)
    pixels = read(video, *range(36))
    for part in range(3):
        expected = ramp(96, 64, 3 * part).to_ndarray(format="rgb24").astype(int)
        apart = np.abs(pixels[12 * part : 12 * part + 12, 2:-2, 2:-2] - expected[2:-2, 2:-2])
        assert apart.max() < 8 and apart.mean() < 1.5
    for index in (3, 14, 20, 30):  # alone as with the others
        assert (read(video, index)[0] == pixels[index]).all()


@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_means_the_same_part_in_every_size(changing, flip):
    crop = Crop(24, 10, 40, 30, flip)
    pixels = read(read_metadata(changing), 5, 17, 29, crop=crop)
    for part in range(3):
        expected = ramp(96, 64, 3 * part).to_ndarray(format="rgb24").astype(int)[10:40, 24:64]
        apart = np.abs(pixels[part] - (expected[:, ::-1] if flip else expected))
        assert apart.max() < 8 and apart.mean() < 2


def test_what_is_said_where_that_is_refused(changing):
    video = read_metadata(changing)
    assert len(read(video, 0, 11, size_changes="refuse")) == 2
    words = r"changes its size from 96x64 to 192x160 at frame 12 \(size changes are refused by data.size_changes\)"
    with pytest.raises(DecodeError, match=words):
        read(video, 0, 12, size_changes="refuse")


def test_range_and_pixel_format_change_too(tmp_path):
    video = read_metadata(joined(tmp_path / "range.ts", (96, 64), (96, 64), full_range=True))
    pixels = read(video, 5, 17)
    expected = ramp(96, 64, 3).to_ndarray(format="rgb24").astype(int)
    assert np.abs(pixels[1] - expected)[2:-2, 2:-2].max() < 8
    found = inspect_video(video.path, None, None, None)
    assert [issue for issue in found.issues if "changes" in issue[0]] == [
        ("format changes", "yuv420p, limited range from frame 0; yuv420p, full range from frame 12")
    ]


def test_an_image_with_a_palette_among_others_of_another_size(tmp_path):
    """A crop of it is that part of the whole picture, in the same colors."""
    ramp(96, 64, 0).reformat(format="rgb24").save(str(tmp_path / "0.png"))
    picture = Image.fromarray(ramp(48, 32, 0).to_ndarray(format="rgb24")).convert("P", palette=Image.ADAPTIVE)
    picture.save(tmp_path / "1.png")
    video, crop = read_image_folder(str(tmp_path), 5.0), Crop(20, 10, 40, 32)
    whole = read(video, 1)
    assert np.abs(whole - read(video, 0)).max() < 16
    assert np.array_equal(read(video, 1, crop=crop), whole[:, 10:42, 20:60])


def test_images_of_several_sizes_and_formats(tmp_path):
    for number, size in enumerate([(96, 64), (48, 32), (96, 64)]):
        name = tmp_path / f"{number}.{'png' if number == 2 else 'jpg'}"
        frame = ramp(*size, 0).reformat(format="rgb24" if number == 2 else "yuvj420p", dst_color_range=2)
        frame.save(str(name))
    video = read_image_folder(str(tmp_path), 5.0)
    pixels = read(video, 0, 1, 2)
    assert np.abs(pixels - pixels[:1]).max() < 14
    with pytest.raises(DecodeError, match="from 96x64 to 48x32 at frame 1 "):
        read(video, 0, 1, size_changes="refuse")


def test_audit_says_what_readers_do(changing):
    found = inspect_video(changing, None, None, None)
    assert found.cause == "" and dict(found.issues)["size changes"] == (
        "96x64 from frame 0; 192x160 from frame 12; 64x96 from frame 24"
    )
    refused = inspect_video(changing, None, None, None, size_changes="refuse")
    assert refused.cause.startswith("the picture changes its size from 96x64 to 192x160 at frame 12")


def test_a_prepared_copy_and_a_rendered_one(changing, tmp_path):
    target = tmp_path / "copy.mp4"
    made = prepare_file(Job(changing, target, EncodeSettings(64, 12, 2, 8, "veryfast"), None))
    assert made.cause == ""
    copy = read_metadata(str(target))
    assert (copy.width, copy.height, copy.num_frames) == (96, 64, 36)
    apart = np.abs(read(copy, *range(36)) - read(read_metadata(changing), *range(36)))[:, 2:-2, 2:-2]
    assert apart.mean() < 2
    refusing = EncodeSettings(64, 12, 2, 8, "veryfast", "refuse")
    refused = prepare_file(Job(changing, tmp_path / "b.mp4", refusing, None))
    assert refused.cause.startswith("the picture changes its size from 96x64 to 192x160 at frame 12")
    assert {picture.shape for picture in all_frames(read_metadata(changing), (64, 96))} == {(64, 96, 3)}


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
def test_as_ffmpeg_shows_a_real_one(shared_data):
    path = str(shared_data / "odd" / "sizechange.ts")
    video = read_metadata(path)
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-i",
        path,
        "-sws_flags",
        FLAGS,
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    expected = np.frombuffer(raw, np.uint8).reshape(-1, video.height, video.width, 3).astype(int)
    assert len(expected) == video.num_frames == 60
    whole = Crop(0, 0, video.width, video.height)
    found = read(video, 0, 29, 30, 45, 59, crop=whole)
    error = ((found - expected[[0, 29, 30, 45, 59]]) ** 2).mean((1, 2, 3))
    assert (10 * np.log10(255**2 / (error + 1e-9)) > 38).all(), error


def test_single_reads_where_each_packet_may_have_another_size(tmp_path):
    """VP9 in WebM, as video calls are recorded: it is read at random, from whichever keyframe is near."""
    path = str(tmp_path / "call.webm")
    with av.open(path, "w") as container:
        stream = None
        for part, (width, height) in enumerate([(96, 64), (192, 160), (64, 96)]):
            encoder = av.CodecContext.create("libvpx-vp9", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.time_base, encoder.gop_size, encoder.thread_count = Fraction(1, 25), 6, 1
            encoder.options = {
                "deadline": "realtime",
                "cpu-used": "8",
                "lag-in-frames": "0",
                "crf": "4",
                "b": "0",
            }
            if stream is None:
                stream = container.add_stream("libvpx-vp9", rate=25)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                container.start_encoding()
            frames = [ramp(width, height, 3 * part) for _ in range(12)]
            for number, frame in enumerate([*frames, None]):
                if frame is not None:
                    frame.pts, frame.time_base = 12 * part + number, Fraction(1, 25)
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    container.mux(packet)
    video = read_metadata(path)
    assert video.num_frames == 36 and video.packets is not None and len(video.packets.starts) >= 3
    together = read(video, *range(36))
    assert (together[:12].mean((0, 1, 2)) + 5 < together[24:].mean((0, 1, 2))).any()
    for index in (35, 0, 17, 12, 24, 5):
        assert (read(video, index)[0] == together[index]).all()
        assert np.abs(together[index] - ramp(96, 64, 3 * (index // 12)).to_ndarray(format="rgb24")).mean() < 4


@pytest.mark.parametrize("suffix", ["ts", "mkv"])
def test_no_later_picture_is_larger_than_allowed(changing, tmp_path, suffix):
    """data.max_pixels holds for every one, in clips, copies and the audit."""
    path = str(tmp_path / f"changed.{suffix}")
    if suffix == "ts":
        shutil.copy(changing, path)
    else:
        with av.open(changing) as source, av.open(path, "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in (each for each in source.demux(video=0) if each.size):
                packet.stream = stream
                target.mux(packet)
    limit = 96 * 64
    words = f"its picture of 192x160 has more pixels than data.max_pixels={limit}"
    for most in (limit, 192 * 160):
        made = prepare_file(Job(path, tmp_path / "copy.mp4", EncodeSettings(64, 12, 2, 20, "veryfast"), None, most))
        found = inspect_video(path, None, None, None, most)
        assert (made.cause, found.cause[: len(words)]) == ((words, words) if most == limit else ("", ""))
    if suffix == "mkv":
        video = read_metadata(path, limit)
        read(video, 5)
        with pytest.raises(DecodeError, match="192x160 has more pixels"):
            read(video, 17)


def test_no_later_image_is_larger_than_allowed(tmp_path):
    for number, size in enumerate([(96, 64), (192, 160)]):
        ramp(*size, 0).reformat(format="yuvj420p", dst_color_range=2).save(str(tmp_path / f"{number}.jpg"))
    video = read_image_folder(str(tmp_path), 5.0, 96 * 64)
    read(video, 0)
    with pytest.raises(DecodeError, match="1.jpg: .*192x160 .*data.max_pixels=6144"):
        read(video, 0, 1)


def test_datasets_pass_it_on(changing):
    manifest = Manifest([Record(changing, 0, "x")], ("a",))
    how = (manifest, ClipProtocol(36, frame_step=1), CenterCrops(), (64, 64), 0)
    scaled, refused = (
        VideoDataset(*how, training=False, size_changes=each)[SampleKey(0, 0)] for each in ("scale", "refuse")
    )
    assert scaled.clips.shape == (1, 1, 3, 36, 64, 64)
    assert refused.clips is None and "changes its size from 96x64 to 192x160" in refused.faults[0].cause


def test_the_audit_looks_again_where_the_setting_is_another(changing):
    for how in ("scale", "refuse"):
        found = inspect_video(changing, None, None, None, size_changes=how)
        rows = [KnownFiles([], 60.0, False, how).row(changing, found, False)]
        for other in ("scale", "refuse"):
            known = KnownFiles(rows, 60.0, False, other).find(changing)
            assert known == (found if how == other else None)
