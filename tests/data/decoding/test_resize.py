"""Frames as publishers' evaluation code scales and cuts them: against OpenCV, which that code calls, and by the numbers
that the code itself gave."""

import cv2
import numpy as np
import pytest

from vidtrain.data.augment.geometry import CenterCrops, Crop, FixedCrop, RandomResizedCrop, published_crops
from vidtrain.data.decoding.conversion import resize_bilinear
from vidtrain.data.decoding.decoder import all_frames, decode_views
from vidtrain.data.decoding.metadata import read_metadata
from vidtrain.data.loading.dataset import VideoDataset
from vidtrain.data.loading.samplers import SampleKey
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.data.sampling.clips import ClipProtocol

# (width, height) of the frame, crops, short side: the scaled frame, and where boxes of 256 begin on its long side, from
# facebookresearch/vjepa2 c2963a4 and jepa 51c59d5, MCG-NJU/VideoMAE 14ef8d8, facebookresearch/SlowFast 287ec00
PLACED = [
    ("vjepa2", (340, 256), 3, 256, (340, 256), [0, 42, 84]),
    ("vjepa2", (320, 240), 3, 256, (341, 256), [0, 42, 84]),
    ("vjepa2", (240, 320), 3, 256, (256, 341), [0, 42, 84]),
    ("vjepa2", (343, 256), 3, 256, (343, 256), [0, 43, 86]),
    ("vjepa2", (320, 240), 1, 292, (389, 292), [66]),
    ("vjepa2", (343, 256), 1, 292, (391, 292), [68]),
    ("vjepa2", (170, 128), 1, 292, (387, 292), [66]),
    ("videomae", (320, 240), 3, 256, (341, 256), [0, 42, 85]),
    ("videomae", (240, 320), 3, 256, (256, 341), [0, 42, 85]),
    ("videomae", (343, 256), 3, 256, (343, 256), [0, 43, 87]),
    ("videomae", (320, 240), 1, 292, (389, 292), [66]),
    ("pyslowfast", (320, 240), 3, 256, (341, 256), [0, 43, 85]),
    ("pyslowfast", (343, 256), 3, 256, (343, 256), [0, 44, 87]),
    ("pyslowfast", (320, 240), 1, 292, (389, 292), [67]),
]


@pytest.mark.parametrize(("resize", "frame", "crops", "short_side", "scaled", "begins"), PLACED)
def test_boxes_begin_where_publishers_place_them(resize, frame, crops, short_side, scaled, begins):
    boxes = published_crops(CenterCrops(crops=crops, short_side=short_side), *frame, (256, 256), resize)
    across = (short_side - 256) // 2
    places = [(begin, across) if scaled[0] > scaled[1] else (across, begin) for begin in begins]
    assert boxes == [Crop(*place, 256, 256, scaled=scaled) for place in places]


