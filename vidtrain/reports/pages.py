"""Renders templates/: the HTML pages of an audit and of a comparison, each a file that needs no other, and others.

Paths, class names and settings may hold any characters. Templates escape every value, after control and invisible
characters were spelled out, so only the template's own text is markup.
"""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vidtrain.errors import pluralize
from vidtrain.files import escaping
from vidtrain.files.atomic import write_text_atomic
from vidtrain.files.escaping import csv_text

if TYPE_CHECKING:  # --help should not wait for it
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")
MODEL_CARD = "MODEL_CARD.md"
METRIC_TITLES = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "map": "mean average precision, macro",
    "map_micro": "mean average precision, micro",
    "exact_match": "all labels right",
    "f1_macro": "F1, macro",
    "f1_weighted": "F1, weighted",
    "precision_macro": "precision, macro",
    "recall_macro": "recall, macro",
    "loss": "loss",
}
JPEG = b"\xff\xd8\xff"  # the first bytes of a JPEG file
CSS_PER_INCH = 96  # pixels
RECIPE_NAME_LENGTH = 44
MOST_CLASSES = 30  # classes of a chart
MOST_ROWS = 200  # rows of a table; summary.json has all of them

Plain = Mapping[str, Any]
Rows = list[Sequence[Any]]

Result = TypeVar("Result")


def warn_of_failure(what: str, make: Callable[[], Result], console: Any) -> Result | None:
    """Returns `make()`, or None with a warning that names `what`, such as a path, and the cause. For pictures and
    pages: a run must not fail because of them, as the numbers are written before."""
    try:
        return make()
    except Exception as error:
        # a full disk, no memory, a font, a name: whatever the cause, only the picture is lost
        cause = " ".join(str(error).split()) or "no details"
        why = f"{type(error).__name__}: {cause[:300]}"
        console.warn(f"{escaping.shown(what)} could not be made ({why}); the numbers are not affected")
        return None


def replace_page(page: Path, html: Callable[[], str], console: Any) -> None:
    """Writes a page anew. If that fails there is a warning and no page, as an older one must not stay."""
    page.unlink(missing_ok=True)
    warn_of_failure(str(page), lambda: write_text_atomic(page, html()), console)


class Number(str):
    """A formatted number; tables align columns of these to the right."""


@cache
def templates(markdown: bool = False) -> "Environment":
    """The environment of HTML templates, or of Markdown templates, which escape names with their own filters."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=not markdown,
        undefined=StrictUndefined,
        finalize=None if markdown else _as_text,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
    )
    numbers = {"four": four, "signed": signed, "interval": interval, "percent": percent, "setting": setting}
    names = {"md": escaping.markdown, "code": escaping.markdown_code, "cell": escaping.markdown_cell}
    environment.filters.update(names if markdown else numbers)
    environment.globals.update(
        numbers,
        most_rows=MOST_ROWS,
        numeric_columns=_numeric_columns,
        by_kind=_by_kind,
        most_unlike=most_unlike,
    )
    return environment


def render(template: str, **values: Any) -> str:
    """The text of a template, NAME.html.jinja or NAME.md.jinja."""
    return templates(markdown=".md." in template).get_template(template).render(**values)


def four(value: float | None) -> Number | None:
    return None if value is None else Number(f"{value:.4f}")


def signed(value: float | None) -> Number | None:
    return None if value is None else Number(f"{value:+.4f}")


def interval(bounds: Sequence[float] | None) -> Number | None:
    return None if bounds is None else Number(f"{bounds[0]:+.4f} to {bounds[1]:+.4f}")


def percent(share: float | None, digits: int = 1) -> Number | None:
    return None if share is None else Number(f"{share:.{digits}%}")


def setting(value: object) -> str:
    """A setting's value as it is written on a command line; a `Number` if it is a number, so that columns are
    aligned."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return Number(f"{value:.4g}" if isinstance(value, float) else value)
    return "null" if value is None else str(value)


def _as_text(value: object) -> object:
    """The text of a template's value before it is escaped. None becomes a dash; markup stays as it is."""
    if hasattr(value, "__html__"):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else escaping.shown(value)


def _numeric_columns(rows: Sequence[Sequence[object]], count: int) -> list[bool]:
    """Which of the `count` columns hold only numbers."""
    return [all(isinstance(row[n], int | float | Number | None) for row in rows) for n in range(count)]


