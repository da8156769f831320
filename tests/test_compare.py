"""The comparing program, on run folders as training leaves them."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from composing import config_of
from fork_server import run_program

from vidtrain.app.launch import find_faults
from vidtrain.compare import check, compare
from vidtrain.comparison.runs import find_runs, read_run
from vidtrain.config.overrides import positional_to_override
from vidtrain.errors import UserError
from vidtrain.evaluation.report import report, write_report
from vidtrain.evaluation.views import ViewTable

CLASSES = ("jump", "run", "sit")
PROTOCOL = "8x3 frames at 32x32, 1 clip x 1 crop, mean_logits"


def write_run(
    folder: Path,
    right: list[int],
    seed: int = 0,
    overrides: tuple[str, ...] = (),
    protocol: str = PROTOCOL,
    root: str = "/data/test",
    split: str = "test",
    commit: str = "a" * 40,
    **settings,
) -> Path:
    """A finished run that got the videos numbered in `right` right, of 30 in three classes."""
    (folder / "eval" / split).mkdir(parents=True)
    config = {"name": "mine", "seed": seed, "optimizer": {"lr": 0.1}, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    said = [f"seed={seed}", *overrides]
    (folder / "run.json").write_text(json.dumps({"id": "x", "started": "now", "overrides": said}))
    top1 = len(right) / 30
    summary = {
        "status": "finished", "monitor": "top1", "best": 0.5, "best_step": 20, "steps": 40, "minutes": 1.5,
        "split": split, "protocol": protocol, "coverage": "30/30", "top1": top1,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    report = {
        "metrics": {"top1": top1, "loss": 2 - top1},
        "coverage": "30/30",
        "protocol": protocol,
        "missing": [],
    }
    (folder / "eval" / split / "metrics.json").write_text(json.dumps(report))
    with open(folder / "eval" / split / "predictions.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "prediction", "correct", "top1", "p1", "top2", "p2"])
        for video in range(30):
            label, other = CLASSES[video % 3], CLASSES[(video + 1) % 3]
            first, second = (label, other) if video in right else (other, label)
            rows.writerow([f"{root}/{label}/{video}.mp4", label, first, int(first == label), first, 0.7, second, 0.2])
    lines = [
        {"step": 20, "phase": "full", "val/top1": 0.5, "val/loss": 1.0},
        {"step": 40, "phase": "full", "val/top1": 0.4, "val/loss": 1.2},
        {"step": 41, "test/top1": top1},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "git.json").write_text(json.dumps({"commit": commit, "dirty": False}))
    return folder


def run(*places: Path, out: Path, **options) -> dict:
    overrides = [f"runs=[{','.join(map(str, places))}]", f"out={out}", "bootstrap=2000"]
    overrides += [f"{key}={value}" for key, value in options.items()]
    compare(config_of("compare", *overrides))
    return json.loads((out / "summary.json").read_text())


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def unrendered(request, monkeypatch):
    """Pictures are files that only begin like a PNG, but for one test, as rendering takes a second each."""
    if request.node.name != "test_two_recipes_over_three_seeds":
        from vidtrain.reports import compare_charts

        head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\4\0\0\0\2\0"
        monkeypatch.setattr(compare_charts, "save_png", lambda figure, path: path.write_bytes(head))


@pytest.fixture
def two(tmp_path):
    """lr 0.1 gets 12, 13 and 14 of 30 videos right over three seeds, lr 0.2 gets 24, 25 and 26."""
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", list(range(12 + seed)), seed, ("optimizer.lr=0.1",))
        write_run(tmp_path / f"b{seed}", list(range(24 + seed)), seed, ("optimizer.lr=0.2",), optimizer={"lr": 0.2})
    return tmp_path


@pytest.mark.slow
def test_two_recipes_over_three_seeds(two, capsys):
    out = two / "out"
    found = run(*(two / f"{name}{seed}" for name in "ab" for seed in range(3)), out=out)
    assert [(each["label"], each["n"]) for each in found["recipes"]] == [("lr=0.1", 3), ("lr=0.2", 3)]
    assert found["recipes"][0]["mean"] == pytest.approx(13 / 30)
    assert found["recipes"][0]["deviation"] == pytest.approx(1 / 30)
    (pair,) = found["comparisons"]
    assert pair["difference"] == pytest.approx(0.4)
    assert pair["interval"] == pytest.approx([0.233, 0.578], abs=0.02)
    assert pair["interval_with_seeds"][0] < pair["interval"][0] < 0.4 < pair["interval"][1]
    assert (pair["verdict"], pair["gained"], pair["lost"], pair["shared"]) == ("better", 12, 0, 30)
    # 12 videos that only one got right: 2 / 2^12
    assert [(each["only_baseline"], each["only_other"]) for each in pair["pairs"]] == [(0, 12)] * 3
    assert pair["pairs"][0]["p"] == pytest.approx(0.00048828125)
    assert [each["recall_difference"] for each in pair["classes"]] == pytest.approx([0.4, 0.4, 0.4])
    assert found["settings"] == {"optimizer.lr": [0.1, 0.2]}
    assert found["notes"] == []

    assert sorted(path.name for path in out.glob("*.*")) == sorted(
        [".lock", "classes.png", "comparison.png", "curves.png", "flips.csv", "per_class.csv", "recipes.csv",
         "report.html", "runs.csv", "settings.csv", "summary.json"]
    )  # fmt: skip
    runs = table(out / "runs.csv")
    assert [(row["run"], row["recipe"], row["optimizer.lr"], row["seed"]) for row in runs[2:4]] == [
        ("a2", "1", "0.1", "2"),
        ("b0", "2", "0.2", "0"),
    ]
    assert (runs[0]["best"], runs[0]["final"], runs[0]["best_step"]) == ("0.5", "0.4", "20")
    flips = table(out / "flips.csv")
    assert len(flips) == 14 and sum(int(row["flipped"]) for row in flips) == 12
    assert (flips[0]["path"], flips[0]["prediction_baseline"], flips[0]["prediction_recipe"]) == (
        "/data/test/sit/14.mp4", "jump", "sit",
    )  # fmt: skip
    shown = " ".join(capsys.readouterr().out.split())
    assert "2: lr=0.2 │ 3 │ 0.8333 │ 0.0333 │ +0.4000" in shown and "better" in shown

    page = (out / "report.html").read_text()
    assert "6 runs of 2 recipes" in page and "lr=0.2" in page and "/data/test/sit/14.mp4" in page
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page) and "<script" not in page


def test_the_same_call_gives_the_same_numbers(two):
    first, again, other = (
        run(two / "a0", two / "b0", out=two / name, seed=seed)["comparisons"]
        for name, seed in (("1", 0), ("2", 0), ("3", 1))
    )
    assert first == again
    assert first[0]["interval"] != other[0]["interval"] and first[0]["difference"] == other[0]["difference"]


def test_runs_of_one_seed_say_so(two):
    found = run(two / "a0", two / "b0", out=two / "out")
    assert found["comparisons"][0]["interval_with_seeds"] is None
    assert found["notes"][0].startswith("Run only once: recipes 1, 2.")


def test_another_protocol_is_listed_and_not_compared(two):
    other = write_run(
        two / "c", list(range(20)), protocol=PROTOCOL.replace("1 clip", "4 clips"), clip={"eval_clips": 4}
    )
    found = run(two / "a0", two / "b0", other, out=two / "out")
    assert [each["compared"] for each in found["recipes"]] == [True, True, False]
    assert [pair["other"] for pair in found["comparisons"]] == [2]
    assert (
        "4 clips x 1 crop, mean_logits on test (1 run). Only runs that were evaluated like the base"
        in found["notes"][0]
    )
    assert "not compared" in (two / "out" / "report.html").read_text()
    asked = run(two / "a0", two / "b0", other, out=two / "out", across_protocols=True)
    assert [pair["other"] for pair in asked["comparisons"]] == [2, 3]
    assert "because of across_protocols=true" in asked["notes"][0]
    alone = run(two / "a0", other, out=two / "alone")
    assert alone["comparisons"] == [] and "so there is no comparison" in alone["notes"][1]
    assert not (two / "alone" / "classes.png").exists()


def test_a_sweep(two):
    sweep = two / "multirun" / "now"
    rng = np.random.default_rng(0)
    number = 0
    for lr in (0.001, 0.01, 0.1):
        for augmentation in ("none", "crop"):
            for seed in range(2):
                amount = {0.001: 10, 0.01: 25, 0.1: 15}[lr] + int(rng.integers(0, 3))
                write_run(
                    sweep / str(number), list(range(amount)), seed,
                    (f"optimizer.lr={lr}", f"augmentation={augmentation}"), optimizer={"lr": lr},
                    augmentation={"train": {"_target_": augmentation}, "eval": {"side": ord(augmentation[0])}},
                )  # fmt: skip
                number += 1
    (sweep / "12" / "checkpoints").mkdir(parents=True)
    (sweep / "12" / "run.json").write_text('{"id": "x", "overrides": []}')
    found = run(sweep, out=two / "out", baseline=sweep / "11")
    assert found["baseline"] == 6
    assert [each["label"] for each in found["recipes"]][:2] == [
        "augmentation=none, lr=0.001",
        "augmentation=crop, lr=0.001",
    ]
    assert found["runs"][-1]["name"] == "11"  # by number, not 0, 1, 10, 11, 2
    assert [each["key"] for each in found["importance"]][0] == "optimizer.lr"
    assert found["importance"][0]["adjusted"] > 0.9
    assert found["left_out"] == [{"folder": str(sweep / "12"), "why": "the run logged nothing yet"}]
    assert (two / "out" / "parallel_coordinates.png").exists() and (two / "out" / "importance.png").exists()
    assert "Left out: " in (two / "out" / "report.html").read_text()
    run(two / "a0", two / "b0", out=two / "out")  # takes away the pictures that do not belong to it
    assert not (two / "out" / "importance.png").exists()


def test_a_metric_without_intervals(two):
    """Earlier versions stored no logits."""
    found = run(two / "a0", two / "b0", out=two / "out", metric="loss")
    assert (found["metric"], found["tested"], found["higher_is_better"]) == ("loss", "top1", False)
    assert "Intervals are of top1" in found["notes"][0] and "logits.npz" in found["notes"][0]
    assert found["comparisons"][0]["verdict"] == "better"


def evaluated_again(folder: Path, logits: torch.Tensor, labels: torch.Tensor) -> Path:
    """The run's evaluation, as an evaluation with these logits [30 k] leaves it."""
    table = ViewTable(torch.arange(30), labels, logits[:, None], [], 30)
    result = report(table, "mean_logits", PROTOCOL, independent=labels.ndim == 2)
    write_report(result, folder / "eval" / "test", [f"{video}.mp4" for video in range(30)], CLASSES)
    return folder


