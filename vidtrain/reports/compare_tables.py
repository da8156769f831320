"""The tables of a comparison as CSV, from its summary."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidtrain.files.atomic import write_text_atomic
from vidtrain.files.escaping import csv_text

Plain = Mapping[str, Any]

TABLES = ("runs.csv", "recipes.csv", "settings.csv", "per_class.csv", "flips.csv")


def write_tables(summary: Plain, changed: Iterable[tuple[int, int, Plain]], folder: Path) -> None:
    """Writes TABLES into `folder`. `changed` are (baseline, recipe, video) of all videos that came out differently."""
    tables = (runs(summary), recipes(summary), settings(summary), per_class(summary), flips(changed))
    for name, rows in zip(TABLES, tables, strict=True):
        write_text_atomic(folder / name, csv_text(rows))


Rows = list[Sequence[Any]]


def runs(summary: Plain) -> Rows:
    """A row for every run: its settings that differ, how it went on val, and every metric."""
    metrics = list(dict.fromkeys(name for run in summary["runs"] for name in run["metrics"]))
    told = (
        "split", "protocol", "coverage", "monitor", "best", "best_step", "final", "steps", "minutes", "commit",
    )  # fmt: skip
    rows: Rows = [["run", "folder", "recipe", *summary["keys"], *summary["repeats"], *told, *metrics]]
    for run in summary["runs"]:
        rows.append(
            [
                run["name"],
                run["folder"],
                run["recipe"],
                *run["settings"].values(),
                *run["repeats"].values(),
                *(run[key] for key in told),
                *(run["metrics"][name] if name in run["metrics"] else None for name in metrics),
            ]
        )
    return rows


def recipes(summary: Plain) -> Rows:
    """A row for every recipe: mean and deviation of every metric over its runs, and the difference that was tested."""
    metrics = list(dict.fromkeys(name for recipe in summary["recipes"] for name in recipe["metrics"]))
    pairs = {pair["other"]: pair for pair in summary["comparisons"]}
    tested = summary["tested"]
    difference = [
        f"{tested}_difference", "low", "high", "low_with_seeds", "high_with_seeds", "verdict", "shared_videos"
    ]  # fmt: skip
    columns = [f"{name}_{what}" for name in metrics for what in ("mean", "deviation")]
    rows: Rows = [
        ["recipe", "label", "runs", *summary["keys"], "split", "protocol", "baseline", *difference, *columns]
    ]
    for recipe in summary["recipes"]:
        tail: list[Any] = [None] * len(difference)
        if recipe["number"] in pairs:
            pair = pairs[recipe["number"]]
            wide = pair["interval_with_seeds"] or (None, None)
            tail = [pair["difference"], *pair["interval"], *wide, pair["verdict"], pair["shared"]]
        averages = recipe["metrics"]
        rows.append(
            [
                recipe["number"],
                recipe["label"],
                recipe["n"],
                *recipe["settings"].values(),
                recipe["split"],
                recipe["protocol"],
                int(recipe["number"] == summary["baseline"]),
                *tail,
                *(
                    value
                    for name in metrics
                    for value in (averages[name] if name in averages else (None, None))
                ),
            ]
        )
    return rows


def settings(summary: Plain) -> Rows:
    """A row for every setting that is not the same in all recipes."""
    header = ["setting", *(f"recipe {each['number']}" for each in summary["recipes"])]
    return [header, *([key, *row] for key, row in summary["settings"].items())]


def per_class(summary: Plain) -> Rows:
    """A row for every class of every comparison."""
    values = (
        "name", "support", "recall_baseline", "recall_other", "recall_difference", "f1_baseline", "f1_other",
        "f1_difference",
    )  # fmt: skip
    header = ["class", *values[1:], "recall_low", "recall_high"]
    rows: Rows = [["baseline", "recipe", *(each.replace("_other", "_recipe") for each in header)]]
    for pair in summary["comparisons"]:
        for each in pair["classes"]:
            rows.append([pair["baseline"], pair["other"], *(each[key] for key in values), *each["interval"]])
    return rows


def flips(changed: Iterable[tuple[int, int, Plain]]) -> Rows:
    """A row for every video that another share of the runs got right, with those shares."""
    columns = ("path", "label", "baseline", "other", "prediction_baseline", "prediction_other", "flipped")
    header = [
        "baseline", "recipe", "path", "label", "right_in_baseline", "right_in_recipe", "prediction_baseline",
        "prediction_recipe", "flipped",
    ]  # fmt: skip
    return [header, *([a, b, *(video[key] for key in columns)] for a, b, video in changed)]
