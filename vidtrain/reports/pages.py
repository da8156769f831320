"""Renders templates/: HTML pages, each a file that needs no other, and a run's model card.

Paths, class names and settings may hold any characters. Templates escape every value, after control and invisible
characters were spelled out, so only the template's own text is markup.
"""

import base64
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vidtrain.files import escaping
from vidtrain.files.atomic import read_json, write_text_atomic
from vidtrain.files.escaping import legend_of, read_records

if TYPE_CHECKING:  # --help should not wait for it
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")
JPEG = b"\xff\xd8\xff"  # the first bytes of a JPEG file
MOST_CLASSES = 30  # classes of a chart
MOST_ROWS = 200  # rows of a table; summary.json has all of them

Plain = Mapping[str, Any]

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
    """A setting's value as text; a `Number` if it is a number, so that columns are aligned."""
    if isinstance(value, int | float) and not isinstance(value, bool):
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


# --- the model card of a finished run ---------------------------------------------------------------------
#
# After Mitchell et al. 2019, "Model cards for model reporting" (arXiv:1810.03993).

CARD, NEEDS = "MODEL_CARD.md", "a model card needs it"
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
CLASSES_SHOWN = 30
FEW = 10  # the card lists classes with fewer videos, as their numbers mean little
SETTINGS = (
    "optimizer", "schedule", "loss", "augmentation", "stage", "trainer.epochs", "trainer.batch_size",
    "trainer.accumulation", "trainer.precision", "trainer.ema", "trainer.clip_grad", "clip.train_clips", "seed",
)  # fmt: skip
PICTURES = {"curves.png": "Training curves", "confusion_{split}.png": "Confusion matrix on {split}"}


def write_model_card(run: Path, out: Path, config: Mapping[str, Any], exported: Mapping[str, Any] | None) -> Path:
    """Writes MODEL_CARD.md of the run folder `run` and its pictures into `out`; returns the card's path. `config` is
    the run's resolved configuration, `exported` the metadata of the exported files, or None. Raises `UserError` naming
    a file that is missing in the run folder."""
    out.mkdir(parents=True, exist_ok=True)
    split = _read(run / "summary.json")["split"]
    shown = []
    for pattern, title in PICTURES.items():
        picture = run / "plots" / pattern.format(split=split)
        if picture.is_file():  # runs with several labels a video have no confusion matrix
            for file in filter(Path.is_file, (picture, legend_of(picture))):
                shutil.copyfile(file, out / file.name)
            shown.append((title.format(split=split), picture.name))
    path = out / CARD
    write_text_atomic(path, model_card(run, config, exported, shown))
    return path


def model_card(
    run: Path,
    config: Mapping[str, Any],
    exported: Mapping[str, Any] | None,
    pictures: Sequence[tuple[str, str]],
) -> str:
    """The card as text; `pictures` are (title, file name)."""
    summary = _read(run / "summary.json")
    evaluation, start, data = (
        run / place for place in (f"eval/{summary['split']}", "starting_point.json", "dataset.json")
    )
    by_class = read_records(evaluation / "per_class.csv", NEEDS)
    score = "f1" if "f1" in by_class[0] else list(by_class[0])[-1]
    return render(
        "model_card.md.jinja",
        config=config,
        summary=summary,
        evaluated=_read(evaluation / "metrics.json"),
        exported=exported,
        start=_read(start) if start.is_file() else None,
        data=_read(data) if data.is_file() else None,
        by_class=by_class,
        weakest_first=sorted(by_class, key=lambda row: _number(row[score])),
        few=[row for row in by_class if "support" in row and _number(row["support"]) < FEW],
        least=FEW,
        most_listed=CLASSES_SHOWN,
        titles=METRIC_TITLES,
        pictures=pictures,
        settings=_settings(config),
        run=run.name,
        run_id=_read(run / "run.json")["id"],
        git=_read(run / "git.json"),
        environment=_read(run / "environment.json"),
    )


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings of `SETTINGS` that are set, as text."""
    settings = {}
    for key in SETTINGS:
        node: Any = config
        for name in key.split("."):
            node = node[name] if isinstance(node, Mapping) and name in node else None
        if node is not None:
            settings[key] = _spell(node)
    return settings


def _spell(node: object) -> str:
    """A component as its name with its values in brackets, such as `AdamW(lr=0.001)`; other values as text."""
    if isinstance(node, Mapping):
        inner = [f"{key}={_spell(value)}" for key, value in node.items() if key[0] != "_" and value is not None]
        kind = node["_target_"].rpartition(".")[2] if "_target_" in node else ""
        return f"{kind}({', '.join(inner)})"
    return f"[{', '.join(map(_spell, node))}]" if isinstance(node, list) else str(node)


def _number(cell: str) -> float:
    return float(cell) if cell else 0.0


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, NEEDS)
