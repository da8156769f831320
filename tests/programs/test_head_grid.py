"""A grid of heads end to end: the table, what best.pt holds, and any number of ranks."""

import csv
import json

import pytest
import torch
from clock import TIMED
from composing import config_of
from fork_server import run_program
from small_run import small

from vidtrain.app import check
from vidtrain.evaluate import evaluate
from vidtrain.tracking.run_log import read_metrics
from vidtrain.train import train
from vidtrain.training import checkpoint

SMALL = small(
    "logger=none",
    "stage=head_grid",
    "stage.head_grid.heads.lr=[3e-2,1e-3]",
    "stage.head_grid.heads.weight_decay=[0.01,0.4]",
    "trainer.epochs=2",
    "trainer.batch_size=8",
    "trainer.monitor=loss",
    train=3,
    depth=2,
)
NAMES = ["lr0.03_wd0.01", "lr0.03_wd0.4", "lr0.001_wd0.01", "lr0.001_wd0.4"]


@pytest.fixture
def config(tmp_path):
    def composed(*overrides, program="train", base=SMALL):
        return config_of(program, *base, f"data_root={tmp_path}", *overrides)

    return composed


@pytest.mark.slow
def test_the_best_head_is_reported_on_test_and_all_in_one_table(config, tmp_path, capsys):
    best = train(config(f"run_dir={tmp_path}/run"))
    said = " ".join(capsys.readouterr().out.split())
    folder = tmp_path / "run"
    with open(folder / "heads.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["head"] for row in table} == set(NAMES)
    losses = [float(row["loss"]) for row in table]
    assert losses == sorted(losses) and losses[0] == best
    assert "4 heads, by loss on val" in said and "│ best │ head_grid │" in said
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best_head"] == table[0]["head"] and summary["best"] == best
    validated = [row for row in read_metrics(folder) if "val/loss" in row]
    assert len(validated) == 2
    assert all({f"val_heads/{name}/top1" for name in NAMES} <= row.keys() for row in validated)
    # only the selected head was judged on test, and the checkpoint is one of an ordinary model
    assert [path.name for path in (folder / "eval").iterdir()] == ["test"]
    stored = json.loads((folder / "eval/test/metrics.json").read_text())
    again = config(
        f"checkpoint={folder}/checkpoints/best.pt",
        f"out={tmp_path}/again",
        program="evaluate",
        base=["num_workers=0"],
    )
    evaluate(again)
    assert json.loads((tmp_path / "again/metrics.json").read_text()) == stored
    start = config(f"run_dir={tmp_path}/next", f"init_from={folder}/checkpoints/best.pt", "trainer.epochs=1")
    train(start)
    assert "head" in checkpoint.load(folder / "checkpoints/best.pt")


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["stage.head_grid.encoder_blocks=null"], "stage.head_grid.heads needs a frozen encoder"),
        (["stage.head_grid.heads.lr=[]"], "stage.head_grid.heads.lr=[] must hold at least one number"),
        (["trainer.ema=0.9"], "stage.head_grid.heads cannot be averaged"),
    ],
)
def test_what_does_not_go_together_shows_before_the_start(config, overrides, why):
    [(key, said)] = check.check_run(config(*overrides))
    assert key == "stage" and why in said


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    for processes in (1, 2):
        folders = [f"run_dir={tmp_path / str(processes)}", f"data_root={tmp_path}", "optimizer=sgd"]
        ended = run_program("train", *SMALL, *folders, ranks=processes)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    one, two = (read_metrics(tmp_path / run) for run in "12")
    assert len(one) == len(two) > 3
    for row, other in zip(one, two, strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() - {*TIMED, "train/step_loss"}:
            assert row[key] == pytest.approx(other[key], abs=1e-4), key
    saved = [checkpoint.load(tmp_path / run / "checkpoints/last.pt") for run in "12"]
    for name, tensor in saved[0]["heads"].items():
        torch.testing.assert_close(tensor, saved[1]["heads"][name], atol=1e-4, rtol=0)
