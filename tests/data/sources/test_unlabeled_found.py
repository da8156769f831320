from pathlib import Path

import pytest

from vidtrain.data.sources.unlabeled import find_videos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.avi", "deep/c.MKV", "deep/er/d.mp4", "notes.md", ".hidden.mp4", "odd.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(found: list[str], folder: Path) -> list[str]:
    return [str(Path(path).relative_to(folder)) for path in found]


def test_a_folder_stands_for_all_videos_below_it(folder: Path):
    found, faults = find_videos([str(folder)])
    assert names(found, folder) == ["a.avi", "b.mp4", "deep/c.MKV", "deep/er/d.mp4"] and not faults


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["a.avi", "b.mp4", "deep/c.MKV", "deep/er/d.mp4"]),
        ("*.mp4", ["b.mp4"]),
        ("**/*.mp4", ["b.mp4", "deep/er/d.mp4"]),
        ("**", ["a.avi", "b.mp4", "deep/c.MKV", "deep/er/d.mp4"]),
        ("d[e]ep", ["deep/c.MKV", "deep/er/d.mp4"]),
    ],
)
def test_patterns(folder: Path, pattern: str, expected: list[str]):
    found, faults = find_videos([str(folder / pattern)])
    assert sorted(names(found, folder)) == sorted(expected) and not faults


def test_a_file_is_taken_whatever_its_suffix_and_each_video_once(folder: Path):
    places = [str(folder / "odd.bin"), str(folder / "b.mp4"), str(folder / "*.mp4"), str(folder)]
    found, faults = find_videos(places)
    assert names(found, folder) == ["odd.bin", "b.mp4", "a.avi", "deep/c.MKV", "deep/er/d.mp4"] and not faults


def test_a_file_may_have_the_characters_of_a_pattern(tmp_path: Path):
    (tmp_path / "what[1]?.mp4").touch()
    assert find_videos([str(tmp_path / "what[1]?.mp4")]) == ([str(tmp_path / "what[1]?.mp4")], [])


def test_listings_name_paths_relative_to_themselves(folder: Path):
    (folder / "list.txt").write_text("deep/c.MKV\n\n  b.mp4 \n/elsewhere/x.mp4\n")
    (folder / "list.csv").write_text('label,path\nrun,"deep/er/d.mp4"\nwalk,a.avi\n')
    found, faults = find_videos([str(folder / "list.txt"), str(folder / "list.csv")])
    assert found == [str(folder / "deep/c.MKV"), str(folder / "b.mp4"), "/elsewhere/x.mp4",
                     str(folder / "deep/er/d.mp4"), str(folder / "a.avi")] and not faults  # fmt: skip


def test_folders_of_images(tmp_path: Path):
    for name in ("one/1.jpg", "one/2.jpg", "two/1.png", "two/skip.txt", "video.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    both = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert find_videos([str(tmp_path)], 25.0) == (both, [])
    assert find_videos([str(tmp_path / "*")], 25.0) == (both, [])
    assert find_videos([both[0]], 25.0) == (both[:1], [])
    assert "is a file" in find_videos([str(tmp_path / "video.mp4")], 25.0)[1][0]


def test_every_place_at_fault_is_named(folder: Path):
    (folder / "empty").mkdir()
    (folder / "none.txt").write_text("\n")
    (folder / "bad.csv").write_text("file,label\na.mp4,run\n")
    places = ["missing.mp4", "*.webm", "empty", "notes.m*", "none.txt", "bad.csv"]
    found, faults = find_videos([str(folder / place) for place in places])
    assert found == []
    for fault, words in zip(
        faults,
        ("there is no such file or folder", "nothing matches this pattern", "there are no videos in this folder",
         "none of the 1 matches is a video", "lists no videos", "line 1 lacks the columns path"),
        strict=True,
    ):  # fmt: skip
        assert words in fault
