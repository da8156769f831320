"""The page of a comparison: one HTML file that needs nothing else, made from its summary and its pictures.

Paths, labels and settings come from outside, so every text is escaped; only what this module writes itself is `Markup`.
"""

import base64
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from vidtrain.reports.compare_charts import chosen_words, ranked
from vidtrain.reports.compare_markup import four, interval, plus, setting, verdict, wide
from vidtrain.reports.compare_pairs import classes, differences, videos
from vidtrain.reports.markup import Number, code, escape, paragraph, table
from vidtrain.reports.plots import DOTS_PER_INCH

TEMPLATE = Path(__file__).with_suffix(".html")
MOST_COLUMNS = 6  # recipes beside each other in the table of settings
MOST_KEYS = 8  # swept settings with a column each
FEW_KEYS = 2
MOST_LEFT_OUT = 30  # runs
CSS_PER_INCH = 96  # pixels

Plain = Mapping[str, Any]


def render(summary: Plain, pictures: Sequence[str], folder: Path) -> str:
    """The page. `pictures` names the PNG files in `folder` that there are."""
    images = {name: _image(folder / f"{name}.png", name) for name in pictures}
    sections = [
        ("recipes", "Recipes", _recipes(summary, images)),
        ("settings", "Settings that differ", _settings(summary)),
        ("pairs", "Differences", differences(summary)),
        ("sweep", "Sweep", _sweep(summary, images)),
        ("classes", "Classes", classes(summary, images)),
        ("videos", "Videos that flipped", videos(summary)),
        ("runs", "Runs", _runs(summary, images)),
    ]
    sections = [each for each in sections if each[2]]
    recipes, runs = len(summary["recipes"]), len(summary["runs"])
    title = f"{runs} runs of {recipes} {'recipe' if recipes == 1 else 'recipes'}"
    links = "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in sections)
    body = [
        f"<h1>{escape(title)}</h1>",
        _figures(summary),
        _notes(summary),
        f"<nav>{links}</nav>",
        *(f'<h2 id="{key}">{name}</h2>\n{inner}' for key, name, inner in sections),
    ]
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(body))


def _image(path: Path, name: str) -> str:
    data = path.read_bytes()
    (pixels,) = struct.unpack(">I", data[16:20])  # a PNG says its width first
    width = round(pixels * CSS_PER_INCH / DOTS_PER_INCH)  # words then have one size in all pictures
    encoded = base64.b64encode(data).decode()
    return f'<img alt="{name.replace("_", " ")}" width="{width}" src="data:image/png;base64,{encoded}">'


# --- sections ---------------------------------------------------------------------------------------------


def _figures(summary: Plain) -> str:
    order = ranked(summary)
    figures = []
    chosen = summary["chosen"]
    if chosen:
        figures.append(
            (f"{chosen['mean']:.4f}", f"best {chosen['monitor']} on val: recipe {chosen['recipe']}")
        )
    if order and order[0]["mean"] is not None:
        figures.append(
            (
                f"{order[0]['mean']:.4f}",
                f"best {summary['metric']} on {order[0]['split']}: recipe {order[0]['number']}",
            )
        )
    baseline = next(each for each in summary["recipes"] if each["number"] == summary["baseline"])
    if baseline["mean"] is not None:
        figures.append((f"{baseline['mean']:.4f}", f"baseline: recipe {baseline['number']}"))
    verdicts = [pair["verdict"] for pair in summary["comparisons"]]
    figures += [
        (str(verdicts.count(words)), words) for words in ("better", "worse", "not told apart") if verdicts
    ]
    boxes = "".join(f"<div><b>{escape(value)}</b>{escape(words)}</div>" for value, words in figures)
    how = f"{baseline['protocol']}, on {baseline['split']}"
    return f'<p class="soft">{escape(how)}</p><div class="figures">{boxes}</div>'


