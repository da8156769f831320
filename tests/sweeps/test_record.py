"""What a sweep is made of, and by what its trials are known."""

import pytest

from vidtrain.errors import UserError
from vidtrain.sweeps.base import changed_settings
from vidtrain.sweeps.record import SweepRecord, Trial, read_trial, write_trial

FREE = ("data_root", "trainer.num_workers")


def record(**settings) -> SweepRecord:
    settings = {
        "program": "vidtrain.train", "hydra": ["hydra.sweeper.n_jobs=2"], "task": ["seed=0,1"], "started_in": "/w",
        "started": "now", "launcher": "basic", "sweeper": "grid", "objective": "top1", "direction": "max",
        "planned": 2, "keys": ["seed"], **settings,
    }  # fmt: skip
    return SweepRecord(**settings)


def test_it_comes_back_as_it_was_written(tmp_path):
    one = record(trials=[Trial(0, "0", ["seed=0"]), Trial(1, "1", ["seed=1"])], space={"lr": "interval(0,1)"})
    one.write(tmp_path)
    assert SweepRecord.read(tmp_path) == one


def test_trials_are_known_by_their_overrides_in_any_order():
    one = record(trials=[Trial(0, "0", ["lr=0.1", "seed=0", "data_root=a"]), Trial(1, "1", ["lr=0.2", "seed=0"])])
    assert one.find(["data_root=b", "seed=0", "lr=0.1"], FREE).number == 0
    assert one.find(["seed=0", "lr=0.2", "trainer.num_workers=4"], FREE).number == 1
    assert one.find(["seed=0"], FREE) is None
    assert one.next_number() == 2


def test_what_is_free_tells_trials_apart_where_it_is_swept():
    one = record(trials=[Trial(0, "0", ["seed=0", "data_root=a"]), Trial(1, "1", ["seed=0", "data_root=b"])])
    assert one.find(["data_root=b", "seed=0"], FREE, ["data_root"]).number == 1
    assert one.find(["data_root=c", "seed=0"], FREE, ["data_root"]) is None
    assert one.find(["data_root=b", "seed=0", "trainer.num_workers=1"], FREE, ["data_root"]).number == 1


def test_passwords_are_not_stored_and_are_put_back(tmp_path):
    said = ["lr=1", "logger.mlflow.tracking_uri=http://u:pw@h"]
    record(trials=[Trial(0, "0", said)], task=said).write(tmp_path)
    write_trial(tmp_path, Trial(0, "0", said), {"storage": "postgresql://u:pw@h/db", "study": "s", "pruner": {}})
    for path in (tmp_path / "sweep.json", tmp_path / "0" / "trial.json"):
        assert "pw" not in path.read_text() and "u:***@h" in path.read_text()
    again = SweepRecord.read(tmp_path)
    assert again.find(said, ()).number == 0
    again.complete(said)
    assert again.trials[0].overrides == said


def test_the_best_depends_on_the_direction():
    assert record(direction="max").best({0: 0.5, 1: 0.7, 2: 0.7}) == 1
    assert record(direction="min").best({0: 0.5, 1: 0.7}) == 0
    assert record().best({}) is None


@pytest.mark.parametrize(
    ("before", "now", "changed"),
    [
        ([["lr=1", "e=2"], ["lr=2", "e=2"]], [["lr=3", "e=2"]], []),  # another value of what is swept
        ([["lr=1", "e=2"], ["lr=2", "e=2"]], [["lr=1", "e=3"], ["lr=2", "e=3"]], ["e: 2 -> 3"]),
        ([["lr=1", "e=2"]], [["lr=1"]], ["e: 2 -> not set"]),
        ([["lr=1"]], [["lr=1", "seed=0"], ["lr=1", "seed=1"]], []),  # swept from now on
        ([["lr=1", "data_root=a"]], [["lr=1", "data_root=b"]], []),
    ],
)
def test_what_is_not_swept_must_stay(before, now, changed):
    assert changed_settings(before, now, FREE) == changed


def test_a_folder_that_is_no_sweep_is_named(tmp_path):
    with pytest.raises(UserError, match="it holds no sweep.json"):
        SweepRecord.read(tmp_path)
    with pytest.raises(UserError, match="there is no such folder"):
        SweepRecord.read(tmp_path / "none")
    (tmp_path / "sweep.json").write_text('{"trials": []}')
    with pytest.raises(UserError, match="sweep.json has no program"):
        SweepRecord.read(tmp_path)


def test_a_run_knows_that_it_is_a_trial(tmp_path):
    assert read_trial(tmp_path) is None
    write_trial(tmp_path, Trial(3, "3", ["seed=1"]), None)
    found = read_trial(tmp_path / "3")
    assert (found["number"], found["overrides"], found["sweep"]) == (3, ["seed=1"], str(tmp_path))