def test_metrics_that_need_logits(two):
    labels, noise = torch.arange(30) % 3, torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
    for name, scale in (("a0", 0.0), ("b0", 4.0)):
        evaluated_again(two / name, noise + scale * torch.eye(3)[labels], labels)
    found = run(two / "a0", two / "b0", out=two / "out", metric="loss")
    assert (found["tested"], found["tested_higher_is_better"], found["comparisons"][0]["verdict"]) == (
        "loss", False, "better",
    )  # fmt: skip
    low, high = found["comparisons"][0]["interval"]
    assert low < found["comparisons"][0]["difference"] < high < 0
    assert not any("Intervals are of" in note for note in found["notes"])
    (two / "b0" / "eval" / "test" / "logits.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"b0/eval/test/logits\.npz cannot be read"):
        run(two / "a0", two / "b0", out=two / "out")


def test_several_labels_are_compared_by_their_mean_average_precision(two):
    labels = (torch.rand(30, 3, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    noise = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
    runs = [evaluated_again(two / name, noise + scale * labels, labels) for name, scale in (("a0", 0.0), ("b0", 3.0))]
    found = run(*runs, out=two / "out")
    assert (found["metric"], found["tested"], found["draws"]) == ("map", "map", 1000)
    (pair,) = found["comparisons"]
    assert pair["of_other"][0] == pytest.approx(read_run(two / "b0", None).metrics["map"])
    assert pair["verdict"] == "better" and 0 < pair["interval"][0] < pair["difference"] < pair["interval"][1]
    (two / "b0" / "eval" / "test" / "logits.npz").unlink()
    assert run(*runs, out=two / "out")["metric"] == "exact_match"


def test_moved_videos_are_found_by_their_place_in_the_folder(two):
    moved = write_run(two / "c", list(range(20)), root="/elsewhere/motion", optimizer={"lr": 0.3})
    found = run(two / "a0", moved, out=two / "out")
    assert found["comparisons"][0]["shared"] == 30
    assert any(note.startswith("Videos were matched by their paths below") for note in found["notes"])


def test_one_recipe(two):
    found = run(two / "a0", two / "a1", two / "a2", out=two / "out")
    assert found["recipes"][0]["label"] == "all runs" and found["comparisons"] == []
    assert "To compare its runs with each other, set repeats=[]." in found["notes"][0]
    apart = run(two / "a0", two / "a1", out=two / "out", repeats="[]")
    assert [each["label"] for each in apart["recipes"]] == ["seed=0", "seed=1"]


def test_equal_settings_are_told_apart_by_their_code(two):
    other = write_run(two / "c", list(range(20)), commit="b" * 40)
    found = run(two / "a0", other, out=two / "out")
    assert [each["label"] for each in found["recipes"]] == ["commit=" + "a" * 12, "commit=" + "b" * 12]
    assert any("different code" in note for note in found["notes"])


@pytest.mark.parametrize(("low", "told"), [(-0.02, True), (0.01, False), (None, False)])
def test_runs_stand_beside_the_best_baseline(two, tmp_path, low, told):
    summary = json.loads((two / "a0" / "summary.json").read_text())
    best = {"name": "mean_frame logistic", "metric": "top1", "baseline": 0.4, "run": 0.5, "low": low}
    (two / "a0" / "summary.json").write_text(json.dumps(summary | {"baselines": [best]}))
    found = run(two / "a0", two / "b0", out=tmp_path / "out")
    named = [note for note in found["notes"] if note.startswith("These runs are not better than the best baseline")]
    assert len(named) == told and all("mean_frame logistic 0.4000" in note for note in named)
    assert any(note.startswith("No baselines are stored for") and "b0" in note for note in found["notes"])
    assert [row["best_baseline"] for row in found["runs"]] == [best, None]
    assert "mean_frame logistic 0.4000" in (tmp_path / "out" / "report.html").read_text()


# --- what it refuses --------------------------------------------------------------------------------------


def test_what_is_no_finished_run_is_named_all_at_once(two):
    (two / "b0" / "summary.json").unlink()
    (two / "b1" / "summary.json").unlink()
    failed = json.loads((two / "b1" / "run.json").read_text()) | {"failed": "no videos in /data\nmore"}
    (two / "b1" / "run.json").write_text(json.dumps(failed))
    (two / "empty").mkdir()
    with pytest.raises(UserError) as refused:
        find_runs([str(two / name) for name in ("a0", "b0", "b1", "empty", "absent")])
    assert str(refused.value).splitlines() == [
        "these runs cannot be compared:",
        f"  {two}/b0: the run is not finished, its last logged step is 40; finish it with python -m vidtrain.train "
        f"run_dir={two}/b0, or leave it out",
        f"  {two}/b1: the run failed: no videos in /data; finish it with python -m vidtrain.train run_dir={two}/b1, "
        "or leave it out",
        f"  {two}/empty: it is not the folder of a run, and no run lies below it (none has a run.json)",
        f"  {two}/absent: there is no such folder",
    ]


def test_patterns_and_folders(two):
    found = find_runs([f"{two}/b*", f"{two}/b0", str(two)])
    assert [path.name for path in found.runs] == ["b0", "b1", "b2", "a0", "a1", "a2"]


def test_one_finished_run_of_several_is_no_comparison(two):
    for other in two.iterdir():
        if other.name != "a0":
            (other / "summary.json").unlink()
    with pytest.raises(UserError, match="two finished runs.* there is .*/a0"):
        run(two, out=two / "out")
    with pytest.raises(UserError, match="two finished runs or more"):
        run(two / "a0", out=two / "out", metric="loss")  # its page has no such choice
    assert not (two / "out").exists()


def test_damage_is_named(two):
    path = two / "a0" / "eval" / "test" / "predictions.csv"
    text = path.read_text()
    path.write_text(text + "cut,sho")
    with pytest.raises(UserError, match="predictions.csv, row 32 has 2 fields"):
        read_run(two / "a0", None)
    path.write_text("")
    with pytest.raises(UserError, match="predictions.csv has no column path"):
        read_run(two / "a0", None)
    path.unlink()
    with pytest.raises(UserError, match="predictions.csv cannot be read"):
        read_run(two / "a0", None)
    (two / "a1" / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match="config.yaml cannot be read"):
        read_run(two / "a1", None)
    (two / "a2" / "summary.json").write_text('{"status": "finished"}')
    with pytest.raises(UserError, match="summary.json has no split"):
        read_run(two / "a2", None)


def test_an_absent_split_is_named_with_those_there_are(two):
    with pytest.raises(UserError, match="has no evaluation val; it has test"):
        run(two / "a0", two / "b0", out=two / "out", split="val")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "top5"}, "metric=top5: .*/a0 does not report it"),
        ({"baseline": "a9"}, "baseline=a9 is none of the runs"),
    ],
)
def test_refusals_of_options(two, options, message):
    with pytest.raises(UserError, match=message):
        run(two / "a0", two / "b0", out=two / "out", **options)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("runs=null", "runs: must be given: python -m vidtrain.compare RUN RUN"),
        ("runs=[1,2]", "runs: [1, 2] must be a folder, or a list of folders"),
        ("metric=top2", "metric: top2 is unknown; did you mean top"),
        ("bootstrap=10", "bootstrap: 10 must be 100 draws or more"),
        ("confidence=95", "confidence: 95.0 must lie between 0 and 1"),
    ],
)
def test_faults_are_named(override, message):
    found = find_faults("compare", ["runs=x", override], check)
    assert [message in ": ".join(fault[1:]) for fault in found] == [True]


