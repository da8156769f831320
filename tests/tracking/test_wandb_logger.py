"""W&B in the process of its logger, with a home that holds no key and without a network; some tests break it."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vidtrain.errors import UserError
from vidtrain.tracking.logger_process import LoggedRun, Loggers, descendants
from vidtrain.tracking.trackers import WandbLogger

NOWHERE = "http://127.0.0.1:9"
TRUTH = "; metrics.jsonl has all"
SETTINGS = {"model.encoder.depth": 2, "stage.full.duration": "100%", "clip.mean": [0.5, 0.4, 0.3]}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", NOWHERE)
    return tmp_path


@pytest.fixture
def run(tmp_path):
    return LoggedRun(tmp_path / "run", "abc123", "motion/1", "motion/sweep", SETTINGS)


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def service() -> list[int]:
    """The processes of W&B's service that this process has started, by way of the logger's."""
    found = []
    for each in descendants(os.getpid()):
        try:
            if b"wandb-core" in Path(f"/proc/{each}/cmdline").read_bytes():
                found.append(each)
        except OSError:
            continue
    return found


def await_service() -> int:
    until = time.monotonic() + 60
    while not service() and time.monotonic() < until:
        time.sleep(0.05)
    return service()[0]


def inspect(folder: Path) -> list[dict]:
    """Every record of an offline run, read by W&B's own inspector."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(records: list[dict]) -> list[dict]:
    rows = [each["history"]["item"] for each in records if each["type"] == "history"]
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


def offline_folders(run: LoggedRun) -> list[Path]:
    return sorted((run.folder / "wandb").glob("offline-run-*-abc123"))


