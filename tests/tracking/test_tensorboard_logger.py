"""TensorBoard's event files, read back by TensorBoard."""

import logging

import pytest

from vidtrain.errors import UserError
from vidtrain.reports.plots import plot_curves
from vidtrain.tracking import logger_process as logger_module
from vidtrain.tracking.logger_process import LoggedRun, Loggers
from vidtrain.tracking.trackers import TensorBoardLogger

pytest.importorskip("tensorboard")


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


def test_two_attempts_hold_every_row_once(tmp_path, caplog):
    picture = tmp_path / "curves.png"
    plot_curves([{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": 0.4}], picture)
    for attempt in range(2):
        loggers = Loggers({"tensorboard": TensorBoardLogger()})
        # the first was killed after step 4, its last checkpoint was of step 2
        first = 2 * attempt
        loggers.start(LoggedRun(tmp_path, "abc", "motion/1", "motion", {"model.encoder.depth": 2}, first))
        for step in range(first + 1, 5 + 2 * attempt):
            loggers.log({"train/loss": 1 / step, "phase": "full", "val/top5": None}, step)
            if step % 2 == 0:
                loggers.log({"val/top1": step / 8}, step)
        if attempt:
            loggers.image("curves", picture, 6)
            loggers.checkpoint("best", tmp_path / "best.pt")
            loggers.summary({"steps": 6, "top1": 0.75})
        loggers.close("finished" if attempt else "failed")
    assert warnings(caplog) == []
    found = read(tmp_path / "tensorboard")
    assert found.Tags()["scalars"] == ["train/loss", "val/top1"]
    loss = [(each.step, each.value) for each in found.Scalars("train/loss")]
    assert loss == [(step, pytest.approx(1 / step)) for step in range(1, 7)]
    assert [(each.step, each.value) for each in found.Scalars("val/top1")] == [(2, 0.25), (4, 0.5), (6, 0.75)]
    (image,) = found.Images("curves")
    assert (image.step, image.encoded_image_string) == (6, picture.read_bytes())
    (settings,) = found.Tensors("settings")
    assert b"model.encoder.depth: 2" in settings.tensor_proto.string_val[0]
    (closing,) = found.Tensors("summary")
    assert closing.step == 6 and b"top1: 0.75" in closing.tensor_proto.string_val[0]


def test_a_full_disk_costs_a_warning(tmp_path, caplog, mount_small):
    mount_small(tmp_path / "tensorboard", "256k")
    loggers = Loggers({"tensorboard": TensorBoardLogger()})
    loggers.start(LoggedRun(tmp_path, "abc", "motion/1", "motion", {}))
    for step in range(3000):
        loggers.log({f"value/{number}": step / 7 + number for number in range(20)}, step)
    loggers.close("finished")
    (warning,) = warnings(caplog)
    assert warning.startswith("TensorBoard is switched off for this run: OSError: [Errno 28] No space left on device")


def test_without_the_package_it_names_the_extra(monkeypatch):
    monkeypatch.setattr(logger_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^logger=tensorboard .*--extra tensorboard$"):
        TensorBoardLogger()
