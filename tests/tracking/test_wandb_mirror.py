"""W&B in processes of its own: it keeps global state, and some of these tests break it on purpose."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vidtrain.errors import UserError
from vidtrain.tracking.wandb_mirror import WandbMirror

REPO = Path(__file__).resolve().parents[2]
NOWHERE = "http://127.0.0.1:9"

PRELUDE = """
import logging, os, signal, sys, time
from pathlib import Path
from vidtrain.errors import UserError
from vidtrain.tracking import wandb_mirror
from vidtrain.tracking.wandb_mirror import WandbMirror
logging.basicConfig(format="%(levelname)s %(message)s")
run_dir = Path(sys.argv[1]) / "run"
"""


def run_script(tmp_path: Path, body: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `body` without a network, with a home that holds no key, and with nobody to answer a prompt."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    kept.pop("NETRC", None)
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(body), str(tmp_path)],
        cwd=REPO,
        env={**kept, "HOME": str(tmp_path), "WANDB_BASE_URL": NOWHERE, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_offline_run_is_silent_and_lies_in_the_run_folder(tmp_path: Path):
    result = run_script(
        tmp_path,
        """
        import numpy as np
        from vidtrain.tracking.plots import plot_confusion
        for attempt in range(2):
            mirror = WandbMirror("vidtrain", tags=["a"], group="g", job_type="train", notes="n")
            mirror.start(run_dir, "abc123", {"model": {"depth": 2}}, "tiny")
            for step in range(5):
                mirror.log({"train/loss": 0.5, "phase": "full", "val/top1": None}, step)
            plot_confusion(np.eye(2), ["a", "b"], run_dir / "confusion.png")
            mirror.image("confusion", run_dir / "confusion.png")
            mirror.summary({"test/top1": 0.75, "coverage": "12/12"})
            mirror.close("finished")
            mirror.log({"late": 1.0}, 9)
            time.sleep(1)  # the name of W&B's folder counts in seconds
        """,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    files = [path for path in (tmp_path / "run" / "wandb").rglob("*.wandb")]
    assert [path.name for path in files] == ["run-abc123.wandb", "run-abc123.wandb"]
    assert all(path.stat().st_size > 1000 for path in files)
    assert len(list((tmp_path / "run" / "wandb").rglob("confusion*.png"))) == 2


def test_training_survives_the_death_of_the_service(tmp_path: Path):
    result = run_script(
        tmp_path,
        """
        mirror = WandbMirror("vidtrain")
        mirror.start(run_dir, "abc123", {}, "tiny")
        mirror.log({"loss": 0.5}, 1)
        tasks = Path("/proc/self/task").glob("*/children")
        children = [pid for task in tasks for pid in task.read_text().split()]
        for pid in children:
            if "wandb-core" in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(int(pid), signal.SIGKILL)
                print("killed")
        time.sleep(0.5)
        for step in range(2, 50):
            mirror.log({"loss": 0.5}, step)
            time.sleep(0.01)
        mirror.summary({"top1": 0.5})
        mirror.image("curves", run_dir / "absent.png")
        mirror.close("finished")
        print("trained")

        second = WandbMirror("vidtrain")
        second.start(run_dir / "second", "abc124", {}, "tiny")
        second.log({"loss": 0.5}, 1)
        second.close("finished")
        """,
    )
    assert (result.returncode, result.stdout) == (0, "killed\ntrained\n"), result.stderr
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("WARNING W&B is switched off for this run: ")
    assert len(list((tmp_path / "run" / "second").rglob("*.wandb"))) == 1


def test_a_value_that_wandb_refuses_switches_the_mirror_off(tmp_path: Path):
    result = run_script(
        tmp_path,
        """
        mirror = WandbMirror("vidtrain")
        mirror.start(run_dir, "abc123", {}, "tiny")
        mirror.image("curves", run_dir / "absent.png")
        mirror.log({"loss": 0.5}, 1)
        mirror.close("finished")
        """,
    )
    assert result.returncode == 0
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("WARNING W&B is switched off for this run: ")
    assert "absent.png" in warning


def test_online_without_a_key_says_how_to_get_one(tmp_path: Path):
    result = run_script(
        tmp_path,
        """
        try:
            WandbMirror("vidtrain", "online").start(run_dir, "abc123", {}, "tiny")
        except UserError as error:
            print(error)
        """,
    )
    assert result.stdout == (
        "W&B has no key for http://127.0.0.1:9: "
        "set WANDB_API_KEY, run `wandb login`, or choose logger=wandb_offline.\n"
    ), result.stderr


def test_online_with_a_malformed_key(tmp_path: Path):
    result = run_script(
        tmp_path,
        """
        try:
            WandbMirror("vidtrain", "online").start(run_dir, "abc123", {}, "tiny")
        except UserError as error:
            print(error)
        """,
        WANDB_API_KEY="short",
    )
    assert result.stdout.startswith("W&B refused the key ("), result.stderr


def test_online_without_a_network_becomes_offline(tmp_path: Path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1:9\n  login user\n  password " + "0" * 40 + "\n")
    result = run_script(
        tmp_path,
        """
        wandb_mirror.INIT_TIMEOUT_S = 1.0
        start = time.monotonic()
        mirror = WandbMirror("vidtrain", "online")
        mirror.start(run_dir, "abc123", {}, "tiny")
        mirror.log({"loss": 0.5}, 1)
        mirror.close("finished")
        print(time.monotonic() - start < 30)
        """,
    )
    assert (result.returncode, result.stdout) == (0, "True\n"), result.stderr
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith("WARNING")]
    assert warning.startswith("WARNING W&B cannot be used online (")
    assert warning.endswith("): offline, for `wandb sync` later")
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*-abc123")
    assert (folder / "run-abc123.wandb").stat().st_size > 0


def test_unknown_mode():
    with pytest.raises(UserError, match='logger.mode is "on": it must be "offline" or "online"'):
        WandbMirror("vidtrain", "on")  # type: ignore[arg-type]
