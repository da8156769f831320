"""The training app, in this process, on a small motion dataset: what a run does and what it leaves behind."""

import csv
import json
import shutil

import pytest
import torch
from composing import config_of
from omegaconf import OmegaConf
from pictures import pictures_drawn
from small_run import small

from vidtrain.build import parts as build
from vidtrain.errors import UserError
from vidtrain.evaluate import evaluate
from vidtrain.tracking.run_log import read_metrics
from vidtrain.train import train
from vidtrain.training import checkpoint

SMALL = small(
    "logger=none",
    "trainer.epochs=2",
    "trainer.batch_size=4",
    "trainer.log_every=1",
    depth=2,
)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def config(data_root):
    """Composes a small run's configuration from further overrides."""

    def composed(*overrides, program="train", base=SMALL):
        return config_of(program, *base, f"data_root={data_root}", *overrides)

    return composed


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_root):
    """One finished run in three phases, with the folder it left."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    overrides = [
        *SMALL,
        f"data_root={data_root}",
        f"run_dir={folder}",
        "stage=progressive",
        "trainer.epochs=4",
    ]
    cfg = config_of("train", *overrides)
    with pictures_drawn():
        return cfg, folder, train(cfg)


@pytest.mark.slow
def test_the_run_folder_holds_all_that_a_run_was(finished):
    _, folder, best = finished
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files >= {
        "config.yaml", "run.json", "environment.json", "git.json", "metrics.jsonl", "summary.json",
        "steps_rank0.csv", "checkpoints/last.pt", "checkpoints/best.pt", "plots/curves.png",
        "plots/confusion_test.png", "eval/test/metrics.json", "eval/test/predictions.csv",
        "eval/test/confusion.csv", "eval/test/per_class.csv",
    }  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["best"] == best
    assert summary["coverage"] == "10/10"
    assert summary["protocol"] == "8x3 frames at 16x16, 1 clip x 1 crop, mean_logits"
    assert summary["steps"] == 4 * 5  # 4 epochs of 20 videos in batches of 4


def test_phases_run_in_order_and_train_what_they_say(finished):
    _, folder, _ = finished
    with open(folder / "steps_rank0.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 21))
    assert [row["phase"] for row in rows] == ["head_only"] * 4 + ["unfreeze_last"] * 6 + ["full"] * 10
    metrics = read_metrics(folder)
    first = next(row for row in metrics if row["phase"] == "head_only")
    later = next(row for row in metrics if row["phase"] == "full")
    assert "lr/encoder" not in first
    assert later["lr/encoder"] == pytest.approx(0.1 * later["lr/head"])


def test_metrics_are_complete(finished):
    _, folder, _ = finished
    keys = set().union(*read_metrics(folder))
    for split, names in {
        "train": (
            "loss",
            "top1",
            "f1_macro",
            "f1_weighted",
            "precision_macro",
            "recall_weighted",
            "grad_norm",
        ),
        "val": (
            "loss",
            "top1",
            "top5",
            "clip_loss",
            "clip_top1",
            "clip_top5",
            "f1_macro",
            "balanced_accuracy",
        ),
        "test": ("loss", "top1", "clip_top5", "recall_macro"),
    }.items():
        assert keys >= {f"{split}/{name}" for name in names}
    assert keys >= {"step", "epoch", "phase", "lr/head", "weight_decay", "time/epoch_s", "time/total_s"}


def test_predictions_name_every_test_video_once(finished):
    _, folder, _ = finished
    with open(folder / "eval/test/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["path"] for row in rows}) == len(rows) == 10
    right = sum(int(row["correct"]) for row in rows)
    summary = json.loads((folder / "summary.json").read_text())
    assert right / 10 == pytest.approx(summary["top1"])
    assert all(row["prediction"] == row["top1"] and float(row["p1"]) >= float(row["p2"]) for row in rows)


def test_a_finished_run_says_so_and_returns_its_result(finished, capsys):
    cfg, _, best = finished
    before = capsys.readouterr()
    assert train(cfg) == best
    said = capsys.readouterr().out
    assert "is finished: best val top1" in said and "epoch" not in said, before


def test_a_finished_run_is_no_answer_to_other_settings(finished, config):
    cfg, folder, best = finished
    other = cfg.copy()
    other.optimizer.lr = 0.5
    with pytest.raises(UserError, match=r"is finished.*\n  optimizer.lr: 0.003 -> 0.5"):
        train(other)
    other.optimizer.lr, other.trainer.num_workers = (
        cfg.optimizer.lr,
        1,
    )  # which changes nothing that is computed
    assert train(other) == best


def test_a_checkpoint_from_before_a_key_was_added_is_evaluated_alike(finished, config, tmp_path):
    _, folder, _ = finished
    payload = checkpoint.load(folder / "checkpoints/best.pt")
    del (
        payload["config"]["clip"]["short_video_policy"],
        payload["config"]["data"],
        payload["config"]["trainer"]["patience"],
    )
    checkpoint.save(payload, tmp_path / "run/checkpoints/old.pt")
    old = f"checkpoint={tmp_path}/run/checkpoints/old.pt"
    evaluate(config(old, f"out={tmp_path}/again", program="evaluate", base=["num_workers=0"]))
    stored = json.loads((folder / "eval/test/metrics.json").read_text())
    assert json.loads((tmp_path / "again/metrics.json").read_text()) == stored
    payload["config"]["clip"]["stretch"] = 2
    checkpoint.save(payload, tmp_path / "run/checkpoints/old.pt")
    with pytest.raises(UserError, match="old.pt is from another .* clip.stretch"):
        evaluate(config(old, f"out={tmp_path}/again", program="evaluate", base=["num_workers=0"]))


def test_a_wrong_root_is_noticed_before_training(config, tmp_path):
    lines = [f"{number}.mp4,{number % 2}" for number in range(40)]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    (tmp_path / "val.csv").write_text("val.mp4,1\n")
    cfg = config("dataset=listing", f"dataset.folder={tmp_path}", "dataset.source.root=/nowhere",
                 "dataset.source.test=null", f"run_dir={tmp_path}/run", "logger=none", base=[])  # fmt: skip
    with pytest.raises(UserError, match="20 of 20 train .*/nowhere/0.mp4; 1 of 1 val"):
        train(cfg)
    assert not (tmp_path / "run/checkpoints").exists()


def test_evaluate_repeats_the_stored_numbers(finished, config, tmp_path):
    _, folder, _ = finished
    best = f"checkpoint={folder}/checkpoints/best.pt"
    top1 = evaluate(config(best, f"out={tmp_path}/again", program="evaluate", base=["num_workers=0"]))
    again = json.loads((tmp_path / "again/metrics.json").read_text())
    stored = json.loads((folder / "eval/test/metrics.json").read_text())
    assert again == stored
    assert top1 == stored["metrics"]["top1"]


def test_evaluate_with_another_protocol(finished, config, tmp_path):
    _, folder, _ = finished
    best = f"checkpoint={folder}/checkpoints/best.pt"
    change = [
        "eval_clips=2",
        "crops=3",
        "fusion=mean_probs",
        "split=val",
        "batch_size=3",
        "frame_order=reversed",
    ]
    evaluate(config(best, f"out={tmp_path}", *change, program="evaluate", base=["num_workers=0"]))
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["protocol"] == "8x3 frames reversed at 16x16, 2 clips x 3 crops, mean_probs"


def test_a_checkpoint_carries_what_is_needed_to_use_it(finished):
    cfg, folder, _ = finished
    payload = checkpoint.load(folder / "checkpoints/best.pt")
    assert payload["classes"][:2] == ["appear", "grow"]
    assert payload["config"] == OmegaConf.to_container(cfg)
    assert payload["versions"]["torch"] == str(torch.__version__)


def test_other_settings_cannot_be_slipped_into_a_run(finished, config):
    _, folder, _ = finished
    (folder / "summary.json").rename(folder / "hidden.json")
    try:
        with pytest.raises(UserError, match=r"other settings(.|\n)*optimizer.lr: 0.003 -> 0.1"):
            train(config(f"run_dir={folder}", "stage=progressive", "trainer.epochs=4", "optimizer.lr=0.1"))
    finally:
        (folder / "hidden.json").rename(folder / "summary.json")


def test_init_from_takes_the_encoder_and_says_so(finished, config, tmp_path, capsys):
    _, folder, _ = finished
    source = folder / "checkpoints/best.pt"
    train(config(f"init_from={source}", f"run_dir={tmp_path}", "stage=head_only", "trainer.epochs=1"))
    said = capsys.readouterr().out
    assert f"weights of {source}: vidtrain checkpoint; 100.0% of the tensors match" in said
    mine = checkpoint.load(tmp_path / "checkpoints/last.pt")["model"]
    theirs = checkpoint.load(source)["model"]
    frozen = [name for name in theirs if name.startswith("encoder.")]
    assert all(torch.equal(mine[name], theirs[name]) for name in frozen)
    assert any(not torch.equal(mine[name], theirs[name]) for name in theirs)


def test_init_from_another_architecture_is_refused(finished, config, tmp_path):
    _, folder, _ = finished
    with pytest.raises(UserError, match="encoder by .* below init_match=1"):
        train(config(f"init_from={folder}/checkpoints/best.pt", f"run_dir={tmp_path}", "model.encoder.embed_dim=32",
                     "model.encoder.num_heads=2"))  # fmt: skip


def test_a_run_folder_in_use_is_refused(config, tmp_path):
    from vidtrain.files.folders import RunLock

    with RunLock(tmp_path), pytest.raises(UserError, match="is in use by process"):
        train(config(f"run_dir={tmp_path}"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_files(config, tmp_path):
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step \d+(.|\n)*\.mp4"):
        train(config(f"run_dir={tmp_path}", "optimizer.lr=1e30", "schedule=constant", "trainer.clip_grad=null"))


@pytest.mark.slow
def test_pictures_come_after_the_summary_and_may_fail(config, tmp_path, capsys, monkeypatch):
    """Of 2,500 classes a picture once took all memory, and the finished run was lost with it."""
    seen = []

    def no_memory(*_):
        seen.append(json.loads((tmp_path / "summary.json").read_text())["status"])
        raise MemoryError("18 GB")

    monkeypatch.setattr("vidtrain.reports.plots.plot_curves", no_memory)
    monkeypatch.setattr("vidtrain.reports.plots.plot_confusion", no_memory)
    with pictures_drawn():
        train(config(f"run_dir={tmp_path}", "trainer.epochs=1"))
    assert seen == ["finished", "finished"]
    words = " ".join(capsys.readouterr().out.split())
    assert "plots/curves.png could not be made (MemoryError: 18 GB)" in words
    assert "plots/confusion_test.png could not be made (MemoryError: 18 GB)" in words
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["examples_test", "wrong_test.png"]


def test_early_stopping_ends_a_phase(config, tmp_path, capsys):
    train(config(f"run_dir={tmp_path}", "optimizer.lr=0", "trainer.patience=2", "trainer.epochs=9",
                 "trainer.monitor=loss"))  # fmt: skip
    assert "ends early: loss did not improve in 2 evaluations" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], summary["best_step"]) == (15, 5)


def test_patience_that_runs_out_with_the_last_step_ends_nothing_early(config, tmp_path, capsys):
    train(config(f"run_dir={tmp_path}", "optimizer.lr=0", "trainer.patience=2", "trainer.epochs=3",
                 "trainer.monitor=loss"))  # fmt: skip
    assert "ends early" not in capsys.readouterr().out


def test_steps_per_epoch_may_differ_from_the_loaders_length(config, tmp_path):
    train(config(f"run_dir={tmp_path}", "trainer.steps_per_epoch=3", "trainer.keep_every=1ep"))
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["best.pt", "last.pt", "previous.pt", "step_0000003.pt", "step_0000006.pt"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(config, tmp_path, precision):
    best = train(config(f"run_dir={tmp_path}", f"trainer.precision={precision}", "trainer.epochs=1"))
    assert 0 <= best <= 1
    scaler = checkpoint.load(tmp_path / "checkpoints/last.pt")["scaler"]
    assert bool(scaler) == (precision == "fp16")


def test_accumulation_makes_the_same_step(config, tmp_path):
    """One step of 8 at once, and of 2 x 4: the same samples, so the same weights but for the order of sums."""
    weights = []
    for number, accumulation in enumerate((1, 2)):
        folder = tmp_path / str(number)
        train(config(f"run_dir={folder}", f"trainer.accumulation={accumulation}", "trainer.batch_size=8",
                     "trainer.steps_per_epoch=1", "trainer.epochs=1", "schedule=constant"))  # fmt: skip
        weights.append(checkpoint.load(folder / "checkpoints/last.pt")["model"])
    for name in weights[0]:
        # one AdamW step is lr * sign(gradient) where gradients are not tiny
        close = (weights[0][name] - weights[1][name]).abs() < 1e-5
        assert close.float().mean() > 0.98, name


@pytest.mark.slow
def test_overfit_mode_reaches_near_zero_loss(config, tmp_path):
    train(config("debug=overfit", f"run_dir={tmp_path}", "trainer.batch_size=4", "trainer.steps_per_epoch=60"))
    rows = [row for row in read_metrics(tmp_path) if "train/step_loss" in row]
    assert rows[-1]["train/step_loss"] < 0.05


@pytest.mark.slow
def test_overfit_mode_asks_of_a_smoothed_loss_that_answers_are_right(config, tmp_path):
    smoothed = ["debug=overfit", "loss.label_smoothing=0.1", "trainer.batch_size=4"]
    train(config(*smoothed, f"run_dir={tmp_path}/run", "trainer.steps_per_epoch=60"))
    assert json.loads((tmp_path / "run/summary.json").read_text())["top1"] == 1
    with pytest.raises(UserError, match="after 4 steps 50% of its videos"):
        train(config(*smoothed, f"run_dir={tmp_path}/short", "trainer.steps_per_epoch=2", "optimizer.lr=1e-9"))


def test_overfit_mode_fails_when_it_cannot(config, tmp_path):
    with pytest.raises(UserError, match="did not learn one batch: .* above 0.05"):
        train(config("debug=overfit", f"run_dir={tmp_path}", "optimizer.lr=1e-9", "trainer.steps_per_epoch=3"))


@pytest.mark.slow
def test_profile_mode_writes_a_trace(config, tmp_path):
    train(config("debug=profile", f"run_dir={tmp_path}"))
    trace = json.loads((tmp_path / "profile/trace.json").read_text())
    assert len(trace["traceEvents"]) > 100
    assert "aten::" in (tmp_path / "profile/operators.txt").read_text()


def test_a_checkpoint_cannot_name_code_to_run(finished, config, tmp_path):
    _, folder, _ = finished
    payload = checkpoint.load(folder / "checkpoints/best.pt")
    payload["config"]["dataset"]["source"] = {"_target_": "os.mkdir", "path": str(tmp_path / "made")}
    checkpoint.save(payload, tmp_path / "run/checkpoints/poisoned.pt")
    with pytest.raises(UserError, match=r"os.mkdir(.|\n)*trust_targets=true"):
        evaluate(config(f"checkpoint={tmp_path}/run/checkpoints/poisoned.pt", program="evaluate", base=[]))
    assert not (tmp_path / "made").exists()


def test_evaluate_finds_the_data_elsewhere(finished, config, tmp_path):
    _, folder, _ = finished
    best = f"checkpoint={folder}/checkpoints/best.pt"
    cfg = config_of("evaluate", best, f"data_root={tmp_path}/moved", f"out={tmp_path}/out", "num_workers=0")
    evaluate(cfg)  # motion makes its files where they are looked for
    assert (tmp_path / "moved/motion/test").is_dir()


def test_an_output_folder_that_cannot_be_written_is_refused_first(finished, config, tmp_path, capsys):
    _, folder, _ = finished
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write into out=.*file/out"):
        evaluate(config(f"checkpoint={folder}/checkpoints/best.pt", f"out={tmp_path}/file/out", program="evaluate",
                        base=["num_workers=0"]))  # fmt: skip
    assert "top1" not in capsys.readouterr().out


@pytest.mark.slow
def test_unreadable_videos_are_recorded_replaced_and_counted(config, tmp_path):
    cfg = config(
        f"run_dir={tmp_path}/run",
        f"data_root={tmp_path}",
        "trainer.max_unreadable_fraction=0.5",
        "trainer.epochs=1",
    )
    build.instantiate_component(cfg.dataset.source).manifests()
    for broken in ("train/grow/grow_000.mp4", "val/grow/grow_000.mp4", "test/vanish/vanish_000.mp4"):
        (tmp_path / "motion" / broken).write_bytes(b"")
    train(cfg)
    faults = [json.loads(line) for line in (tmp_path / "run/faults_rank0.jsonl").read_text().splitlines()]
    assert {(row["split"], row["path"].split("motion/")[1], row["cause"]) for row in faults} >= {
        ("train", "train/grow/grow_000.mp4", "the file is empty"),
        ("val", "val/grow/grow_000.mp4", "the file is empty"),
    }
    assert json.loads((tmp_path / "run/summary.json").read_text())["coverage"] == "9/10"
    missing = json.loads((tmp_path / "run/eval/test/metrics.json").read_text())["missing"]
    assert [each["path"].endswith("vanish_000.mp4") for each in missing] == [True]
    trained = next(row for row in read_metrics(tmp_path / "run") if "train/faults" in row)
    assert trained["train/faults"] == 1

    strict = config(f"run_dir={tmp_path}/strict", f"data_root={tmp_path}", "trainer.max_unreadable_fraction=0.01")
    with pytest.raises(UserError, match=r"1 of .*20 readings.*max_unreadable_fraction=0.01 allows"):
        train(strict)


def test_a_video_too_short_for_a_clip_ends_the_run_with_its_name(config, tmp_path):
    with pytest.raises(UserError, match=r"\.mp4: the video is too short"):
        train(
            config(
                f"run_dir={tmp_path}",
                "clip.short_video_policy=error",
                "clip.frame_step=20",
                "trainer.num_workers=1",
            )
        )


def test_a_later_phase_is_checked_before_the_first_starts(config, tmp_path):
    with pytest.raises(UserError, match="unfreeze_last.duration=0.1% .*one step"):
        train(config(f"run_dir={tmp_path}", "stage=progressive", "stage.unfreeze_last.duration=0.1%"))
    assert not (tmp_path / "checkpoints").exists()


def test_a_first_attempt_that_failed_does_not_bind_the_next(config, tmp_path):
    with pytest.raises(UserError, match="no.pt is not a file"):
        train(config(f"run_dir={tmp_path}", "init_from=no.pt"))
    train(config(f"run_dir={tmp_path}", "trainer.epochs=1"))
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_a_compiled_model_trains(config, tmp_path, monkeypatch):
    compile_with = torch.compile  # without the code generator, whose results the models' tests hold against eager
    monkeypatch.setattr(torch, "compile", lambda model: compile_with(model, backend="eager"))
    train(config(f"run_dir={tmp_path}", "trainer.compile=true", "trainer.epochs=1", "trainer.steps_per_epoch=2"))
    names = checkpoint.load(tmp_path / "checkpoints/last.pt")["model"]
    assert not any("_orig_mod" in name for name in names)


def test_other_classes_than_the_checkpoints_are_refused(finished, config, tmp_path):
    _, folder, _ = finished
    test = folder.parent / "other/test"
    for split in ("train", "val", "test"):
        for name in ("left", "right"):
            (test.parent / split / name).mkdir(parents=True, exist_ok=True)
            (test.parent / split / name / "a.mp4").touch()
    with pytest.raises(UserError, match="other classes .*: 10 and 2; differing: appear"):
        evaluate(
            config(f"checkpoint={folder}/checkpoints/best.pt", "dataset=class_folders", "num_workers=0",
                   f"dataset.source.root={test.parent}", program="evaluate", base=[])
        )  # fmt: skip


def test_classes_of_a_checkpoint_in_another_order_or_spelling(finished, config, tmp_path):
    """As an earlier version had them of macOS's folders: labels are compared with the checkpoint's own order."""
    _, folder, _ = finished
    payload = checkpoint.load(folder / "checkpoints/best.pt")
    names = payload["classes"]
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    old = tmp_path / "run/checkpoints/best.pt"
    for number, written in enumerate((names[::-1], [f"{name}\u200b" for name in names])):
        checkpoint.save({**payload, "classes": list(written)}, old)
        evaluate(config(f"checkpoint={old}", f"out={tmp_path}/{number}", program="evaluate", base=["num_workers=0"]))
        with (
            open(folder / "eval/test/predictions.csv") as before,
            open(tmp_path / f"{number}/predictions.csv") as after,
        ):
            pairs = list(zip(csv.DictReader(before), csv.DictReader(after), strict=True))
        assert len(pairs) == 10
        for ours, theirs in pairs:
            assert ours["path"] == theirs["path"] and ours["label"] == theirs["label"]
            place = names.index(ours["prediction"])
            assert theirs["prediction"] == written[place].rstrip("\u200b")
    with pytest.raises(UserError, match="was trained on other classes"):
        shutil.copytree(folder, tmp_path / "again")
        (tmp_path / "again/summary.json").unlink()
        last = checkpoint.load(folder / "checkpoints/last.pt")
        checkpoint.save({**last, "classes": names[::-1]}, tmp_path / "again/checkpoints/last.pt")
        train(config(f"run_dir={tmp_path}/again", "stage=progressive", "trainer.epochs=4"))
