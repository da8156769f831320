"""The page of a run, from plain values: its sections, nothing unescaped, nothing to fetch, never too large."""

import base64
import re

import numpy as np
import pytest
from hostile_names import HOSTILE, acts
from page_reader import PageReader

from vidtrain.reports.run_page import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MATRIX_UP_TO,
    RIGHT,
    TOP,
    WIDTH,
    Picture,
    baseline_chart,
    curve_panels,
    linear,
    path,
    reliability_diagram,
    risk_chart,
    run_page,
)

EVIL = "<img src=x onerror=alert(1)>&\"'</script>$title {{ title }}"
SECTIONS = [
    "settings",
    "baselines",
    "heads",
    "curves",
    "confusion",
    "classes",
    "probabilities",
    "decisions",
    "videos",
    "probes",
    "audit",
    "reproduce",
]
WEBP = b"RIFF\0\0\0\0WEBP"
LOGGED = [
    {"step": 10, "phase": "head_only", "train/loss": 2.0, "val/loss": 2.1, "val/top1": 0.25, "lr/head": 0.1},
    {"step": 20, "phase": "head_only", "train/loss": 1.5, "val/loss": None, "val/top1": 0.5, "lr/head": 0.05},
    {"step": 40, "phase": "full", "train/loss": 1.0, "val/loss": 1.4, "val/top1": 0.75, "lr/head": 0.0},
]


def baseline(name="motion_map logistic", difference=0.12, low=0.03, high=0.21, verdict="better", **more) -> dict:
    values = {"metric": "top1", "baseline": 0.7, "run": 0.82, "videos": 120, "units": 30}
    return {
        "name": name,
        "difference": difference,
        "low": low,
        "high": high,
        "verdict": verdict,
        **values,
        **more,
    }


def audit(text="a") -> dict:
    bound = {
        "name": "max_a",
        "meaning": text,
        "bound": 0.1,
        "kept": False,
        "shown": "1",
        "shown_bound": "0.1",
    }
    shortcut = {"attribute": text, "accuracy": 0.9, "baseline": 0.5, "called_out": True}
    return {
        "file": f"/{text}/summary.json",
        "made": "2026-01-02 03:04",
        "bounds": [bound],
        "shortcuts": [shortcut],
    }


def facts(text="a", **changes) -> dict:
    probe = {"order": text, "clips": 1, "crops": 1, "value": 0.5, "change": None, "same_class": None}
    return {
        "run": text, "name": text, "dataset": text, "metric": "top1",
        "summary": {"split": "test", "monitor": "top1", "best": 0.75, "best_step": 40, "steps": 50, "minutes": 2.5,
                    "best_weights": "ema"},
        "evaluated": {"metrics": {"top1": 0.82, "top5": 0.9, "f1_macro": 0.8}, "coverage": "119/120",
                      "protocol": text, "missing": [{"path": text, "cause": text}]},
        "model": {"encoder": f"x.{text}", "head": f"y.{text}"},
        "data": {"classes": [text, "b"], "videos": {"train": 1200, "test": 120}, "digests": {"train": text}},
        "start": {"sources": [{"source": text, "format": text, "match": 0.98}], "initialized": [text]},
        "notes": [text],
        "settings": [("model", "command line", [text]), ("optimizer", "experiment=few_labels", ["lr=0.1"])],
        "baselines": [baseline(text)], "most_common": 0.25,
        "heads": [{"phase": text, "head": text, "lr": 0.1, "weight_decay": 0.0, "step": 40, "top1": 0.75}],
        "panels": curve_panels(LOGGED, 40),
        "confusion": {"classes": [text, "b"], "rows": [[1, 3], [0, 4]], "pairs": [(text, "b", 3, 4)]},
        "classes": [{"class": text, "support": 4, "precision": None, "recall": 0.25, "f1": 0.4}],
        "pretraining": None,
        "reliability": [{"name": text, "before": reliability(0.1), "after": reliability(0.02)}],
        "calibration": calibration(text),
        "probes": [{"name": text, "coverage": "119/120",
                    "rows": [probe, {**probe, "change": -0.25, "same_class": 0.5}]}],
        "audit": audit(text),
        "made_with": {"command": f"python -m vidtrain.train {text}", "seed": 3, "deterministic": False, "attempts": 2,
                      "versions": ["timm 1.0"], "git": {"commit": text, "problem": None, "dirty": True},
                      "environment": {"python": "3.12", "torch": "2.11", "devices": [text], "cpus_usable": 2,
                                      "platform": text, "variables": {text: text}, "command": text, "folder": text,
                                      "time_utc": "2026-01-02T03:04:05+00:00"}},
        **changes,
    }  # fmt: skip


