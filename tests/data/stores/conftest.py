"""A store of videos, and settings under which tests of faults take little time."""

from pathlib import Path

import numpy as np
import pytest
from store_server import serving, serving_s3

from vidtrain.data.decoding.decoder import write_video
from vidtrain.data.stores import files, objects


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """Nothing is known of stores at first, and waits are short."""
    monkeypatch.setattr(objects, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(objects, "REQUEST_SECONDS", 2.0)
    monkeypatch.setattr(objects, "FAILURE_SECONDS", 0.0)
    for known in (objects._looks, objects._without_ranges, files._last):
        known.clear()


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """cat/a.mp4 and so on: eight videos of 64 textured frames of 96 x 64 in two folders, and one with an odd name."""
    root = tmp_path_factory.mktemp("store")
    for number, name in enumerate("abcdefgh"):
        folder = root / ("cat" if number % 2 else "dog")
        folder.mkdir(exist_ok=True)
        write_textured(folder / f"{name}.mp4", number)
    write_textured(root / "dog" / "ö 1#2?x=3%41.mp4", 9)
    return root


def write_textured(path: Path, number: int, frames: int = 64) -> None:
    rng = np.random.default_rng(number)
    noise = rng.integers(0, 256, (64 + frames, 96 + frames, 3), dtype=np.uint8)
    pictures = (np.ascontiguousarray(noise[i : 64 + i, i : 96 + i]) for i in range(frames))
    write_video(path, pictures, np.arange(frames) / 25)


@pytest.fixture
def store(videos):
    with serving(videos) as http:
        yield http


@pytest.fixture
def s3(monkeypatch):
    """A client of an S3 server with an empty bucket, videos, that the variables of the environment name."""
    import boto3

    with serving_s3() as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter22")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="videos")
        yield client
