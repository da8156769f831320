"""Which samples a step reads, as literal lists and as properties over ranks, accumulation and resuming."""

import pytest

from vidtrain.data.samplers import EvalShard, TrainStream
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
        assert sorted(key.index for key in keys if key.epoch == epoch) == list(range(97))


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
    with pytest.raises(UserError, match="trainer.batch_size=10 .* multiple of 4, such as 8"):
        stream(batch_size=10, world_size=2, accumulation=2)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_reads_every_video_once_at_any_world_size(world_size):
    shards = [EvalShard(10, batch_size=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    keys = [key for shard in shards for batch in shard for key in batch]
    assert sorted(key.index for key in keys) == list(range(10))
    assert all(len(list(shard)) == len(shard) for shard in shards)


def test_a_quick_look_takes_every_third_video():
    shards = [EvalShard(10, batch_size=3, rank=rank, world_size=2, every=3) for rank in range(2)]
    assert [[key.index for batch in shard for key in batch] for shard in shards] == [[0, 6], [3, 9]]
