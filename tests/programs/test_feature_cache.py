"""Cached features end to end: as good as encoding anew, computed once, and never of something else."""

import csv
import os

import pytest
import torch
from clock import TIMED
from composing import config_of
from fork_server import run_program

from vidtrain.app import check
from vidtrain.data.sources.motion import Motion
from vidtrain.errors import UserError
from vidtrain.runs import frozen_encoder
from vidtrain.runs.token_store import TokenStore
from vidtrain.tracking.run_log import read_metrics
from vidtrain.train import train
from vidtrain.training import checkpoint

SMALL = [
    "dataset=listing",
    "model.encoder.embed_dim=24",
    "model.encoder.depth=2",
    "clip.size=16",
    "augmentation=standard",
    "logger=none",
    "stage=head_only",
    "trainer.epochs=2",
    "trainer.batch_size=10",
    "trainer.num_workers=0",
    "trainer.cpu_threads=1",
    "trainer.log_every=1",
]
CACHED = ["stage.head_only.cache_features=true", "stage.head_only.cache_views=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Listings of 30, 10 and 10 videos."""
    root = tmp_path_factory.mktemp("data")
    for split, manifest in Motion(root / "motion", 3, 1, 1, frames=24, size=32).manifests().items():
        rows = [(record.path, manifest.classes[record.label]) for record in manifest]
        with open(root / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *rows])
    return root


def options(data, features, *overrides):
    return [
        *SMALL,
        f"data_root={data}",
        f"dataset.folder={data}",
        f"data.features_root={features}",
        *overrides,
    ]


@pytest.fixture
def config(data, tmp_path):
    def composed(*overrides):
        return config_of("train", *options(data, tmp_path / "features", *overrides))

    return composed


def untimed(folder):
    return [{key: value for key, value in row.items() if key not in TIMED} for row in read_metrics(folder)]


def contents(features):
    return {str(path.relative_to(features)): path.read_bytes() for path in features.rglob("*.[fiu]*")}


