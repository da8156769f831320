"""The sections of the comparison page that hold recipes against the baseline: differences, classes and videos."""

from collections.abc import Mapping
from typing import Any

from vidtrain.reports.compare_charts import name_of, ranked
from vidtrain.reports.compare_markup import four, interval, plus, rest, verdict, wide
from vidtrain.reports.markup import Markup, Number, code, more, paragraph, table, text

MOST_DETAILED = 12  # comparisons whose classes and videos are listed
MOST_CLASSES = 30
MOST_VIDEOS = 40

Plain = Mapping[str, Any]


def differences(summary: Plain) -> str:
    """Every recipe's difference with its intervals, and the pairs of single runs."""
    if not summary["comparisons"]:
        return ""
    recipes = {each["number"]: each for each in summary["recipes"]}
    rows = []
    for pair in summary["comparisons"]:
        units = f"{pair['shared']}"
        units += f" in {pair['units']} groups" if pair["units"] != pair["shared"] else ""
        rows.append(
            (
                name_of(recipes[pair["other"]]),
                plus(pair["difference"]),
                interval(pair["interval"]),
                interval(pair["interval_with_seeds"]),
                units,
                pair["gained"],
                pair["lost"],
                verdict(pair["verdict"]),
            )
        )
    columns = (
        "recipe", f"difference in {summary['tested']}", "over videos", "over videos and seeds", "shared videos",
        "gained", "lost", "",
    )  # fmt: skip
    baseline = name_of(recipes[summary["baseline"]])
    parts = [
        paragraph(f"From the baseline, recipe {baseline}, on the videos that both read.", soft=True),
        wide(table(columns, rows)),
        paragraph(
            f"Intervals hold {summary['confidence']:.0%} of {summary['draws']} draws of as many videos with "
            "replacement, the same for all runs (paired bootstrap, percentiles). Over seeds too, what the spread of "
            "each recipe's runs leaves open of its mean is added (Student's t), so with two or three they are wide. "
            "Better and worse are said where the wider one misses 0. Gained and lost are videos that more than half of "
            "the runs of one recipe got right, and of the other not.",
            soft=True,
        ),
        _single_runs(summary, recipes),
    ]
    return "".join(parts)


def _single_runs(summary: Plain, recipes: Mapping[int, Plain]) -> str:
    rows = [
        (
            recipes[pair["baseline"]]["runs"][each["baseline"]],
            name_of(recipes[pair["other"]], 30),
            recipes[pair["other"]]["runs"][each["other"]],
            each["only_baseline"],
            each["only_other"],
            each["p"],
        )
        for pair in summary["comparisons"]
        for each in pair["pairs"]
    ]
    if not rows:
        return ""
    columns = ("baseline's run", "recipe", "run", "only the baseline's right", "only the other right", "p")
    return f"<h3>Single runs</h3>{wide(table(columns, rows))}" + paragraph(
        "Pairs of runs of the same seed, by McNemar's exact test, two-sided: how likely so uneven a split of the "
        "videos is, on which just one is right, if both are equally good. It says nothing of other seeds.",
        soft=True,
    )


def classes(summary: Plain, images: Mapping[str, str]) -> str:
    """What changed in each class."""
    if not summary["comparisons"]:
        return ""
    parts = [images["classes"]] if "classes" in images else []
    for pair in _detailed(summary):
        changes = sorted(pair["classes"], key=lambda each: -abs(each["recall_difference"]))
        rows = [
            (
                each["name"],
                each["support"],
                four(each["recall_baseline"]),
                four(each["recall_other"]),
                plus(each["recall_difference"]),
                interval(each["interval"]),
                four(each["f1_baseline"]),
                four(each["f1_other"]),
                plus(each["f1_difference"]),
            )
            for each in changes[:MOST_CLASSES]
        ]
        columns = (
            "class", "videos", "recall, baseline", "recall", "difference", "interval", "F1, baseline", "F1",
            "difference",
        )  # fmt: skip
        inner = wide(table(columns, rows)) + rest(len(changes) - MOST_CLASSES, "classes", "per_class.csv")
        parts.append(_fold(summary, pair, inner))
    parts.append(
        paragraph(
            "Averages over runs; intervals are over the videos of the class and, where both recipes were run several "
            "times, over seeds. Those of a few videos are too narrow, and of many classes some miss 0 by chance.",
            soft=True,
        )
    )
    return "".join(parts) + _not_detailed(summary)


def videos(summary: Plain) -> str:
    """Videos that most runs of just one recipe got right."""
    if not summary["comparisons"]:
        return ""
    parts = []
    for pair in _detailed(summary):
        rows = [
            (
                code(each["path"]),
                each["label"],
                Number(f"{each['baseline']:.0%}"),
                Number(f"{each['other']:.0%}"),
                each["prediction_baseline"],
                each["prediction_other"],
            )
            for each in pair["flips"][:MOST_VIDEOS]
        ]
        columns = (
            "video",
            "label",
            "right, baseline",
            "right",
            "most often taken for, baseline",
            "most often taken for",
        )
        flipped = pair["gained"] + pair["lost"]
        inner = paragraph(f"{pair['gained']} gained and {pair['lost']} lost, of {pair['shared']} videos.")
        if rows:
            inner = Markup(inner + wide(table(columns, rows)))
        parts.append(_fold(summary, pair, inner + rest(flipped - len(rows), "videos", "flips.csv")))
    return "".join(parts) + _not_detailed(summary)


def _detailed(summary: Plain) -> list[Plain]:
    """The comparisons that are shown in full, the best recipes first."""
    order = {each["number"]: place for place, each in enumerate(ranked(summary))}
    return sorted(summary["comparisons"], key=lambda pair: order[pair["other"]])[:MOST_DETAILED]


def _fold(summary: Plain, pair: Plain, inner: str) -> str:
    recipe = next(each for each in summary["recipes"] if each["number"] == pair["other"])
    opened = " open" if len(summary["comparisons"]) == 1 else ""
    return f"<details{opened}><summary>recipe {text(name_of(recipe, 80))}</summary>{inner}</details>"


def _not_detailed(summary: Plain) -> str:
    return more(len(summary["comparisons"]) - MOST_DETAILED, "recipes")
