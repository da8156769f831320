import numpy as np
import pytest
import torch

from vidtrain.data.augment.geometry import Crop
from vidtrain.data.decoding.decoder import all_frames, decode_views, write_video
from vidtrain.data.decoding.metadata import read_metadata
from vidtrain.data.decoding.video import DecodeError

GOPS = {"b-frames": {"b_frames": 2}, "open gops": {"b_frames": 3, "options": {"x264-params": "open-gop=1"}}}


@pytest.mark.parametrize("kind", GOPS)
@pytest.mark.parametrize("rotation", [0, 90])
def test_all_frames_are_those_that_are_read_at_random_in_order(tmp_path, write_video, patches, kind, rotation):
    path = write_video(tmp_path / "a.mp4", patches(40), rotation=rotation, **GOPS[kind])
    video = read_metadata(path)
    size = (video.height // 2, video.width // 2)
    whole = Crop(0, 0, video.width, video.height)
    expected = decode_views(video, [(np.arange(40), whole)], size)[0]
    found = torch.from_numpy(np.stack(list(all_frames(video, size))))
    assert torch.equal(found.permute(3, 0, 1, 2), expected)


def test_a_frame_that_is_missing_is_a_fault(tmp_path, write_video, patches):
    path = tmp_path / "a.mp4"
    video = read_metadata(write_video(path, patches(40)))
    with open(path, "r+b") as file:
        file.seek(int(video.packets.positions[30]))
        file.write(bytes(200))
    with pytest.raises(DecodeError):
        list(all_frames(video, (64, 96)))


def test_what_is_written_has_the_pictures_at_their_times(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [np.kron(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
                for _ in range(5)]  # fmt: skip
    seconds = np.array([3.0, 3.04, 3.1, 4.0, 4.5])
    write_video(tmp_path / "a.mp4", iter(pictures), seconds)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    video = read_metadata(str(tmp_path / "a.mp4"))
    assert (video.num_frames, video.width, video.height) == (5, 96, 64)
    np.testing.assert_allclose(video.timestamps, seconds - 3.0, atol=1e-4)
    back = np.stack(list(all_frames(video, (64, 96))))
    middles = (slice(None), slice(8, None, 16), slice(8, None, 16))
    error = np.abs(back[middles].astype(int) - np.stack(pictures)[middles].astype(int))
    assert error.mean() < 8  # color is halved and compressed


def test_one_picture_is_a_video(tmp_path):
    write_video(tmp_path / "a.mp4", [np.zeros((32, 32, 3), np.uint8)], np.array([0.0]))
    assert read_metadata(str(tmp_path / "a.mp4")).num_frames == 1


def test_nothing_is_left_of_a_video_that_fails(tmp_path):
    def pictures():
        yield np.zeros((32, 32, 3), np.uint8)
        raise DecodeError("a.mp4", "it ends")

    with pytest.raises(DecodeError, match="it ends"):
        write_video(tmp_path / "a.mp4", pictures(), np.array([0.0, 0.1]))
    assert list(tmp_path.iterdir()) == []
