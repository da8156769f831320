"""Training options end to end, on listings made of the motion dataset's videos: uneven classes, several labels."""

import csv
import json

import pytest
import torch
from clock import TIMED
from composing import config_of
from fork_server import run_program

from vidtrain.app import check
from vidtrain.build import data as build_data
from vidtrain.build import parts as build
from vidtrain.data.sources.motion import Motion
from vidtrain.errors import UserError
from vidtrain.evaluate import evaluate
from vidtrain.tracking.run_log import read_metrics
from vidtrain.train import train
from vidtrain.training import checkpoint, loop

SMALL = [
    "dataset=listing",
    "model.encoder.embed_dim=24",
    "model.encoder.depth=2",
    "clip.size=16",
    "logger=none",
    "trainer.epochs=2",
    "trainer.batch_size=4",
    "trainer.num_workers=0",
    "trainer.cpu_threads=1",
    "trainer.log_every=1",
]
# All that a step may do otherwise, at once
OPTIONS = [
    "loss.label_smoothing=0.1",
    "loss.class_weights=balanced",
    "data.class_balanced_sampling=0.5",
    "trainer.ema=0.9",
    "trainer.clip_grad=0.05",
    "trainer.clip_grad_by=value",
]
SEVERAL = [
    "dataset.source.label_separator='+'",
    "loss=bce",
    "loss.pos_weight=balanced",
    "trainer.monitor=map",
    "trainer.ema=0.9",
    "model.fusion=mean_probs",
    "clip.train_clips=2",
    "clip.eval_clips=2",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Listings by name: "uneven" has 3, 2 and 1 training videos of a class in turn; in "several" a video is of its
    class and of its pair."""
    root = tmp_path_factory.mktemp("data")
    splits = Motion(root / "motion", 3, 1, 1, frames=24, size=32).manifests()
    for split, manifest in splits.items():
        names = manifest.classes
        rows = {"uneven": [], "several": []}
        for number, record in enumerate(manifest):
            if split != "train" or number % 3 <= record.label % 3:
                rows["uneven"].append((record.path, names[record.label]))
            rows["several"].append((record.path, f"{names[record.label]}+pair{record.label // 2}"))
        for name, listed in rows.items():
            (root / name).mkdir(exist_ok=True)
            with open(root / name / f"{split}.csv", "w", newline="") as file:
                csv.writer(file).writerows([("path", "label"), *listed])
    return root


@pytest.fixture
def config(data):
    def composed(name, *overrides, program="train", base=SMALL):
        dataset = [f"dataset.folder={data}/{name}"] if program == "train" else []
        return config_of(program, *base, f"data_root={data}", *dataset, *overrides)

    return composed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("uneven", [*OPTIONS, "optimizer=timm", "augmentation=strong_mixing"]), ("several", SEVERAL)],
    ids=["one_label", "several_labels"],
)
def test_interrupted_and_resumed_it_is_the_same_bits(config, tmp_path, monkeypatch, capsys, name, options):
    train(config(name, f"run_dir={tmp_path}/alone", *options))
    said = " ".join(capsys.readouterr().out.split())
    steps, checked = [], loop.check_faults

    def interrupt(*arguments):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        checked(*arguments)

    # saved after every second step, and stopped in the fifth: in the middle of an epoch
    killed = config(name, f"run_dir={tmp_path}/killed", *options, "trainer.save_every=2it")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "check_faults", interrupt)
        train(killed)
    assert checkpoint.load(tmp_path / "killed/checkpoints/last.pt")["state"]["total_step"] == 4
    train(killed)
    for file in ("last.pt", "best.pt"):
        one, other = (checkpoint.load(tmp_path / run / "checkpoints" / file) for run in ("alone", "killed"))
        for part in ("model", "ema") if file == "last.pt" else ("model",):
            assert all(torch.equal(one[part][key], other[part][key]) for key in one[part])
        assert one["weights"] == other["weights"] == ("ema" if file == "best.pt" else "raw")
    rows = [
        [{key: value for key, value in row.items() if key not in TIMED} for row in read_metrics(tmp_path / run)]
        for run in ("alone", "killed")
    ]
    assert rows[0] == rows[1]
    assert "weights are averaged with decay 0.9 after a warmup" in said
    if name == "uneven":
        assert "loss CrossEntropy(label_smoothing=0.1, class_weights='balanced'), weights of classes 0." in said
        assert "(data.class_balanced_sampling=0.5)" in said
        assert {key for row in rows[0] for key in row} >= {
            "val/balanced_accuracy",
            "val_ema/balanced_accuracy",
        }
    else:
        assert "loss BinaryCrossEntropy(" in said


@pytest.mark.slow
def test_several_labels_are_learned_and_reported(config, tmp_path):
    """One batch by heart: mean average precision 1, on files that say so."""
    overfit = ["debug=overfit", "loss=bce", "trainer.monitor=map", "dataset.source.label_separator='+'"]
    best = train(config("several", f"run_dir={tmp_path}/run", *overfit, "trainer.steps_per_epoch=80"))
    assert best == pytest.approx(1)
    folder = tmp_path / "run"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["monitor"], summary["map"], summary["f1_micro"]) == ("map", 1, 1)
    assert sorted(path.name for path in (folder / "eval/val").iterdir()) == [
        "logits.npz",
        "metrics.json",
        "per_class.csv",
        "predictions.csv",
    ]
    with open(folder / "eval/val/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["label"] == row["prediction"] and row["label"].count(";") == 1 for row in rows)
    trained = [row for row in read_metrics(folder) if "train/f1_micro" in row]
    assert trained and "train/top1" not in trained[0]

    best = f"checkpoint={folder}/checkpoints/best.pt"
    cfg = config("several", best, "split=val", f"out={tmp_path}/again", program="evaluate", base=["num_workers=0"])
    found = evaluate(cfg)
    metrics = json.loads((tmp_path / "again/metrics.json").read_text())["metrics"]
    assert metrics["map"] == found and set(metrics) == set(summary) & set(metrics)


@pytest.mark.parametrize(
    ("name", "overrides", "why"),
    [
        ("several", ["loss=cross_entropy"], "may have several labels, .* choose loss=bce"),
        (
            "several",
            ["loss=bce"],
            "trainer.monitor=top1 is not a metric of a dataset whose videos may have several labels",
        ),
        (
            "several",
            ["loss=bce", "trainer.monitor=map", "data.class_balanced_sampling=1"],
            "videos here may have several",
        ),
        ("uneven", ["trainer.monitor=map"], "trainer.monitor=map is not a metric of a dataset with 10 classes"),
        (
            "uneven",
            ["loss.class_weights=[1,2]"],
            "loss.class_weights has 2 numbers, and the dataset 10 classes",
        ),
    ],
)
def test_what_does_not_go_with_the_dataset_is_refused_before_training(config, tmp_path, name, overrides, why):
    separator = ["dataset.source.label_separator='+'"] if name == "several" else []
    with pytest.raises(UserError, match=why):
        train(config(name, f"run_dir={tmp_path}", *separator, *overrides))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("overrides", "faults"),
    [
        (["trainer.ema=1.5"], [("trainer.ema", "1.5 must lie between 0 and 1")]),
        (["trainer.monitor_weights=ema"], [("trainer", "no average is kept")]),
        (["trainer.monitor_weights=mean"], [("trainer.monitor_weights", "mean is unknown; known: raw, ema")]),
        (["trainer.clip_grad_by=size"], [("trainer.clip_grad_by", "size is unknown; known: norm, value")]),
        (["trainer.batch_norm=frozn"], [("trainer.batch_norm", "frozn is unknown; did you mean frozen?")]),
        (
            ["data.class_balanced_sampling=2"],
            [("data.class_balanced_sampling", "2.0 must lie between 0 and 1")],
        ),
        (["loss.label_smoothing=2"], [("loss", "label_smoothing=2: must lie between 0 and 1")]),
        (["loss.class_weights=even"], [("loss", "class_weights=even: write balanced")]),
        (["optimizer=timm", "optimizer.name=lionn"], [("optimizer", "name=lionn is not an optimizer of timm")]),
        (["optimizer=timm", "+optimizer.options.beta=1"], [("optimizer", "options.beta: lion takes betas")]),
    ],
)
def test_faults_of_settings_show_without_data(config, overrides, faults):
    found = check.check_run(config("uneven", *overrides))
    assert [key for key, _ in found] == [key for key, _ in faults]
    assert all(why in said for (_, said), (_, why) in zip(found, faults, strict=True))


def test_balanced_draws_reach_the_stream(config, data):
    """Three classes in turn have 3, 2 and 1 videos; drawn evenly all have the same share."""
    cfg = config("uneven", "data.class_balanced_sampling=1")
    manifest = build.instantiate_component(cfg.dataset.source).manifests()["train"]
    stream = build_data.stream(cfg, manifest, check.unjoined_ranks(), 0, 50)
    labels = [manifest[key.record].label for batch in stream for key in batch]
    counts = torch.bincount(torch.tensor(labels))
    assert len(set(manifest.labels.tolist())) == 10 and (counts.max() - counts.min()) <= 2


def test_a_checkpoint_of_before_the_loss_group_is_evaluated(config, tmp_path):
    train(config("uneven", f"run_dir={tmp_path}/run", "trainer.epochs=1", "trainer.steps_per_epoch=1"))
    payload = checkpoint.load(tmp_path / "run/checkpoints/best.pt")
    for key in ("ema", "ema_warmup", "clip_grad_by", "batch_norm", "monitor_weights"):
        del payload["config"]["trainer"][key]
    del payload["config"]["loss"], payload["config"]["data"]["class_balanced_sampling"]
    checkpoint.save(payload, tmp_path / "run/checkpoints/old.pt")
    old = f"checkpoint={tmp_path}/run/checkpoints/old.pt"
    evaluate(config("uneven", old, f"out={tmp_path}/out", program="evaluate", base=["num_workers=0"]))
    stored = json.loads((tmp_path / "run/eval/test/metrics.json").read_text())
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == stored


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [("uneven", OPTIONS), ("several", SEVERAL)])
def test_two_ranks_equal_one(data, tmp_path, name, options):
    for processes in (1, 2):
        folders = [
            f"run_dir={tmp_path / str(processes)}",
            f"data_root={data}",
            f"dataset.folder={data}/{name}",
        ]
        # SGD: AdamW divides by small gradients, which makes much of the last bit
        ended = run_program("train", *SMALL, *options, *folders, "optimizer=sgd", ranks=processes)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    one, two = (read_metrics(tmp_path / run) for run in "12")
    assert len(one) == len(two) > 5
    for row, other in zip(one, two, strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() - {*TIMED, "train/step_loss"}:
            assert row[key] == pytest.approx(other[key], abs=1e-4), key
    saved = [checkpoint.load(tmp_path / run / "checkpoints/last.pt") for run in "12"]
    for part in ("model", "ema"):
        for key, tensor in saved[0][part].items():
            torch.testing.assert_close(tensor, saved[1][part][key], atol=1e-4, rtol=0)
