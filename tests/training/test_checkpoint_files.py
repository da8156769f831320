"""Which checkpoints there are, and that at no instant there are fewer than before."""

import os
from pathlib import Path

import pytest

from vidtrain.errors import UserError
from vidtrain.training import checkpoint
from vidtrain.training.checkpoint import put_in_place, remove_strays, resumable, step_file, step_of

CALLS = ("open", "fsync", "link", "replace", "unlink")  # of the kernel, in which saving can be cut


def save(folder: Path, step: int) -> None:
    checkpoint.save({"state": {"total_step": step}}, folder / "last.pt", folder / "previous.pt")


def steps(folder: Path) -> dict[str, int]:
    return {path.name: checkpoint.load(path)["state"]["total_step"] for path in resumable(folder)}


def saved_until(folder: Path, call: int) -> bool:
    """Saves step 3 in a process that ends at its call number `call` of the kernel; whether it came to the end."""
    child = os.fork()
    if child == 0:
        count = 0

        def ending(function):
            def called(*arguments, **named):
                nonlocal count
                count += 1
                if count == call:
                    os._exit(1)
                return function(*arguments, **named)

            return called

        for name in CALLS:
            setattr(os, name, ending(getattr(os, name)))
        try:
            save(folder, 3)
        except BaseException:
            os._exit(2)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 1)
    return status == 0


@pytest.mark.slow
def test_a_kill_at_every_call_of_saving_leaves_two_that_verify(tmp_path):
    seen = []
    for call in range(1, 100):
        folder = tmp_path / str(call)
        for step in (1, 2):
            save(folder, step)
        ended = saved_until(folder, call)
        seen.append(steps(folder))
        save(folder, 4)  # whatever it left is not in the way
        assert steps(folder) == {"last.pt": 4, "previous.pt": seen[-1]["last.pt"]}
        if ended:
            break
    before, between, after = ({"last.pt": last, "previous.pt": previous} for last, previous in ((2, 1), (3, 1), (3, 2)))
    assert all(each in (before, between, after) for each in seen)
    assert seen[0] == before and between in seen and seen[-1] == after
    assert len(seen) >= 6


def test_without_hard_links_one_stays_resumable(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(checkpoint.os, "link", refused)
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert steps(tmp_path) == {"last.pt": 3, "previous.pt": 2}


def test_after_a_damaged_one_was_set_aside_the_good_one_stays(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert checkpoint.set_aside(tmp_path / "last.pt") == tmp_path / "damaged_last.pt"
    save(tmp_path, 3)
    assert steps(tmp_path) == {"last.pt": 3, "previous.pt": 1}
    assert sorted(os.listdir(tmp_path)) == ["damaged_last.pt", "last.pt", "previous.pt"]


def test_resumable_checkpoints_come_newest_first(tmp_path):
    for name in (
        "step_0000004.pt",
        "previous.pt",
        "best.pt",
        "step_10000000.pt",
        "last.pt",
        "damaged_last.pt",
    ):
        (tmp_path / name).touch()
    names = [path.name for path in resumable(tmp_path)]
    assert names == ["last.pt", "previous.pt", "step_10000000.pt", "step_0000004.pt"]
    assert resumable(tmp_path / "absent") == []
    assert step_file(4) == "step_0000004.pt"
    assert [step_of(Path(name)) for name in ("step_0000004.pt", "step_10000000.pt", "step_x.pt")] == [
        4,
        10**7,
        -1,
    ]


def test_strays_of_killed_processes_are_removed(tmp_path):
    for name in (".last.pt.123.tmp", ".previous.pt.tmp", "last.pt"):
        (tmp_path / name).touch()
    remove_strays(tmp_path)
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_new_file_takes_the_place_of_the_old_one(tmp_path):
    (tmp_path / "new").write_text("new")
    (tmp_path / "last.pt").write_text("old")
    put_in_place(tmp_path / "new", tmp_path / "last.pt", None)
    assert (tmp_path / "last.pt").read_text() == "new" and os.listdir(tmp_path) == ["last.pt"]


def test_a_checkpoint_that_was_killed_before_its_name_is_not_read(tmp_path):
    (tmp_path / ".last.pt.1.tmp").write_bytes(b"half")
    assert resumable(tmp_path) == []
    with pytest.raises(UserError, match="is not a file"):
        checkpoint.load(tmp_path / "last.pt")
