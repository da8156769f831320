"""Pixels that are not square: as they are, or as players show them, in all that reads a video."""

import shutil
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest

from vidtrain.data.augment.geometry import CenterCrops, Crop, WholeFrame
from vidtrain.data.decoding.conversion import ViewConverter
from vidtrain.data.decoding.decoder import all_frames, decode_views
from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.decoding.metadata import read_metadata
from vidtrain.data.decoding.video import DecodeError
from vidtrain.data.loading.dataset import VideoDataset
from vidtrain.data.loading.samplers import SampleKey
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.data.prepared.reencode import EncodeSettings, Job, prepare_file
from vidtrain.data.sampling.clips import ClipProtocol


@pytest.fixture(name="stretched")
def stretched_fixture(patches):
    def stretched(path, aspect: Fraction, rotation: int = 0, width: int = 48, height: int = 64) -> str:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.sample_aspect_ratio = aspect
            if rotation:
                stream.set_display_rotation(rotation)
            for number, small in enumerate(patches(8, 24, 16, "rgb24")):  # smooth when it is enlarged
                frame = small.reformat(width, height, "yuv420p")
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return str(path)

    return stretched


def read(video, crop: Crop, size: tuple[int, int]) -> np.ndarray:
    return decode_views(video, [(np.arange(4), crop)], size).numpy()


@pytest.mark.parametrize(
    ("name", "aspect", "rotation", "shown"),
    [
        ("wide.mp4", Fraction(2), 0, (96, 64)),
        ("wide.mkv", Fraction(2), 0, (96, 64)),
        ("wide.ts", Fraction(2), 0, (96, 64)),
        ("high.mp4", Fraction(3, 4), 0, (48, 85)),  # never fewer pixels
        ("turned.mp4", Fraction(2), 90, (64, 96)),
        ("square.mp4", Fraction(1), 0, (48, 64)),
    ],
)
def test_what_is_known_of_a_file(tmp_path, stretched, name, aspect, rotation, shown):
    path = stretched(tmp_path / name, aspect, rotation)
    index = tmp_path / "index.sqlite"
    for _ in range(2):  # found out, and kept
        plain, square = (VideoIndex(index, sample_aspect=each).info(path) for each in ("ignore", "apply"))
        assert (plain.width, plain.height) == ((64, 48) if rotation else (48, 64))
        assert plain.aspect == (1 / aspect if rotation else aspect)
        assert (square.width, square.height) == shown
        assert plain.picture == square.picture == (plain.width, plain.height)
    whole = Crop(0, 0, *plain.picture)
    np.testing.assert_array_equal(read(square, Crop(0, 0, *shown), (64, 64)), read(plain, whole, (64, 64)))
    frames = list(all_frames(square, (shown[1], shown[0])))
    assert len(frames) == 8 and frames[0].shape == (shown[1], shown[0], 3)


def test_boxes_are_cut_in_square_pixels(tmp_path, stretched):
    path = stretched(tmp_path / "a.mp4", Fraction(2))
    plain, square = read_metadata(path), read_metadata(path).with_square_pixels()
    [box] = CenterCrops()(square.width, square.height, (64, 64))
    assert box == Crop(16, 0, 64, 64)
    np.testing.assert_array_equal(read(square, box, (64, 64)), read(plain, Crop(8, 0, 32, 64), (64, 64)))
    flipped = Crop(40, 10, 56, 20, flip=True)
    np.testing.assert_array_equal(
        read(square, flipped, (20, 56)), read(plain, Crop(20, 10, 28, 20, flip=True), (20, 56))
    )
    with pytest.raises(ValueError, match="in the 96x64 frame"):
        read(square, Crop(90, 0, 20, 20), (8, 8))


def test_a_box_has_a_pixel_at_least():
    frame = av.VideoFrame.from_ndarray(np.arange(16, dtype=np.uint8).reshape(4, 4) * 16, format="gray")
    for left in range(400):
        view = np.empty((3, 1, 1), np.uint8)
        ViewConverter(Crop(left, 0, 1, 1), (1, 1), None, shown=(400, 4))(frame, view)
        assert view[0, 0, 0] == 16 * min(3, round(left / 100))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="there is no ffmpeg to compare with")
def test_as_ffmpeg_shows_it(tmp_path, stretched):
    path = stretched(tmp_path / "a.mp4", Fraction(16, 15), width=90, height=72)
    video = read_metadata(path).with_square_pixels()
    assert (video.width, video.height) == (96, 72)
    command = ["ffmpeg", "-v", "error", "-i", path, "-vf", "scale=iw*sar:ih:flags=bicubic"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    shown = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    found = np.stack(list(all_frames(video, (72, 96)))).astype(int)
    assert abs(found - shown.reshape(found.shape)).mean() < 4  # 20 unless it is stretched


def test_a_dataset_and_its_copy_agree(tmp_path, stretched):
    source = stretched(tmp_path / "a.mp4", Fraction(16, 11), width=176, height=144)
    settings = EncodeSettings(short_side=64, gop=12, b_frames=3, crf=4, preset="fast")
    assert prepare_file(Job(source, tmp_path / "copy.mp4", settings, None)).cause == ""
    copy = read_metadata(str(tmp_path / "copy.mp4"))
    assert ((copy.width, copy.height), copy.aspect) == (
        (78, 64),
        Fraction(512, 351),
    )  # 16:11 * 176/144 * 64/78

    def clips(path: str, aspect: str, geometry) -> np.ndarray:
        dataset = VideoDataset(
            Manifest([Record(path, 0, "a")], ["a"]),
            ClipProtocol(frames=4, frame_step=2, num_clips=1),
            geometry,
            (32, 32),
            seed=0,
            training=False,
            index=VideoIndex(None, sample_aspect=aspect),
        )
        return dataset[SampleKey(0, 0)].clips.numpy().astype(int)

    for geometry, size in ((CenterCrops(), (32, 32)), (WholeFrame(), (32, 57))):
        square, of_copy = clips(source, "apply", geometry), clips(copy.path, "apply", geometry)
        assert square.shape == of_copy.shape == (1, 1, 3, 4, *size)
        assert abs(square - of_copy).mean() < 6
    assert clips(source, "ignore", WholeFrame()).shape[-2:] == (32, 39)


def test_a_shape_that_no_picture_has(tmp_path, stretched):
    path = stretched(tmp_path / "a.mkv", Fraction(50))
    with pytest.raises(DecodeError, match="sample_aspect=apply.*2400x64"):
        VideoIndex(None, 100_000, "apply").info(path)