def reliability(error) -> dict:
    number = {"value": error, "low": error / 2, "high": 2 * error}
    costs = dict.fromkeys(("nll", "brier", "ece", "ece_mass"), number)
    return {**costs, "chance": 0.03, "units": 30, "bins": [[10, 0.25, 0.125], [4, 0.5, 0.0], [26, 0.75, 0.5]]}


def calibration(text) -> dict:
    row = {"class": text, "threshold": 0.625, "videos": 12, "answers": 8, "right": 7, "bound": 0.53}
    unsure = {"class": "b", "threshold": None, "videos": 0, "answers": 0, "right": 0, "bound": 0.0}
    return {
        "scaling": text, "split": text, "videos": 40, "protocol": {"text": text, "fusion": text},
        "curve": {"aurc": 0.015, "coverage": [0.25, 0.5, 0.75, 1.0], "risk": [0.0, 0.0, 0.1, 0.2]},
        "thresholds": {"wanted": "precision", "share": 0.85, "classes": [row, unsure]},
        "sets": {"coverage": 0.9, "by_class": False, "least": [0.2], "sizes": [1, 30, 9]},
    }  # fmt: skip


def video(kind="wrong", text="a", size=12, number=0, folder="/data") -> Picture:
    shows = {"kind": kind, "true": text, "true_probability": 0.125, "answers": [("b", 0.75), (text, 0.125)],
             "path": f"{folder}/{text}/{number}.mp4", "file": "01.webp"}  # fmt: skip
    # every picture of a test has other bytes
    return Picture(kind, WEBP + kind.encode() + bytes([number]) * (size - len(WEBP)), shows)


def empty() -> dict:
    """What is known of a run that left nothing that is not needed."""
    nothing = dict.fromkeys(("start", "data", "most_common", "confusion", "audit", "calibration"))
    lists = {key: [] for key in ("notes", "settings", "baselines", "heads", "panels", "probes", "reliability")}
    made_with = {**facts()["made_with"], "git": None, "environment": None}
    return facts(**nothing, **lists, model={"encoder": None, "head": None}, made_with=made_with)


def test_what_comes_from_outside_is_text_only():
    plain, evil = (
        PageReader(run_page(facts(text), [video("wrong", text), video("unsure", text)])) for text in ("a", EVIL)
    )
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in plain.tags]
    assert evil.text.count(EVIL) > 25
    assert "\nalert" not in evil.text


@pytest.mark.parametrize("name", HOSTILE)
def test_no_character_of_a_name_acts(name):
    page = run_page(facts(name), [video("wrong", name), video("unsure", name)])
    assert not acts(page.replace("\n", ""))
    page.encode()  # no byte of a name that is none of UTF-8 is left


def test_the_page_says_what_was_trained_and_how_good_it_is():
    page = PageReader(run_page(facts(), [video("wrong"), video("unsure")]))
    assert page.sections == SECTIONS
    for words in (
        "a + a, trained on a to tell 2 classes apart; videos: train 1,200, test 120.",
        "The best checkpoint (val top1 0.7500, step 40 of 50, averaged weights) has a top-1 accuracy of 0.8200 "
        "on test: 119/120 videos, a.",
        "better by more than chance Against a: top-1 accuracy 0.8200 beside 0.7000, a difference of +0.1200 "
        "(+0.0300 to +0.2100), on 120 videos in 30 groups.",
        "With frames a, top-1 accuracy falls by 0.2500, and 50% of the answers stay as they were.",
        "From /a/summary.json, of 2026-01-02 03:04",
        "a alone predicts the class of 90.0% of the videos, against 50.0%",
        "b 0.75 true: a 0.12 0.mp4",
        "b 0.75 then a 0.12 0.mp4",
        "Paths are below /data/a.",
        "python -m vidtrain.train a",
        "a (a, 98% of tensors match)",
        "Python 3.12, torch 2.11, timm 1.0",
        "a with changes: git.diff",
    ):
        assert words in page.words, words