# --- runs of pretraining ----------------------------------------------------------------------------------


def write_pretraining(folder: Path, seed: int, ratio: float, objective: str = "videomae", **measured: float) -> Path:
    """A finished run of pretraining with masks of `ratio`, and what its closing evaluation `measured`."""
    folder.mkdir()
    config = {"name": "mine", "seed": seed, "objective": {"masks": {"ratio": ratio}}}
    if "linear_top1" in measured:
        config["probe"] = {"dataset": {"name": "gestures"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    said = [f"seed={seed}", f"objective.masks.ratio={ratio}"]
    (folder / "run.json").write_text(json.dumps({"id": "x", "started": "now", "overrides": said}))
    summary = {
        "status": "finished", "monitor": "evaluations", "best": 3.0, "best_step": 40, "steps": 40, "minutes": 1.5,
        "split": "val", "protocol": PROTOCOL, "coverage": "30/30", "pretraining": objective, "evaluations": 3.0,
        **measured,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [{"step": step, **{f"val/{name}": value for name, value in measured.items()}} for step in (0, 40)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_pretraining_is_compared_by_its_probe_over_seeds(tmp_path, capsys):
    values = {0.5: (0.50, 0.52, 0.54), 0.9: (0.70, 0.71, 0.75)}
    runs = [
        write_pretraining(tmp_path / f"{ratio}_{seed}", seed, ratio, loss=ratio, linear_top1=value, effective_rank=9.0)
        for ratio, of_ratio in values.items()
        for seed, value in enumerate(of_ratio)
    ]
    found = run(*runs, out=tmp_path / "out")
    assert (found["metric"], found["tested"], found["pretraining"], found["chosen"]) == (
        "linear_top1", "linear_top1", True, None,
    )  # fmt: skip
    (pair,) = found["comparisons"]
    assert pair["difference"] == pytest.approx(0.2) and pair["interval"] is None
    # the Behrens-Fisher interval at 95 % with two degrees of freedom each, from 4,000,000 draws of scipy's t
    assert pair["interval_with_seeds"] == pytest.approx([0.2 - 0.0881, 0.2 + 0.0881], abs=0.012)
    assert pair["verdict"] == "better"
    assert "over seeds alone" in " ".join(found["notes"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "over seeds" in page and "effective_rank" in page and "Videos that flipped" not in page
    assert [row["linear_top1_difference"] for row in table(tmp_path / "out" / "recipes.csv")][1].startswith("0.2")
    shown = " ".join(capsys.readouterr().out.split())
    assert "2: ratio=0.9 │ 3 │ 0.7200 │ 0.0265 │ +0.2000" in shown and "better" in shown


def test_without_probes_one_objective_is_compared_by_its_loss(tmp_path):
    runs = [write_pretraining(tmp_path / f"{ratio}", 0, ratio, loss=ratio) for ratio in (0.5, 0.9)]
    found = run(*runs, out=tmp_path / "out")
    assert (found["metric"], found["higher_is_better"]) == ("loss", False)
    (pair,) = found["comparisons"]
    assert (pair["widest"], pair["verdict"]) == (None, "not told apart")
    notes = " ".join(found["notes"])
    assert "own objective" in notes and "no interval" in notes


def test_losses_of_different_objectives_are_not_compared(tmp_path):
    runs = [write_pretraining(tmp_path / name, 0, 0.9, name, loss=1.0) for name in ("videomae", "vjepa")]
    with pytest.raises(UserError, match="linear_top1 or knn_top1"):
        run(*runs, out=tmp_path / "out")


def test_other_probes_are_listed_and_not_compared(tmp_path):
    runs = [write_pretraining(tmp_path / f"{ratio}", 0, ratio, loss=1.0, linear_top1=0.5) for ratio in (0.5, 0.9)]
    other = yaml.safe_load((runs[1] / "config.yaml").read_text())
    (runs[1] / "config.yaml").write_text(yaml.safe_dump(other | {"probe": {"dataset": {"name": "signs"}}}))
    found = run(*runs, out=tmp_path / "out")
    assert found["comparisons"] == [] and "evaluated in different ways" in found["notes"][0]
    assert "gestures" in found["notes"][0] and "signs" in found["notes"][0]


def test_pretraining_and_classifiers_are_not_compared(tmp_path, two):
    pretrained = write_pretraining(tmp_path / "p", 0, 0.9, loss=1.0)
    with pytest.raises(UserError, match="/p is a run of pretraining, and .*/a0 a classifier"):
        run(two / "a0", pretrained, out=tmp_path / "out")
    with pytest.raises(UserError, match="/p is a run of pretraining, .*leave out split="):
        read_run(pretrained, "test")


# --- the command line -------------------------------------------------------------------------------------


def test_bare_folders_become_an_override(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()

    def written(*arguments):
        return positional_to_override(arguments, "runs")

    assert written("out=x", "a b", "lr=0.1", "it's") == ["out=x", r"runs=['a b','lr=0.1','it\'s']"]
    assert written("runs=a", "metric=loss", "--help") == ["runs=a", "metric=loss", "--help"]
    with pytest.raises(UserError, match="given twice, by runs= and by b"):
        written("runs=a", "b")


def test_the_program(two):
    done = run_program("compare", two / "a0", two / "b0", f"out={two}/out", "bootstrap=500")
    assert done.returncode == 0, done.stderr
    assert "2 runs of 2 recipes" in done.stdout and f"{two}/out/report.html" in done.stdout


def test_a_folder_from_elsewhere_gets_nothing_of_the_environment(tmp_path, two, monkeypatch):
    """Its config.yaml refers to a secret of whoever compares: no page, table or message may tell it."""
    monkeypatch.setenv("HOME_SECRET", "open sesame")
    for number, settings in enumerate(({"note": "${oc.env:HOME_SECRET}"}, {"note": "${oc.env:IS_NOT_SET}"})):
        write_run(
            tmp_path / f"e{number}", list(range(14)), 0, (), dataset={"name": "x", **settings},
            model={"deep": "http://u:pw@h/${oc.env:HOME_SECRET}", "copy": "${dataset.note}"},
        )  # fmt: skip
    out = tmp_path / "out"
    found = run(tmp_path / "e0", tmp_path / "e1", two / "a0", out=out)
    assert "${oc.env:HOME_SECRET}" in found["settings"]["dataset.note"]
    for path in out.rglob("*"):
        if path.is_file():
            assert b"open sesame" not in path.read_bytes() and b"u:pw" not in path.read_bytes(), path


def test_a_reference_that_leads_nowhere_is_named(tmp_path, two):
    write_run(tmp_path / "e", list(range(14)), dataset={"name": "${nowhere}"})
    with pytest.raises(UserError, match="config.yaml .*dataset.name: .*nowhere"):
        run(tmp_path / "e", two / "a0", out=tmp_path / "out")


def with_data(folder, root, count, split="train", content=b"x"):
    """The record of its data that a run writes: `count` videos below `root`."""
    from vidtrain.data.manifest.manifest import Manifest, Record
    from vidtrain.data.manifest.split_records import SplitRecord

    paths = [root / CLASSES[number % 3] / f"{number}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content * number)
    found = SplitRecord.of(Manifest([Record(str(path), n % 3, str(n)) for n, path in enumerate(paths)], CLASSES))
    found.save(folder / "splits" / f"{split}.npz")
    (folder / "dataset.json").write_text(json.dumps({"digests": {split: found.digest}}))


def test_runs_that_were_evaluated_on_files_of_other_content_are_told(tmp_path):
    """Of the same names and labels, so that their predictions can be compared with each other anyway."""
    folders = [write_run(tmp_path / f"r{seed}", list(range(12)), seed) for seed in range(2)]
    with_data(folders[0], tmp_path / "data", 9, "test")
    with_data(folders[1], tmp_path / "copy", 9, "test")
    assert not any("on the same data" in note for note in run(*folders, out=tmp_path / "same")["notes"])
    with_data(folders[1], tmp_path / "other", 9, "test", content=b"yy")
    said = "\n".join(run(*folders, out=tmp_path / "out")["notes"])
    assert f"The runs were not evaluated on the same data: {folders[1]} not on those of {folders[0]} (8 " in said
    assert f"replaced by another file: {tmp_path}/other/" in said and "1.mp4 (1 -> 2 bytes)" in said


def test_runs_on_other_training_data_are_other_recipes(tmp_path):
    folders = [write_run(tmp_path / f"r{seed}", list(range(12 + seed)), seed) for seed in range(3)]
    with_data(folders[0], tmp_path / "data", 9)
    with_data(folders[1], tmp_path / "elsewhere", 9)  # a copy
    with_data(folders[2], tmp_path / "less", 8)
    (folders[1] / "data_changes.jsonl").write_text("{}\n")
    found = run(*folders, out=tmp_path / "out")
    assert [(each["runs"], list(each["settings"])) for each in found["recipes"]] == [
        (["r0", "r1"], ["training data"]), (["r2"], ["training data"]),
    ]  # fmt: skip
    said = "\n".join(found["notes"])
    assert (
        f"The runs were not trained on the same data: {folders[2]} not on those of {folders[0]} (1 removed: "
        f"{tmp_path}/data/sit/8.mp4)."
    ) in said
    assert f"The data changed in the middle of these runs (data_changes.jsonl in their folders): {folders[1]}." in said
