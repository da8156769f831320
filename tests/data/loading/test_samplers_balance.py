"""Class-balanced draws: exact shares, every video in its turn, and the same for any ranks and any start."""

import numpy as np
import pytest

from vidtrain.data.loading.samplers import (
    ClassBalance,
    TrainStream,
    class_balance,
    class_shares,
    describe_shares,
)
from vidtrain.data.manifest.manifest import Manifest, Record, SourceInfo
from vidtrain.errors import UserError

# 16 videos of class 0, 4 of class 1, none of class 2, 1 of class 3
LABELS = np.array([0] * 7 + [3] + [0] * 9 + [1] * 4)


@pytest.mark.parametrize(
    ("balance", "expected"),
    [(0.0, [16 / 21, 4 / 21, 0, 1 / 21]), (0.5, [4 / 7, 2 / 7, 0, 1 / 7]), (1.0, [1 / 3, 1 / 3, 0, 1 / 3])],
)
def test_shares(balance, expected):
    assert ClassBalance(LABELS, 4, balance).shares.tolist() == pytest.approx(expected)


def test_a_pass_by_hand():
    """Shares 4/7, 2/7, 1/7 of 21 draws: 12, 6 and 3."""
    for number in range(4):
        order = ClassBalance(LABELS, 4, 0.5).order(seed=0, number=number)
        assert (order.dtype, len(order)) == (np.int32, 21)
        assert np.bincount(LABELS[order], minlength=4).tolist() == [12, 6, 0, 3]


@pytest.mark.parametrize("balance", [0.1, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_shares_are_kept_and_videos_take_turns(balance, seed):
    labels = np.random.default_rng(seed).zipf(1.6, 200).clip(max=30) - 1
    drawn = ClassBalance(labels, 30, balance)
    counts = np.zeros(200, dtype=int)
    for number in range(1, 8):
        counts += np.bincount(drawn.order(seed, number - 1), minlength=200)
        by_class = np.bincount(labels, weights=counts, minlength=30)
        assert np.abs(by_class - drawn.shares * 200 * number).max() < 1
        assert counts.sum() == 200 * number
        for label in np.unique(labels):
            members = counts[labels == label]
            assert members.max() - members.min() <= 1


def stream(**changes):
    settings = dict(
        num_samples=21, batch_size=6, seed=0, start_step=0, stop_step=14, balance=ClassBalance(LABELS, 4, 1.0)
    )
    return TrainStream(**settings | changes)


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 3), (3, 2)])
def test_a_step_reads_the_same_samples_however_it_is_shared(world_size, accumulation):
    whole = list(stream())
    ranks = [list(stream(accumulation=accumulation, world_size=world_size, rank=rank)) for rank in range(world_size)]
    for step in range(14):
        micro = [batches[step * accumulation + part] for part in range(accumulation) for batches in ranks]
        assert [key for batch in micro for key in batch] == whole[step]


def test_resuming_is_naming_another_start():
    assert list(stream(start_step=5)) == list(stream())[5:]


def test_a_video_that_comes_again_is_augmented_differently():
    """The only video of class 3 has a third of the draws."""
    keys = [key for batch in stream() for key in batch]
    assert len(set(keys)) == len(keys) == 84
    assert sum(key.record == 7 for key in keys) == 28


def manifest(labels, sources=(), **more) -> Manifest:
    records = [Record(f"{i}.mp4", *label, **more) if isinstance(label, tuple) else Record(f"{i}.mp4", label, "g")
               for i, label in enumerate(labels)]  # fmt: skip
    return Manifest(records, ("a", "b", "c"), sources=sources)


def test_shares_of_what_training_draws():
    plain = manifest([0, 0, 0, 1])
    assert class_shares(plain, 0.0).tolist() == [0.75, 0.25, 0]
    assert class_shares(plain, 1.0).tolist() == [0.5, 0.5, 0]
    assert describe_shares(class_shares(plain, 1.0), 1.0) == (
        "each class has 50.0% of the samples (data.class_balanced_sampling=1); no training video is of 1 class"
    )
    # videos of two labels count for both
    several = Manifest([Record("a.mp4", 0, "a", (0, 2)), Record("b.mp4", 2, "b")], ("a", "b", "c"))
    assert class_shares(several, 0.0).tolist() == [0.5, 0, 1]
    # a mixture draws its first source, all of class 0, three times as often as the second
    mixed = Manifest(
        [Record("a.mp4", 0, "a"), Record("b.mp4", 0, "b"), Record("c.mp4", 1, "c", source=1)],
        ("a", "b", "c"),
        sources=[SourceInfo("first", 3.0), SourceInfo("second", 1.0)],
    )
    assert class_shares(mixed, 0.0).tolist() == [0.75, 0.25, 0]
    with pytest.raises(UserError, match="mixture .*class_balanced_sampling=0"):
        class_balance(mixed, 0.5)
    with pytest.raises(UserError, match="several.*class_balanced_sampling=0"):
        class_balance(several, 0.5)
    with pytest.raises(UserError, match="data.class_balanced_sampling=1.5"):
        class_balance(plain, 1.5)
    assert class_balance(plain, 0.0) is None
