"""What is coded on its side, upside down or mirrored is seen as players show it, with the colors of the upright."""

import shutil
import subprocess
from fractions import Fraction

import av
import av.logging
import numpy as np
import pytest
from PIL import Image, ImageOps

from vidtrain.data.audit.full_decode import decode_all
from vidtrain.data.augment.geometry import Crop
from vidtrain.data.decoding.conversion import MATRICES, ViewConverter
from vidtrain.data.decoding.decoder import all_frames, decode_views
from vidtrain.data.decoding.index import pack, unpack
from vidtrain.data.decoding.metadata import read_image_folder, read_metadata
from vidtrain.data.decoding.video import Orientation, VideoInfo
from vidtrain.data.prepared.reencode import EncodeSettings, Job, prepare_file

ONE = 1 << 16
# a, b, c and d of the matrix, x' = a x + c y and y' = b x + d y, and what it does to a picture [h w ...]
EIGHT = {
    "upright": ((1, 0, 0, 1), Orientation(0, False), lambda p: p),
    "counterclockwise": ((0, -1, 1, 0), Orientation(90, False), lambda p: np.rot90(p)),
    "half": ((-1, 0, 0, -1), Orientation(180, False), lambda p: p[::-1, ::-1]),
    "clockwise": ((0, 1, -1, 0), Orientation(270, False), lambda p: np.rot90(p, -1)),
    "hflip": ((-1, 0, 0, 1), Orientation(0, True), lambda p: p[:, ::-1]),
    "vflip": ((1, 0, 0, -1), Orientation(180, True), lambda p: p[::-1]),
    "transpose": ((0, 1, 1, 0), Orientation(90, True), lambda p: p.swapaxes(0, 1)),
    "antitranspose": ((0, -1, -1, 0), Orientation(270, True), lambda p: p[::-1, ::-1].swapaxes(0, 1)),
}
SETTINGS = EncodeSettings(short_side=64, gop=12, b_frames=3, crf=4, preset="fast")
FORMATS = [
    *("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv422p10le", "yuv422p12le", "yuv444p", "yuv411p"),
    *("yuvj411p", "yuv410p", "yuv440p", "yuvj440p", "yuv440p10le", "nv12", "nv21", "nv16", "nv24", "p010le"),
    *("p210le", "gray", "gray10le", "gray16le", "ya8", "gbrp", "gbrp10le", "gbrap", "yuva420p", "yuva422p"),
    *("yuva444p10le", "yuyv422", "uyvy422", "yvyu422", "y210le", "y212le", "rgb24", "bgr24", "rgba", "bgr0"),
    *("rgb48le", "rgb8", "monow", "monob", "x2rgb10le", "ayuv", "vyu444"),
]


def whole(video: VideoInfo) -> np.ndarray:
    """All frames at the size that they are shown in, int [t h w c]."""
    view = (np.arange(video.num_frames), Crop(0, 0, video.width, video.height))
    return decode_views(video, [view], (video.height, video.width))[0].permute(1, 2, 3, 0).numpy().astype(int)


def written(path, frames, matrix, codec="libx264", color=None, options=None) -> VideoInfo:
    a, b, c, d = (value * ONE for value in matrix)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, frames[0].format.name
        stream.codec_context.thread_count = 1
        if color is not None:
            stream.codec_context.colorspace, stream.codec_context.color_range = color
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return read_metadata(str(path))


