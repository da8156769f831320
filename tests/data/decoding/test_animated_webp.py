import numpy as np
import pytest
from PIL import Image

from vidtrain.data.decoding.metadata import read_metadata
from vidtrain.data.decoding.video import DecodeError


def write(path, count):
    pictures = [Image.fromarray(np.full((16, 16, 3), 60 * number, np.uint8)) for number in range(count)]
    pictures[0].save(path, save_all=count > 1, append_images=pictures[1:], duration=100)
    return str(path)


def test_an_animated_webp_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(DecodeError, match="animated WebP"):
        read_metadata(write(tmp_path / "a.webp", 3))


def test_a_still_webp_is_a_picture(tmp_path):
    assert read_metadata(write(tmp_path / "a.webp", 1)).num_frames == 1
