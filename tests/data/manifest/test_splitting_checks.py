import pytest

from vidtrain.data.manifest.manifest import Manifest, Record, SourceInfo
from vidtrain.data.manifest.splitting import check_present, check_splits
from vidtrain.errors import UserError


def manifest(*records, sources=()):
    return Manifest([Record(path, label, group, **more) for path, label, group, more in records], "ab", None, sources)


def video(path, label=0, group=None, **more):
    return path, label, group or path, more


def test_sound_splits_pass_without_a_word(caplog):
    check_splits({"train": manifest(video("1"), video("2", 1)), "val": manifest(video("3"))})
    check_splits({"train": manifest(video("1"))})
    assert not caplog.records


def test_a_video_in_two_splits_is_refused():
    train = manifest(*(video(f"{i}.mp4") for i in range(20)))
    with pytest.raises(UserError, match="both train and test hold 2 videos: 3.mp4, 7.mp4"):
        check_splits({"train": train, "val": manifest(video("x")), "test": manifest(video("7.mp4"), video("3.mp4"))})


def test_parts_of_a_file_may_be_in_two_splits_unless_they_overlap(caplog):
    train = manifest(video("1", end=5.0))
    check_splits({"train": train, "val": manifest(video("1", start=5.0))})
    assert "both train and val hold 1 file in different parts, such as 1" in caplog.text
    with pytest.raises(UserError, match="both train and val hold 1 video: 1"):
        check_splits({"train": train, "val": manifest(video("1", start=4.9))})


def test_groups_that_cross_are_counted_once(caplog):
    train = manifest(video("1", group="anna"), video("2", group="anna"), video("3", group="bert"))
    check_splits({"train": train, "val": manifest(video("4", group="anna"), video("5", group="cleo"))})
    assert caplog.messages == [
        "both train (2 videos) and val (1 video) hold 1 group, such as anna: their videos may be alike"
    ]


def test_a_video_of_two_labels_is_refused_and_one_that_is_repeated_is_told(caplog):
    with pytest.raises(UserError, match="more than once, .*: 1 as a and b"):
        check_splits({"train": manifest(video("1"), video("2"), video("1", 1))})
    check_splits({"train": manifest(video("1"), video("2"), video("1"))})
    assert caplog.messages == ["train lists 1 video more than once, such as 1"]


def test_parts_and_parts_of_mixtures_may_repeat(caplog):
    check_splits({"train": manifest(video("1", end=1.0), video("1", 1, start=1.0))})
    both = manifest(video("1"), video("1", source=1), sources=[SourceInfo("x"), SourceInfo("y")])
    check_splits({"train": both})
    assert not caplog.records


def test_files_that_are_missing_are_noticed_by_a_few(tmp_path):
    there, gone = tmp_path / "there.mp4", tmp_path / "gone.mp4"
    there.touch()

    def listed(*counts):
        paths = [str(path) for path, count in zip((there, gone), counts, strict=True) for _ in range(count)]
        return Manifest([Record(path, 0, path) for path in paths], ["a", "b"])

    warned = []
    check_present({"train": listed(1000, 0), "val": listed(1, 0)}, "hint", warned.append)
    assert warned == []
    check_present({"train": listed(900, 100)}, "hint", warned.append)
    assert warned == [f"2 of 20 train videos that were looked for are missing, such as {gone}"]
    with pytest.raises(UserError) as error:
        check_present({"train": listed(0, 5), "val": listed(2, 1)}, "is the root right?", warned.append)
    assert str(error.value) == (
        f"5 of 5 train videos that were looked for are missing, such as {gone}; "
        f"1 of 3 val videos that were looked for are missing, such as {gone}: is the root right?"
    )