def test_probabilities_and_when_to_answer():
    page = PageReader(run_page(facts(), []))
    for words in (
        "Calibrated: a (a).",
        "before after loss 0.1000 (0.0500 to 0.2000)",
        "(AURC) is 0.0150",
        "Sets that hold the true class of 90% of videos, if these are like those of a: 2.5% hold none, 75.0% one "
        "class, 22.5% several.",
        "have a precision of 85% or more on a",
        "a 0.6250 12 8 7 0.8750 0.5300 b \u2013 0 0 0 \u2013 \u2013",
    ):
        assert words in page.words, words
    of_one_group = {name: {"value": 0.3, "low": None, "high": None} for name in ("nll", "brier", "ece", "ece_mass")}
    row = {"name": "a", "before": {**reliability(0.1), **of_one_group}, "after": None}
    page = PageReader(run_page(facts(reliability=[row]), []))
    assert "loss 0.3000 Brier score 0.3000" in page.words
    page = PageReader(run_page(facts(calibration=None), []))
    assert "Not calibrated: python -m vidtrain.calibrate" in page.words and "decisions" not in page.sections
    asked_for_nothing = {**calibration("a"), "curve": None, "thresholds": None, "sets": None}
    page = PageReader(run_page(facts(calibration=asked_for_nothing), []))
    assert "min_precision=0.95" in page.words


def test_a_reliability_diagram_shows_the_bins_that_hold_a_few():
    row = {"name": "val", "before": reliability(0.1), "after": None}
    lines = {line["name"]: line for line in reliability_diagram(row)["lines"]}
    across, down = linear(0, 1, LEFT, WIDTH - RIGHT), linear(0, 1, HEIGHT - BOTTOM, TOP)

    def through(*points):
        return path(*np.array([(across(x), down(y)) for x, y in points]).T)

    assert lines["perfectly calibrated"]["path"] == through((0, 0), (1, 1))
    assert lines["this run"]["path"] == through((0.25, 0.125), (0.75, 0.5))
    assert set(line["name"] for line in reliability_diagram({**row, "after": reliability(0.2)})["lines"]) == {
        "perfectly calibrated", "before", "after"
    }  # fmt: skip
    risk = risk_chart(calibration("a")["curve"])
    assert risk["lines"][0]["dots"][0] == pytest.approx((across(0.25), down(0)))


def test_it_needs_nothing_else():
    page = run_page(facts(), [video("wrong"), video("unsure")])
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)
    assert "<script" not in page and "@import" not in page and "http" not in page and "url(" not in page
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert page.count("data:image/webp;base64,") == 2


def test_parts_without_anything_to_say_are_left_out():
    page = PageReader(run_page(empty(), []))
    assert page.sections == ["baselines", "classes", "reproduce"]
    assert "No baseline is known. python -m vidtrain.baselines" in page.words
    assert "None" not in page.words and page.images == []
    page = PageReader(run_page(facts(baselines=[]), []))
    assert "Always answering the most common class of test has a top-1 accuracy of 0.2500" in page.words


def test_several_labels_have_no_confusion_and_no_majority():
    metrics = {"map": 0.6, "map_micro": 0.7, "exact_match": 0.3}
    classes = [{"class": "a", "support": 4, "ap": 0.6, "precision": 0.5, "recall": 0.25, "f1": 0.4}]
    evaluated = {**facts()["evaluated"], "metrics": metrics}
    several = facts(metric="map", evaluated=evaluated, classes=classes, confusion=None, most_common=None)
    shown = video()
    picture = Picture("wrong", shown.data, {**shown.shows, "true": "", "true_probability": None})
    page = PageReader(run_page(several, [picture]))
    assert [name for name in SECTIONS if name not in page.sections] == ["confusion"]
    assert "has a mean average precision of 0.6000 on test" in page.words
    assert "average precision a 4 0.2500 0.5000 0.4000 0.6000" in page.words
    assert "true: none 0.mp4" in page.words and "most videos of" not in page.words


# --- how large it is --------------------------------------------------------------------------------------


def test_pictures_are_left_out_in_a_known_order_until_the_page_fits():
    pictures = [video(kind, size=30_000, number=n) for kind in ("wrong", "unsure") for n in range(4)]
    empty_size = len(run_page(facts(), []).encode())
    kept = {}
    for room in (400_000, 200_000, 100_000, 0):
        page = run_page(facts(), pictures, empty_size + room)
        assert len(page.encode()) <= empty_size + max(room, 300)
        shown = [
            next(p for p in pictures if base64.b64encode(p.data).decode() in image) for image in PageReader(page).images
        ]
        kept[room] = [(picture.kind, picture.data[-1]) for picture in shown]
        assert (f"{8 - len(shown)} more picture" in page) == (len(shown) < 8)
    wrong, unsure = ([(kind, n) for n in range(4)] for kind in ("wrong", "unsure"))
    assert kept == {400_000: wrong + unsure, 200_000: wrong, 100_000: wrong[:2], 0: []}


