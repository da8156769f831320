import logging
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import stored_videos

from vidtrain.data.sources.motion import CLASSES, PAIRS, SHAPES, Motion, render
from vidtrain.errors import UserError

REPO = Path(__file__).resolve().parents[3]
SMALL = {"train_per_class": 2, "val_per_class": 1, "test_per_class": 1, "frames": 8, "size": 32}


@pytest.fixture(autouse=True)
def encoded_anew(monkeypatch):
    """Here videos are not copied from those that are stored for all tests."""
    monkeypatch.setattr(Motion, "_write_videos", stored_videos.write_videos)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def start_making(root: Path, **parameters: int) -> subprocess.Popen:
    code = (
        "import logging; logging.basicConfig(level='INFO'); from vidtrain.data.sources.motion import Motion; "
        f"print(len(Motion({str(root)!r}, **{parameters!r}).manifests()['train']))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_layout(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    manifests = Motion(str(tmp_path / "motion"), **SMALL).manifests()
    assert {split: len(manifest) for split, manifest in manifests.items()} == {
        "train": 20,
        "val": 10,
        "test": 10,
    }
    assert manifests["train"].classes == (
        "appear",
        "grow",
        "move_down",
        "move_left",
        "move_right",
        "move_up",
        "shrink",
        "turn_clockwise",
        "turn_counterclockwise",
        "vanish",
    )
    assert manifests["train"][3].path == str(tmp_path / "motion/train/grow/grow_001.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".motion.lock", "motion"]
    assert "making the motion dataset: 40 videos" in caplog.text and " MB in " in caplog.text
    caplog.clear()
    Motion(str(tmp_path / "motion"), **SMALL).manifests()
    assert not caplog.records


def test_no_test_split(tmp_path):
    manifests = Motion(str(tmp_path / "motion"), **{**SMALL, "test_per_class": 0}).manifests()
    assert list(manifests) == ["train", "val"]


def test_files_are_what_they_should_be(tmp_path):
    manifests = Motion(str(tmp_path / "motion"), 1, 1, 0).manifests()
    for record in manifests["train"]:
        assert 1_000 < Path(record.path).stat().st_size < 50_000
        with av.open(record.path) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.average_rate) == ("h264", 25)
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert np.shape(frames) == (32, 64, 64, 3)


def test_same_parameters_give_the_same_bytes(tmp_path):
    made = [
        Motion(str(tmp_path / name), **SMALL, seed=seed).manifests() and contents(tmp_path / name)
        for name, seed in (("first", 0), ("second", 0), ("third", 1))
    ]
    assert made[0] == made[1]
    videos = [name for name in made[0] if name.endswith(".mp4")]
    assert len(videos) == 40
    assert len({made[0][name] for name in videos} | {made[2][name] for name in videos}) == 80  # all differ


@pytest.mark.parametrize("pair", PAIRS, ids=str)
class TestPairs:
    def test_second_class_is_the_first_backwards(self, pair):
        first, second = (render(name, 8, 32, np.random.default_rng(3)) for name in pair)
        assert first.dtype == np.uint8 and first.shape == (8, 32, 32, 3)
        assert np.array_equal(second, first[::-1])
        assert not np.array_equal(second, first)

    def test_motion_is_what_the_name_says(self, pair):
        times = np.linspace(-0.5, 0.5, 32)
        for draw in range(200):
            track = PAIRS[pair](np.random.default_rng(draw), times)
            x, y, radius, opacity = track.x, track.y, track.radius, np.broadcast_to(track.opacity, 32)
            heading = np.unwrap(np.arctan2(np.diff(y), np.diff(x)))
            # over any 16 frames in a row, in pixels or in parts
            change = {
                "move_right": (x[15:] - x[:-15]) / 10,
                "move_down": (y[15:] - y[:-15]) / 10,
                "turn_clockwise": (heading[15:] - heading[:-15]) / 1,
                "grow": (radius[15:] / radius[:-15] - 1) / 0.4,
                "appear": (opacity[15:] - opacity[:-15]) / 0.3,
            }[pair[0]]
            assert change.min() > 1
            # the center is always in the frame, and in the middle 64 pixels nearly always
            assert min(x.min(), y.min()) >= 8 and max(x.max(), y.max()) <= 72

    def test_position_in_time_does_not_tell(self, pair):
        """What a frame shows is distributed alike in both classes at the middle of the video."""
        times = np.linspace(-0.5, 0.5, 32)
        draws = [PAIRS[pair](np.random.default_rng(draw), times) for draw in range(400)]
        values = np.array([[track.x, track.y, track.radius] for track in draws])
        forward, backward = values[..., 16], values[..., 15]
        spread = values[..., 16].std(axis=0) + 1e-6
        # half a frame off the middle, on either side
        assert (abs(forward.mean(axis=0) - backward.mean(axis=0)) / spread < 0.4).all()


def test_shapes_are_visible_and_varied():
    x, y = np.meshgrid(np.linspace(-1.5, 1.5, 61), np.linspace(-1.5, 1.5, 61))
    areas = {name: (shape(x, y) < 0).sum() * 0.05**2 for name, shape in SHAPES.items()}
    assert len(areas) >= 5
    assert all(1.2 < area < 3.3 for area in areas.values()), areas


def test_other_parameters_are_refused(tmp_path):
    root = str(tmp_path / "motion")
    Motion(root, **SMALL).manifests()
    with pytest.raises(UserError, match="size is 32, not 48; seed is 0, not 7"):
        Motion(root, **{**SMALL, "size": 48, "seed": 7}).manifests()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no dataset.json"):
        Motion(str(tmp_path / "mine"), **SMALL).manifests()
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


def test_a_lost_video_is_noticed(tmp_path):
    manifests = Motion(str(tmp_path / "motion"), **SMALL).manifests()
    Path(manifests["train"][3].path).unlink()
    with pytest.raises(UserError, match="39 of the 40 videos"):
        Motion(str(tmp_path / "motion"), **SMALL).manifests()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make .*choose another root"):
        Motion(str(tmp_path / "file/motion"), **SMALL).manifests()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"train_per_class": 0}, "train_per_class=0"),
        ({"frames": 1}, "frames=1"),
        ({"size": 33}, "size=33: must be even"),
    ],
)
def test_refuses_what_makes_no_dataset(tmp_path, parameters, message):
    with pytest.raises(UserError, match=message):
        Motion(str(tmp_path / "motion"), **parameters)


def test_two_processes_at_once(tmp_path):
    both = [start_making(tmp_path / "motion", **SMALL) for _ in range(2)]
    outcomes = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outcomes
    assert [out.strip() for out, _ in outcomes] == ["20", "20"]
    assert sum("making the motion dataset" in errors for _, errors in outcomes) == 1
    Motion(str(tmp_path / "alone"), **SMALL).manifests()
    assert contents(tmp_path / "motion") == contents(tmp_path / "alone")


def test_killed_half_way(tmp_path):
    parameters = {**SMALL, "train_per_class": 200}  # takes seconds
    process = start_making(tmp_path / "motion", **parameters)
    unfinished = tmp_path / ".motion.unfinished"
    deadline = time.monotonic() + 60
    while len(list(unfinished.rglob("*.mp4"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (tmp_path / "motion").exists()
    assert len(list(unfinished.rglob("*.mp4"))) >= 20

    Motion(str(tmp_path / "motion"), **SMALL).manifests()
    assert not unfinished.exists()
    assert len(list((tmp_path / "motion").rglob("*.mp4"))) == 40 == 4 * len(CLASSES)
