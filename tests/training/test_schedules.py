"""Schedules against literal tables, computed by hand from the formulas of V-JEPA's reference."""

import math

import pytest

from vidtrain.errors import UserError
from vidtrain.training.schedules import (
    Constant,
    Cosine,
    MultiStep,
    WarmupStableDecay,
    in_steps,
    steps,
    too_long,
)


@pytest.mark.parametrize(
    ("duration", "expected"),
    [("3ep", 60), ("0.5ep", 10), ("7it", 7), ("10%", 100), ("2.5%", 25), (" 3 ep", 60), ("0it", 0)],
)
def test_a_duration_comes_to_steps(duration, expected):
    assert steps(duration, total_steps=1000, steps_per_epoch=20) == expected


@pytest.mark.parametrize("duration", ["3", "ten epochs", "-1ep", "5 %%", 3])
def test_a_duration_without_unit_is_refused(duration):
    with pytest.raises(UserError, match="not a duration: write 3ep"):
        steps(duration, 1000, 20)


def table(schedule, total, at):
    schedule = in_steps(schedule, total, steps_per_epoch=10)
    return [round(schedule(step, total), 6) for step in at]


AT = [1, 5, 10, 11, 50, 80, 81, 90, 100]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (
            WarmupStableDecay(warmup="10%", anneal="20it", start=0.1, final=0.01),
            [0.19, 0.55, 1.0, 1.0, 1.0, 1.0, 0.9505, 0.505, 0.01],
        ),
        (
            WarmupStableDecay(warmup="1ep", anneal="2ep", start=0.0, final=0.0, shape="cosine"),
            [0.1, 0.5, 1.0, 1.0, 1.0, 1.0, 0.993844, 0.5, 0.0],
        ),
        (
            Cosine(warmup="10it", start=0.0, final=0.0),
            [0.1, 0.5, 1.0, 0.999695, 0.586824, 0.116978, 0.105995, 0.030154, 0.0],
        ),
        (
            MultiStep(milestones=["50%", "8ep"], gamma=0.1),
            [1.0, 1.0, 1.0, 1.0, 1.0, 0.1, 0.01, 0.01, 0.01],
        ),
        (Constant(warmup="10it"), [0.1, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_factors(schedule, expected):
    assert table(schedule, 100, AT) == expected


def test_rising_cosine_is_v_jepas_weight_decay():
    """final + (ref - final) (1 + cos(pi s / T)) / 2 with ref 0.04 and final 0.4, as V-JEPA pretrains."""
    schedule = in_steps(Cosine(warmup="0it", final=10.0), 300, 100)
    for step in (1, 75, 150, 299, 300):
        reference = 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * step / 300))
        assert 0.04 * schedule(step, 300) == pytest.approx(reference, rel=1e-12)


def test_cosine_agrees_with_torch():
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    ours = in_steps(Cosine(warmup="0it", final=0.1), 50, 10)
    for step in range(1, 51):
        optimizer.step()
        theirs.step()  # after s calls it stands where our step s does
        assert ours(step, 50) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)


def test_an_unknown_shape_is_refused():
    with pytest.raises(UserError, match="choose linear or cosine"):
        WarmupStableDecay(shape="sqrt")


@pytest.mark.parametrize("factor", [-1.0, float("inf"), float("nan")])
def test_a_factor_that_is_none_is_refused(factor):
    for kind, name in (
        (WarmupStableDecay, "start"),
        (Cosine, "final"),
        (MultiStep, "gamma"),
        (Constant, "start"),
    ):
        with pytest.raises(UserError, match=f"schedule {name}={factor} "):
            kind(**{name: factor})


def test_what_does_not_fit_into_a_phase():
    def words(schedule):
        return too_long(in_steps(schedule, 20, 10), 20)

    assert words(WarmupStableDecay(warmup="50%", anneal="50%")) is None
    assert words(WarmupStableDecay(warmup="1ep", anneal="15it")) == (
        "warmup (10 steps) and anneal (15 steps) are longer than the phase, which has 20 steps: its peak is never "
        "reached"
    )
    assert words(Cosine(warmup="5ep")).startswith("warmup (50 steps) are longer")
    assert words(MultiStep(milestones=("5ep",))) is None
