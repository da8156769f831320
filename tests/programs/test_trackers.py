"""Training with trackers, in this process: what they hold, and that none can stop it."""

import json
import logging
import os
import signal
from pathlib import Path

import pytest
from composing import config_of
from pictures import pictures_drawn
from small_run import small

from vidtrain.app.check import check_run
from vidtrain.tracking.logger_process import descendants
from vidtrain.tracking.run_log import RunLog, read_metrics
from vidtrain.train import train

pytest.importorskip("tensorboard")
SMALL = small(
    "trainer.epochs=2",
    "trainer.batch_size=5",
    "trainer.num_workers=1",
    "trainer.log_every=1",
    train=1,
)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def composed(data_root: Path, *overrides: str):
    return config_of("train", *SMALL, f"data_root={data_root}", *overrides)


def services(name: bytes) -> list[int]:
    found = []
    for each in descendants(os.getpid()):
        try:
            if name in Path(f"/proc/{each}/cmdline").read_bytes():
                found.append(each)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_tensorboard_holds_every_number_of_the_metrics_and_the_pictures(data_root, tmp_path, caplog):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pictures_drawn():
        train(composed(data_root, f"run_dir={tmp_path}", "logger=tensorboard"))
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []
    expected: dict[str, list[tuple[int, float]]] = {}
    for row in read_metrics(tmp_path):
        for key, value in row.items():
            if isinstance(value, int | float) and key != "step":
                expected.setdefault(key, []).append((row["step"], pytest.approx(value, rel=1e-6)))
    held = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    assert {
        "lr/head",
        "train/grad_norm",
        "train/clips_per_s",
        "memory/process_gb",
        "test/top1",
    } <= expected.keys()
    assert {tag: [(each.step, each.value) for each in held.Scalars(tag)] for tag in held.Tags()["scalars"]} == expected
    assert held.Tags()["images"] == ["curves", "confusion_test", "wrong_test"]
    (settings,) = held.Tensors("settings")
    assert b"model.encoder.embed_dim: 24" in settings.tensor_proto.string_val[0]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_training_ends_well_whatever_becomes_of_the_tracker(data_root, tmp_path, caplog, monkeypatch, how):
    monkeypatch.setattr("vidtrain.tracking.trackers.OFFLINE_CLOSE_S", 5.0)
    log, struck = RunLog.log, []

    def strike(self, metrics, step):
        log(self, metrics, step)
        if not struck:
            while not services(b"wandb-core"):
                self.loggers.log({}, step)  # it is given time to start
            struck.extend(services(b"wandb-core"))
            os.kill(struck[0], how)

    monkeypatch.setattr(RunLog, "log", strike)
    train(composed(data_root, f"run_dir={tmp_path}", "logger=wandb_offline"))
    warnings = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    (warning,) = [each for each in warnings if "W&B" in each]
    assert warning.startswith("W&B is switched off for this run: ")
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "finished"
    steps = [row["step"] for row in read_metrics(tmp_path)]
    assert steps[0] == 1 and steps[-1] == 5 and len(steps) == 4 + 2 + 2 + 1  # steps, epochs, val, test
    assert services(b"vidtrain.tracking.logger_process") == services(b"wandb-core") == []


def test_a_missing_package_is_a_fault_before_anything_starts(data_root, monkeypatch):
    cfg = composed(data_root, "logger=[wandb_offline,tensorboard,mlflow]")
    assert list(cfg.logger) == ["wandb", "tensorboard", "mlflow"]
    monkeypatch.setattr("vidtrain.tracking.logger_process.importlib.util.find_spec", lambda name: None)
    assert check_run(cfg) == [("logger", "logger=tensorboard needs tensorboard: uv sync --extra tensorboard")]