def _notes(summary: Plain) -> str:
    notes = [*([_sentence(chosen_words(summary))] if summary["chosen"] else []), *summary["notes"]]
    left_out = summary["left_out"]
    notes += [f"Left out: {each['folder']}: {each['why']}" for each in left_out[:MOST_LEFT_OUT]]
    if len(left_out) > MOST_LEFT_OUT:
        notes.append(f"Left out: {len(left_out) - MOST_LEFT_OUT} more runs, in summary.json.")
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<div class="notes"><ul>{items}</ul></div>' if items else ""


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _recipes(summary: Plain, images: Mapping[str, str]) -> str:
    held = {pair["other"]: pair for pair in summary["comparisons"]}
    rest = [each for each in summary["recipes"] if not each["compared"]]
    keys = list(summary["keys"].values())
    by_key = 0 < len(keys) <= MOST_KEYS
    rows = []
    for recipe in [*ranked(summary), *rest]:
        pair = held[recipe["number"]] if recipe["number"] in held else None
        found: object = "baseline" if recipe["number"] == summary["baseline"] else "not compared"
        if pair is not None:
            found = verdict(pair["verdict"])
        settings = list(map(setting, recipe["settings"].values())) if by_key else [recipe["label"]]
        results = (
            recipe["n"],
            four(recipe["mean"]),
            four(recipe["deviation"]),
            plus(pair["difference"]) if pair else None,
            interval(pair["widest"]) if pair else None,
            found,
        )
        val = map(four, recipe["best"])
        rows.append((Number(recipe["number"]), *_in_order(settings, results), *val))
    names = keys if by_key else ["recipe"]
    results = (
        "runs", f"{summary['metric']}, mean", "deviation", f"{summary['tested']}, difference",
        f"{summary['confidence']:.0%} interval", "",
    )  # fmt: skip
    columns = ("", *_in_order(names, results), "best on val, mean", "deviation")
    words = paragraph(
        "Deviation is the sample standard deviation over runs. The interval is that of the difference from the "
        "baseline, over videos, and over seeds too where both recipes have several.",
        soft=True,
    )
    return wide(table(columns, rows)) + words + (images["comparison"] if "comparison" in images else "")


def _in_order(settings: Sequence[Any], results: Sequence[Any]) -> list[Any]:
    """A few settings come first; of many, the results do, which have to be in sight."""
    parts = (settings, results) if len(settings) <= FEW_KEYS else (results, settings)
    return [each for part in parts for each in part]


def _settings(summary: Plain) -> str:
    recipes, settings = summary["recipes"], summary["settings"]
    if not settings:
        return paragraph("None: all runs have the same settings, but for what is repeated.")
    shown = recipes[:MOST_COLUMNS]
    rows = [(code(key), *(setting(value) for value in row[: len(shown)])) for key, row in settings.items()]
    parts = wide(table(("setting", *(f"recipe {each['number']}" for each in shown)), rows))
    left_out = len(recipes) - len(shown)
    return parts + (paragraph(f"{left_out} more recipes are in settings.csv.", soft=True) if left_out else "")


def _sweep(summary: Plain, images: Mapping[str, str]) -> str:
    parts = [images[name] for name in ("parallel_coordinates", "importance") if name in images]
    if summary["importance"]:
        rows = [
            (
                code(each["key"]),
                f"{each['values']}{' bins' if each['binned'] else ''}",
                each["runs"],
                Number(f"{each['share']:.1%}"),
                None if each["adjusted"] is None else Number(f"{each['adjusted']:.1%}"),
            )
            for each in summary["importance"]
        ]
        parts.append(table(("setting", "values", "runs", "share of variance", "beyond chance"), rows))
        parts.append(
            paragraph(
                f"How much of the variance of {summary['metric']} between runs lies between the values of one setting "
                "(one-way, eta squared), and what is left when what as many values explain by chance is taken away "
                "(epsilon squared, not below 0). Settings are taken one at a time: what two do only together is "
                "credited to neither, and where they were not varied independently, one gets credit for another. "
                "What is repeated, such as the seed, is there to compare with.",
                soft=True,
            )
        )
    return "".join(parts)


def _runs(summary: Plain, images: Mapping[str, str]) -> str:
    metric = summary["metric"]
    rows = [
        (
            code(run["name"]),
            run["recipe"],
            *run["repeats"].values(),
            four(run["metrics"][metric]),
            four(run["best"]),
            run["best_step"],
            four(run["final"]),
            run["minutes"],
            run["coverage"],
            run["protocol"],
        )
        for run in summary["runs"]
    ]
    columns = (
        "run", "recipe", *summary["repeats"], metric, "best on val", "at step", "last on val", "minutes", "read",
        "protocol",
    )  # fmt: skip
    monitors = ", ".join(sorted({run["monitor"] for run in summary["runs"]}))
    words = paragraph(
        f"On val is {monitors}, which chose the checkpoint. All metrics are in runs.csv.", soft=True
    )
    return (images["curves"] if "curves" in images else "") + wide(table(columns, rows)) + words
