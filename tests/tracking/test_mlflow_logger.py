"""MLflow's store, read back by MLflow."""

import logging
import shutil
import socket
from importlib.util import find_spec

import pytest

from vidtrain.errors import UserError
from vidtrain.reports.plots import plot_curves
from vidtrain.tracking import logger_process as logger_module
from vidtrain.tracking.logger_process import LoggedRun, Loggers
from vidtrain.tracking.trackers import MlflowLogger

# Not by importing it, which every process of the tests would
pytestmark = pytest.mark.skipif(not (find_spec("mlflow") and find_spec("sqlalchemy")), reason="needs the extra mlflow")
TRUTH = "; metrics.jsonl has all"


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store that does not exist yet."""
    return tmp_path_factory.mktemp("store") / "outputs" / "mlflow.db"


@pytest.mark.slow
def test_runs_of_a_group_share_a_new_store_and_attempts_a_run(tmp_path, store, caplog):
    from mlflow import MlflowClient

    picture, best = tmp_path / "curves.png", tmp_path / "best.pt"
    plot_curves([{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": 0.4}], picture)
    best.write_bytes(b"weights")
    page = tmp_path / "report.html"
    page.write_text("<!DOCTYPE html><p>all of a run")
    uri = f"sqlite:///{store}"
    settings = {f"key.{number}": number for number in range(150)}

    # two runs that start at once, of which one goes on after it was killed at step 4, its checkpoint of step 2
    def begin(name, first):
        logger = MlflowLogger(uri, tags={"owner": "me"}, artifacts="best")
        logger.close_seconds = 300.0  # a new store takes long to make where other tests run
        loggers = Loggers({"mlflow": logger})
        loggers.start(LoggedRun(tmp_path / name, f"id-{name}", f"motion/{name}", "motion/sweep", settings, first))
        return loggers

    one, two = begin("a", 0), begin("b", 0)
    two.close("failed")
    for step in range(1, 5):
        one.log({"train/loss": 1 / step, "phase": "full", "val/top5": None}, step)
    one.log({"val/top1": 0.5}, 4)
    one.close("failed")
    again = begin("a", 2)
    for step in range(3, 7):
        again.log({"train/loss": 1 / step, "phase": "full", "val/top5": None}, step)
        if step % 2 == 0:
            again.log({"val/top1": step / 8}, step)
    again.image("curves", picture, 6)
    again.page("report", page, 6)
    again.checkpoint("best", best)
    again.checkpoint("last", tmp_path / "absent.pt")
    again.summary({"top1": 0.75})
    again.close("finished")
    assert warnings(caplog) == []

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("motion/sweep")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "motion/a": "FINISHED",
        "motion/b": "FAILED",
    }
    run = runs["motion/a"]
    assert run.data.params == {key: str(value) for key, value in settings.items()}
    assert run.data.tags["vidtrain.run_id"] == "id-a" and run.data.tags["owner"] == "me"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(step, 1 / step) for step in range(1, 7)]
    accuracy = client.get_metric_history(run.info.run_id, "val/top1")
    assert [(point.step, point.value) for point in accuracy] == [(4, 0.5), (6, 0.75)]
    kept = sorted(
        path.relative_to(store.parent) for path in store.parent.rglob("*") if path.suffix in (".png", ".pt", ".html")
    )
    assert [path.name for path in kept] == ["best.pt", "curves.png", "report.html"]
    assert kept[0].parts[:3] == ("mlartifacts", "motion", "sweep")


@pytest.mark.slow
@pytest.mark.parametrize("network", ["closed", "silent"])
def test_a_server_that_cannot_be_reached_costs_a_warning(tmp_path, caplog, monkeypatch, network):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections and never answers
        port = 9 if network == "closed" else silent.getsockname()[1]
        loggers = Loggers({"mlflow": MlflowLogger(f"http://127.0.0.1:{port}")})
        loggers.start(LoggedRun(tmp_path, "abc", "motion/1", "motion", {}))
        loggers.log({"loss": 0.5}, 1)
        loggers.close("finished")
    (warning,) = warnings(caplog)
    assert warning.startswith("MLflow is switched off for this run: MlflowException: ")
    assert warning.endswith(TRUTH)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["64k", "2m"])  # too small to make a store, or to log all
def test_a_full_disk_costs_a_warning(tmp_path, caplog, mount_small, store, size):
    mount_small(tmp_path / "store", size)
    if size == "2m" and store.exists():  # that of the first test, as making one takes long
        shutil.copy(store, tmp_path / "store")
    logger = MlflowLogger(f"sqlite:///{tmp_path}/store/mlflow.db")
    logger.close_seconds = 300.0
    loggers = Loggers({"mlflow": logger})
    loggers.start(LoggedRun(tmp_path / "run", "abc", "motion/1", "motion", {}))
    for step in range(100):
        loggers.log({f"value/{number}": step / 7 + number for number in range(100)}, step)
    loggers.close("finished")
    (warning,) = warnings(caplog)
    assert warning.startswith("MLflow is switched off for this run: ")
    assert "full" in warning and warning.endswith(TRUTH)


def test_without_its_packages_it_names_the_extra(monkeypatch):
    monkeypatch.setattr(logger_module.importlib.util, "find_spec", lambda name: None if name != "mlflow" else name)
    needed = r"^logger=mlflow needs sqlalchemy, alembic: uv sync --extra mlflow$"
    with pytest.raises(UserError, match=needed):
        MlflowLogger("sqlite:///outputs/mlflow.db")
    MlflowLogger("http://server:5000")


@pytest.mark.parametrize("name", ["../../elsewhere", "/elsewhere", "a/../../../b"])
def test_a_name_that_leads_out_of_the_store_is_refused(name, tmp_path):
    logger = MlflowLogger(f"sqlite:///{tmp_path}/store/mlflow.db", experiment=name)
    with pytest.raises(UserError, match="must not lead out of mlartifacts"):
        logger.start(LoggedRun(tmp_path / "run", "id", "motion/run", "motion", {}, 0))