@pytest.mark.slow
def test_it_trains_as_without_a_cache_and_encodes_once(config, tmp_path, capsys, monkeypatch):
    """With a view for each epoch only the rounding to float16 differs: 3e-6 in any loss, in a run like this."""
    train(config(f"run_dir={tmp_path}/plain"))
    train(config(f"run_dir={tmp_path}/cached", *CACHED))
    said = " ".join(capsys.readouterr().out.split())
    assert "listing-train: encoding 30 videos in 2 views, 0.0461 MB of tokens in" in said
    plain, cached = untimed(tmp_path / "plain"), untimed(tmp_path / "cached")
    assert len(plain) == len(cached)
    for row, other in zip(plain, cached, strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() & {"train/loss", "val/loss", "train/step_loss"}:
            assert row[key] == pytest.approx(other[key], abs=1e-4), key

    # again, from what is there, without the encoder
    monkeypatch.setattr(frozen_encoder, "_chunk", None)
    train(config(f"run_dir={tmp_path}/again", *CACHED))
    assert "listing-train: reading 0.0461 MB of tokens" in " ".join(capsys.readouterr().out.split())
    assert untimed(tmp_path / "again") == cached


@pytest.mark.slow
def test_it_goes_with_all_that_frozen_heads_go_with(config, tmp_path):
    """Several clips, copies and crops, attended jointly, averaged weights, workers."""
    more = [
        "clip.train_clips=2",
        "clip.repeated_augmentation=2",
        "clip.eval_clips=2",
        "augmentation.eval.crops=3",
    ]
    more += ["model.fusion=joint", "trainer.ema=0.9", "trainer.num_workers=1", "trainer.accumulation=5"]
    train(config(f"run_dir={tmp_path}/plain", *more))
    train(config(f"run_dir={tmp_path}/cached", *CACHED, *more))
    plain, cached = untimed(tmp_path / "plain"), untimed(tmp_path / "cached")
    for row, other in zip(plain, cached, strict=True):
        for key in row.keys() & {"train/loss", "val/loss", "val_ema/loss", "train/step_loss"}:
            assert row[key] == pytest.approx(other[key], abs=1e-4), key


@pytest.mark.slow
def test_differences_of_frames_and_a_head_along_time(data, tmp_path):
    chosen = [each for each in options(data, tmp_path / "features") if not each.startswith("model.encoder.")]
    chosen += ["model=timm_frames_motion", "model.encoder.backbone=test_resnet", "model.encoder.input=both"]
    chosen += ["model/head=convolution", "model.head.width=16", "clip.size=32"]
    train(config_of("train", f"run_dir={tmp_path}/plain", *chosen))
    train(config_of("train", f"run_dir={tmp_path}/cached", *CACHED, *chosen))
    plain, cached = untimed(tmp_path / "plain"), untimed(tmp_path / "cached")
    for row, other in zip(plain, cached, strict=True):
        for key in row.keys() & {"train/loss", "val/loss", "train/step_loss"}:
            assert row[key] == pytest.approx(other[key], abs=1e-2), key


@pytest.mark.slow
def test_killed_while_encoding_it_goes_on_and_ends_with_the_same_bits(config, tmp_path, monkeypatch):
    grid = [
        "stage=head_grid",
        "stage.head_grid.heads.lr=[1e-2,1e-3]",
        "stage.head_grid.heads.weight_decay=[0]",
    ]
    grid += [each.replace("head_only", "head_grid") for each in CACHED]
    train(config(f"run_dir={tmp_path}/alone", f"data.features_root={tmp_path}/one", *grid))
    write, written = TokenStore.write, []

    def killed(self, chunk, tokens, read):
        written.append(chunk)
        if len(written) == 3:
            raise KeyboardInterrupt
        write(self, chunk, tokens, read)

    other = config(f"run_dir={tmp_path}/killed", f"data.features_root={tmp_path}/two", *grid)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(TokenStore, "write", killed)
        train(other)
    done = [path.read_bytes() for path in (tmp_path / "two").rglob("done.u8")]
    assert done == [b"\1\1\0\0"]  # two whole chunks of 16 of the 60 readings

    def counted(self, chunk, tokens, read):
        written.append(chunk)
        write(self, chunk, tokens, read)

    written.clear()
    monkeypatch.setattr(TokenStore, "write", counted)
    train(other)
    assert written == [2, 3, 0, 0]  # of train what was missing, then val, and at the end test
    assert contents(tmp_path / "one") == contents(tmp_path / "two") != {}
    runs = [checkpoint.load(tmp_path / run / "checkpoints/last.pt") for run in ("alone", "killed")]
    assert all(torch.equal(runs[0]["heads"][name], runs[1]["heads"][name]) for name in runs[0]["heads"])
    assert untimed(tmp_path / "alone") == untimed(tmp_path / "killed")


@pytest.mark.slow
def test_other_weights_clips_and_files_are_another_cache(config, data, tmp_path):
    def folders(*overrides):
        train(config(f"run_dir={tmp_path}/{len(seen)}", *CACHED, "trainer.epochs=1", *overrides))
        return {path.name for path in (tmp_path / "features").iterdir()}

    seen = []
    for overrides in ([], ["trainer.batch_size=5"], ["clip.frame_step=2"], ["seed=1"]):
        seen.append(folders(*overrides))
    first, same, stride, seed = seen
    assert len(first) == 3 and same == first
    assert len(stride - first) == 3  # all splits
    assert len(seed - stride) == 3  # other weights
    # a file that was only touched holds what it held
    record = next((data / "motion").rglob("*.mp4"))
    os.utime(record)
    assert folders() == seed


@pytest.mark.slow
def test_views_of_evaluation_are_shared_by_seeds_and_splits(config, data, tmp_path, monkeypatch):
    shared = [CACHED[0], "stage.head_only.cache_views=null"]
    train(config(f"run_dir={tmp_path}/first", *shared))
    folds = tmp_path / "folds"
    folds.mkdir()
    for split, source in (("train", "train"), ("val", "test"), ("test", "val")):
        rows = (data / f"{source}.csv").read_text().splitlines()
        (folds / f"{split}.csv").write_text("\n".join([rows[0], *sorted(rows[1:], reverse=True)]) + "\n")
    monkeypatch.setattr(frozen_encoder, "_chunk", None)  # so that encoding anything would fail
    train(config(f"run_dir={tmp_path}/seed", f"init_from={tmp_path}/first", "seed=1", *shared))
    other = [f"dataset.folder={folds}", f"init_from={tmp_path}/first"]
    train(config(f"run_dir={tmp_path}/fold", *other, *shared))
    assert len(list((tmp_path / "features").iterdir())) == 6


def test_what_evaluation_sees_has_no_drawn_copies(config, tmp_path):
    shared = [CACHED[0], "stage.head_only.cache_views=null", "clip.repeated_augmentation=2"]
    with pytest.raises(UserError, match=r"clip.repeated_augmentation=2 needs random ones: set one of"):
        train(config(f"run_dir={tmp_path}/run", *shared))


@pytest.mark.slow
@pytest.mark.parametrize("views", ["2", "null"])
def test_unreadable_videos_are_replaced_in_training_and_missing_in_validation(data, config, tmp_path, views):
    broken = tmp_path / "listings"
    broken.mkdir()
    for split in ("train", "val", "test"):
        with open(data / f"{split}.csv", newline="") as file:
            rows = list(csv.reader(file))
        if split != "test":
            rows[2][0] = str(tmp_path / f"{split}.mp4")
            (tmp_path / f"{split}.mp4").write_bytes(b"no video")
        with open(broken / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
    both = [f"dataset.folder={broken}", "trainer.max_unreadable_fraction=0.1"]
    train(config(f"run_dir={tmp_path}/plain", *both))
    train(config(f"run_dir={tmp_path}/cached", *both, *CACHED, f"stage.head_only.cache_views={views}"))
    runs = [untimed(tmp_path / run) for run in ("plain", "cached")]
    for row, other in zip(*runs, strict=True):
        assert [row[key] for key in row if key == "train/faults"] == [
            other[key] for key in other if key == "train/faults"
        ]
    assert [row["train/faults"] for row in runs[1] if "train/faults" in row] == [1, 1]
    faults = (tmp_path / "cached/faults_rank0.jsonl").read_text()
    assert f"{tmp_path}/train.mp4" in faults and f"{tmp_path}/val.mp4" in faults


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["stage.head_only.encoder_blocks=1"], "stage.head_only.cache_features needs a frozen encoder"),
        (["stage.head_only.cache_views=0"], "stage.head_only.cache_views=0 must be 1 or more"),
        (["augmentation=strong_mixing"], "mixes clips before they are encoded; set augmentation.mixing=null"),
        (["augmentation=whole_frame"], "needs clips of one shape, which whole frames are not"),
    ],
)
def test_what_does_not_go_together_shows_before_the_start(config, overrides, why):
    [(key, said)] = check.check_run(config(*CACHED, *overrides))
    assert key == "stage" and why in said


@pytest.mark.slow
def test_tokens_beyond_float16_are_refused_by_name(config, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen_encoder, "LARGEST", 0.5)
    with pytest.raises(UserError, match=r"tokens of .*\.mp4 reach .*cache_features"):
        train(config(f"run_dir={tmp_path}/run", *CACHED))


@pytest.mark.slow
def test_two_ranks_equal_one(data, tmp_path):
    for processes in (1, 2):
        arguments = options(data, tmp_path / f"features{processes}", *CACHED, "optimizer=sgd")
        ended = run_program("train", *arguments, f"run_dir={tmp_path}/{processes}", ranks=processes)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert contents(tmp_path / "features1") == contents(tmp_path / "features2") != {}
    one, two = (untimed(tmp_path / run) for run in "12")
    for row, other in zip(one, two, strict=True):
        for key in row.keys() - {"train/step_loss"}:
            assert row[key] == pytest.approx(other[key], abs=1e-4), key
