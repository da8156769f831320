"""Tensors that cross from one process to another."""

import multiprocessing
import os
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from vidtrain.data.loading import workers as transfer


class Parcel(NamedTuple):
    big: Tensor
    small: Tensor
    words: list[str]
    nothing: Tensor | None
    other: Tensor


def parcel(seed: int = 0) -> Parcel:
    rng = torch.Generator().manual_seed(seed)
    big = torch.randint(256, (40, 30, 50), generator=rng, dtype=torch.uint8)
    return Parcel(big.transpose(0, 2), torch.arange(3), ["a", "b"], None, torch.rand(5000, generator=rng))


@pytest.fixture
def ends():
    ours, theirs = multiprocessing.Pipe()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_from_another_process(ends):
    ours, theirs = ends

    def serve():
        torch.set_num_threads(1)  # a fork that computes on several waits for threads that it does not have
        for seed in range(3):
            transfer.send(theirs, parcel(seed))

    process = multiprocessing.get_context("fork").Process(target=serve)
    process.start()
    process.join(20)
    for seed in range(3):  # after the sender has gone
        found, expected = transfer.receive(ours), parcel(seed)
        assert type(found) is Parcel and found.words == ["a", "b"] and found.nothing is None
        for x, y in zip(found, expected, strict=True):
            assert not isinstance(x, Tensor) or (torch.equal(x, y) and x.dtype == y.dtype)


def test_what_arrives_is_the_receivers_own(ends):
    sent = parcel()
    transfer.send(ends[1], sent)
    found = transfer.receive(ends[0])
    for tensor in (found.big, found.small, found.other):
        tensor.zero_()
    assert sent.big.any() and sent.small.any() and sent.other.any()


def test_no_file_stays_open(ends):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        transfer.send(ends[1], parcel())
        assert len(os.listdir("/proc/self/fd")) == before
        found = transfer.receive(ends[0])
        assert len(os.listdir("/proc/self/fd")) == before + 2
        del found
        assert len(os.listdir("/proc/self/fd")) == before


def test_without_memfd(ends, monkeypatch):
    """As on other systems than Linux."""
    monkeypatch.delattr(os, "memfd_create")
    transfer.send(ends[1], parcel())
    assert torch.equal(transfer.receive(ends[0]).big, parcel().big)


def test_empty(ends):
    transfer.send(ends[1], Parcel(torch.empty(0, dtype=torch.uint8), torch.empty(0, 3), [], None, torch.empty(0)))
    found = transfer.receive(ends[0])
    assert (found.big.shape, found.big.dtype, found.small.shape) == ((0,), torch.uint8, (0, 3))


def test_a_sender_that_ends_within_a_word(ends):
    ours, theirs = ends
    os.write(theirs.fileno(), (1000).to_bytes(4, "big") + b"half")
    theirs.close()
    with pytest.raises((EOFError, OSError)):
        transfer.receive(ours)
    ours.close()


def test_a_sender_that_ends_before_the_memory(ends, monkeypatch):
    ours, theirs = ends
    monkeypatch.setattr(transfer, "send_handle", lambda *_: None)
    transfer.send(theirs, parcel())
    theirs.close()
    with pytest.raises((EOFError, OSError)):
        transfer.receive(ours)