# --- the page of an audit ---------------------------------------------------------------------------------


def audit_page(summary: Plain, title: str, thumbnails: Path) -> str:
    """The HTML page of a summary of vidtrain.data.audit.summary, with pictures from the folder `thumbnails`."""
    return render("audit.html.jinja", audit=summary, title=title, thumbnail=partial(_thumbnail, thumbnails))


def _thumbnail(folder: Path, name: str) -> str:
    """A picture in base64; empty if there is none. `name` comes from a file that is not trusted, so only JPEG files in
    the folder itself are read."""
    path = folder / name
    data = path.read_bytes() if name and path.name == name and path.is_file() else b""
    return base64.b64encode(data).decode() if data.startswith(JPEG) else ""


def _by_kind(issues: Iterable[Plain]) -> list[tuple[str, list[Plain]]]:
    """The issues of each kind, the most frequent kind first."""
    kinds: dict[str, list[Plain]] = {}
    for issue in issues:
        kinds.setdefault(issue["kind"], []).append(issue)
    return sorted(kinds.items(), key=lambda kind: -len(kind[1]))


def most_unlike(rows: Mapping[str, Sequence[int]]) -> tuple[list[str], int]:
    """The names of at most 30 rows whose distribution differs most from that of the sum of all rows (total variation),
    in their order; and the number of rows left out. Empty rows are ignored."""
    filled = {name: row for name, row in rows.items() if sum(row)}
    whole = [sum(column) for column in zip(*filled.values(), strict=True)]
    shares = [value / sum(whole) for value in whole]

    def distance(name: str) -> float:
        row = filled[name]
        return sum(abs(value / sum(row) - share) for value, share in zip(row, shares, strict=True))

    kept = set(sorted(filled, key=distance, reverse=True)[:MOST_CLASSES])
    return [name for name in filled if name in kept], len(filled) - len(kept)


# --- the page and the tables of a comparison --------------------------------------------------------------


def ranked(summary: Plain) -> list[Plain]:
    """The compared recipes, the best first; recipes without a value come last."""
    sign = -1 if summary["higher_is_better"] else 1
    compared = [recipe for recipe in summary["recipes"] if recipe["compared"]]
    return sorted(compared, key=lambda recipe: (recipe["mean"] is None, sign * (recipe["mean"] or 0.0)))


def name_of(recipe: Plain, length: int = RECIPE_NAME_LENGTH) -> str:
    """`3: lr=0.001, augmentation=none`"""
    from vidtrain.reports.charts import shortened  # here, as it imports matplotlib

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
        title=f"{runs} runs of {pluralize(recipes, 'recipe')}",
        compared=summary,
        pictures={name: _picture(folder / f"{name}.png") for name in pictures},
        ranking=ranked(summary),
        chosen=chosen_words(summary),
        name_of=name_of,
        largest_first=lambda rows, key: sorted(rows, key=lambda row: -abs(row[key])),
    )


def _picture(path: Path) -> Plain:
    """A PNG in base64, and its width in CSS pixels, with which text has the same size in all pictures."""
    from vidtrain.reports.charts import DOTS_PER_INCH  # here, as it imports matplotlib

    data = path.read_bytes()
    pixels = int.from_bytes(data[16:20])  # the width in a PNG's header
    return {"base64": base64.b64encode(data).decode(), "width": round(pixels * CSS_PER_INCH / DOTS_PER_INCH)}


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
            bounds = change["interval"] or (None, None)
            rows.append([pair["baseline"], pair["other"], *(change[key] for key in keys), *bounds])
    return rows


def _video_rows(changed: Iterable[tuple[int, int, Plain]]) -> Rows:
    """A row for every video whose share of right runs differs between baseline and recipe."""
    columns = {
        "path": "path", "label": "label", "baseline": "right_in_baseline", "other": "right_in_recipe",
        "prediction_baseline": "prediction_baseline", "prediction_other": "prediction_recipe", "flipped": "flipped",
    }  # fmt: skip
    rows: Rows = [["baseline", "recipe", *columns.values()]]
    return [*rows, *([a, b, *(video[key] for key in columns)] for a, b, video in changed)]
