"""The splitting program: what it writes, what the listing source makes of that, and what it refuses."""

import json
import shlex
from pathlib import Path

import pytest
from composing import config_of
from fork_server import run_program

from vidtrain.app.check import check_run
from vidtrain.app.launch import find_faults
from vidtrain.build import parts as build
from vidtrain.data.sources.folders import FrameFolders
from vidtrain.data.sources.listings import Listing
from vidtrain.errors import UserError
from vidtrain.split import check, split


def run(*overrides: str) -> None:
    split(config_of("split", *overrides))


def read(out: Path, **settings):
    names = {name: str(out / f"{name}.csv") for name in ("train", "val", "test") if (out / f"{name}.csv").exists()}
    return Listing(**names, **settings).manifests()


@pytest.fixture
def videos(tmp_path):
    """20 groups of two videos in each of two classes."""
    for name in ("run", "long jump"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        for i in range(40):
            (tmp_path / "videos" / name / f"v_g{i // 2:02d}_c{i % 2}, take.mp4").touch()
    return tmp_path / "videos"


def test_class_folders(videos, tmp_path, capsys):
    out = tmp_path / "out"
    run(f"path={videos}", f"out={out}", r'group_pattern="^([^/]+)/v_g(\d+)_"', "shares=[0.7,0.2,0.1]")
    found = read(out)
    assert {name: len(each) for name, each in found.items()} == {"train": 56, "val": 16, "test": 8}
    assert found["val"].classes == ("long jump", "run")
    assert found["train"][0].path == f"{videos}/long jump/v_g00_c0, take.mp4"
    assert found["train"][0].group == "long jump/00"
    written = json.loads((out / "annotations.json").read_text())
    assert written["categories"] == {"long jump": 0, "run": 1}
    assert {name: len(written[name]) for name in ("train", "val", "test")} == {
        "train": 56,
        "val": 16,
        "test": 8,
    }
    assert written["train"][0] == {
        "video": "long jump/v_g00_c0, take.mp4", "target": 0, "group": "long jump/00",
    }  # fmt: skip
    shown = capsys.readouterr().out
    assert "80 videos of 2 classes" in shown and "70.0%" in shown and "each video is a group" not in shown
    assert "experiment=few_labels" in shown
    assert sorted(path.name for path in out.iterdir()) == [
        "annotations.json",
        "test.csv",
        "train.csv",
        "val.csv",
    ]


def read_as_told(overrides: list[str]):
    """The splits that the training app reads when it is told what split prints."""
    cfg = config_of("train", *overrides)
    assert check_run(cfg) == [] == check_run(config_of("train", "experiment=few_labels", *overrides))
    return build.instantiate_component(cfg.dataset.source).manifests()


def printed(capsys) -> list[str]:
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("train with: ")]
    command = shlex.split(line.removeprefix("train with: "))
    assert command[:3] == ["python", "-m", "vidtrain.train"]
    return command[3:]


def contents(splits):
    """What a split holds, by the class names, whatever their order."""
    return {
        name: sorted((each.path, sorted(part.classes[k] for k in each.labels)) for each in part)
        for name, part in splits.items()
    }


@pytest.mark.parametrize("names", [("run", "long jump"), ("0", "2"), ("a;b", "c|d")])
@pytest.mark.parametrize("shares", ["[0.8,0.1,0.1]", "[0.8,0.2,0]"])
def test_the_printed_command_reads_class_folders_back(tmp_path, capsys, names, shares):
    for name in names:
        (tmp_path / "my videos" / name).mkdir(parents=True)
        for i in range(10):
            (tmp_path / "my videos" / name / f"{i}.mp4").touch()
    run(f"path={tmp_path}/my videos", f"out={tmp_path}/my split", f"shares={shares}")
    found = read_as_told(printed(capsys))
    assert found["train"].classes == tuple(sorted(names))
    listed = read(tmp_path / "my split", classes=str(tmp_path / "my split/annotations.json"))
    assert contents(found) == contents(listed) and sum(map(len, found.values())) == 20
    assert all(Path(path).parent.name in names for part in found.values() for path in part.paths)


