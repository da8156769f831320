"""Clipping of gradients, and the optimizers of timm: they learn, resume, and take their rates from the groups."""

import pytest
import torch
from torch import nn

from vidtrain.errors import UserError
from vidtrain.training import checkpoint
from vidtrain.training.optimizers import clip_gradients, set_rates, timm_optimizer
from vidtrain.training.schedules import Constant, in_steps

STEADY = in_steps(Constant(), 1, 1)


@pytest.mark.parametrize(
    ("bound", "by", "expected"),
    [
        (None, "norm", [3.0, -4.0, 12.0]),
        (None, "value", [3.0, -4.0, 12.0]),
        (6.5, "norm", [1.5, -2.0, 6.0]),
        (6.5, "value", [3.0, -4.0, 6.5]),
        (20.0, "norm", [3.0, -4.0, 12.0]),
    ],
)
def test_gradients_are_clipped_and_measured(bound, by, expected):
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, -4.0]), torch.tensor([12.0])
    assert clip_gradients(parameters, bound, by).item() == 13
    found = [*parameters[0].grad.tolist(), *parameters[1].grad.tolist()]
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_loop_clips_as_it_is_told(run_loop):
    """With SGD of rate 1 and no momentum, a step is at most the bound."""

    def sgd(groups):
        return torch.optim.SGD(groups, lr=1.0)

    short = run_loop("value", epochs=1, optimizer=sgd, clip_grad=1e-4, clip_grad_by="value")
    norm = run_loop("norm", epochs=1, optimizer=sgd, clip_grad=1e-4)
    free = run_loop("free", epochs=1, optimizer=sgd, clip_grad=None)
    start = run_loop("start", epochs=1, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0))
    moved = [
        torch.cat(
            [
                (each.last["model"][name] - tensor).flatten()
                for name, tensor in start.model.state_dict().items()
                if tensor.is_floating_point() and "running" not in name
            ]
        )
        for each in (short, norm, free)
    ]
    # 4 steps
    assert moved[0].abs().max() == pytest.approx(4e-4, rel=1e-3)
    assert moved[1].norm() <= 4.01e-4 < moved[0].norm()
    assert moved[2].abs().max() > 1e-2


class Toy(nn.Module):
    """Two matrices, a bias and a norm, with groups as the loop makes them; the second half at a fifth of the rate."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 4))

    def groups(self) -> list[dict]:
        parts = [("encoder", self.net[:2], 0.2), ("head", self.net[3:], 1.0)]
        return [
            {"name": name, "params": list(part.parameters()), "lr_scale": scale, "wd_scale": 1.0}
            for name, part, scale in parts
        ]

    def train_steps(self, optimizer, first: int, last: int) -> float:
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(64, 16, generator=generator)
            set_rates(optimizer, STEADY, STEADY, step + 1, last)
            loss = nn.functional.cross_entropy(self.net(x), x[:, :4].argmax(-1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()


NAMES = {"lion": 3e-3, "lamb": 2e-2, "adan": 1e-2, "muon": 2e-2, "nadamw": 1e-2, "sgd": 0.3}


@pytest.mark.parametrize("name", NAMES)
def test_optimizers_of_timm_learn(name):
    """From ln 4 = 1.39."""
    toy = Toy()
    assert toy.train_steps(timm_optimizer(toy.groups(), name, NAMES[name], 0.01), 0, 100) < 0.7


@pytest.mark.parametrize("name", NAMES)
def test_optimizers_of_timm_resume_with_the_same_bits(name, tmp_path):
    alone = Toy()
    alone.train_steps(timm_optimizer(alone.groups(), name, NAMES[name], 0.01), 0, 8)
    toy = Toy()
    optimizer = timm_optimizer(toy.groups(), name, NAMES[name], 0.01)
    toy.train_steps(optimizer, 0, 5)
    payload = {"model": toy.state_dict(), "optimizer": optimizer.state_dict()}
    checkpoint.save(payload, tmp_path / "last.pt")
    again, found = Toy(), checkpoint.load(tmp_path / "last.pt")
    again.load_state_dict(found["model"])
    optimizer = timm_optimizer(again.groups(), name, NAMES[name], 0.01)
    optimizer.load_state_dict(found["optimizer"])
    again.train_steps(optimizer, 5, 8)
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in alone.state_dict().items())


@pytest.mark.parametrize("name", ["lion", "lionc", "adan", "muon", "lamb"])
def test_rates_are_scaled_once(name):
    """A group's scale does what the same rate does: the steps of a group at 0.2 x 1e-2 are those at 2e-3.

    The "c" of lionc weighs decay by the highest rate, which must be the group's.
    """
    weights = []
    for lr, scale in ((1e-2, 0.2), (2e-3, 1.0)):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(8, 8))
        group = {"name": "encoder", "params": [weight], "lr_scale": scale, "wd_scale": 1.0}
        optimizer = timm_optimizer([group], name, lr, 0.5)
        for step in range(3):
            set_rates(optimizer, in_steps(Constant(warmup="2it"), 3, 3), STEADY, step + 1, 3)
            weight.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        weights.append(weight.detach())
    torch.testing.assert_close(weights[0], weights[1])


def test_decay_of_a_group_follows_its_scale():
    """A group of bias and norm, whose scale is 0, is not decayed."""
    weight = nn.Parameter(torch.ones(4, 4))
    group = {"name": "encoder.no_decay", "params": [weight], "lr_scale": 1.0, "wd_scale": 0.0}
    optimizer = timm_optimizer([group], "lion", 1e-2, 0.5)
    set_rates(optimizer, STEADY, STEADY, 1, 1)
    weight.grad = torch.zeros(4, 4)
    optimizer.step()
    assert torch.equal(weight, torch.ones(4, 4))


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("lionn", {}, "name=lionn is not an optimizer of timm; choose one of lion"),
        ("lion", {"momentum": 0.9}, "options.momentum: lion takes betas, caution"),
        ("lion", {"lr": 1.0}, "options.lr: lion takes betas"),
        ("adahessian", {}, "needs second derivatives"),
        ("fusedadam", {}, "name=fusedadam: "),
    ],
)
def test_faults(name, options, why):
    with pytest.raises(UserError, match=why):
        timm_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}], name, 1e-3, options=options)


def test_options_reach_the_optimizer():
    groups = [{"params": [nn.Parameter(torch.zeros(1))]}]
    optimizer = timm_optimizer(groups, "lion", 1e-3, 0.1, {"betas": [0.8, 0.9], "caution": True})
    assert optimizer.defaults["betas"] == [0.8, 0.9] and optimizer.defaults["caution"]
    assert timm_optimizer(groups, "sgd", 0.1).defaults["momentum"] == 0.9
    assert timm_optimizer(groups, "muon", 0.1).defaults["momentum"] == 0.95
