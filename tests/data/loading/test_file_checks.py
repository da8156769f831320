"""What every file of a split is looked at for: bounds, a protocol that refuses it, what the split holds."""

import shutil

import pytest
from PIL import Image

from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.loading.file_checks import VideoFilter, joint_digest, record_digests, refused_videos
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.data.sampling.clips import ClipProtocol
from vidtrain.data.sources.motion import Motion
from vidtrain.errors import UserError


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, write_video, patches) -> Manifest:
    """Videos of 10, 25 and 50 frames at 25 a second, one of them cut to half a second, and a file that is none."""
    folder = tmp_path_factory.mktemp("videos")
    records = []
    for count in (10, 25, 50):
        path = write_video(folder / f"{count}.mp4", patches(count))
        records.append(Record(path, 0, path))
    records.append(Record(records[2].path, 0, "cut", start=1.0, end=1.5))
    (folder / "text.mp4").write_text("not a video")
    records.append(Record(str(folder / "text.mp4"), 0, "text"))
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
    with pytest.raises(UserError, match="of 4: data.min_frames drops 4"):
        VideoFilter(min_frames=1000).kept(manifest.subset([0, 1, 2, 3]), VideoIndex(None), 1, 60.0)


def test_bounds_that_nothing_meets():
    assert VideoFilter().keeps_all and not VideoFilter(max_bytes=1).keeps_all
    with pytest.raises(UserError, match="data.min_frames=0 must be above 0"):
        VideoFilter(min_frames=0)
    with pytest.raises(UserError, match="min_seconds=3 .*max_seconds=2"):
        VideoFilter(min_seconds=3, max_seconds=2)


def test_refused_videos(tmp_path):
    Motion(tmp_path / "motion", 1, 1, 1, frames=24, size=32).manifests()
    path = str(sorted(tmp_path.glob("motion/test/*/*.mp4"))[0])
    (tmp_path / "empty.mp4").touch()
    records = [
        Record(path, 0, "a"),
        Record(path, 0, "a", end=0.5),
        Record(str(tmp_path / "empty.mp4"), 0, "b"),
        Record(path, 0, "a", start=500.0),
    ]
    manifest = Manifest(records, ("a", "b"))
    protocol = ClipProtocol(8, frame_step=3, short_video_policy="error")
    [(found, why)] = refused_videos(manifest, protocol, VideoIndex(None), 1, 60.0)
    assert found == path and why.startswith("the video is too short for a clip: it lasts")


def digest(records, frame_rate=None):
    return joint_digest(record_digests(Manifest(records, ["a", "b"], frame_rate), VideoIndex(None), 1, 60.0))


def test_it_depends_on_contents_cuts_and_order_alone(tmp_path):
    train = Motion(tmp_path / "motion", 1, 1, 1, frames=8, size=16).manifests()["train"]
    one, two, three = train.paths[:3]
    expected = digest([Record(one, 0, "g"), Record(two, 1, "g")])
    assert len(expected) == 32
    moved = str(tmp_path / "moved.mp4")
    shutil.copy(two, moved)
    assert digest([Record(one, 1, "h"), Record(moved, 0, "h")]) == expected
    assert digest([Record(two, 0, "g"), Record(one, 1, "g")]) != expected
    assert digest([Record(one, 0, "g"), Record(two, 1, "g", start=0.1)]) != expected
    shutil.copy(three, moved)
    assert digest([Record(one, 0, "g"), Record(moved, 1, "g")]) != expected
    absent = digest([Record(one, 0, "g"), Record(str(tmp_path / "absent.mp4"), 1, "g")])
    assert absent not in (expected, digest([Record(one, 0, "g")]))


def test_images_are_the_same_video_at_one_frame_rate_alone(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16)).save(folder / f"{number}.png")
    records = [Record(str(folder), 0, "g")]
    assert digest(records, 10.0) == digest(records, 10.0) != digest(records, 30.0)
