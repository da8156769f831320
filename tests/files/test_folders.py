"""Folders that are written into: one process at a time, and a file of the user's behind a link stays as it is."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vidtrain.errors import UserError
from vidtrain.files.folders import RunLock, check_inside, check_links, holder, is_held
from vidtrain.runs import folder as run_folder

REPO = Path(__file__).resolve().parents[2]

HOLD = """
import os, signal, sys
from pathlib import Path
from vidtrain.files.folders import RunLock
lock = RunLock(Path(sys.argv[1]))
if sys.argv[2] == "with_worker" and os.fork() != 0:
    signal.pause()
print(os.getpid(), flush=True)  # with a worker: by the worker, which has then let go of the lock
signal.pause()
"""


def start_holder(run_dir: Path, kind: str) -> tuple[subprocess.Popen[str], int]:
    """A process that holds the folder; and the pid of its forked worker, or its own."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, run_dir, kind], cwd=REPO, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_second_process_is_told_who_holds_the_folder(tmp_path: Path):
    run_dir = tmp_path / "runs" / "a"
    holder, pid = start_holder(run_dir, "alone")
    try:
        with pytest.raises(UserError) as raised:
            RunLock(run_dir)
        started = json.loads((run_dir / ".lock").read_text())["started"]
        assert str(raised.value) == (
            f"the run folder {run_dir} is in use by process {pid} on {socket.gethostname()}, "
            f"started {started}: wait for it, stop it, or choose another folder."
        )
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize("kind", ["alone", "with_worker"])
def test_kill_9_frees_the_folder_at_once(tmp_path: Path, kind: str):
    holder, pid = start_holder(tmp_path, kind)
    holder.kill()
    holder.wait()
    try:
        with RunLock(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    finally:
        if kind == "with_worker":
            os.kill(pid, signal.SIGKILL)


def test_worker_that_ends_does_not_free_the_folder(tmp_path: Path):
    holder, worker = start_holder(tmp_path, "with_worker")
    try:
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(UserError, match="is in use by process"):
            RunLock(tmp_path)
    finally:
        holder.kill()
        holder.wait()


def test_released_folder_can_be_locked_again(tmp_path: Path):
    first = RunLock(tmp_path)
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
        RunLock(tmp_path)
    first.release()
    first.release()
    RunLock(tmp_path).release()


def test_holder_that_has_written_nothing_yet(tmp_path: Path):
    lock = RunLock(tmp_path)
    (tmp_path / ".lock").write_text("")
    with pytest.raises(UserError, match="another process, .* just started"):
        RunLock(tmp_path)
    lock.release()


def test_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    RunLock(tmp_path).release()
    assert caplog.messages == [f"{tmp_path} is on a file system without locks: do not start a second process there"]


def test_folder_that_cannot_be_made_or_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run \(Not a directory\)"):
        RunLock(tmp_path / "file" / "run")
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run \(Is a directory\)"):
        RunLock(tmp_path / "run")


def test_others_can_see_whether_it_is_held(tmp_path):
    folder = tmp_path / "run"
    assert not is_held(folder)
    with RunLock(folder):
        assert is_held(folder)
        assert holder(folder).startswith(f"process {os.getpid()} on ")
        assert is_held(folder)  # looking has not taken it away
    assert not is_held(folder)
    with RunLock(folder):
        pass


KEPT = "the user's own\n"


@pytest.fixture
def own(tmp_path):
    """A file and a folder of the user's, which lie beside the folder from elsewhere."""
    (tmp_path / "home/work").mkdir(parents=True)
    path = tmp_path / "home/.bashrc"
    path.write_text(KEPT)
    yield path
    assert path.read_text() == KEPT
    assert os.listdir(tmp_path / "home/work") == []


def test_only_links_that_lead_out_count(own, tmp_path):
    folder = tmp_path / "run"
    (folder / "wandb/run-1").mkdir(parents=True)
    (folder / "wandb/latest-run").symlink_to("run-1")
    (folder / "again").symlink_to(folder / "wandb", target_is_directory=True)
    (folder / "wandb/offline-run-20261129_024450-be66b2d08824/logs").mkdir(parents=True)
    (folder / "wandb/offline-run-20261129_024450-be66b2d08824/logs/debug-core.log").symlink_to(own)
    check_links(folder, below=True)
    (tmp_path / "other").symlink_to(folder)
    check_links(tmp_path / "other", below=True)  # on another disk as a whole
    check_links(tmp_path / "absent", below=True)
    (folder / "wandb/run-1/deep").symlink_to(own.parent)
    check_links(folder)
    with pytest.raises(UserError, match="wandb/run-1/deep -> .*home"):
        check_links(folder, below=True)
    check_links(folder, below=True, folders=False)
    (folder / "wandb/run-1/gone").symlink_to(tmp_path / "home/new")  # would be made
    with pytest.raises(UserError, match="wandb/run-1/gone -> "):
        check_links(folder, below=True, folders=False)
    (folder / "eval").symlink_to(own.parent)
    with pytest.raises(UserError, match="eval/test, as a link .*home/test"):
        check_inside(folder / "eval/test", folder)
    check_inside(folder / "again/x", folder)


@pytest.mark.parametrize("name", [".lock", "attempts.jsonl", "metrics.jsonl", "checkpoints/last.pt", ".wandb.log"])
def test_a_run(name, own, tmp_path):
    place = tmp_path / "run" / name
    place.parent.mkdir(parents=True)
    place.symlink_to(own)
    with pytest.raises(UserError, match=f"run/{name} -> "):
        run_folder.held(tmp_path / "run")


def test_a_folder_of_results(own, tmp_path):
    from vidtrain.files.folders import check_writable

    (tmp_path / "out").mkdir()
    (tmp_path / "out/data").symlink_to(own.parent)  # a disk for data, say
    check_writable(tmp_path / "out")
    (tmp_path / "out/metrics.json").symlink_to(own)
    with pytest.raises(UserError, match="out/metrics.json -> "):
        check_writable(tmp_path / "out")


def test_an_index_and_its_manifests(own, tmp_path):
    from vidtrain.data.decoding.index import VideoIndex
    from vidtrain.data.manifest.files import open_manifests
    from vidtrain.data.sources.listings import Listing

    index = tmp_path / "index/mine"
    index.mkdir(parents=True)
    (tmp_path / "train.csv").write_text("a.mp4,0\nb.mp4,1\n")
    (tmp_path / "val.csv").write_text("c.mp4,0\nd.mp4,1\n")
    source = Listing(train=str(tmp_path / "train.csv"), val=str(tmp_path / "val.csv"))
    (index / "videos.sqlite").symlink_to(tmp_path / "home/new.sqlite")
    with pytest.raises(UserError, match="videos.sqlite -> "):
        VideoIndex(index / "videos.sqlite")
    assert not (tmp_path / "home/new.sqlite").exists()
    (index / "videos.sqlite").unlink()
    (index / "manifests").symlink_to(own.parent)
    os.utime(own.parent / "work", (0, 0))  # what nobody used for long is removed there
    with pytest.raises(UserError, match="manifests -> "):
        open_manifests(source, index)
    (index / "manifests").unlink()
    other = index / "manifests/of_mine"
    other.mkdir(parents=True)
    os.utime(other, (0, 0))
    assert list(open_manifests(source, index)) == ["train", "val"]
    assert other.is_dir()  # it holds no manifests


def test_cached_features(own, tmp_path):
    from vidtrain.runs.token_store import TokenStore

    store = TokenStore(tmp_path / "store", {"format": "x"}, rows=4, shape=(64,), chunk=2)
    store.folder.mkdir()
    (store.folder / "tokens.f16").symlink_to(own)
    with pytest.raises(UserError, match="tokens.f16 -> "):
        store.prepare()


def test_where_a_checkpoint_has_its_dataset_made(tmp_path, monkeypatch):
    from composing import config_of

    from vidtrain.build.data import check_made_here

    monkeypatch.chdir(tmp_path)
    (tmp_path / "made/motion").mkdir(parents=True)
    (tmp_path / "made/motion/dataset.json").touch()
    check_made_here(config_of("train"), sets_data_root=False)  # data/motion
    check_made_here(config_of("train", f"data_root={tmp_path}/made"), sets_data_root=False)  # it is there
    check_made_here(config_of("train", f"data_root={tmp_path}/new"), sets_data_root=True)
    for said, cfg in (
        (False, config_of("train", f"data_root={tmp_path}/new")),
        (True, config_of("train", f"data_root={tmp_path}/new", f"dataset.source.root={tmp_path}/other")),
        (True, config_of("train", f"data_root={tmp_path}/new", f"dataset.source.root={tmp_path}/new/../x")),
    ):
        with pytest.raises(UserError, match="motion dataset .*source.root="):
            check_made_here(cfg, said)


def test_settings_that_stand_for_any_size(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (tmp_path / "config.yaml").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="config.yaml .*aliases"):
        run_folder.stored_settings(tmp_path)
    (tmp_path / "config.yaml").write_text("a: " + "[" * 20_000 + "]" * 20_000 + "\n")
    with pytest.raises(UserError, match="config.yaml cannot be read"):
        run_folder.stored_settings(tmp_path)


def test_names_of_other_files_in_an_index_of_weights(tmp_path):
    import json

    from vidtrain.models.weights.files import read

    (tmp_path / "w").mkdir()
    for name in ("../secret.safetensors", "/secret.bin", "a/b.bin"):
        (tmp_path / "w/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
        with pytest.raises(UserError, match="names files that are not beside it"):
            read(tmp_path / "w", "w")
    for value in ([], {"weight_map": [1]}, {"weight_map": {"x": 1}}, {}):
        (tmp_path / "w/model.safetensors.index.json").write_text(json.dumps(value))
        with pytest.raises(UserError, match="model.safetensors.index.json is damaged"):
            read(tmp_path / "w", "w")


@pytest.mark.parametrize("changed", [{"root": 1}, {"settings": {"x": 1}}, {"settings": []}, {"command": None}])
def test_what_a_prepared_copy_says_of_itself(changed, tmp_path):
    import json

    from vidtrain.data.prepared.copy import PreparedCopy

    facts = {"root": "/data", "settings": {}, "command": "x", **changed}
    (tmp_path / "prepared.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="prepared.json is damaged"):
        PreparedCopy.open(tmp_path)
