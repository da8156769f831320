"""Runs that are killed, and resumed, evaluated and compared when something was done to their data meanwhile."""

import json
import shutil

import pytest
from composing import config_of
from small_run import small

from vidtrain.errors import UserError
from vidtrain.evaluate import evaluate
from vidtrain.train import train
from vidtrain.training import checkpoint, loop

SMALL = small("trainer.epochs=2", "trainer.batch_size=10", "trainer.save_every=1it", "logger=none")
FOLDERS = [each for each in SMALL if "+dataset.source" not in each]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Generated videos in class folders: 20 of train, 10 of val, 10 of test."""
    root = tmp_path_factory.mktemp("made")
    cfg = config_of("train", *SMALL, f"data_root={root}")
    from vidtrain.build.parts import instantiate_component

    instantiate_component(cfg.dataset.source).manifests()
    return root / "motion"


@pytest.fixture
def killed(made, tmp_path, monkeypatch):
    """A run on a copy of them that was ended after its second of four steps: its configuration, and its data."""
    data = tmp_path / "data"
    shutil.copytree(made, data)

    def config(root=data, *overrides):
        dataset = ["dataset=class_folders", f"dataset.source.root={root}", f"data_root={tmp_path}"]
        return config_of("train", *FOLDERS, *dataset, f"run_dir={tmp_path}/run", *overrides)

    count, checked = [], loop.check_faults

    def interrupt(*arguments):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        checked(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "check_faults", interrupt)
        train(config())
    assert checkpoint.load(tmp_path / "run/checkpoints/last.pt")["state"]["total_step"] == 2
    return config, data


def some(data, split="train"):
    first, second = sorted(each for each in (data / split).iterdir() if each.is_dir())[:2]
    return sorted(first.iterdir())[0], second


@pytest.mark.slow
def test_training_data_that_changed_are_refused_and_a_setting_goes_on(killed, tmp_path):
    config, data = killed
    file, other = some(data)
    file.rename(other / "moved.mp4")
    with pytest.raises(UserError) as error:
        train(config())
    said = str(error.value)
    assert f"train: 1 in another class: {other}/moved.mp4, which was {file} (" in said
    assert f"({file.parent.name} -> {other.name})" in said
    (other / "moved.mp4").unlink()
    with pytest.raises(UserError, match=f"train: 1 removed: {file}"):
        train(config())
    train(config(data, "data.allow_changed=true"))
    row = json.loads((tmp_path / "run/data_changes.jsonl").read_text())
    assert (row["last_logged_step"], row["split"], row["counts"]) == (3, "train", {"removed": 1})
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["data_changed"], summary["steps"]) == (True, 4)  # though 19 videos give one step an epoch


@pytest.mark.slow
def test_a_copy_elsewhere_goes_on_and_another_val_video_is_named(killed, tmp_path, capsys):
    config, data = killed
    shutil.copytree(data, tmp_path / "local", copy_function=shutil.copyfile)
    shutil.rmtree(data)
    file, _ = some(tmp_path / "local", "val")
    size = file.stat().st_size
    file.write_bytes(file.read_bytes() + b"\0" * 16)  # it can be read as before
    train(config(tmp_path / "local"))
    said = " ".join(capsys.readouterr().out.split())
    assert f"val: 1 replaced by another file: {file} ({size} -> {size + 16} bytes)" in said
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["data_changed"], summary["steps"]) == ("finished", True, 4)

    file, other = some(tmp_path / "local", "test")
    file.rename(other / "moved.mp4")
    named = [f"checkpoint={tmp_path}/run", f"out={tmp_path}/again"]
    with pytest.raises(UserError, match=f"test: 1 in another class: {other}/moved"):
        evaluate(config_of("evaluate", *named))
    evaluate(config_of("evaluate", *named, "allow_changed=true"))
    found = json.loads((tmp_path / "again/data_changes.json").read_text())
    assert found["counts"] == {"in another class": 1}
