"""Which checkpoint a run goes on from: the newest that verifies, and a word on why not another."""

import pytest
import torch
from damage import flip

from vidtrain.errors import UserError
from vidtrain.tracking.console import NullConsole
from vidtrain.training import checkpoint
from vidtrain.training.checkpoint import find_resume, load_best
from vidtrain.training.distributed import Ranks
from vidtrain.training.losses import ClassSums
from vidtrain.training.phases import TrainState

ALONE = Ranks(torch.device("cpu"))


class Said(NullConsole):
    def __init__(self):
        self.said = []

    def warn(self, text):
        self.said.append(text)


def make(folder, best=None, **steps):
    """Checkpoints by name; of step N, the weights are N."""
    for name, step in steps.items():
        state = {"total_step": step, "best": best, "best_step": 1}
        payload = {"model": {"w": torch.tensor(float(step))}, "state": state, "optimizer": None, "sums": []}
        checkpoint.save(payload, folder / f"{name}.pt")


def found(folder):
    console = Said()
    path, payload = find_resume(folder, ALONE, console)
    assert payload["model"]["w"].item() == payload["state"]["total_step"]
    return path.name, payload["state"]["total_step"], console.said


def test_nothing_there_is_nothing_to_resume(tmp_path):
    assert find_resume(tmp_path / "absent", ALONE, Said()) is None
    make(tmp_path, best=1)
    assert find_resume(tmp_path, ALONE, Said()) is None


def test_the_last_is_used_and_nothing_is_said(tmp_path):
    make(tmp_path, last=6, previous=4, step_0000004=4)
    assert found(tmp_path) == ("last.pt", 6, [])


def test_a_kill_after_one_was_kept_for_good_and_before_the_last_loses_nothing(tmp_path):
    make(tmp_path, last=6, previous=4, step_0000004=4, step_0000008=8)
    assert found(tmp_path) == ("step_0000008.pt", 8, [])


@pytest.mark.parametrize(
    "bad, expected",
    [
        (["last"], ("step_0000005.pt", 5)),
        (["last", "step_0000005"], ("previous.pt", 4)),
        (["last", "previous"], ("step_0000005.pt", 5)),
        (["last", "previous", "step_0000005"], ("step_0000002.pt", 2)),
        (["previous", "step_0000005"], ("last.pt", 6)),  # which are not even read
    ],
)
def test_the_newest_that_verifies_is_used(tmp_path, bad, expected):
    make(tmp_path, last=6, previous=4, step_0000002=2, step_0000005=5)
    for name in bad:
        flip(tmp_path / f"{name}.pt")
    name, step, said = found(tmp_path)
    assert (name, step) == expected
    if "last" in bad:
        assert said[0] == (
            f"skipped last.pt, and renamed it damaged_last.pt: checkpoint {tmp_path}/last.pt is damaged: its "
            "content does not match its checksum; copy it again"
        )
        assert said[-1] == f"resuming from {name} instead, at step {step}: the steps since are repeated"
        assert len(said) == len(bad) + 1
        assert found(tmp_path)[:2] == expected  # again, and quietly
        assert found(tmp_path)[2] == []


def test_where_none_verifies_each_is_named_and_left_where_it_is(tmp_path):
    make(tmp_path, last=6, previous=4)
    flip(tmp_path / "last.pt")
    (tmp_path / "previous.pt").write_bytes(b"")
    with pytest.raises(UserError) as error:
        find_resume(tmp_path, ALONE, Said())
    assert str(error.value) == (
        f"none of the checkpoints in {tmp_path} can be used, and a run does not start from scratch by itself:\n"
        f"  checkpoint {tmp_path}/last.pt is damaged: its content does not match its checksum; copy it again\n"
        f"  checkpoint {tmp_path}/previous.pt is truncated or not a PyTorch file\n"
        "Replace one of them with a good copy. If there is none, start a new run in another run_dir; if best.pt is "
        f"good, init_from={tmp_path}/best.pt starts from its weights"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


def test_weights_alone_are_no_place_to_resume_from(tmp_path):
    make(tmp_path, previous=4)
    checkpoint.save({"model": {}}, tmp_path / "last.pt")
    name, step, said = found(tmp_path)
    assert (name, step) == ("previous.pt", 4)
    assert "last.pt lacks state, optimizer, sums: it holds weights, but not the state to resume from" in said[0]


def test_a_lost_best_is_said_at_once(tmp_path):
    make(tmp_path, best=0.75, last=6)
    lost = "Unless a later evaluation is better than 0.7500, this run has no weights to report"
    assert found(tmp_path)[2] == [f"checkpoint {tmp_path}/best.pt does not exist. {lost}"]
    checkpoint.save({"model": {}}, tmp_path / "best.pt")
    assert found(tmp_path)[2] == []
    flip(tmp_path / "best.pt")
    (said,) = found(tmp_path)[2]
    assert said.startswith(f"checkpoint {tmp_path}/best.pt is damaged") and said.endswith(lost)


def test_only_the_weights_that_were_selected_are_reported(tmp_path):
    path, state = tmp_path / "best.pt", TrainState(best=0.75, best_step=3)
    for step in (3, 2):
        checkpoint.save({"model": {}, "state": {"best_step": step}}, path)
        if step == 3:
            assert load_best(path, state)["model"] == {}
    lost = r"The weights of step 3, which val selected \(0.7500\), are lost, so nothing is reported"
    with pytest.raises(UserError, match=rf"best.pt is of step 2. {lost}"):
        load_best(path, state)
    flip(path)
    with pytest.raises(UserError, match=rf"best.pt is damaged: .* {lost}.*evaluate checkpoint={tmp_path}/last.pt"):
        load_best(path, state)


def test_sums_of_earlier_checkpoints_go_on():
    """They held a matrix of labels by predictions; now counts of hits, labels and predictions by class."""
    device = torch.device("cpu")
    sums = ClassSums.of_classes(3, False, device)
    old = {
        "loss": torch.tensor(4.0, dtype=torch.float64),
        "samples": torch.tensor(4),
        "confusion": torch.tensor([[1, 1, 0], [0, 0, 0], [0, 0, 2]]),
        "faults": torch.tensor(1),
    }
    sums.restore([old], rank=0, world_size=1)
    assert sums.counts.tolist() == [[1, 0, 2], [2, 0, 2], [1, 1, 2]]
    logits = torch.tensor([[[9.0, 0, 0], [0, 9, 0]], [[0, 0, 9], [0, 0, 9]]])
    sums.add(torch.tensor([1.0, float("nan")]), logits, torch.tensor([0, 2]))
    assert sums.counts.tolist() == [[2, 0, 2], [3, 0, 3], [2, 2, 2]]
    assert (int(sums.samples), float(sums.loss)) == (6, 6.0)
    several = ClassSums.of_classes(1, True, device)
    several.restore([{**old, "confusion": torch.tensor([[[1, 2], [3, 4]]])}], rank=0, world_size=1)
    assert several.counts.tolist() == [[[1, 2], [3, 4]]]
