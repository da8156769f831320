"""One run from files, tar files, HTTP and S3: the same bits, also where the store fails now and then."""

import numpy as np
import pytest
import torch
from composing import config_of
from small_run import small
from store_server import serving, serving_s3

from vidtrain.data.decoding.decoder import write_video
from vidtrain.data.stores import objects
from vidtrain.errors import UserError
from vidtrain.prepare import prepare
from vidtrain.train import train
from vidtrain.training import checkpoint

RUN = [text for text in small("trainer.epochs=2", "trainer.batch_size=4", "logger=none") if text[0] != "+"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """videos/ in class folders, shards/ of about two videos each, and listings/ of what lies in videos/."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 1), ("test", 1)):
        rows = ["path,label"]
        for name in ("jump", "run"):
            for number in range(count):
                path = root / "videos" / split / name / f"{number} {name}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                pictures = (rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(24))
                write_video(path, pictures, np.arange(24) / 25)
                rows.append(f"{split}/{name}/{path.name},{name}")
        (root / "videos" / f"{split}.csv").write_text("\n".join(rows) + "\n")
    prepare(config_of("prepare", *folders(root), "shards=20KB", f"out={root}/shards", "num_workers=1"))
    return root


def folders(root) -> list[str]:
    return [
        "dataset=class_folders",
        f"dataset.source.root={root}/videos",
        f"data_root={root}",
        "dataset.name=a",
    ]


def run(root, folder, *overrides, workers=0):
    train(config_of("train", *RUN, f"data_root={root}/{folder.name}_index", f"run_dir={folder}",
                    f"trainer.num_workers={workers}", *overrides))  # fmt: skip
    return checkpoint.load(folder / "checkpoints/last.pt")


def assert_same(one, other):
    weights, theirs = one["model"], other["model"]
    assert weights.keys() == theirs.keys()
    assert all(torch.equal(weights[name], theirs[name]) for name in weights)


@pytest.mark.slow
def test_the_same_checkpoint_from_everywhere(data, tmp_path, without_pictures, monkeypatch):
    monkeypatch.setattr(objects, "FIRST_WAIT", 0.05)
    local = run(data, tmp_path / "local", "dataset=class_folders", f"dataset.source.root={data}/videos")
    shards = ["dataset=shards", f"dataset.folder={data}/shards"]
    assert_same(run(data, tmp_path / "tar", *shards, workers=2), local)
    with serving(data, latency=0.005) as store:
        store.fault = lambda number: ("503", "reset", "short")[number // 20 % 3] if number % 20 == 7 else None
        shards = ["dataset=shards", f"dataset.folder={store.url}/shards"]
        assert_same(run(data, tmp_path / "http", *shards, workers=2), local)
        listing = ["dataset=listing", f"dataset.folder={store.url}/videos"]
        assert_same(run(data, tmp_path / "listing", *listing), local)


@pytest.mark.slow
def test_s3(data, tmp_path, without_pictures, monkeypatch):
    import boto3

    local = run(data, tmp_path / "local", "dataset=class_folders", f"dataset.source.root={data}/videos")
    with serving_s3() as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "hunter2222")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter22")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="data")
        for path in (data / "shards").iterdir():
            client.upload_file(str(path), "data", f"shards/{path.name}")
        shards = ["dataset=shards", "dataset.folder=s3://data/shards"]
        assert_same(run(data, tmp_path / "s3", *shards, workers=2), local)
    for path in [*(tmp_path / "s3").rglob("*"), *(data / "s3_index").rglob("*")]:
        assert path.is_dir() or b"hunter22" not in path.read_bytes(), path


@pytest.mark.parametrize(
    "dataset",
    [
        ["dataset=shards", "dataset.folder='https://me:hunter22@host/shards'"],
        ["dataset=listing", "dataset.source.train='https://host/train.csv?X-Amz-Signature=hunter22'"],
        [
            "dataset=unlabeled",
            "dataset.source.path='https://host/a.mp4?token=hunter22'",
            "objective=videomae",
        ],
    ],
)
def test_secrets_in_urls_are_refused(dataset, tmp_path, capfd):
    with pytest.raises(UserError) as error:
        train(config_of("train", *RUN, f"data_root={tmp_path}", f"run_dir={tmp_path}/run", *dataset))
    assert "hunter22" not in str(error.value) + "".join(capfd.readouterr())
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"hunter22" not in path.read_bytes(), path
