"""Which samples a step reads, as literal lists and as properties over ranks, accumulation and resuming."""

import numpy as np
import pytest

from vidtrain.data.loading.samplers import (
    EvalShard,
    EvalUnits,
    MixtureSource,
    MixtureStream,
    TrainStream,
    records_by_source,
)
from vidtrain.errors import UserError


def stream(**changes):
    settings = dict(num_samples=5, batch_size=2, seed=0, start_step=0, stop_step=5)
    return TrainStream(**settings | changes)


def test_the_stream_crosses_passes_and_drops_nothing():
    batches = [[tuple(key) for key in batch] for batch in stream()]
    assert batches == [
        [(0, 0), (0, 3)],
        [(0, 2), (0, 1)],
        [(0, 4), (1, 4)],
        [(1, 3), (1, 2)],
        [(1, 0), (1, 1)],
    ]


def test_a_pass_holds_every_sample_once():
    keys = [key for batch in stream(num_samples=97, batch_size=8, stop_step=97) for key in batch]
    for epoch in range(8):
        assert sorted(key.record for key in keys if key.epoch == epoch) == list(range(97))


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 1), (1, 3), (2, 3), (6, 2)])
def test_a_step_reads_the_same_samples_however_it_is_shared(world_size, accumulation):
    whole = list(stream(num_samples=50, batch_size=12, stop_step=10))
    ranks = [
        list(
            stream(num_samples=50, batch_size=12, stop_step=10, accumulation=accumulation,
                   world_size=world_size, rank=rank)
        )
        for rank in range(world_size)
    ]  # fmt: skip
    for step in range(10):
        micro = [batches[step * accumulation + part] for part in range(accumulation) for batches in ranks]
        assert [key for batch in micro for key in batch] == whole[step]


def test_resuming_is_naming_another_start():
    assert list(stream(start_step=3)) == list(stream())[3:]
    assert len(stream(start_step=3, accumulation=2)) == 4


