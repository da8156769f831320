"""The calibrating program: what it leaves, who applies it, and what it refuses."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from composing import config_of
from page_reader import PageReader
from small_run import small

from vidtrain.app.launch import find_faults
from vidtrain.app.view_tables import check
from vidtrain.calibrate import calibrate
from vidtrain.compare import compare
from vidtrain.data.sources.motion import Motion
from vidtrain.errors import UserError
from vidtrain.evaluate import evaluate
from vidtrain.evaluation.calibrated import place_of
from vidtrain.evaluation.view_store import open_views
from vidtrain.export import export
from vidtrain.models.exporting import OnnxClassifier
from vidtrain.predict import predict
from vidtrain.runs.page import write_page
from vidtrain.train import train

pytestmark = [pytest.mark.usefixtures("without_pictures"), pytest.mark.slow]
SMALL = small(
    "logger=none", "optimizer.lr=0.01", "trainer.epochs=3", "trainer.batch_size=10", "clip.eval_clips=2",
    "model.fusion=mean_probs", val=8, test=2,
)  # fmt: skip


def program(name, run, *overrides):
    tasks = {"calibrate": calibrate, "evaluate": evaluate, "export": export}
    return tasks[name](config_of(name, f"checkpoint={run}", *overrides))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with val logits stored, and its calibration."""
    root = tmp_path_factory.mktemp("calibrate")
    train(config_of("train", *SMALL, f"run_dir={root}/run", f"data_root={root}/data"))
    program("calibrate", root / "run", "min_precision=0.3", "set_coverage=0.8")
    return root / "run"


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def place(run):
    return place_of(run / "checkpoints/best.pt")


@pytest.fixture
def videos(run):
    with open(run / "eval/test/predictions.csv", newline="") as file:
        return [row["path"] for row in csv.DictReader(file)][::4]


def answers(run, videos, *overrides):
    out = run.parent / "answers.json"
    chosen = ["num_workers=0", f"out={out}", "topk=10", f"videos=[{','.join(videos)}]"]
    predict(config_of("predict", f"checkpoint={run}", *chosen, *overrides))
    return json.loads(out.read_text())


def test_the_page_shows_it(run, place):
    program("evaluate", run)
    program("calibrate", run, "min_precision=0.3")
    page = PageReader((run / "report.html").read_text())
    assert {"probabilities", "decisions"} <= set(page.sections)
    assert "Calibrated: temperature" in page.words and "test_2x1" in page.words
    place.write_text(place.read_text().replace('"checkpoint": "', '"checkpoint": "0'))
    write_page(run, run / "report.html")
    page = PageReader((run / "report.html").read_text())
    assert "The calibration is left out" in page.words and "Not calibrated" in page.words


def test_a_page_without_a_temperature_does_not_say_calibrated(run, place):
    record = json.loads(place.read_text())
    place.write_text(json.dumps(record | {"scaling": {"scale": [1.0], "bias": [0.0]}}))
    write_page(run, run / "report.html")
    words = PageReader((run / "report.html").read_text()).words
    assert "no temperature fits the 80 videos of val" in words and "Calibrated:" not in words


def test_every_report_has_the_costs_of_probabilities(run):
    summary = json.loads((run / "summary.json").read_text())
    for name in ("nll", "brier", "ece", "ece_mass"):
        low, high = summary["intervals"][name]
        assert 0 <= low <= high and summary["loss" if name == "nll" else name] >= 0
    other = run.parent / "other"
    shutil.copytree(run, other)
    compare(config_of("compare", f"runs=[{run},{other}]", f"out={run.parent / 'compared'}", "metric=brier"))
    compared = json.loads((run.parent / "compared/summary.json").read_text())
    assert compared["recipes"][0]["metrics"]["ece"][0] == summary["ece"]


def test_what_it_leaves(run, place):
    record = json.loads(place.read_text())
    assert record["protocol"]["text"] == "8x3 frames at 16x16, 2 clips x 1 crop, mean_probs"
    assert (record["split"], record["videos"], record["method"]) == ("val", 80, "temperature")
    assert record["fitted_nll"] <= record["before"]["nll"]["value"]
    assert len(record["thresholds"]["classes"]) == 10 and sum(record["sets"]["sizes"]) == 80
    assert record["curve"]["coverage"][-1] == 1


def test_the_same_from_a_stored_table(run, place):
    before = place.read_text()
    place.unlink()
    program("calibrate", run, "min_precision=0.3", "set_coverage=0.8", f"from_table={run}/eval/val_2x1")
    assert place.read_text() == before


