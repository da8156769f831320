import pytest

from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.loading.file_checks import VideoFilter
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.errors import UserError


@pytest.fixture
def manifest(tmp_path, write_video, patches) -> Manifest:
    """Videos of 10, 25 and 50 frames at 25 a second, one of them cut to half a second, and a file that is none."""
    records = []
    for count in (10, 25, 50):
        path = write_video(tmp_path / f"{count}.mp4", patches(count))
        records.append(Record(path, 0, path))
    records.append(Record(records[2].path, 0, "cut", start=1.0, end=1.5))
    (tmp_path / "text.mp4").write_text("not a video")
    records.append(Record(str(tmp_path / "text.mp4"), 0, "text"))
    return Manifest(records, ["a"])


@pytest.mark.parametrize(
    ("bounds", "kept", "dropped"),
    [
        ({"min_frames": 25}, [1, 2, 4], {"min_frames": 2}),  # the cut holds 13 frames
        ({"min_seconds": 0.5}, [1, 2, 3, 4], {"min_seconds": 1}),
        ({"max_seconds": 1.0}, [0, 1, 3, 4], {"max_seconds": 1}),
        ({"min_frames": 13, "max_seconds": 1.0}, [1, 3, 4], {"min_frames": 1, "max_seconds": 1}),
        ({"max_bytes": 100}, [4], {"max_bytes": 4}),
    ],
)
def test_bounds(manifest, bounds, kept, dropped):
    """A file that cannot be read stays, for training to report."""
    seen = []
    found = VideoFilter(**bounds).kept(manifest, VideoIndex(None), 2, 60.0, seen.append)
    assert (found[0].tolist(), found[1]) == (kept, dropped)
    assert seen == [1, 2, 3, 4, 5]


def test_nothing_left(manifest):
    with pytest.raises(UserError, match="no training video is left of 4: data.min_frames drops 4"):
        VideoFilter(min_frames=1000).kept(manifest.subset([0, 1, 2, 3]), VideoIndex(None), 1, 60.0)


def test_bounds_that_nothing_meets():
    assert VideoFilter().keeps_all and not VideoFilter(max_bytes=1).keeps_all
    with pytest.raises(UserError, match="data.min_frames=0 must be above 0"):
        VideoFilter(min_frames=0)
    with pytest.raises(UserError, match="data.min_seconds=3 is above data.max_seconds=2"):
        VideoFilter(min_seconds=3, max_seconds=2)