def test_a_batch_that_cannot_be_shared_names_one_that_can():
    with pytest.raises(UserError, match="trainer.batch_size=10 .* 4, such as 8"):
        stream(batch_size=10, world_size=2, accumulation=2)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_reads_every_video_once_at_any_world_size(world_size):
    shards = [EvalShard(10, batch_size=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    keys = [key for shard in shards for batch in shard for key in batch]
    assert sorted(key.record for key in keys) == list(range(10))
    assert all(len(list(shard)) == len(shard) for shard in shards)


def test_a_quick_look_takes_every_third_video():
    shards = [EvalShard(10, batch_size=3, rank=rank, world_size=2, every=3) for rank in range(2)]
    assert [[key.record for batch in shard for key in batch] for shard in shards] == [[0, 6], [3, 9]]


def test_a_pass_takes_four_bytes_a_sample():
    order = TrainStream(1000, 1, 3, 0, 1)._order(2)
    assert order.dtype == np.int32
    generator = np.random.default_rng(np.random.SeedSequence(3, spawn_key=(2,)))
    assert order.tolist() == generator.permutation(1000).tolist()


class Slices:
    """Stands for the records of a huge source; they hold no memory."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> int:
        return place


# 10 records at weight 3, 1000 at 1, both of 16 frames; 5 at 4, of 32
MIXED = (
    MixtureSource("few", range(10), 3.0, 16),
    MixtureSource("many", range(10, 1010), 1.0, 16),
    MixtureSource("long", np.array([2000, 1500, 1999, 1600, 1111], dtype=np.int32), 4.0, 32),
)
LONG = {2000, 1500, 1999, 1600, 1111}


def mixture(**changes):
    settings = dict(sources=MIXED, batch_size=12, seed=0, start_step=0, stop_step=10)
    return MixtureStream(**settings | changes)


class TestMixture:
    def test_first_draws(self):
        assert [[key.record for key in batch] for batch in mixture(batch_size=3, stop_step=6)] == [
            [1999, 1600, 1111],
            [1600, 1500, 2000],
            [9, 8, 3],
            [7, 8, 2],
            [2000, 2000, 2000],
            [2000, 2000, 1111],
        ]

    def test_draws_one_by_one(self):
        """The rule once more, without arrays: 16 frames up to a half, of them the few up to three quarters."""
        for step, keys in enumerate(mixture(batch_size=4, seed=9, stop_step=100)):
            rng = np.random.default_rng(np.random.SeedSequence(9, spawn_key=(step, 0)))
            short = rng.random() < 0.5
            for place, key in enumerate(keys):
                which, where = rng.random(), rng.random()
                source = (MIXED[0] if which < 0.75 else MIXED[1]) if short else MIXED[2]
                assert key == (4 * step + place, source.records[int(where * len(source.records))])

    @pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 3), (2, 3), (6, 2)])
    def test_a_step_reads_the_same_samples_however_it_is_shared(self, world_size, accumulation):
        whole = list(mixture())
        ranks = [
            list(mixture(accumulation=accumulation, world_size=world_size, rank=rank)) for rank in range(world_size)
        ]
        for step in range(10):
            micro = [batches[step * accumulation + part] for part in range(accumulation) for batches in ranks]
            assert [key for batch in micro for key in batch] == whole[step]

    def test_resuming_is_naming_another_start(self):
        assert list(mixture(start_step=3)) == list(mixture())[3:]
        assert len(mixture(start_step=3, accumulation=2)) == 14

    def test_another_seed_draws_others(self):
        assert list(mixture(seed=1)) != list(mixture())

    def test_every_step_has_one_number_of_frames(self):
        kinds = [{key.record in LONG for key in batch} for batch in mixture(stop_step=500)]
        assert {True} in kinds and {False} in kinds and {True, False} not in kinds

    def test_ranks_agree_on_the_number_of_frames(self):
        ranks = [list(mixture(world_size=3, rank=rank, stop_step=50)) for rank in range(3)]
        for parts in zip(*ranks, strict=True):
            assert len({key.record in LONG for part in parts for key in part}) == 1

    def test_sources_have_their_share(self):
        """The half of the long ones is drawn step by step, the split of the others sample by sample."""
        long, few, many = 0, 0, 0
        for key, *others in mixture(stop_step=4000, seed=5):
            if key.record in LONG:
                long += 1
                continue
            small = sum(each.record < 10 for each in (key, *others))
            few, many = few + small, many + 12 - small
        assert abs(long - 2000) < 3.3 * np.sqrt(4000 * 0.5 * 0.5)
        total = few + many
        chi_square = (few - 0.75 * total) ** 2 / (0.75 * total) + (many - 0.25 * total) ** 2 / (0.25 * total)
        assert chi_square < 10.83  # one degree of freedom, 0.1 %

    def test_records_of_a_source_are_drawn_alike(self):
        sources = [MixtureSource("a", range(20), 1.0, 16), MixtureSource("b", range(20, 60), 2.0, 16)]
        keys = [key for batch in mixture(sources=sources, batch_size=60, stop_step=1000) for key in batch]
        counts = np.bincount([key.record for key in keys], minlength=60)
        # each of 20 has a third of a twentieth, each of 40 two thirds of a fortieth: all of them 1000
        chi_square = ((counts - 1000.0) ** 2 / 1000).sum()
        assert chi_square < 98.3  # 59 degrees of freedom, 0.1 %
        assert chi_square > 29  # and not too even to be drawn

    def test_many_sources(self):
        """As a source for every class would be."""
        sources = [MixtureSource(str(k), range(k * 7, k * 7 + 7), 1.0 + k % 2, 8) for k in range(100)]
        keys = [key for batch in mixture(sources=sources, batch_size=150, stop_step=200) for key in batch]
        counts = np.bincount([key.record // 7 for key in keys], minlength=100)
        expected = 200.0 * (1 + np.arange(100) % 2)
        assert ((counts - expected) ** 2 / expected).sum() < 148.2  # 99 degrees of freedom, 0.1 %

    def test_a_record_drawn_again_has_another_key(self):
        keys = [key for batch in mixture(stop_step=200) for key in batch]
        assert len(set(keys)) == len(keys) == 2400
        assert len({key.record for key in keys}) < 1200

    def test_the_last_of_ten_million_can_be_drawn(self):
        sources = [MixtureSource("huge", Slices(10_000_000), 1.0, 16)]
        drawn = [key.record for batch in mixture(sources=sources, batch_size=1000, stop_step=20) for key in batch]
        assert 0 <= min(drawn) < 5_000 and 9_995_000 < max(drawn) < 10_000_000

    def test_an_epoch_is_as_many_samples_as_there_are_records(self):
        assert mixture().steps_per_pass == 1015 // 12
        assert mixture(batch_size=2000).steps_per_pass == 1

    @pytest.mark.parametrize(
        ("sources", "message"),
        [
            ([MixtureSource("a", range(3), 0.0, 8)], "source a: weight 0.0 must be above 0"),
            ([MixtureSource("a", range(3), float("nan"), 8)], "source a: weight nan"),
            ([MIXED[0], MixtureSource("b", range(0), 1.0, 8)], "source b holds no videos"),
            ([], "no source"),
        ],
    )
    def test_refuses_what_cannot_be_drawn_from(self, sources, message):
        with pytest.raises(UserError, match=message):
            mixture(sources=sources)

    def test_a_batch_that_cannot_be_shared_names_one_that_can(self):
        with pytest.raises(UserError, match="trainer.batch_size=10 .* 4, such as 8"):
            mixture(batch_size=10, world_size=2, accumulation=2)


class TestEvalUnits:
    def units(self, **changes):
        found = EvalUnits(**{"num_samples": 7, "batch_size": 2} | changes)
        return dict(zip(found.units, ([key.record for key in keys] for keys in found), strict=True))

    def test_they_are_cut_from_the_whole_split(self):
        assert self.units() == {0: [0, 1], 1: [2, 3], 2: [4, 5], 3: [6]}
        assert self.units(every=3) == {0: [0, 3], 1: [6]}
        assert EvalUnits(7, 2).total == len(EvalUnits(7, 2)) == 4

    @pytest.mark.parametrize("world_size", [1, 2, 3, 5])
    @pytest.mark.parametrize("done", [frozenset(), frozenset({0, 2})])
    def test_what_is_not_done_is_dealt_to_the_ranks_and_stays_as_it_is(self, world_size, done):
        shares = [self.units(rank=rank, world_size=world_size, done=done) for rank in range(world_size)]
        assert sum(map(len, shares)) == 4 - len(done)
        together = {unit: keys for share in shares for unit, keys in share.items()}
        assert together == {unit: keys for unit, keys in self.units().items() if unit not in done}


def test_records_by_source():
    together, apart, none = records_by_source(np.array([1, 0, 0, 0, 1], dtype=np.uint16), 3)
    assert together.tolist() == [1, 2, 3]
    assert apart.tolist() == [0, 4] and apart.dtype == np.int32
    assert len(none) == 0