def test_evaluate_applies_it_and_says_so(run, place, capsys):
    program("evaluate", run)
    assert "calibration: temperature" in " ".join(capsys.readouterr().out.split())
    found = json.loads((run / "eval/test_2x1/metrics.json").read_text())
    assert "mean_probs, temperature" in found["protocol"] and found["calibrated"]
    after, before = found["reliability"]
    assert found["metrics"]["loss"] == pytest.approx(after["nll"]["value"])
    program("evaluate", run, "calibrated=false")
    plain = json.loads((run / "eval/test_2x1/metrics.json").read_text())
    assert plain["reliability"] == [before] and plain["metrics"]["top1"] == found["metrics"]["top1"]
    evaluate(config_of("evaluate", f"from_table={run}/eval/test_2x1"))
    again = json.loads((run / "eval/test_2x1/metrics.json").read_text())
    assert again == found


def test_predict_and_exported_files_give_the_same_probabilities(run, place, videos):
    calibrated, plain = answers(run, videos), answers(run, videos, "calibrated=false")
    scale = json.loads(place.read_text())["scaling"]["scale"][0]
    for own, raw in zip(calibrated["videos"], plain["videos"], strict=True):
        powers = {row["class"]: row["probability"] ** scale for row in raw["top"]}
        for row in own["top"]:
            expected = powers[row["class"]] / sum(powers.values())
            assert row["probability"] == pytest.approx(expected, abs=1e-5)
        assert own["top"][0]["class"] == raw["top"][0]["class"] and "answer" not in raw
    assert calibrated["calibration"].startswith("temperature")
    program("export", run, "formats=[onnx,safetensors]", "card=false")
    for name in ("model.onnx", "model.safetensors"):
        out = run.parent / f"{name}.json"
        predict(config_of("predict", f"checkpoint={run}/export/{name}", "num_workers=0", f"out={out}", "topk=10",
                          f"videos=[{','.join(videos)}]"))  # fmt: skip
        exported = json.loads(out.read_text())
        for own, other in zip(calibrated["videos"], exported["videos"], strict=True):
            assert (own["answer"], own["set"]) == (other["answer"], other["set"])
            for a, b in zip(own["top"], other["top"], strict=True):
                assert a["probability"] == pytest.approx(b["probability"], abs=1e-5)
    # the graph itself
    clips = torch.randint(0, 256, (3, 2, 3, 8, 16, 16), dtype=torch.uint8)
    logits, probabilities = OnnxClassifier(run / "export/model.onnx", fusion="").run(clips)
    expected = (logits.softmax(dim=-1).mean(dim=1).log() * scale).softmax(dim=-1)
    torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)
    program("export", run, "formats=[onnx]", "card=false", "calibrated=false", f"out={run}/plain")
    logits, probabilities = OnnxClassifier(run / "plain/model.onnx", fusion="").run(clips)
    torch.testing.assert_close(probabilities, logits.softmax(dim=-1).mean(dim=1), atol=1e-5, rtol=0)


def test_answers_are_those_that_pass(run, place, videos):
    record = json.loads(place.read_text())
    least = record["sets"]["least"][0]
    passes = {row["class"]: row["threshold"] for row in record["thresholds"]["classes"]}
    for video in answers(run, videos)["videos"]:
        first = video["top"][0]
        sure = passes[first["class"]] is not None and first["probability"] >= passes[first["class"]] - 1e-6
        assert video["answer"] == ([first["class"]] if sure else [])
        assert video["set"] == [row["class"] for row in video["top"] if row["probability"] >= least - 1e-6]
    record["thresholds"]["classes"] = [row | {"threshold": None} for row in record["thresholds"]["classes"]]
    place.write_text(json.dumps(record))
    out = run.parent / "out.csv"
    chosen = ["num_workers=0", f"out={out}", f"videos=[{','.join(videos)}]"]
    predict(config_of("predict", f"checkpoint={run}", *chosen))
    with open(out, newline="") as file:
        assert [row["answer"] for row in csv.DictReader(file)] == ["unsure"] * len(videos)


