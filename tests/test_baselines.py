"""The baselines program on generated videos, and a run beside what it left."""

import json

import pytest
from composing import config_of
from fork_server import run_program
from small_run import small

from vidtrain.baselines import check
from vidtrain.evaluator.baselines import open_baselines

DATA = [override for override in small(train=4, val=2, test=2) if "dataset.source" in override]
FAST = ["clips=2", "frames=2", "size=32", "num_workers=1", "networks=[random]"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(folder, what was printed) of the program on the motion dataset."""
    folder = tmp_path_factory.mktemp("baselines")
    done = run_program("baselines", "dataset=motion", *DATA, *FAST, cwd=folder)
    assert done.returncode == 0, done.stdout
    return folder, done.stdout


def known(folder):
    (place,) = (folder / "data" / "index" / "motion" / "baselines").iterdir()
    baselines = open_baselines(place)
    assert baselines is not None
    return baselines


@pytest.mark.slow
def test_every_baseline_answers_for_every_video(measured):
    baselines = known(measured[0])
    pairs = {"majority", "mean_frame logistic", "mean_frame neighbors", "motion_map logistic"}
    pairs |= {"color_histogram logistic", "random_features logistic"}
    for split in ("val", "test"):
        assert set(baselines.results[split]) == pairs
        for name in pairs:
            answers = baselines.predictions(split, name)
            assert len(answers.paths) == 20
            right = sum(a == b for a, b in zip(answers.labels, answers.predictions, strict=True))
            assert baselines.results[split][name]["top1"] == pytest.approx(right / 20)
    assert baselines.results["test"]["majority"]["top1"] == pytest.approx(0.1)  # of ten classes alike


@pytest.mark.slow
def test_the_table_is_printed(measured):
    assert all(name in measured[1] for name in ("majority", "motion_map logistic", "val", "test"))


@pytest.mark.slow
def test_a_second_call_reads_nothing_anew(measured):
    folder, before = measured[0], known(measured[0])
    done = run_program("baselines", "dataset=motion", *DATA, *FAST, cwd=folder)
    assert done.returncode == 0 and f"computed in {before.seconds:g} s" in done.stdout
    assert known(folder) == before


@pytest.mark.slow
def test_a_run_closes_beside_them(measured):
    folder = measured[0]
    settings = small("trainer.epochs=1", "logger=none", "run_dir=run", train=4, val=2, test=2)
    done = run_program("train", *settings, cwd=folder)
    assert done.returncode == 0, done.stdout
    summary = json.loads((folder / "run" / "summary.json").read_text())
    best, *others = summary["baselines"]
    baselines = known(folder)
    assert best["name"] == baselines.best("test") and best["videos"] == 20
    assert best["run"] == pytest.approx(summary["top1"])
    assert best["difference"] == pytest.approx(summary["top1"] - baselines.results["test"][best["name"]]["top1"])
    assert best["low"] <= best["difference"] <= best["high"]
    assert [other["name"] for other in others] in ([], ["motion_map logistic"])
    assert "compared with baselines" in done.stdout


@pytest.mark.parametrize(
    "override, key",
    [
        ("clips=0", "clips"),
        ("fps=0", "fps"),
        ("size=8", "size"),
        ("networks=[resnet]", "networks"),
    ],
)
def test_mistakes_are_named(override, key):
    assert [name for name, _ in check(config_of("baselines", "dataset=motion", override))] == [key]


def test_a_dataset_has_to_be_chosen():
    assert [name for name, _ in check(config_of("baselines"))] == ["dataset"]
