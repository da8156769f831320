"""Asking stores for the bytes of the next samples while others are decoded; files on disk need none of it."""

from collections import OrderedDict, deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from vidtrain.data.decoding.decoder import View, expect_views
from vidtrain.data.decoding.video import VideoInfo
from vidtrain.data.loading.samplers import SampleKey
from vidtrain.data.sampling.temporal import EmptyCut
from vidtrain.data.stores.files import RemoteFile, ask_status, in_store
from vidtrain.errors import UserError

if TYPE_CHECKING:
    from vidtrain.data.loading.dataset import VideoDataset

# What a worker has asked for and not yet decoded
MOST_CLIPS = 32
MOST_BYTES = 64 << 20


class Plan(NamedTuple):
    """What a sample is read from: the `views` of a video, their `size`, and the seeds of what is drawn later."""

    video: VideoInfo
    views: list[View]
    size: tuple[int, int]
    seeds: list[int]


class ReadAhead:
    """The samples that a process will read, in their order, and the files of those that are asked for.

    A video that no index knows yet is not asked for: it is looked at when its turn comes.
    """

    def __init__(self) -> None:
        self._expected: deque[SampleKey] = deque()
        self._asked: OrderedDict[SampleKey, tuple[Plan, RemoteFile]] = OrderedDict()

    def expect(self, dataset: "VideoDataset", keys: Sequence[SampleKey]) -> None:
        """Says which samples come behind those that are expected."""
        for key in keys:
            path = dataset.manifest.paths[key.record]
            if in_store(path):
                with suppress(UserError):  # a protocol that is not installed: reading it in its turn says so
                    ask_status(path)
                    self._expected.append(key)

    def ask(self, dataset: "VideoDataset") -> None:
        """Asks for as many of the next samples as there is room for. Never waits."""
        while self._expected and len(self._asked) < MOST_CLIPS and self._bytes() < MOST_BYTES:
            key = self._expected[0]
            record = dataset.manifest[key.record]
            if not ask_status(record.path).done():
                return
            self._expected.popleft()
            video = dataset.index.known(record.path)
            if video is None or video.packets is None:
                continue
            try:
                plan = dataset.plan(record, (dataset.seed, *key), video)
            except (EmptyCut, UserError):  # which reading it in its turn says again
                continue
            file = RemoteFile(record.path)
            expect_views(file, video, plan.views)
            self._asked[key] = plan, file

    def take(self, key: SampleKey) -> tuple[Plan, RemoteFile] | None:
        """What was asked for of a sample; None where nothing was. Those before it are not read any more."""
        if key in self._expected:
            while self._expected.popleft() != key:
                pass
            self._drop(len(self._asked))
        if key not in self._asked:
            return None
        self._drop(list(self._asked).index(key))
        return self._asked.popitem(last=False)[1]

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._asked.popitem(last=False)[1][1].close()

    def _bytes(self) -> int:
        return sum(file.size for _, file in self._asked.values())