def test_a_ratio_of_the_short_side_is_rounded_down():
    # int(crop * 256 / 224) in V-JEPA's code
    for size, short_side in ((224, 256), (256, 292), (384, 438)):
        (box,) = published_crops(CenterCrops(1.143), 800, 600, (size, size), "vjepa2")
        assert box.scaled == (short_side * 4 // 3, short_side)


def test_a_box_of_a_scaled_frame_has_a_place_in_the_displayed_one():
    assert Crop(42, 0, 256, 256, scaled=(340, 256)).in_frame(170, 128) == Crop(21, 0, 128, 128)
    assert Crop(42, 0, 256, 256, True).in_frame(340, 256) == Crop(42, 0, 256, 256, True)


def opencv(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """[3 h w] -> [3 height width]"""
    rows = np.ascontiguousarray(picture.transpose(1, 2, 0))
    return cv2.resize(rows, (width, height), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)


def test_pixels_are_those_of_opencv():
    rng = np.random.default_rng(0)
    sizes = [
        *rng.integers(1, 300, (60, 4)).tolist(),
        [256, 340, 128, 170],
        [2, 2, 1, 1],
        [480, 640, 224, 298],
    ]
    for height, width, wanted_height, wanted_width in sizes:
        picture = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
        ours = resize_bilinear(picture, wanted_height, wanted_width)
        theirs = opencv(picture, wanted_height, wanted_width)
        # no pixel differs with OpenCV 5.0 on x86; other builds round elsewhere
        assert np.abs(ours.astype(int) - theirs).max() <= 1, (height, width, wanted_height, wanted_width)


def views_of(path: str, geometry, size: int, training: bool = False, **more) -> np.ndarray:
    dataset = VideoDataset(
        Manifest([Record(path, 0, path)], ("a",)),
        ClipProtocol(4, frame_step=3),
        geometry,
        (size, size),
        seed=0,
        training=training,
        interpolation="bilinear",
        **more,
    )
    sample = dataset[SampleKey(0, 0)]
    assert sample.clips is not None, sample.faults
    return sample.clips[0].numpy()


def whole_frames(path: str) -> np.ndarray:
    """RGB frames of the whole video, [n 3 h w]."""
    video = read_metadata(path)
    views = [(np.arange(video.num_frames), Crop(0, 0, video.width, video.height))]
    shown = decode_views(video, views, (video.height, video.width), "bilinear")[0]
    return shown.numpy().swapaxes(0, 1)


def test_clips_of_real_videos_are_scaled_whole_and_then_cut(shared_data):
    paths = sorted((shared_data / "ucf101_5" / "videos").rglob("*.mp4"))[::80]
    paths += sorted((shared_data / "gestures").rglob("*.avi"))[:1]
    assert len(paths) == 6
    for path in map(str, paths):
        frames = whole_frames(path)
        begin = (len(frames) - 10) // 2  # a dense clip is centered
        long_side = 224 * frames.shape[3] // frames.shape[2]
        scaled = np.stack([opencv(frame, 224, long_side) for frame in frames[begin : begin + 10 : 3]], axis=1)
        views = views_of(path, CenterCrops(crops=3), 224, resize="videomae")
        room = long_side - 224
        for view, left in zip(views, (0, room // 2, room), strict=True):
            assert np.abs(view.astype(int) - scaled[..., left : left + 224]).max() <= 1
        fixed = views_of(path, FixedCrop(1.0), 224, training=True, resize="videomae")
        assert fixed.shape == (1, 3, 4, 224, 224)


def test_training_cuts_and_then_scales_without_antialiasing(shared_data):
    path = str(sorted((shared_data / "gestures").rglob("*.avi"))[0])
    video = read_metadata(path)
    box = Crop(31, 7, 401, 333, flip=True)  # odd places are kept
    (view,) = decode_views(video, [(np.array([5]), box)], (112, 112), "bilinear", resize="vjepa2").numpy()
    cut = whole_frames(path)[5][:, 7 : 7 + 333, 31 : 31 + 401]
    assert np.abs(view[:, 0].astype(int) - opencv(cut, 112, 112)[:, :, ::-1]).max() <= 1
    drawn = {"geometry": RandomResizedCrop((0.2, 0.3)), "size": 112, "training": True}
    plain, published = (views_of(path, **drawn, resize=name) for name in ("antialiased", "vjepa2"))
    assert 0.5 < np.abs(plain.astype(int) - published).mean() < 20  # the same boxes, other pixels


def test_turned_videos_are_scaled_as_they_are_shown(shared_data):
    path = str(sorted((shared_data / "odd").glob("R_q422_*"))[0])
    video = read_metadata(path)
    frame = next(all_frames(video, (video.height, video.width))).transpose(2, 0, 1)
    (box,) = published_crops(CenterCrops(short_side=40), video.width, video.height, (32, 32), "vjepa2")
    (view,) = decode_views(video, [(np.array([0]), box)], (32, 32), resize="vjepa2").numpy()
    scaled = resize_bilinear(frame, *box.scaled[::-1])
    np.testing.assert_array_equal(view[:, 0], scaled[:, box.top : box.top + 32, box.left : box.left + 32])
