import os

import numpy as np
import pytest
from PIL import Image

from vidtrain.data.augment.geometry import Crop
from vidtrain.data.decoding.decoder import decode_views
from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.decoding.metadata import read_image_folder
from vidtrain.data.decoding.video import DecodeError


def write_images(folder, count, suffix=".png"):
    folder.mkdir()
    for number in range(1, count + 1):
        picture = np.full((32, 48, 3), number, np.uint8)
        Image.fromarray(picture).save(folder / f"img_{number}{suffix}", quality=95)


def test_images_are_frames_in_the_order_of_their_numbers(tmp_path):
    write_images(tmp_path / "a", 12)
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "a" / ".hidden.png").touch()
    video = VideoIndex(None).info(str(tmp_path / "a"), frame_rate=12.5)
    assert (video.num_frames, video.width, video.height) == (12, 48, 32)
    assert video.timestamps.tolist() == [pytest.approx(i * 0.08) for i in range(12)]
    clips = decode_views(video, [(np.array([0, 1, 9, 11]), Crop(0, 0, 48, 32))], (32, 48))
    assert clips[0, :, :, 5, 5].T.tolist() == [[n] * 3 for n in (1, 2, 10, 12)]


def test_real_frame_folders(shared_data):
    """Against Pillow, whose JPEG decoder and full-size RGB differ from ours by rounding and chroma only."""
    folder = next((shared_data / "k400_tiny" / "k400tiny_images").iterdir())
    video = read_image_folder(str(folder), 10)
    assert video.num_frames == 40
    found = decode_views(video, [(np.array([0, 39]), Crop(0, 0, video.width, video.height))], (336, 336))
    for place, index in enumerate((0, 39)):
        with Image.open(video.images[index]) as image:
            plain = np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(float)
        error = found[0, :, place].numpy() - plain
        assert 10 * np.log10(255**2 / (error**2).mean()) > 38
        assert abs(error.mean()) < 0.5


def test_folders_without_sound_images_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.jpg").write_bytes(b"not an image")
    for name, cause in (("absent", "No such file"), ("empty", "no images in it"), ("broken", "Invalid data")):
        with pytest.raises(DecodeError, match=cause) as caught:
            read_image_folder(os.fspath(tmp_path / name), 25)
        assert name in caught.value.path
