"""One run from files, tar files, HTTP and S3: the same bits, also where the store fails now and then."""

import csv
import json
import signal

import numpy as np
import pytest
import torch
from composing import config_of
from fork_server import server
from small_run import small
from store_server import serving, serving_s3

from vidtrain.audit import audit
from vidtrain.benchmark import benchmark
from vidtrain.data.decoding.decoder import write_video
from vidtrain.data.stores import objects
from vidtrain.errors import UserError
from vidtrain.evaluate import evaluate
from vidtrain.predict import predict
from vidtrain.prepare import prepare
from vidtrain.split import split as split_program
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


@pytest.fixture(scope="module")
def local_run(data, tmp_path_factory):
    """A run that was trained on files on disk."""
    folder = tmp_path_factory.mktemp("run") / "local"
    run(data, folder, "dataset=class_folders", f"dataset.source.root={data}/videos")
    return folder


@pytest.fixture(scope="module")
def local(local_run):
    return checkpoint.load(local_run / "checkpoints/last.pt")


@pytest.mark.slow
def test_the_same_checkpoint_from_everywhere(data, local, tmp_path, without_pictures, monkeypatch):
    monkeypatch.setattr(objects, "FIRST_WAIT", 0.05)
    shards = ["dataset=shards", f"dataset.folder={data}/shards"]
    assert_same(run(data, tmp_path / "tar", *shards, workers=2), local)
    with serving(data, latency=0.005) as store:
        store.fault = lambda number: ("503", "reset", "short")[number // 20 % 3] if number % 20 == 7 else None
        shards = ["dataset=shards", f"dataset.folder={store.url}/shards"]
        assert_same(run(data, tmp_path / "http", *shards, workers=2), local)
        listing = ["dataset=listing", f"dataset.folder={store.url}/videos"]
        assert_same(run(data, tmp_path / "listing", *listing), local)


@pytest.mark.slow
def test_s3(data, local, tmp_path, without_pictures, monkeypatch):
    import boto3

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


@pytest.fixture(scope="module")
def store(data):
    with serving(data) as store:
        yield store


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_bits(data, store, local, tmp_path, without_pictures):
    folder, shards = (
        tmp_path / "http",
        ["dataset=shards", f"dataset.folder={store.url}/shards", "trainer.save_every=1it"],
    )
    settings = [f"data_root={data}/http_index", f"run_dir={folder}", "trainer.num_workers=2", *shards]
    child = server().start("train", *RUN, *settings)
    assert child.until(lambda: (folder / "checkpoints/previous.pt").exists()), child.said
    child.kill()
    assert child.wait() == -signal.SIGKILL and not (folder / "summary.json").exists()
    assert_same(run(data, folder, *shards), local)


@pytest.mark.slow
class TestPrograms:
    """The answers for URLs are those for files."""

    @pytest.mark.parametrize("dataset", ["shards", "listing"])
    def test_evaluate(self, local_run, store, tmp_path, dataset):
        folder = f"{store.url}/{'shards' if dataset == 'shards' else 'videos'}"
        evaluate(
            config_of("evaluate", f"checkpoint={local_run}", f"dataset={dataset}", f"dataset.folder={folder}",
                      f"data_root={tmp_path}", f"out={tmp_path}/out", "num_workers=0")
        )  # fmt: skip
        with (
            open(local_run / "eval/test/predictions.csv") as ours,
            open(tmp_path / "out/predictions.csv") as file,
        ):
            expected, answers = list(csv.DictReader(ours)), list(csv.DictReader(file))
        assert len(answers) == 2
        for answer, row in zip(answers, expected, strict=True):
            assert answer.pop("path").startswith(store.url) and row.pop("path") and answer == row

    def test_predict(self, data, local_run, store, capsys):
        with open(data / "shards/test.csv") as file:
            members = [f"{store.url}/shards/{row['path']}" for row in csv.DictReader(file)]
        names = [f"test/{name}/0 {name}.mp4" for name in ("jump", "run")]
        answers = []
        for videos in (
            [str(data / "videos" / name) for name in names],
            [f"{store.url}/videos/{name.replace(' ', '%20')}" for name in names],
            [f"{store.url}/videos/test.csv"],
            members,
        ):
            videos = ", ".join(f"'{video}'" for video in videos)
            predict(
                config_of("predict", f"checkpoint={local_run}", f"videos=[{videos}]", "format=json", "num_workers=0")
            )
            answers.append(json.loads(capsys.readouterr().out)["videos"])
        texts = [json.dumps([{**video, "path": ""} for video in answer]) for answer in answers]
        assert len(answers[0]) == 2 and texts[1:] == texts[:1] * 3

    @pytest.mark.parametrize("dataset", ["shards", "listing"])
    def test_audit(self, data, store, tmp_path, dataset):
        folder = f"{store.url}/{'shards' if dataset == 'shards' else 'videos'}"
        audit(
            config_of("audit", f"dataset={dataset}", f"dataset.folder={folder}", f"data_root={tmp_path}",
                      f"out={tmp_path}/out", "num_workers=1", "max_distance=0")
        )  # fmt: skip
        summary = json.loads((tmp_path / "out/summary.json").read_text())
        with open(tmp_path / "out/files.csv") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 14 and summary["unreadable"] == []
        assert {row["num_frames"] for row in rows} == {"24"} and summary["root"].startswith(folder)

    def test_split(self, store, tmp_path):
        split_program(
            config_of("split", "source=listing", f"path={store.url}/videos/train.csv", f"out={tmp_path}",
                      "shares=[0.6,0.2,0.2]")
        )  # fmt: skip
        paths = []
        for name in ("train", "val", "test"):
            with open(tmp_path / f"{name}.csv") as file:
                paths += [row["path"] for row in csv.DictReader(file)]
        names = [f"train/{name}/{number}%20{name}.mp4" for name in ("jump", "run") for number in range(5)]
        assert sorted(paths) == [f"{store.url}/videos/{name}" for name in names]

    def test_benchmark_names_the_store(self, data, store, tmp_path):
        store.latency = 0.5
        try:
            benchmark(
                config_of("benchmark", *RUN, "dataset=shards", f"dataset.folder={store.url}/shards", "steps=2",
                          "warmup=1", f"data_root={tmp_path}", f"out={tmp_path}/out", "trainer.num_workers=1")
            )  # fmt: skip
        finally:
            store.latency = 0.0
        result = json.loads((tmp_path / "out/benchmark.json").read_text())
        assert result["verdict"]["bound"] == "store" and result["store"]["share"] > 0.5
        # one or two for each clip; those of the first clips may be made before they are counted
        assert 0.5 <= result["store"]["requests_per_clip"] <= 3


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
