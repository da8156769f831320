"""A disk that fills up costs a run checkpoints, not its end; what was saved stays as it was."""

import json
import socket

import pytest
from fault_injection import difference, fill, small_disk, step_now

from vidtrain.training import checkpoint

SMALL = 50_000  # bytes: more than any log of these runs, less than any checkpoint


def failed(run) -> list[int]:
    """checkpoint/failed of every row that has it."""
    if not (run / "metrics.jsonl").exists():
        return []
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n")[:-1]]
    return [row["checkpoint/failed"] for row in rows if "checkpoint/failed" in row]


def saved_step(run) -> int:
    return checkpoint.load(run / "checkpoints/last.pt")["state"]["total_step"]


@pytest.mark.slow
def test_a_run_outlives_saves_that_fail(faults, alone, tmp_path):
    run = tmp_path / "run"
    child = faults(run)
    assert child.until(lambda: step_now(run) >= 5)
    child.limit_files(SMALL)
    assert child.until(lambda: failed(run))
    child.limit_files(-1)
    assert child.wait() == 0, child.said
    assert failed(run)[0] == 1
    assert "the run goes on and tries again with the next checkpoint (failure 1 in a row" in child.words.lower()
    assert f"the checkpoint is written, after {failed(run)[-1]} failures" in child.words
    assert difference(alone, run) is None


@pytest.mark.slow
def test_the_end_that_cannot_be_saved_is_an_error_and_is_made_up_for(faults, alone, tmp_path):
    run = tmp_path / "run"
    child = faults(run)
    assert child.until(lambda: step_now(run) >= 7)
    child.limit_files(SMALL)
    assert child.wait() == 2
    assert "Training is done at step 12, but its last checkpoint could not be saved" in child.words
    assert "(File too large)" in child.words
    assert saved_step(run) in (6, 8) and not list((run / "checkpoints").glob(".*"))
    assert not (run / "summary.json").exists()
    child = faults(run)
    assert child.wait() == 0, child.said
    assert difference(alone, run) is None


@pytest.mark.slow
def test_ranks_end_together_when_the_first_cannot_save(faults, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    run = tmp_path / "run"
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    batch = "trainer.batch_size=8"  # which ranks can share; eight steps in all
    ranks = [faults(run, batch, **place, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
    assert ranks[0].until(lambda: step_now(run) >= 5), ranks[0].said
    ranks[0].limit_files(SMALL)
    assert [rank.wait() for rank in ranks] == [2, 2]
    assert "Training is done at step 8, but its last checkpoint could not be saved" in ranks[0].words
    assert "could not write the checkpoint" in ranks[1].words


@pytest.fixture
def disk(tmp_path):
    """A file system of three megabytes."""
    with small_disk(tmp_path / "disk") as mounted:
        if not mounted:
            pytest.skip("needs to mount a tmpfs, which only root may")
        yield tmp_path / "disk"


@pytest.mark.slow
def test_rows_wait_in_memory_for_room(faults, alone, tmp_path):
    """There is room for ten bytes more of metrics.jsonl: half a row, which does not stay."""
    run = tmp_path / "run"
    child = faults(run)
    assert child.until(lambda: step_now(run) >= 5)
    child.limit_files((run / "metrics.jsonl").stat().st_size + 10)
    assert child.until(lambda: "The run goes on and tries again" in child.words)
    assert (run / "metrics.jsonl").read_bytes().endswith(b"}\n")
    child.limit_files(-1)
    assert child.wait() == 0, child.said
    assert "metrics.jsonl (there is no space for a whole row): its rows wait in memory" in child.words
    assert "no checkpoint at step 6: log rows of rank 0 are not written" in child.words
    assert "metrics.jsonl is written again, with every row that waited" in child.words
    assert failed(run)[0] == 1
    assert difference(alone, run) is None


@pytest.mark.slow
def test_a_run_outlives_a_full_disk(faults, alone, disk):
    run = disk / "run"
    child = faults(run)
    assert child.until(lambda: step_now(run) >= 5)
    fill(disk)
    assert child.until(lambda: "The run goes on and tries again" in child.words)
    (disk / "ballast").unlink()
    assert child.wait() == 0, child.said
    assert "(No space left on device)" in child.words
    assert failed(run)[0] == 1
    assert difference(alone, run) is None


@pytest.mark.slow
def test_a_run_on_a_disk_that_stays_full_ends_with_a_word_and_is_resumed(faults, alone, disk):
    run = disk / "run"
    child = faults(run)
    assert child.until(lambda: step_now(run) >= 7)
    fill(disk)
    assert child.wait() == 2
    assert "Training is done at step 12, but its last checkpoint could not be saved" in child.words
    assert "Traceback" not in child.said
    assert saved_step(run) in (6, 8)
    (disk / "ballast").unlink()
    child = faults(run)
    assert child.wait() == 0, child.said
    assert difference(alone, run) is None