def test_videos_without_groups_are_said_to_have_none(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        for i in range(10):
            (tmp_path / "videos" / name / f"{i}.mp4").touch()
    run(f"path={tmp_path}/videos", f"out={tmp_path}/out")
    assert "each video is a group of its own" in capsys.readouterr().out


def test_the_printed_command_reads_listings_back(tmp_path, capsys):
    lines = [f"{i}.mp4,{i % 3};{(i + 1) % 3}" for i in range(40)]
    (tmp_path / "all.csv").write_text("\n".join(lines))
    run(
        "source=listing",
        f"path={tmp_path / 'all.csv'}",
        f"out={tmp_path / 'out'}",
        "listing.label_separator=';'",
    )
    overrides = printed(capsys)
    assert {"loss=bce", "trainer.monitor=map", 'dataset.source.label_separator=";"'} <= set(overrides)
    found = read_as_told(overrides)
    assert sum(map(len, found.values())) == 40 and all(part.multi_label for part in found.values())
    first = next(each for part in found.values() for each in part if each.path == f"{tmp_path}/5.mp4")
    assert first.labels == (2, 0)

    images = [f"clip{i} {'ab'[i % 2]}" for i in range(20)]
    (tmp_path / "images.txt").write_text("\n".join(images))
    run(
        "source=listing",
        f"path={tmp_path / 'images.txt'}",
        f"out={tmp_path / 'images'}",
        "listing.frame_rate=12.5",
    )
    assert read_as_told(printed(capsys))["train"].frame_rate == 12.5


def test_the_printed_command_reads_frame_folders_back(shared_data, tmp_path, capsys):
    images, truth = (shared_data / "k400_tiny" / name for name in ("k400tiny_images", "k400tiny_groundtruth.csv"))
    run("source=frame_folders", f"path={images}", f"ground_truth={truth}", f"out={tmp_path}", "frame_rate=10")
    found = read_as_told(printed(capsys))
    assert {name: len(part) for name, part in found.items()} == {"train": 4, "val": 1, "test": 1}
    assert len(found["train"].classes) == 6 and found["val"].frame_rate == 10.0
    assert found["val"][0].end == 39.5 / 10


def test_it_moves_no_file_and_repeats_itself(videos, tmp_path):
    before = sorted(videos.rglob("*"))
    for out in ("one", "two"):
        run(f"path={videos}", f"out={tmp_path / out}", "seed=3")
    run(f"path={videos}", f"out={tmp_path / 'one'}", "seed=3")  # the same again overwrites nothing
    texts = [[path.read_text() for path in sorted((tmp_path / out).iterdir())] for out in ("one", "two")]
    assert texts[0] == texts[1]
    assert sorted(videos.rglob("*")) == before


def test_overwriting_must_be_asked_for(videos, tmp_path):
    out = tmp_path / "out"
    run(f"path={videos}", f"out={out}")
    with pytest.raises(UserError, match="out holds .*train.csv, .*overwrite=true"):
        run(f"path={videos}", f"out={out}", "seed=1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/train.csv").write_bytes(b"\xff")
    with pytest.raises(UserError, match="other holds another split .train.csv"):
        run(f"path={videos}", f"out={tmp_path / 'other'}")
    (tmp_path / "other/test.csv").mkdir()
    with pytest.raises(UserError, match="test.csv is a folder: .*out="):
        run(f"path={videos}", f"out={tmp_path / 'other'}", "overwrite=true")
    with pytest.raises(UserError, match="test.csv"):
        run(f"path={videos}", f"out={out}", "shares=[0.9,0.1,0]")
    run(f"path={videos}", f"out={out}", "shares=[0.9,0.1,0]", "overwrite=true")
    assert not (out / "test.csv").exists()
    assert [len(each) for each in read(out).values()] == [72, 8]


def test_relative_paths(videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("path=videos", "out=lists/mine", "paths=relative")
    assert (tmp_path / "lists/mine/train.csv").read_text().splitlines()[1].startswith('"../../videos/long jump/v_g')
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "lists").rename(moved / "lists")
    (tmp_path / "videos").rename(moved / "videos")
    found = read(moved / "lists/mine")["train"]
    assert all(Path(path).is_file() for path in found.paths)
    assert found.columns.groups is None


def test_a_listing_by_column(tmp_path):
    lines = [f"{i}.mp4;x,{i % 3}|{(i + 1) % 3},p{i // 10},{i / 2},{i / 2 + 1}" for i in range(100)]
    (tmp_path / "all.csv").write_text("clip,tags,person,from,to\n" + "\n".join(lines))
    run(
        "source=listing", f"path={tmp_path / 'all.csv'}", f"out={tmp_path / 'out'}", "group_column=person",
        "listing.path_column=clip", "listing.label_column=tags", "listing.label_separator='|'",
        "listing.start_column=from", "listing.end_column=to",
    )  # fmt: skip
    found = read(tmp_path / "out", label_separator="|")
    assert [len(each) for each in found.values()] == [80, 10, 10]
    assert len(set(found["val"].columns.group_names)) == 1
    first = found["train"][0]
    assert (first.path, first.labels, first.start) == (f"{tmp_path}/0.mp4;x", (0, 1), 0.0)


def test_gestures_by_person(shared_data, tmp_path):
    path = shared_data / "gestures" / "groups.csv"
    run("source=listing", f"path={path}", f"out={tmp_path}", "shares=[0.34,0.33,0.33]")
    assert [set(each.columns.group_names) for each in read(tmp_path).values()] == [
        {"person3"},
        {"person1"},
        {"person2"},
    ]


def test_frame_folders_that_are_too_few(shared_data, tmp_path, capsys):
    images, truth = (shared_data / "k400_tiny" / name for name in ("k400tiny_images", "k400tiny_groundtruth.csv"))
    run("source=frame_folders", f"path={images}", f"ground_truth={truth}", f"out={tmp_path}")
    shown = " ".join(capsys.readouterr().out.split())
    assert "warning: train lacks 2 of 6 classes, which have too few groups: " in shown
    assert "warning: val lacks 5 of 6 classes" in shown
    source = FrameFolders(root=str(images), frame_rate=8.0, annotations=str(tmp_path / "annotations.json"))
    by_json = source.manifests()
    by_csv = read(tmp_path, frame_rate=8.0, classes=str(tmp_path / "annotations.json"))
    for name, count in (("train", 4), ("val", 1), ("test", 1)):
        assert list(by_json[name].paths) == list(by_csv[name].paths) and len(by_csv[name]) == count
        assert by_json[name].labels.tolist() == by_csv[name].labels.tolist()
    assert by_json["val"][0].end == 39.5 / 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["shares=[0.8,0.3,0.1]"],
            "shares: the shares [0.8, 0.3, 0.1] of train, val, test must be 0 or more and sum",
        ),
        (["source=listings"], "source: listings is unknown; did you mean listing?"),
        (["paths=short"], "paths: short is unknown; known: absolute, relative"),
        (["group_column=who"], "group_column: goes with source=listing; class_folders has no columns"),
        (["ground_truth=x.csv"], "ground_truth: goes with source=frame_folders, and only with it"),
        (["source=frame_folders"], "ground_truth: goes with source=frame_folders"),
        (["classes=[a,b]"], "classes: the class folders are the classes; set classes=null"),
        (["out=null"], "out: must be given: out=..."),
        (["frame_rate=0"], "frame_rate: 0.0 must be above 0 images a second"),
    ],
)
def test_faults_are_named(overrides, message):
    found = find_faults("split", ["path=x", "out=y", *overrides], check)
    assert [message in ": ".join(fault[1:]) for fault in found] == [True]


