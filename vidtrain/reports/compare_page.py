"""Makes the page and the CSV tables of a comparison from its summary; ranks and names its recipes."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidtrain.files.atomic import write_text_atomic
from vidtrain.files.escaping import csv_text
from vidtrain.reports.charts import DOTS_PER_INCH, shortened
from vidtrain.reports.pages import render

CSS_PER_INCH = 96  # pixels
NAME_LENGTH = 44

Plain = Mapping[str, Any]
Rows = list[Sequence[Any]]


def ranked(summary: Plain) -> list[Plain]:
    """The compared recipes, the best first; recipes without a value come last."""
    sign = -1 if summary["higher_is_better"] else 1
    compared = [recipe for recipe in summary["recipes"] if recipe["compared"]]
    return sorted(compared, key=lambda recipe: (recipe["mean"] is None, sign * (recipe["mean"] or 0.0)))


def name_of(recipe: Plain, length: int = NAME_LENGTH) -> str:
    """`3: lr=0.001, augmentation=none`"""
    return shortened(f"{recipe['number']}: {recipe['label']}", length)


def chosen_words(summary: Plain) -> str:
    """A sentence that names the recipe chosen on val and its metric on the reported split; empty if none is chosen."""
    chosen = summary["chosen"]
    if chosen is None:
        return ""
    recipe = next(recipe for recipe in summary["recipes"] if recipe["number"] == chosen["recipe"])
    choice = (
        f"chosen on val, by the mean of {chosen['monitor']}, {chosen['mean']:.4f}: recipe {recipe['number']}, "
        f"{recipe['label']}"
    )
    if recipe["mean"] is None or recipe["split"].startswith("val"):
        return choice
    return (
        f"{choice}; on {recipe['split']} its {summary['metric']} is {recipe['mean']:.4f}. Report this number: the best "
        f"of many recipes on {recipe['split']} is too optimistic"
    )


def compare_page(summary: Plain, pictures: Sequence[str], folder: Path) -> str:
    """The page as HTML. `pictures` names the PNG files in `folder`, without suffix."""
    recipes, runs = len(summary["recipes"]), len(summary["runs"])
    return render(
        "compare.html.jinja",
        title=f"{runs} runs of {recipes} recipe{'' if recipes == 1 else 's'}",
        compared=summary,
        pictures={name: _picture(folder / f"{name}.png") for name in pictures},
        ranking=ranked(summary),
        chosen=chosen_words(summary),
        name_of=name_of,
        largest_first=lambda rows, key: sorted(rows, key=lambda row: -abs(row[key])),
    )


def _picture(path: Path) -> Plain:
    """A PNG in base64, and its width in CSS pixels, with which text has the same size in all pictures."""
    data = path.read_bytes()
    pixels = int.from_bytes(data[16:20])  # the width in a PNG's header
    return {"base64": base64.b64encode(data).decode(), "width": round(pixels * CSS_PER_INCH / DOTS_PER_INCH)}


# --- tables -----------------------------------------------------------------------------------------------


def write_tables(summary: Plain, changed: Iterable[tuple[int, int, Plain]], folder: Path) -> None:
    """Writes the CSV tables into `folder`. `changed` are (baseline, recipe, video) of videos whose share of right runs
    differs."""
    recipes = (f"recipe {recipe['number']}" for recipe in summary["recipes"])
    tables: dict[str, Rows] = {
        "runs": _run_rows(summary),
        "recipes": _recipe_rows(summary),
        "settings": [["setting", *recipes], *([key, *row] for key, row in summary["settings"].items())],
        "per_class": _class_rows(summary),
        "flips": _video_rows(changed),
    }
    for name, rows in tables.items():
        write_text_atomic(folder / f"{name}.csv", csv_text(rows))


def _run_rows(summary: Plain) -> Rows:
    """A row for every run: the settings that differ, its result on val, and every metric."""
    metrics = list(dict.fromkeys(name for run in summary["runs"] for name in run["metrics"]))
    keys = (
        "split", "protocol", "coverage", "monitor", "best", "best_step", "final", "steps", "minutes", "commit",
    )  # fmt: skip
    rows: Rows = [["run", "folder", "recipe", *summary["keys"], *summary["repeats"], *keys, *metrics]]
    for run in summary["runs"]:
        first = (
            run["name"],
            run["folder"],
            run["recipe"],
            *run["settings"].values(),
            *run["repeats"].values(),
        )
        last = (run["metrics"][name] if name in run["metrics"] else None for name in metrics)
        rows.append([*first, *(run[key] for key in keys), *last])
    return rows


def _recipe_rows(summary: Plain) -> Rows:
    """A row for every recipe: the tested difference, and mean and deviation of every metric over its runs."""
    metrics = list(dict.fromkeys(name for recipe in summary["recipes"] for name in recipe["metrics"]))
    pairs = {pair["other"]: pair for pair in summary["comparisons"]}
    averages = (f"{name}_{what}" for name in metrics for what in ("mean", "deviation"))
    rows: Rows = [
        [
            *("recipe", "label", "runs", *summary["keys"], "split", "protocol", "baseline"),
            *(f"{summary['tested']}_difference", "low", "high", "low_with_seeds", "high_with_seeds"),
            *("verdict", "shared_videos", *averages),
        ]
    ]
    for recipe in summary["recipes"]:
        number, by_metric = recipe["number"], recipe["metrics"]
        tested: Sequence[Any] = [None] * 7
        if number in pairs:
            pair = pairs[number]
            with_seeds = pair["interval_with_seeds"] or (None, None)
            over_videos = pair["interval"] or (None, None)
            tested = (pair["difference"], *over_videos, *with_seeds, pair["verdict"], pair["shared"])
        first = (number, recipe["label"], recipe["n"], *recipe["settings"].values())
        protocol = (recipe["split"], recipe["protocol"], int(number == summary["baseline"]))
        last = (value for name in metrics for value in (by_metric[name] if name in by_metric else (None, None)))
        rows.append([*first, *protocol, *tested, *last])
    return rows


def _class_rows(summary: Plain) -> Rows:
    """A row for every class of every comparison."""
    keys = (
        "name", "support", "recall_baseline", "recall_other", "recall_difference", "f1_baseline", "f1_other",
        "f1_difference",
    )  # fmt: skip
    columns = [key.replace("_other", "_recipe") for key in keys[1:]]
    rows: Rows = [["baseline", "recipe", "class", *columns, "recall_low", "recall_high"]]
    for pair in summary["comparisons"]:
        for change in pair["classes"]:
            rows.append([pair["baseline"], pair["other"], *(change[key] for key in keys), *change["interval"]])
    return rows


def _video_rows(changed: Iterable[tuple[int, int, Plain]]) -> Rows:
    """A row for every video whose share of right runs differs between baseline and recipe."""
    columns = {
        "path": "path", "label": "label", "baseline": "right_in_baseline", "other": "right_in_recipe",
        "prediction_baseline": "prediction_baseline", "prediction_other": "prediction_recipe", "flipped": "flipped",
    }  # fmt: skip
    rows: Rows = [["baseline", "recipe", *columns.values()]]
    return [*rows, *([a, b, *(video[key] for key in columns)] for a, b, video in changed)]
