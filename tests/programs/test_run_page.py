"""The page that a run leaves, and the same made again from its folder."""

import json
import shutil
from pathlib import Path

import pytest
from composing import config_of
from page_reader import PageReader
from pictures import pictures_drawn
from small_run import small

from vidtrain.compare import compare
from vidtrain.errors import UserError
from vidtrain.evaluate import evaluate
from vidtrain.evaluator.baselines import Baselines
from vidtrain.runs.page import read_facts, write_page
from vidtrain.tracking.logger_process import Loggers
from vidtrain.train import train

SMALL = small("logger=none", "trainer.epochs=1", "trainer.batch_size=10", "trainer.log_every=1", depth=2)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_root):
    """A run in two phases, and the pages that its loggers were handed."""
    folder, pages = tmp_path_factory.mktemp("runs") / "finished", []
    with pytest.MonkeyPatch.context() as patch, pictures_drawn():
        draw_less(patch)
        patch.setattr(Loggers, "page", lambda self, *page: pages.append(page))
        stages = ["stage=head_then_last", "trainer.epochs=2"]
        train(config_of("train", *SMALL, *stages, f"data_root={data_root}", f"run_dir={folder}"))
    return folder, pages


@pytest.fixture
def run(finished, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(finished[0], tmp_path / "run")


def draw_less(patch: pytest.MonkeyPatch) -> None:
    """Curves and confusion as pictures take a second each, and the page draws its own."""
    for name in ("plot_curves", "plot_confusion"):
        patch.setattr(f"vidtrain.reports.plots.{name}", lambda *_: None)


def read(folder: Path) -> PageReader:
    return PageReader((folder / "report.html").read_text())


def rewrite(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.slow
def test_a_run_leaves_a_page_and_hands_it_to_its_loggers(finished):
    folder, pages = finished
    assert pages == [("report", folder / "report.html", 4)]
    page, summary = read(folder), json.loads((folder / "summary.json").read_text())
    assert page.sections == [
        "baselines",
        "curves",
        "confusion",
        "classes",
        "probabilities",
        "videos",
        "reproduce",
    ]
    assert f"has a top-1 accuracy of {summary['top1']:.4f} on test: 10/10 videos, 8x3 frames at 16x16" in page.words
    assert "ViT3D + AttentiveClassifier, trained on motion to tell 10 classes apart; videos: train 20," in page.words
    assert "Always answering the most common class of test has a top-1 accuracy of 0.1000" in page.words
    digests = json.loads((folder / "dataset.json").read_text())["digests"]
    assert all(digest in page.words for digest in digests.values()) and len(digests) == 3
    record = json.loads((folder / "plots/examples_test/examples.json").read_text())
    assert len(record["examples"]) == len(page.images) >= 8
    assert all(image.startswith("data:image/webp;base64,UklGR") for image in page.images)
    assert "Paths are below" in page.words and "seed" in page.words
    assert (folder / "report.html").stat().st_size < 200_000


def test_it_is_made_again_with_what_an_evaluation_found(run, data_root, tmp_path, capsys):
    (run / "report.html").unlink()
    evaluate(config_of("evaluate", f"checkpoint={run}", "frame_order_ablations=[reversed]", "num_workers=0"))
    compare(config_of("compare", f"runs={run}"))
    assert f"{run}/report.html of this run" in "".join(capsys.readouterr().out.split("\n"))
    page = read(run)
    assert "probes" in page.sections and "With frames reversed, top-1 accuracy" in page.words
    compare(config_of("compare", f"runs=[{run}]", f"out={tmp_path / 'elsewhere'}"))
    assert read(tmp_path / "elsewhere").text == page.text


def test_baselines_of_the_summary_are_held_beside_the_result(run):
    rows = [
        {"name": name, "metric": "top1", "baseline": 0.7, "run": 0.82, "difference": difference, "low": low,
         "high": high, "videos": 120, "units": 30}
        for name, difference, low, high in (
            ("mean frame", 0.12, 0.03, 0.21), ("motion map", 0.02, -0.05, 0.1), ("oracle", -0.2, -0.3, -0.1),
            ("one group", 0.2, None, None))
    ]  # fmt: skip
    rewrite(run / "summary.json", baselines=rows)
    assert [row["verdict"] for row in read_facts(run)["baselines"]] == ["better", "alike", "worse", "unknown"]
    write_page(run, run / "report.html")
    words = read(run).words
    assert "better by more than chance Against mean frame: top-1 accuracy 0.8200 beside 0.7000" in words
    assert "not different from chance Against motion map" in words
    assert "worse by more than chance Against oracle" in words
    assert "no interval, so whether by chance is not known Against one group" in words
    assert "vidtrain.baselines" not in words


def test_baselines_that_were_measured_later_are_found(run, data_root):
    assert read_facts(run)["baselines"] == []
    digests = json.loads((run / "dataset.json").read_text())["digests"]
    later = Baselines(data_root / "index/motion/baselines/later", "top1", {"test": {"majority": {"top1": 0.1}}}, 1.0)
    shutil.copytree(run / "eval/test", later.place("test", "majority"))  # the run's own answers
    later.save(digests, {})
    compare(config_of("compare", f"runs={run}"))
    assert "not different from chance Against majority" in read(run).words
    (later.folder / "baselines.json").write_text("{")
    facts = read_facts(run)
    shutil.rmtree(later.folder)
    assert facts["baselines"] == [] and "Baselines are left out: " in facts["notes"][-1]


def test_what_a_preset_sets_is_listed_as_the_run_had_it(run):
    rewrite(run / "run.json", overrides=["experiment=few_labels", "optimizer.lr=1", "run_dir=x"])
    rows = read_facts(run)["settings"]
    assert rows[:3] == [
        ("experiment", "command line", ["few_labels"]),
        ("optimizer", "command line", ["lr=1"]),
        ("optimizer", "few_labels", ["sgd", "weight_decay=0.05"]),  # as config.yaml has it
    ]
    (model,) = [texts for group, _, texts in rows if group == "model"]
    assert model[:2] == ["efficientnet_lite0", "head=statistics_from_zero"]
    write_page(run, run / "report.html")
    assert "optimizer lr=1 command line optimizer sgd, weight_decay=0.05 few_labels" in read(run).words


def test_of_a_loss_less_is_better(run):
    row = {"name": "x", "metric": "loss", "baseline": 1.0, "run": 0.5, "difference": -0.5, "low": -0.7, "high": -0.3,
           "videos": 9, "units": 9}  # fmt: skip
    rewrite(run / "summary.json", baselines=[row])
    assert [row["verdict"] for row in read_facts(run)["baselines"]] == ["better"]


def test_an_audit_of_the_same_data_is_told_of(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, audit = (
        json.loads((run / "dataset.json").read_text()),
        tmp_path / "outputs/audit/motion/summary.json",
    )
    record = {
        "splits": {"train": 20, "val": 10, "test": 10}, "classes": [{"name": name} for name in data["classes"]],
        "root": "/", "bounds": [], "shortcuts": [],
    }  # fmt: skip
    audit.parent.mkdir(parents=True)
    for changes, same in (({}, True), ({"splits": {"train": 21}}, False), ({"root": "/other"}, False),
                          ({"classes": []}, False)):  # fmt: skip
        audit.write_text(json.dumps(record | changes))
        assert (read_facts(run)["audit"] is not None) == same, changes
    audit.write_text(json.dumps(record))
    write_page(run, run / "report.html")
    assert f"From {audit}, of " in read(run).words and "No attribute of the files alone" in read(run).words


def test_what_a_reader_must_know_is_noted(run):
    missing = [{"path": "a.mp4", "cause": "no frames"}]
    rewrite(run / "eval/test/metrics.json", missing=missing, coverage="9/10")
    rewrite(run / "summary.json", data_changed=True, split_also_selected=True)
    row = {"step": 1, "split": "train", "path": "b.mp4", "cause": "damaged"}
    (run / "faults_rank1.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    write_page(run, run / "report.html")
    words = read(run).words
    for note in ("There is no test split: test also selected", "The data were changed during the run",
                 "not counted: 1.", "a.mp4: no frames", "were replaced by others: 1."):  # fmt: skip
        assert note in words, note


def test_a_folder_from_elsewhere_shows_nothing_of_other_folders(run, tmp_path):
    secret = tmp_path / "secret.webp"
    shutil.copy(run / "plots/examples_test/01.webp", secret)
    folder = run / "plots/examples_test"
    record = json.loads((folder / "examples.json").read_text())["examples"][:3]
    (folder / "link.webp").symlink_to(secret)
    (folder / "page.webp").write_text("<script>alert(1)</script>")
    rewrite(folder / "examples.json", examples=[record[0] | {"file": name} for name in ("link.webp", "page.webp")])
    write_page(run, run / "report.html")
    assert read(run).images == []
    rewrite(folder / "examples.json", examples=[record[0] | {"file": "../../../secret.webp"}])
    with pytest.raises(UserError, match="has no page: .* is not the name of a file or folder"):
        write_page(run, run / "report.html")
    rewrite(run / "summary.json", split="../../other")
    with pytest.raises(UserError, match="has no page"):
        write_page(run, run / "report.html")


def test_a_run_from_before_there_were_moving_pictures_shows_its_sheet(run):
    shutil.rmtree(run / "plots/examples_test")
    write_page(run, run / "report.html")
    assert [image[:22] for image in read(run).images] == ["data:image/png;base64,"]
    assert "videos" in read(run).sections


def test_what_is_absent_or_damaged_is_named(run, capsys):
    rewrite(run / "summary.json", best="much")
    with pytest.raises(UserError, match="a file in it is damaged or was not written by a run"):
        write_page(run, run / "report.html")
    (run / "eval/test/per_class.csv").unlink()
    with pytest.raises(UserError, match=r"per_class\.csv cannot be read .*a run's page needs it"):
        write_page(run, run / "report.html")


def test_a_page_that_fails_is_a_warning(data_root, tmp_path, capsys, monkeypatch):
    def fails(*_):
        raise ValueError("no room")

    draw_less(monkeypatch)
    monkeypatch.setattr("vidtrain.runs.page.run_page", fails)
    monkeypatch.setattr("vidtrain.runs.examples.choose", fails)
    with pictures_drawn():
        train(config_of("train", *SMALL, f"data_root={data_root}", f"run_dir={tmp_path}"))
    words = " ".join(capsys.readouterr().out.split())
    assert "pictures of videos of test could not be made (ValueError: no room)" in words
    assert "report.html could not be made (UserError: " in words
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "finished"
    assert not (tmp_path / "report.html").exists()
