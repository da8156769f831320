"""A user's own parts, in a folder beside the repo: they are found, checked and trained like those of conf/."""

import csv
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vidtrain import evaluate, predict
from vidtrain.app.check import check_run
from vidtrain.app.launch import find_faults, launch
from vidtrain.config.overrides import search_path
from vidtrain.config.targets import register_schemas
from vidtrain.data.sources.motion import Motion
from vidtrain.train import train

pytestmark = pytest.mark.usefixtures("without_pictures")
register_schemas()
HERE = Path(__file__).resolve().parents[1] / "experiments/own_parts"
OWN = [
    "model=conv_frames",
    "augmentation=posterized",
    "loss=penalized",
    "optimizer=sign_sgd",
    "schedule=inverse_root",
]


@pytest.fixture(autouse=True)
def beside_the_repo(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    yield
    sys.modules.pop("own_parts", None)


def faults(*overrides: str, own: Path = HERE / "conf") -> list[tuple[str, str, str]]:
    given, folders = search_path(overrides, str(own))
    return find_faults("train", given, check_run, folders=folders)


def test_every_part_has_a_file_here_and_no_fault():
    assert {path.parent.name for path in (HERE / "conf").rglob("*.yaml")} == {
        *("model", "dataset", "augmentation", "loss", "optimizer", "schedule")
    }
    assert faults(*OWN, "dataset=listed") == []


@pytest.mark.slow
def test_mistakes_are_answered_as_in_the_repo():
    found = faults("model=conv_frame", "loss.penalti=1", "loss=penalized", "schedule=inverse_roots")
    said = {key: why for _, key, why in found}
    assert "did you mean conv_frames" in said["model"]
    assert "did you mean inverse_root" in said["schedule"]
    assert "did you mean penalty" in said["loss.penalti"]


def test_a_fault_of_a_file_names_it(tmp_path):
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss/mine.yaml").write_text("_target_: own_parts.CrossEntropyWithPenalty\npenalty: large\n")
    [(place, key, why)] = faults("loss=mine", own=tmp_path)
    assert place == str(tmp_path / "loss/mine.yaml") and key == "loss.penalty" and "'large'" in why


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "--config-dir", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as ended:
        launch("train", train, check_run)
    assert ended.value.code == 2 and f"--config-dir {tmp_path / 'none'}" in capsys.readouterr().err


def listed_videos(folder: Path) -> None:
    """Generated videos, as `dataset=listed` reads them."""
    videos = Motion(str(folder / "motion"), 2, 1, 1).manifests()
    with open(folder / "listed.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["split", "path", "class"])
        for split, manifest in videos.items():
            table.writerows(
                [split, Path(record.path).relative_to(folder), manifest.classes[record.label]] for record in manifest
            )


def train_with(monkeypatch, *overrides: str) -> None:
    """Through the program, with nothing of a dataset's file but its name and its source."""
    own = ["--config-dir", str(HERE / "conf"), "logger=none", "dataset=listed", "data_root=."]
    steps = ["trainer.epochs=2", "trainer.steps_per_epoch=2", "trainer.num_workers=0", "trainer.batch_size=4"]
    monkeypatch.setattr(sys, "argv", ["train", *own, *steps, *overrides])
    launch("train", train, check_run)


@pytest.mark.slow
def test_all_of_them_train(tmp_path, monkeypatch):
    listed_videos(tmp_path)
    monkeypatch.chdir(tmp_path)
    train_with(monkeypatch, "run_dir=run", *OWN)
    config = OmegaConf.load(tmp_path / "run/config.yaml")
    assert (config.dataset.name, config.dataset.flip) == ("listed", 0.5)
    assert (tmp_path / "run/summary.json").is_file() and (tmp_path / "run/checkpoints/best.pt").is_file()


@pytest.mark.slow
def test_a_whole_network_trains_resumes_evaluates_and_predicts(tmp_path, monkeypatch, capsys):
    listed_videos(tmp_path)
    monkeypatch.chdir(tmp_path)
    train_with(monkeypatch, "run_dir=run", "model=clip_net")
    (tmp_path / "run/summary.json").unlink()  # as if it had been ended before it was evaluated
    train_with(monkeypatch, "run_dir=run", "model=clip_net")
    assert (
        tmp_path / "run/summary.json"
    ).is_file() and "resumed from run/checkpoints/last.pt" in capsys.readouterr().out
    trusted = ["checkpoint=run", "trust_targets=true", "num_workers=0"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *trusted, "data_root=."])
    evaluate.main()
    assert (tmp_path / "run/eval/test_1x1/metrics.json").is_file()
    (video, *_) = sorted((tmp_path / "motion").rglob("*.mp4"))
    monkeypatch.setattr(sys, "argv", ["predict", *trusted, str(video), "format=json"])
    predict.main()
    assert video.name in capsys.readouterr().out


def test_what_a_whole_network_cannot_do_is_said():
    (fault,) = faults("model=module")
    assert fault[1:] == ("model.head.net._target_", "must be given a value")
    assert "has 0 blocks" in faults("model=clip_net", "stage=unfreeze_last")[0][2]
    cached = ["stage=head_grid", "stage.head_grid.cache_features=true"]
    assert "Pixels has no parameters" in faults("model=clip_net", *cached)[0][2]
    assert faults("model=module", "model.head.net._target_=own_parts.ClipNet", "+model.head.net.width=4") == []
