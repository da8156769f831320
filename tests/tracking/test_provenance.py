import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from vidtrain.tracking import provenance
from vidtrain.tracking.provenance import environment, git_state, write_provenance

UNKNOWN = {"commit": None, "branch": None, "dirty": None, "untracked": [], "diff": ""}


def git(repo: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(repo), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A checkout of one commit on the branch "trunk"."""
    git(tmp_path, "init", "--quiet", "--initial-branch=trunk")
    (tmp_path / "a.txt").write_text("one\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message=first")
    return tmp_path


def test_clean_checkout(repo: Path):
    commit = git(repo, "rev-parse", "HEAD")
    assert git_state(repo) == {
        "commit": commit,
        "branch": "trunk",
        "dirty": False,
        "untracked": [],
        "diff": "",
        "problem": None,
    }


def test_changed_staged_and_untracked_files(repo: Path):
    (repo / "a.txt").write_text("two\n")
    (repo / "b.txt").write_text("new\n")
    git(repo, "add", "b.txt")
    (repo / "c.txt").write_text("unknown to git\n")
    state = git_state(repo)
    assert (state["dirty"], state["untracked"]) == (True, ["c.txt"])
    assert "-one\n+two\n" in state["diff"]
    assert "+++ b/b.txt\n@@ -0,0 +1 @@\n+new\n" in state["diff"]


def test_detached_head_and_checkout_without_a_commit(repo: Path, tmp_path: Path):
    git(repo, "checkout", "--quiet", "--detach")
    assert git_state(repo)["branch"] is None
    fresh = tmp_path / "fresh"
    git(tmp_path, "init", "--quiet", "--initial-branch=trunk", "fresh")
    (fresh / "a.txt").write_text("one\n")
    git(fresh, "add", ".")
    state = git_state(fresh)
    assert (state["commit"], state["branch"], state["dirty"]) == (None, "trunk", True)
    assert "+one\n" in state["diff"]


def test_without_checkout_or_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == {**UNKNOWN, "problem": "not a git checkout"}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == {**UNKNOWN, "problem": "git is not installed"}


def test_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    found = environment()
    assert found["python"] == platform.python_version()
    assert (found["torch"], found["packages"]["torch"]) == (torch.__version__, version("torch"))
    assert found["torch_threads"] == torch.get_num_threads()
    assert found["variables"]["SLURM_JOB_ID"] == "42"
    assert found["cpus"] == os.cpu_count()
    assert found["command"] == shlex.join(sys.orig_argv)
    assert "secret" not in json.dumps(found)


def test_files_of_the_latest_start(repo: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch):
    run_dir = tmp_path_factory.mktemp("run")
    monkeypatch.setattr(provenance, "ROOT", repo)
    (repo / "a.txt").write_text("two\n")
    write_provenance(run_dir)
    assert sorted(path.name for path in run_dir.iterdir()) == ["environment.json", "git.diff", "git.json"]
    assert (run_dir / "git.diff").read_text().endswith("-one\n+two\n")
    assert json.loads((run_dir / "git.json").read_text()) == {
        "commit": git(repo, "rev-parse", "HEAD"),
        "branch": "trunk",
        "dirty": True,
        "untracked": [],
        "problem": None,
    }
    (repo / "a.txt").write_text("one\n")
    write_provenance(run_dir)
    assert sorted(path.name for path in run_dir.iterdir()) == ["environment.json", "git.json"]
    # a wheel in an environment within somebody's checkout is not of that checkout
    monkeypatch.setattr(provenance, "IN_CHECKOUT", False)
    write_provenance(run_dir)
    installed = json.loads((run_dir / "git.json").read_text())
    assert (installed["commit"], installed["problem"]) == (None, "installed as a package, from no checkout")