def test_a_page_of_thousands_of_classes_is_cut_with_a_count_of_the_rest():
    names = [f"class {number}" for number in range(5000)]
    rows = [{"class": name, "support": 4, "precision": 0.5, "recall": 0.25, "f1": 0.4} for name in names]
    pairs = [(name, "b", 3, 4) for name in names]
    page = run_page(facts(classes=rows, confusion={"classes": names, "rows": None, "pairs": pairs}), [])
    words = PageReader(page).words
    assert "… and 4800 more classes, in eval/test/per_class.csv." in words
    assert "pairs of the 5000 classes" in words and "… and 4970 more pairs, in eval/test." in words
    assert len(page.encode()) < 300_000


def test_names_of_any_length_leave_the_page_small():
    long = "&" * 200_000
    rows = [{"class": long, "support": 4, "precision": 0.5, "recall": 0.25, "f1": 0.4} for _ in range(500)]
    names = [f"{n}{long}" for n in range(MATRIX_UP_TO)]
    confusion = {"classes": names, "rows": [[1] * len(names) for _ in names], "pairs": []}
    shown = [(f"k{n}", "command line", [long] * 100) for n in range(500)]
    page = run_page(facts(classes=rows, confusion=confusion, settings=shown), [video(text=long)])
    assert len(page.encode()) < 5_000_000
    assert PageReader(page).sections == SECTIONS


# --- charts -----------------------------------------------------------------------------------------------


def test_panels_hold_curves_phases_and_the_best_step():
    loss, accuracy, rate = curve_panels(LOGGED, 20)
    assert [panel["title"] for panel in (loss, accuracy, rate)] == [
        "Loss",
        "Accuracy and F1",
        "Learning rate",
    ]
    assert [line["name"] for line in loss["lines"]] == ["val loss", "train loss"]
    # steps 10 to 40 from the left, 58, to the right, 332; an unknown value is a gap
    assert re.fullmatch(r"M58\.0 [\d.]+M332\.0 [\d.]+", loss["lines"][0]["path"])
    assert re.fullmatch(r"M58\.0 [\d.]+L149\.3 [\d.]+L332\.0 [\d.]+", loss["lines"][1]["path"])
    assert loss["best"] == pytest.approx(58 + 274 / 3)
    assert [(phase["shown"], round(phase["x"])) for phase in loss["phases"]] == [
        ("head_only", 58),
        ("full", 149),
    ]
    assert [text for _, text in accuracy["y_ticks"]] == ["0", "0.5", "1"]
    assert curve_panels([], 20) == [] and curve_panels(LOGGED[:1], 99)[0]["best"] is None


def test_a_weight_decay_that_changes_nothing_is_not_drawn():
    rows = [{"step": n, "train/loss": 1.0, "weight_decay": 0.05} for n in range(3)]
    assert [panel["title"] for panel in curve_panels(rows, None)] == ["Loss"]
    rows[2]["weight_decay"] = 0.5
    assert [panel["title"] for panel in curve_panels(rows, None)] == ["Loss", "Weight decay"]


def test_a_long_run_has_few_points_and_a_band():
    rows = [{"step": n, "train/loss": 1 + n % 2, "train/grad_norm": 10.0 ** (n % 4)} for n in range(10_000)]
    loss, norm = curve_panels(rows, None)
    assert loss["lines"][0]["path"].count("L") < 240 and loss["lines"][0]["band"] and not loss["lines"][0]["dots"]
    assert [text for _, text in norm["y_ticks"]] == ["1", "10", "100", "1,000"]


def test_baselines_are_on_one_axis_with_zero():
    rows = [baseline(), baseline("b", -0.1, None, None, "alike"), baseline("c", None, None, None, "alike")]
    chart = baseline_chart(rows)
    better, alike = chart["rows"]
    assert 12 <= alike["dot"] < chart["zero"] < better["interval"][0] < better["dot"] < better["interval"][1] <= 328
    assert alike["interval"] is None
    assert "0" in [text for _, text in chart["ticks"]]
    assert baseline_chart([rows[2]]) is None and baseline_chart([]) is None