def test_videos_of_several_labels(tmp_path, capsys):
    """Each video is of its class and of its pair of classes; thresholds are of each class by itself."""
    for split, manifest in Motion(tmp_path / "motion", 2, 3, 1, frames=24, size=32).manifests().items():
        rows = [(one.path, f"{manifest.classes[one.label]}+pair{one.label // 2}") for one in manifest]
        (tmp_path / f"{split}.csv").write_text("path,label\n" + "".join(f"{path},{name}\n" for path, name in rows))
    run, several = (
        tmp_path / "run",
        ["dataset=listing", f"dataset.folder={tmp_path}", "loss=bce", "trainer.monitor=map"],
    )
    base = [text for text in SMALL if not text.startswith("+dataset.")]
    train(config_of("train", *base, *several, "dataset.source.label_separator='+'", f"run_dir={run}"))
    program("calibrate", run, "min_recall=0.6")
    record = json.loads(place_of(run / "checkpoints/best.pt").read_text())
    assert record["fitted_nll"] <= record["before"]["nll"]["value"] and record["curve"] is None
    thresholds = {row["class"]: row["threshold"] for row in record["thresholds"]["classes"]}
    assert len(thresholds) == 15 and record["videos"] == 30 and None not in thresholds.values()
    assert all(row["right"] >= 0.6 * row["videos"] for row in record["thresholds"]["classes"])
    program("evaluate", run)
    metrics = json.loads((run / "eval/test_2x1/metrics.json").read_text())
    assert metrics["calibrated"] and metrics["metrics"]["ece"] == metrics["reliability"][0]["ece"]["value"]
    with open(tmp_path / "test.csv", newline="") as file:
        videos = [row["path"] for row in csv.DictReader(file)][::3]
    (calibrated, raw), scale = (
        [answers(run, videos, *more) for more in ([], ["calibrated=false"])],
        record["scaling"],
    )
    for own, plain in zip(calibrated["videos"], raw["videos"], strict=True):
        probabilities, before = ({row["class"]: row["probability"] for row in of["top"]} for of in (own, plain))
        for name, chance in probabilities.items():
            logit = np.log(before[name] / (1 - before[name])) * scale["scale"][0]
            assert chance == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
        assert set(own["answer"]) >= {
            name for name, chance in probabilities.items() if chance > thresholds[name] + 1e-6
        }
    program("export", run, "formats=[onnx]", "card=false")  # compared with PyTorch
    with pytest.raises(UserError, match="set_coverage= is for videos with one label"):
        program("calibrate", run, "set_coverage=0.8")
    page = PageReader((run / "report.html").read_text())
    assert "from videos of it answers right recall at least" in page.words


def test_the_best_head_of_a_grid(tmp_path):
    grid = [
        "stage=head_grid",
        "stage.head_grid.heads.lr=[3e-2,1e-3]",
        "stage.head_grid.heads.weight_decay=[0.01]",
    ]
    base = [text for text in SMALL if not text.startswith("optimizer.")]
    train(config_of("train", *base, *grid, f"run_dir={tmp_path}/run", f"data_root={tmp_path}/data"))
    program("calibrate", tmp_path / "run", "set_coverage=0.8")
    record = json.loads(place_of(tmp_path / "run/checkpoints/best.pt").read_text())
    assert record["fitted_nll"] <= record["before"]["nll"]["value"] and record["videos"] == 80


def test_other_protocols(run, videos, capsys):
    with pytest.raises(UserError, match="calibrated for fusion=mean_probs, and not for fusion=mean_logits"):
        answers(run, videos, "fusion=mean_logits")
    with pytest.raises(UserError, match="not for fusion=vote"):
        program("evaluate", run, "fusion=vote")
    answers(run, videos[:1], "eval_clips=3")
    said = " ".join(capsys.readouterr().err.split())
    assert "calibrated on another protocol" in said and "here 8x3 frames at 16x16, 3 clips x 1 crop" in said


def test_windows_take_the_thresholds(run, videos, capsys):
    out = run.parent / "windows"
    chosen = ["num_workers=0", f"out={out}", "windows.stride=0.5", f"videos=[{videos[0]}]"]
    predict(config_of("predict", f"checkpoint={run}", *chosen))
    assert json.loads((out / "predictions.json").read_text())["windows"]["threshold"] == "by class"
    assert "windows have no prediction sets" in " ".join(capsys.readouterr().err.split())


def test_removing_it(run, place, videos):
    program("calibrate", run, "remove=true")
    assert not place.exists() and answers(run, videos[:1])["calibration"] is None
    with pytest.raises(UserError, match="is not calibrated"):
        program("calibrate", run, "remove=true")
    with pytest.raises(UserError, match="calibrated=true: .* is not calibrated"):
        answers(run, videos[:1], "calibrated=true")


