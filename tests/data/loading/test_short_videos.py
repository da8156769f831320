"""Videos that a protocol refuses, named before anything is computed."""

from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.loading.file_checks import refused_videos
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.data.sampling.clips import ClipProtocol
from vidtrain.data.sources.motion import Motion


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
