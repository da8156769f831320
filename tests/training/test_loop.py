"""How a step is made: how often the host waits for the device, what a loss that is not finite leaves behind."""

import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from vidtrain.errors import DivergedError, UserError
from vidtrain.training import loop
from vidtrain.training.losses import Classification, ClassSums, CrossEntropy, HeadOutputs
from vidtrain.training.phases import TrainState
from vidtrain.training.run import HeadGridSettings, PhaseSettings

READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__")


@pytest.mark.parametrize("phase", [PhaseSettings(), "grid"])
def test_the_host_waits_for_the_device_once_a_step(run_loop, monkeypatch, phase):
    """Counted on a CPU: each of our lines that reads a tensor's values would wait on a GPU."""
    reads = Counter()
    inside = False

    def counted(name):
        original = getattr(torch.Tensor, name)

        def read(self, *args, **kwargs):
            caller = sys._getframe(1)
            if inside and "vidtrain" in caller.f_code.co_filename:
                reads[f"{caller.f_code.co_name}: {name}"] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, read)

    train_step = loop.train_step

    def step(*args):
        nonlocal inside
        inside = True
        result = train_step(*args)
        inside = False
        return result

    monkeypatch.setattr(loop, "train_step", step)
    for name in READS:
        counted(name)
    if phase == "grid":
        phase = PhaseSettings(encoder_blocks=0, heads=HeadGridSettings([0.1, 0.2], [0.0, 0.01]))
    found = run_loop(epochs=1, accumulation=3, phases={"only": phase})
    assert found.state.total_step == 4
    assert reads == {"train_step: tolist": 4}


class NanAt(CrossEntropy):
    """A loss that is not finite in its n-th call."""

    def __init__(self, call: int):
        super().__init__()
        object.__setattr__(self, "left", [call])

    def __call__(self, logits, targets, class_weights=None):
        self.left[0] -= 1
        loss = super().__call__(logits, targets, class_weights)
        return loss * float("nan") if self.left[0] == 0 else loss


def test_a_loss_that_is_not_finite_ends_the_run_before_the_weights_move(run_loop, monkeypatch):
    moved = []
    monkeypatch.setattr("vidtrain.training.optimizers.OptimizerSet.step", lambda self: moved.append(1))
    # the first call is the preflight's; the second micro-batch of the second step is the fifth
    with pytest.raises(DivergedError, match=r"nan at step 2, on these files:\n  a.mp4"):
        run_loop(epochs=1, accumulation=2, loss=NanAt(5))
    assert len(moved) == 1


@dataclass(frozen=True)
class WithPenalty(Classification):
    def __call__(self, clip_logits, targets):
        output = super().__call__(clip_logits, targets)
        penalty = output.logits.square().mean(dim=(1, 2))
        return HeadOutputs(output.logits, output.losses + 10 * penalty, {"penalty": penalty})


@pytest.mark.parametrize("heads", [None, HeadGridSettings(lr=[0.1, 0.01], weight_decay=[0.0])])
def test_terms_of_the_loss_are_logged_by_name(run_loop, monkeypatch, heads):
    phases = {"full": PhaseSettings(encoder_blocks=0, heads=heads)}
    plain = run_loop("plain", epochs=1, accumulation=2, phases=phases).rows[0]
    monkeypatch.setitem(run_loop.__globals__, "Classification", WithPenalty)
    row = run_loop(epochs=1, accumulation=2, phases=phases).rows[0]
    assert row["train/penalty"] > 0
    assert row["train/step_loss"] == pytest.approx(plain["train/step_loss"] + 10 * row["train/penalty"])
    assert "train/penalty" not in plain


