"""One hash for what the files of a split hold."""

import shutil

from PIL import Image

from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.loading.file_checks import manifest_digest
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.data.sources.motion import Motion


def digest(records, frame_rate=None):
    return manifest_digest(Manifest(records, ["a", "b"], frame_rate), VideoIndex(None), 1, 60.0)


def test_it_depends_on_contents_cuts_and_order_alone(tmp_path):
    train = Motion(tmp_path / "motion", 1, 1, 1, frames=8, size=16).manifests()["train"]
    one, two, three = train.paths[:3]
    found = digest([Record(one, 0, "g"), Record(two, 1, "g")])
    assert len(found) == 32
    moved = str(tmp_path / "moved.mp4")
    shutil.copy(two, moved)
    assert digest([Record(one, 1, "h"), Record(moved, 0, "h")]) == found
    assert digest([Record(two, 0, "g"), Record(one, 1, "g")]) != found
    assert digest([Record(one, 0, "g"), Record(two, 1, "g", start=0.1)]) != found
    shutil.copy(three, moved)
    assert digest([Record(one, 0, "g"), Record(moved, 1, "g")]) != found
    absent = digest([Record(one, 0, "g"), Record(str(tmp_path / "absent.mp4"), 1, "g")])
    assert absent not in (found, digest([Record(one, 0, "g")]))


def test_images_are_the_same_video_at_one_frame_rate_alone(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16)).save(folder / f"{number}.png")
    records = [Record(str(folder), 0, "g")]
    assert digest(records, 10.0) == digest(records, 10.0) != digest(records, 30.0)
