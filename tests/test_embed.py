"""The programs for embeddings and labels on generated videos: what they leave, what they refuse."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from composing import config_of
from fork_server import run_program
from small_run import small

from vidtrain import embed, labels
from vidtrain.app.launch import find_faults
from vidtrain.build import data as build_data
from vidtrain.build import parts as build
from vidtrain.build.checkpoint_loader import open_trained
from vidtrain.config.renames import migrate
from vidtrain.embeddings.store import PROGRESS, Embeddings, Progress
from vidtrain.errors import UserError
from vidtrain.models.classifier import encode
from vidtrain.train import train
from vidtrain.training.distributed import Ranks

pytestmark = [pytest.mark.usefixtures("without_pictures"), pytest.mark.slow]
SMALL = small(
    "clip.eval_clips=2",
    "logger=none",
    "trainer.epochs=1",
    "trainer.eval_batch_size=4",
    "export.formats=[onnx]",
    train=6,
    frames=32,
)


def embedded(*overrides):
    embed.embed(config_of("embed", "num_workers=0", *overrides))


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(config_of("train", *SMALL, f"data_root={folder / 'data'}", f"run_dir={folder / 'run'}"))
    return folder / "run"


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("embeddings")
    embedded(
        f"checkpoint={run}",
        f"out={out}",
        "tokens=true",
        "formats=[parquet,fiftyone,label_studio]",
        "near_duplicates=0.5",
    )
    return out


def test_vectors_are_means_of_the_encoders_tokens(run, made):
    opened = open_trained(run / "checkpoints/best.pt", trust_targets=False)
    cfg, ranks = migrate(opened.config, "it"), Ranks(torch.device("cpu"))
    model = opened.model(cfg, ranks).eval()
    manifest = build.instantiate_component(cfg.dataset.source).manifests()["test"]
    reading = build_data.Reading(build_data.VideoIndex(None), None)
    with torch.no_grad():
        tokens = torch.cat([
            encode(model.encoder, opened.transform(cfg, model, ranks.device)(batch.clips))
            for batch in build_data.eval_data(cfg, "test", manifest, reading, ranks).loader
        ])  # fmt: skip
    embeddings = Embeddings.open(str(made))
    rows = embeddings.of_split("test")
    assert embeddings.paths[rows].tolist() == list(manifest.paths)
    assert np.abs(embeddings.vectors[rows] - tokens.mean(dim=(1, 2)).numpy()).max() < 1e-5
    assert np.array_equal(embeddings.labels[rows], manifest.labels) and len(embeddings.classes) == 10
    stored = np.load(made / "tokens.npy", mmap_mode="r")
    assert len(stored) == len(embeddings) == 80 and np.abs(stored[rows] - tokens.numpy()).max() < 1e-2
    assert embeddings.encoder["learned_from"]


def test_everything_is_left(made):
    assert len(list((made / "pictures").glob("*.webp"))) == 80
    assert len(rows_of(made / "neighbors.csv")) == 80 * 5
    assert all(row["split"] != row["other_split"] for row in rows_of(made / "near_duplicates.csv"))
    assert (made / "fiftyone/samples.json").is_file() and (made / "label_studio/tasks.json").is_file()
    assert (made / "parquet/embeddings.parquet").is_file() and not (made / PROGRESS).exists()
    assert "<circle" in (made / "report.html").read_text()


def test_what_was_killed_goes_on_where_it_was(run, made, tmp_path, monkeypatch, capsys):
    command = [f"checkpoint={run}", f"out={tmp_path}", "tokens=true"]
    add = Progress.add

    def killed(progress, split, video, vector):
        if len(progress.rows) == 70:
            raise KeyboardInterrupt
        add(progress, split, video, vector)

    monkeypatch.setattr(Progress, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        embedded(*command)
    added = []
    monkeypatch.setattr(Progress, "add", lambda *row: (added.append(row[1:3]), add(*row)))
    embedded(*command)
    assert len(added) == 10 and "an interrupted call already embedded 70 videos" in capsys.readouterr().out
    again, whole = Embeddings.open(str(tmp_path)), Embeddings.open(str(made))
    assert np.array_equal(again.paths, whole.paths) and np.array_equal(again.splits, whole.splits)
    assert np.abs(again.vectors - whole.vectors).max() < 1e-6
    assert np.abs(np.load(tmp_path / "tokens.npy") - np.load(made / "tokens.npy")).max() < 1e-2
    for name in ("000003.webp", "000069.webp", "000079.webp"):
        assert (tmp_path / "pictures" / name).read_bytes() == (made / "pictures" / name).read_bytes()


def test_parquet_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(embed, "find_spec", lambda name: None)
    found = find_faults("embed", ["checkpoint=x", "formats=[parquet]"], embed.check)
    assert any(key == "formats" and "uv sync --extra parquet" in why for _, key, why in found)


def test_a_video_finds_itself_among_the_others(run, made, tmp_path):
    path = Embeddings.open(str(made)).paths[17]
    embedded(f"checkpoint={run}", f"videos=[{path}]", f"search={made}", f"out={tmp_path}", "near_duplicates=0.9999")
    first = rows_of(tmp_path / "neighbors.csv")[0]
    assert first["neighbor"] == path and float(first["cosine"]) > 0.99999
    assert rows_of(tmp_path / "near_duplicates.csv")[0]["other"] == path
    alone = Embeddings.open(str(tmp_path))
    assert alone.splits.tolist() == ["videos"] and alone.labels.tolist() == [-1] and not len(alone.classes)
    with pytest.raises(UserError, match="holds vectors of other clips"):
        embedded(f"checkpoint={run}", f"videos=[{path}]", f"search={made}", f"out={tmp_path}", "eval_clips=1")


def test_labels_are_ranked_and_listed(made, tmp_path):
    done = run_program("labels", "errors", str(made), "folds=3", cwd=tmp_path)
    assert done.returncode == 0 and "was trained on labels" in done.stdout, done.stdout
    rows = rows_of(made / "label_errors/suspects.csv")
    assert len(rows) == 60 and rows[0]["label"] != rows[0]["suggested"]
    assert (made / "label_errors/report.html").read_text().count("film card") == 60


def test_the_pool_is_without_what_is_labeled(made, tmp_path):
    embeddings = Embeddings.open(str(made))
    renamed = np.array([f"{path}.copy" if row % 2 else path for row, path in enumerate(embeddings.paths.tolist())])
    replace(embeddings, paths=renamed).save(tmp_path / "pool.npz")
    labels.labels(config_of("labels", "action=next", f"embeddings={made}", f"pool={tmp_path / 'pool.npz'}", "count=7"))
    listed = rows_of(made / "label_next/to_label.csv")
    assert len(listed) == 7 and all(row["path"].endswith(".copy") for row in listed)


@pytest.mark.parametrize(
    "program, overrides, words",
    [
        ("embed", ["checkpoint=null"], "checkpoint: give either checkpoint=RUN or pretrained=WEIGHTS"),
        ("embed", ["pretrained=x"], "model: must be chosen"),
        ("embed", ["pretrained=x", "model=vit3d_tiny"], "videos: must be given, or a dataset=OPTION"),
        ("embed", ["checkpoint=nowhere"], "checkpoint: nowhere: there is no such file"),
        ("embed", ["formats=[coco]"], "formats: coco is unknown"),
        ("embed", ["videos=3", "pretrained=x", "model=vit3d_tiny"], "videos: 3 must be a file"),
        ("labels", [], "action: must be given"),
        ("labels", ["action=errors", "embeddings=x", "pool=y"], "pool: goes with next"),
        ("labels", ["action=next", "embeddings=x"], "pool: must be given"),
        ("labels", ["action=errors", "embeddings=x", "folds=1"], "folds: 1 must be 2 or more"),
    ],
)
def test_mistakes_are_named(program, overrides, words):
    check = {"embed": embed, "labels": labels}[program].check
    faults = [": ".join(fault[1:]) for fault in find_faults(program, overrides, check)]
    assert any(fault.startswith(words) for fault in faults), faults


def test_what_gives_no_tokens_is_refused(run, made, tmp_path):
    with pytest.raises(UserError, match=r"model\.onnx is an exported graph"):
        embedded(f"checkpoint={run / 'export/model.onnx'}", f"videos=[{Embeddings.open(str(made)).paths[0]}]")
    with pytest.raises(UserError, match=r"splits=\['held'\]"):
        embedded(f"checkpoint={run}", "splits=[held]", f"out={tmp_path}")
    with pytest.raises(UserError, match="pool=.* has no video"):
        labels.choose(config_of("labels", "action=next", f"embeddings={made}", f"pool={made}"))
