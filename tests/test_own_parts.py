"""A user's own parts, in a folder beside the repo: they are found, checked and trained like those of conf/."""

import csv
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vidtrain.app.check import check_run
from vidtrain.app.launch import find_faults, launch
from vidtrain.config.overrides import search_path
from vidtrain.data.sources.motion import Motion
from vidtrain.train import train

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


def test_all_of_them_train(tmp_path, monkeypatch):
    """Through the program, with nothing of a dataset's file but its name and its source."""
    videos = Motion(str(tmp_path / "motion"), 2, 1, 1).manifests()
    with open(tmp_path / "listed.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["split", "path", "class"])
        for split, manifest in videos.items():
            table.writerows(
                [split, Path(record.path).relative_to(tmp_path), manifest.classes[record.label]]
                for record in manifest
            )
    run = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    own = ["--config-dir", str(HERE / "conf"), f"data_root={tmp_path}", f"run_dir={run}", "logger=none"]
    steps = ["trainer.epochs=1", "trainer.steps_per_epoch=2", "trainer.num_workers=0", "trainer.batch_size=4"]
    monkeypatch.setattr(sys, "argv", ["train", *own, *steps, *OWN, "dataset=listed"])
    launch("train", train, check_run)
    config = OmegaConf.load(run / "config.yaml")
    assert (config.dataset.name, config.dataset.flip) == ("listed", 0.5)
    assert (run / "summary.json").is_file() and (run / "checkpoints/best.pt").is_file()