def test_a_file_that_is_not_of_this_checkpoint(run, place, videos):
    with open(run / "checkpoints/best.pt", "ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match="belongs to an earlier best.pt"):
        answers(run, videos[:1])


def change(record, key, value):
    *above, last = key.split(".")
    for name in above:
        record = record[name]
    record[last] = value


@pytest.mark.parametrize(
    ("key", "value"),
    [("format", "other/2"), ("scaling.scale", [-1.0]), ("scaling.scale", []), ("scaling.bias", ["x"]),
     ("sets.least", [0.1, 0.2]), ("thresholds.classes", []), ("protocol", "all"), ("scaling.scale", [1.0] * 10)],
)  # fmt: skip
def test_a_damaged_file(run, place, videos, key, value):
    record = json.loads(place.read_text())
    change(record, key, value)
    place.write_text(json.dumps(record))
    with pytest.raises(UserError, match="is damaged or of another version.*calibrated=false"):
        answers(run, videos[:1])
    answers(run, videos[:1], "calibrated=false")


def test_too_few_videos_and_tables_that_do_not_fit(run, place):
    with pytest.raises(UserError, match="method=vector needs 20 val videos of each class"):
        program("calibrate", run, "method=vector")
    with pytest.raises(UserError, match="set_coverage=0.99 needs 99 videos of val, which has 80"):
        program("calibrate", run, "set_coverage=0.99")
    with pytest.raises(UserError, match="needs 19 videos of every class with by_class=true: 10 have fewer"):
        program("calibrate", run, "set_coverage=0.95", "by_class=true")
    with pytest.raises(UserError, match="holds logits of another checkpoint"):
        program("calibrate", run / "checkpoints/last.pt", f"from_table={run}/eval/val_2x1")
    logits = run / "eval/val_2x1/views/logits.npy"
    whole = logits.read_bytes()
    logits.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is damaged"):
        program("calibrate", run)
    logits.write_bytes(whole)
    values = np.lib.format.open_memmap(logits, "r+")
    values[3] = np.nan
    values.flush()
    with pytest.raises(UserError, match="the logits of 1 of 80 videos in the table are not finite"):
        program("calibrate", run)


def test_every_mistake_at_once():
    found = [": ".join(fault[1:]) for fault in find_faults("calibrate", [
        "checkpoint=absent", "method=plat", "min_precision=0.9", "min_recall=1.5", "set_coverage=0", "fusion=vote",
    ], check)]  # fmt: skip
    for words in ("method: plat is unknown", "min_recall: 1.5 must lie between 0 and 1", "set_coverage: 0.0 must lie",
                  "min_recall: thresholds are for a precision or for a recall", "fusion: votes have no probabilities",
                  "checkpoint: absent: there is no such"):  # fmt: skip
        assert sum(words in fault for fault in found) == 1, (words, found)
    found = [": ".join(fault[1:]) for fault in find_faults("calibrate", ["from_table=x", "by_class=true"], check)]
    assert found == [
        "by_class: has no effect without set_coverage",
        "checkpoint: must be given, too: the checkpoint to calibrate",
    ]


def test_a_vector_is_applied_class_by_class(run, place, videos):
    views = open_views(run / "eval/val_2x1")
    for name in ("logits", "labels"):  # as many videos again, and again
        path = run / f"eval/val_2x1/views/{name}.npy"
        np.save(path, np.concatenate([np.load(path)] * 3))
    about = json.loads((views.folder / "views.json").read_text())
    (views.folder / "views.json").write_text(json.dumps(about | {"videos": 240, "total": 240}))
    lines = (views.folder / "videos.csv").read_text().splitlines()
    rows = [line.split(",", 1)[1] for line in lines[1:]] * 3
    text = "\n".join([lines[0], *(f"{number},{row}" for number, row in enumerate(rows))])
    (views.folder / "videos.csv").write_text(text + "\n")
    program("calibrate", run, "method=vector", f"from_table={views.folder}")
    record = json.loads(place.read_text())
    assert len(record["scaling"]["scale"]) == len(record["scaling"]["bias"]) == 10
    assert record["fitted_nll"] < record["before"]["nll"]["value"]
    assert answers(run, videos[:1])["calibration"].startswith("vector scaling")
    program("export", run, "formats=[onnx]", "card=false")  # compared with PyTorch