def test_faults_of_the_source_name_the_settings_of_this_program(videos, tmp_path):
    (tmp_path / "all.csv").write_text("a b,c d\n")
    with pytest.raises(UserError, match="delimiter=comma or .*delimiter=space"):
        run("source=listing", f"path={tmp_path / 'all.csv'}", "out=x")
    with pytest.raises(UserError, match="^group_pattern='x' .* 40 of 40"):
        run(f"path={videos}", "out=x", "group_pattern=x")
    (videos / "train").mkdir()
    with pytest.raises(UserError, match="train, .* dataset.source.root=/"):
        run(f"path={videos}", "out=x")


def test_names_that_cannot_be_listed(tmp_path):
    for name in ("a", "b", "c\nd"):
        (tmp_path / "videos/run").mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos/run" / f"{name}.mp4").touch()
    with pytest.raises(UserError, match="name has a line break"):
        run(f"path={tmp_path / 'videos'}", f"out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_spaces_at_the_ends_of_names_survive(tmp_path):
    names = ("a ", "b ", "c ")
    for name in names:
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.jpg").touch()
    truth = tmp_path / "truth.csv"
    truth.write_text("youtube_id,folder_name,label\n" + "".join(f'{name},"{name}",run\n' for name in names))
    run(
        "source=frame_folders",
        f"path={tmp_path / 'images'}",
        f"ground_truth={truth}",
        f"out={tmp_path / 'out'}",
    )
    found = read(tmp_path / "out", frame_rate=5.0)
    assert sorted(Path(each[0].path).name for each in found.values()) == list(names)


@pytest.mark.slow
def test_the_program(videos, tmp_path):
    help_ = run_program("split", "--help")
    assert "python -m vidtrain.split path=/data/mine out=/data/mine_split" in help_.stdout
    done = run_program("split", f"path={videos}", f"out={tmp_path / 'out'}")
    assert done.returncode == 0 and "80 videos of 2 classes" in done.stdout
    refused = run_program("split", f"path={videos}x", "out=y")
    assert refused.returncode == 2 and refused.stderr.startswith("error: no dataset folder")


def test_a_class_is_written_in_one_spelling(videos, tmp_path):
    (videos / "run").rename(videos / " caf\u0065\u0301 ")
    run(f"path={videos}", f"out={tmp_path / 'out'}")
    found = read(tmp_path / "out")
    assert found["train"].classes == ("caf\u00e9", "long jump") and Path(found["train"][0].path).is_file()
    assert [": ".join(fault[1:]) for fault in find_faults("split", [f"path={videos}", "out=x", "seed=-1"], check)] == [
        "seed: -1 must be 0 or more"
    ]