class OwnForHead(torch.optim.Optimizer):
    """SGD with its own peak rate for the head, AdamW for the encoder."""

    def __init__(self, groups, lr=0.01, weight_decay=0.0, head_lr=0.1):
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        head = [group for group in self.param_groups if group["name"].startswith("head")]
        rest = [group for group in self.param_groups if group not in head]
        for group in head:
            group["lr_scale"] *= head_lr / lr
        self.parts = [torch.optim.SGD(head, lr=lr, momentum=0.9), torch.optim.AdamW(rest, lr=lr)]
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None):
        for part in self.parts:
            part.step()

    def state_dict(self):
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict):
        for part, stored in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(stored)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def test_an_optimizer_of_several_steps_each_part_and_survives_a_resume(run_loop):
    whole = run_loop("whole", optimizer=OwnForHead)
    assert (whole.rows[0]["lr/head"], whole.rows[0]["lr/encoder"]) == (pytest.approx(0.1), 0.01)
    assert run_loop("again", stop_after=5, optimizer=OwnForHead) is None
    again = run_loop("again", optimizer=OwnForHead)
    assert again.state.total_step == whole.state.total_step == 12
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_sums_leave_out_a_head_that_has_diverged():
    sums = ClassSums.of_classes(3, False, torch.device("cpu"))
    logits = torch.eye(3)[None].repeat(2, 1, 1)
    sums.add(torch.tensor([0.5, float("inf")]), logits, torch.tensor([0, 1, 1]))
    assert (sums.loss.item(), sums.samples.item()) == (1.5, 3)
    assert sums.counts.tolist() == [[1, 1, 0], [1, 2, 0], [1, 1, 1]]


def test_a_state_of_before_its_numbers_were_renamed():
    stored = {"phase": 1, "step": 2, "total_step": 9, "best": 0.5, "best_step": 4, "stale": 3, "due": True}
    state = TrainState.load({**stored, "loss": 1.0, "seconds": 2.0})
    assert (state.evals_since_best, state.eval_pending, state.total_step) == (3, True, 9)


STARTED_AT = 2.0**26  # so large a scale that the first steps overflow


GRID = PhaseSettings(encoder_blocks=0, heads=HeadGridSettings([0.1, 0.2], [0.0]))


@pytest.mark.parametrize("phases", [None, {"grid": GRID}])
def test_steps_that_fp16_skips_are_counted_and_the_scale_is_logged(run_loop, monkeypatch, phases):
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=STARTED_AT))
    made = []

    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            made.append(1)
            return super().step(closure)

    def sgd(groups, lr=0.1, weight_decay=0.0):
        return Counting(groups, lr=lr, weight_decay=weight_decay)

    settings = {"precision": "fp16", "optimizer": sgd, "phases": phases}
    whole = run_loop("whole", **settings)
    heads = 2 if phases else 1
    skipped = [row["train/skipped_steps"] for row in whole.rows if "train/skipped_steps" in row]
    scales = [row["train/loss_scale"] for row in whole.rows if "train/loss_scale" in row]
    assert len(skipped) == 3 and sum(skipped) == 12 * heads - len(made) > 2 * heads
    assert scales[-1] == STARTED_AT / 2 ** (sum(skipped) // heads)
    ends = [line for line in whole.said if "train loss" in line]
    assert ends[0].endswith(f"; fp16: {skipped[0]} steps skipped, loss scale {scales[0]:g}")

    assert run_loop("again", stop_after=3, **settings) is None  # saved after two steps, in the first epoch
    again = run_loop("again", **settings)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    for key, expected in (("train/skipped_steps", skipped), ("train/loss_scale", scales)):
        assert [row[key] for row in again.rows if key in row] == expected


def test_other_precisions_have_no_scale(run_loop):
    found = run_loop(epochs=1)
    assert not any("train/loss_scale" in row or "train/skipped_steps" in row for row in found.rows)
    assert not any("fp16" in line for line in found.said)
    share = {name: tensor for name, tensor in found.last["sums"][0].items() if name != "skipped"}
    sums = ClassSums.of_classes(3, False, torch.device("cpu"))
    sums.restore([share], 0, 1)  # of before they were counted
    assert sums.skipped == 0


def test_a_checkpoint_beyond_the_end_of_its_phase(run_loop):
    """As of a run whose training data were fewer when it was resumed, and of before that was noticed."""
    run_loop(epochs=3, stop_after=6)
    with pytest.raises(UserError, match="step 6 of phase full, but the phase has only 4 steps"):
        run_loop(epochs=1)