@pytest.mark.parametrize("name", EIGHT)
def test_eight_orientations(tmp_path, patches, name):
    matrix, way, turn = EIGHT[name]
    upright = written(tmp_path / "upright.mp4", patches(6), EIGHT["upright"][0])
    video = written(tmp_path / "turned.mp4", patches(6), matrix)
    assert video.orientation == way
    assert (video.width, video.height) == ((64, 96) if way.swaps_sides else (96, 64))
    expected = np.stack([turn(picture) for picture in whole(upright)])
    np.testing.assert_array_equal(whole(video), expected)
    np.testing.assert_array_equal(
        np.stack(list(all_frames(video, (video.height, video.width)))), expected
    )  # labeled videos
    kept = unpack(video.path, pack(video))
    assert (kept.orientation, kept.width, kept.height) == (way, video.width, video.height)
    small, turned = decode_all(upright).pictures, decode_all(video).pictures
    np.testing.assert_array_equal(np.stack(turned), np.stack([turn(each) for each in small]))

    crop = Crop(8, 4, 40, 32, flip=True)
    view = decode_views(video, [(np.arange(6), crop)], (32, 40))[0].permute(1, 2, 3, 0).numpy()
    inside = slice(8, -8)  # colors at a box's edge have no neighbors to be interpolated with
    np.testing.assert_array_equal(
        view[:, inside, inside], expected[:, 4:36, 8:48][:, inside, ::-1][:, :, inside]
    )  # even corners: nothing moves

    made = prepare_file(Job(video.path, tmp_path / "copy.mp4", SETTINGS, None))
    copy = read_metadata(str(tmp_path / "copy.mp4"))
    assert not made.cause and copy.orientation == Orientation()
    assert abs(whole(copy) - expected).mean() < 8  # its colors, at half the size, are resampled


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="there is no ffmpeg to compare with")
@pytest.mark.parametrize("name", EIGHT)
def test_as_ffmpeg_shows_it(tmp_path, patches, name):
    video = written(tmp_path / "turned.mp4", patches(2), EIGHT[name][0])
    command = ["ffmpeg", "-v", "error", "-i", video.path, "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    shown = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    gray = whole(video) @ [0.299, 0.587, 0.114]
    assert abs(shown.reshape(gray.shape) - gray).mean() < 5  # the other seven are more than 40 off


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way"), [("hflip", (0, True)), ("vflip", (180, True))])
def test_real_mirrored_files(shared_data, name, way):
    upright, video = (read_metadata(str(shared_data / "odd" / f"{each}.mp4")) for each in ("base", name))
    assert video.orientation == way
    axis = 2 if name == "hflip" else 1
    np.testing.assert_array_equal(whole(video), np.flip(whole(upright), axis))


@pytest.mark.parametrize("name", ["q422_709", "q422_10pc"])
def test_real_422_files(shared_data, name):
    upright, video = (read_metadata(str(shared_data / "odd" / f"{each}{name}.mp4")) for each in ("", "R_"))
    assert video.rotation == 270
    np.testing.assert_array_equal(whole(video), np.rot90(whole(upright), -1, (1, 2)))


def flat_colors(pixel_format: str, matrix: int, full: bool) -> tuple[av.VideoFrame, np.ndarray]:
    """A frame of patches of 16x16 pixels, and what it shows, int [h w 3]."""
    colors = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    if pixel_format.startswith(("gray", "ya8")):
        colors = np.repeat(colors[..., :1], 3, 2)
    source = av.VideoFrame.from_ndarray(np.kron(colors, np.ones((16, 16, 1), np.uint8)), format="rgb24")
    rgb = av.VideoFormat(pixel_format, 96, 64).is_rgb or pixel_format.startswith("mono")
    frame = source.reformat(
        format=pixel_format,
        dst_colorspace=None if rgb else {1: "ITU709", 5: "ITU601", 9: 9}[matrix],
        dst_color_range=None if rgb else "JPEG" if full else "MPEG",
    )
    frame.colorspace, frame.color_range = (2, 0) if rgb else (matrix, 2 if full else 1)
    return frame, (frame.reformat(format="rgb24") if rgb else source).to_ndarray().astype(int)


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_no_format_loses_its_colors(pixel_format):
    """In every matrix and range, upright and turned: what flat patches of color come out as."""
    for matrix, full in ((1, False), (1, True), (9, False), (9, True), (5, False)):
        frame, colors = flat_colors(pixel_format, matrix, full)
        for _, way, turn in EIGHT.values():
            width, height = (64, 96) if way.swaps_sides else (96, 64)
            view = np.empty((3, height, width), np.uint8)
            with av.logging.Capture(local=True) as log:
                level = av.logging.get_level()
                av.logging.set_level(av.logging.VERBOSE)
                convert = ViewConverter(Crop(0, 0, width, height), (height, width), way)
                convert(frame, view)
                av.logging.set_level(level)
            words = [words for _, _, words in log if "auto-inserting" in words]
            assert not words  # a conversion that knows neither matrix nor range
            # where color samples are 4 pixels apart, a patch still touches its neighbors
            most = 9 if pixel_format in ("yuv410p", "yuv411p", "yuvj411p") else 4
            off = abs(view.transpose(1, 2, 0).astype(int) - turn(colors))[8::16, 8::16]
            assert off.max() <= most, (MATRICES[matrix], full, way)


@pytest.mark.parametrize("color", [(1, 1), (1, 2), (9, 1), (5, 1)])
@pytest.mark.parametrize("pixel_format", ["yuv422p", "yuv422p10le", "yuv420p"])
def test_turned_copies_keep_their_colors(tmp_path, pixel_format, color):
    frame, colors = flat_colors(pixel_format, color[0], color[1] == 2)
    for name in ("clockwise", "hflip", "antitranspose"):
        matrix, way, turn = EIGHT[name]
        video = written(tmp_path / f"{name}.mp4", [frame] * 3, matrix, color=color)
        assert prepare_file(Job(video.path, tmp_path / "copy.mp4", SETTINGS, None)).cause == ""
        for found in (video, read_metadata(str(tmp_path / "copy.mp4"))):
            off = abs(whole(found)[1] - turn(colors))[8::16, 8::16]
            assert off.max() <= 5, (way, found.path)


def test_images_held_in_several_ways(tmp_path):
    """EXIF's eight orientations in one folder, as Pillow shows them."""
    picture = np.kron(
        np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8)
    )
    for number in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = number
        Image.fromarray(picture).save(tmp_path / f"{number}.jpg", exif=exif, quality=98, subsampling=0)
    video = read_image_folder(str(tmp_path), 25)
    expected = np.stack([np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / f"{n}.jpg"))) for n in range(1, 9)])
    assert abs(whole(video) - expected).max() <= 6
    assert abs(np.stack(list(all_frames(video, (64, 64)))) - expected.astype(int)).max() <= 6
    made = prepare_file(Job(str(tmp_path), tmp_path / "copy.mp4", SETTINGS, 25))
    assert made.cause == "" and abs(whole(read_metadata(str(tmp_path / "copy.mp4"))) - expected).mean() < 15  # 4:2:0