@pytest.mark.slow
def test_two_attempts_offline_hold_every_row_once(run, tmp_path, caplog, capfd):
    from vidtrain.reports.plots import plot_curves

    caplog.set_level(logging.INFO, "vidtrain")
    picture, best = tmp_path / "curves.png", tmp_path / "best.pt"
    plot_curves([{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": 0.4}], picture)
    best.write_bytes(b"weights")
    page = tmp_path / "report.html"
    page.write_text("<!DOCTYPE html><p>all of a run")
    for attempt in range(2):
        logger = WandbLogger("vidtrain", job_type="train", tags=["a"], notes="n", artifacts="best")
        loggers = Loggers({"wandb": logger})
        # the first was killed after step 4, its last checkpoint was of step 2
        first = 2 * attempt
        loggers.start(LoggedRun(run.folder, run.id, run.name, run.group, SETTINGS, first))
        for step in range(first + 1, 5 + 2 * attempt):
            loggers.log({"train/loss": 1 / step, "phase": "full", "val/top5": None}, step)
            if step % 2 == 0:
                loggers.log({"val/top1": step / 10}, step)
        if attempt:
            loggers.image("curves", picture, 6)
            loggers.page("report", page, 6)
            loggers.checkpoint("best", best)
            loggers.checkpoint("last", tmp_path / "absent.pt")
            loggers.summary({"test/top1": 0.75, "coverage": "12/12"})
        loggers.close("finished" if attempt else "failed")
        time.sleep(1.1 * (1 - attempt))  # the name of W&B's folder counts in seconds
    assert capfd.readouterr() == ("", "")
    assert warnings(caplog) == []
    folders = offline_folders(run)
    held = [inspect(folder) for folder in folders]
    rows = [row for records in held for row in history(records)]
    images = [row for row in rows if any(key.startswith("curves") for key in row)]
    pages = [row for row in rows if any(key.startswith("report") for key in row)]
    expected = []
    for step in range(1, 7):
        expected.append({"train/loss": 1 / step, "phase": "full", "step": step})
        if step % 2 == 0:
            expected.append({"val/top1": step / 10, "step": step})
    assert len(folders) == 2 and len(images) == 1 and images[0]["step"] == 6
    assert len(pages) == 1 and pages[0]["step"] == 6
    (kept_page,) = folders[1].rglob("report*.html")
    assert kept_page.read_text() == page.read_text()
    assert [row for row in rows if row not in images + pages] == expected
    told = f"W&B: to upload this run, wandb sync {run.folder}/wandb/offline-run-*"
    assert caplog.records[-1].getMessage() == told

    records = held[1]
    (about,) = [each["run"] for each in records if each["type"] == "run"]
    assert {key: about[key] for key in ("run_id", "display_name", "run_group", "job_type", "tags", "notes")} == {
        "run_id": "abc123",
        "display_name": "motion/1",
        "run_group": "motion/sweep",
        "job_type": "train",
        "tags": ["a"],
        "notes": "n",
    }  # fmt: skip
    assert about["config"]["update"].items() >= SETTINGS.items()
    summaries = [each["summary"]["update"] for each in records if each["type"] == "summary"]
    assert {"test/top1": 0.75, "coverage": "12/12"} in summaries
    assert sum(each["type"] == "artifact" for each in records) == 1
    kept = [path for path in (run.folder / "wandb/artifacts").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in kept] == [b"weights"]
    exits = [each["exit"] for records in held for each in records if each["type"] == "exit"]
    assert [each["exit_code"] for each in exits] == [1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_service_that_is_killed_or_stopped_costs_a_warning(run, caplog, how):
    logger = WandbLogger("vidtrain")
    logger.close_seconds = 3.0 if how == signal.SIGSTOP else 60.0
    loggers = Loggers({"wandb": logger})
    loggers.start(run)
    loggers.log({"loss": 0.5}, 1)
    os.kill(await_service(), how)
    for step in range(2, 50):
        loggers.log({"loss": 0.5}, step)
    loggers.summary({"top1": 0.5})
    loggers.close("finished")
    (warning,) = warnings(caplog)
    assert warning.startswith("W&B is switched off for this run: ")
    assert warning.endswith(TRUTH)
    assert service() == []


@pytest.mark.slow
def test_a_full_disk_costs_a_warning(run, caplog, mount_small):
    folder = run.folder / "wandb"
    mount_small(folder, "1m")
    loggers = Loggers({"wandb": WandbLogger("vidtrain")})
    loggers.start(run)
    for step in range(20_000):
        loggers.log({f"value/{number}": step / 7 + number for number in range(20)}, step)
    loggers.close("finished")
    (warning,) = warnings(caplog)
    assert f"W&B is switched off for this run: OSError: no space left for {folder}" in warning


def test_online_without_a_key_says_how_to_get_one(run, caplog):
    with pytest.raises(UserError) as error:
        Loggers({"wandb": WandbLogger("vidtrain", "online")}).start(run)
    assert str(error.value) == (
        "W&B has no key for http://127.0.0.1:9: set WANDB_API_KEY, run `wandb login`, or choose logger=wandb_offline."
    )
    assert warnings(caplog) == []


def test_online_with_a_malformed_key(run, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(UserError, match=r"^W&B refused the key \("):
        Loggers({"wandb": WandbLogger("vidtrain", "online")}).start(run)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["closed", "silent"])
def test_online_without_a_network_becomes_offline(run, home, caplog, monkeypatch, network):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections and never answers
        host = "127.0.0.1:9" if network == "closed" else f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", f"http://{host}")
        (home / ".netrc").write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")
        logger = WandbLogger("vidtrain", "online")
        logger.init_seconds = 1.0
        loggers = Loggers({"wandb": logger})
        loggers.start(run)
        loggers.log({"loss": 0.5}, 1)
        loggers.close("finished")
    (warning,) = warnings(caplog)
    assert warning.startswith("W&B cannot be used online (")
    assert warning.endswith("): offline, for `wandb sync` later")
    (folder,) = offline_folders(run)
    assert (folder / "run-abc123.wandb").stat().st_size > 1000


def test_unknown_choices():
    with pytest.raises(UserError, match='logger.wandb.mode is "on": it must be "offline" or "online"'):
        WandbLogger("vidtrain", "on")  # type: ignore[arg-type]
    with pytest.raises(UserError, match='logger.wandb.artifacts is "all": it must be best, or null for none'):
        WandbLogger("vidtrain", artifacts="all")  # type: ignore[arg-type]
