"""Whole videos kept on this machine."""

import os
import re

import pytest
import torch

from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.stores import cache, files, objects
from vidtrain.data.stores.cache import Cache, bytes_in, use_cache
from vidtrain.errors import UserError

from .test_files import NAMES, batches


@pytest.fixture
def kept(tmp_path):
    use_cache(str(tmp_path / "cache"), "10MB")
    yield tmp_path / "cache"
    use_cache(None, "1GB")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_video_is_fetched_once(videos, store, kept, tmp_path, workers):
    paths = [f"{store.url}/{name}" for name in NAMES]
    first = batches(paths, workers, VideoIndex(tmp_path / "videos.sqlite"))
    size = sum((videos / name).stat().st_size for name in NAMES)
    assert sum(path.stat().st_size for path in kept.glob("??/*")) == size
    objects._looks.clear()
    store.requests.clear()
    again = batches(paths, workers, VideoIndex(tmp_path / "videos.sqlite"))
    assert {request.method for request in store.requests} == {"HEAD"}
    local = batches([str(videos / name) for name in NAMES])
    for one, two, other in zip(first, again, local, strict=True):
        assert torch.equal(one.clips, other.clips) and torch.equal(two.clips, other.clips)


def test_the_least_recently_used_goes_first(tmp_path):
    store = Cache(tmp_path, 10_000)
    for number in range(14):
        store.opened((f"{number}", 900, 0), lambda file: file.write(bytes(900))).close()
        for place, path in enumerate(sorted(tmp_path.glob("??/*"), key=lambda path: path.stat().st_mtime_ns)):
            os.utime(path, (1000 + place, 1000 + place))
    assert 8000 < sum(path.stat().st_size for path in tmp_path.glob("??/*")) <= 10_000
    filled = []
    store.opened(("13", 900, 0), filled.append).close()
    assert not filled
    store.opened(("0", 900, 0), lambda file: filled.append(file.write(bytes(900)))).close()
    assert filled == [900]
    assert store.opened(("large", 1001, 0), filled.append) is None


def test_a_failure_leaves_nothing(tmp_path):
    store = Cache(tmp_path, 10_000)

    def fail(file):
        file.write(b"half")
        raise objects.StoreError(5, "the store failed")

    with pytest.raises(objects.StoreError):
        store.opened(("a", 900, 0), fail)
    assert not list(tmp_path.glob("??/*"))

    def full(file):
        raise OSError(28, "No space left on device")

    assert store.opened(("a", 900, 0), full) is None


def test_old_temporary_files_go(tmp_path):
    store = Cache(tmp_path, 10_000)
    (tmp_path / "ab").mkdir()
    for name, age in ((".x.1.tmp", cache.STALE_SECONDS + 10), (".y.2.tmp", 10)):
        (tmp_path / "ab" / name).write_bytes(b"half")
        os.utime(tmp_path / "ab" / name, (os.stat(tmp_path).st_mtime - age,) * 2)
    store.opened(("a", 900, 0), lambda file: file.write(bytes(900))).close()
    assert {path.name for path in (tmp_path / "ab").iterdir() if path.name.startswith(".")} == {".y.2.tmp"}


def test_without_a_cache_nothing_is_written(store, tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    batches([f"{store.url}/{name}" for name in NAMES])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text, size", [("1GiB", 2**30), ("1.5 GB", 1_500_000_000), ("500k", 500_000), ("7", 7), ("2tib", 2**41)]
)
def test_sizes(text, size):
    assert bytes_in(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "1 PB", "1e9"])
def test_what_is_no_size(text):
    with pytest.raises(UserError, match=re.escape(repr(text))):
        bytes_in(text)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="data.cache="):
        use_cache(str(tmp_path / "file"), "1GB")
