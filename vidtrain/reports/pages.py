"""HTML pages from the templates in templates/, and that of an audit; each is one file that needs nothing else.

Paths, class names and settings come from outside. Templates escape every value, and what acts or hides in a name is
spelled out before; only what a template writes itself is markup.
"""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vidtrain.files import escaping

if TYPE_CHECKING:  # --help should not wait for it
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")
JPEG = b"\xff\xd8\xff"  # how such a file begins
MOST_CLASSES = 30  # of a chart
MOST_ROWS = 200  # of a table; all of them are in summary.json

Plain = Mapping[str, Any]

Result = TypeVar("Result")


def warn_of_failure(what: str, make: Callable[[], Result], console: Any) -> Result | None:
    """What `make` gives, or None with a warning on the console that names `what`, such as a path, and the cause.

    What only shows results may fail, as the numbers that it shows are written before.
    """
    try:
        return make()
    except Exception as error:
        # a full disk, no memory, a font, a name: whatever it is, only the picture is lost
        cause = " ".join(str(error).split()) or "no more is known"
        why = f"{type(error).__name__}: {cause[:300]}"
        console.warn(f"{escaping.shown(what)} could not be made ({why}); the numbers are not concerned")
        return None


class Number(str):
    """A number in the form that it is to be shown in."""


@cache
def templates(markdown: bool = False) -> "Environment":
    """The templates, of pages or of Markdown, which escapes names by its own filters."""
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
    """A setting's value; a `Number` where it is one, so that columns of them are aligned."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Number(f"{value:.4g}" if isinstance(value, float) else value)
    return "null" if value is None else str(value)


def _as_text(value: object) -> object:
    """A value of a template as the text that is escaped next; None is a dash, and markup stays as it is."""
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
    """The page of vidtrain.data.audit.summary; pictures are read from the folder `thumbnails`."""
    return render("audit.html.jinja", audit=summary, title=title, thumbnail=partial(_thumbnail, thumbnails))


def _thumbnail(folder: Path, name: str) -> str:
    """A picture in base64; empty where there is none.

    The name is of a ledger that may be from elsewhere: only JPEG files of the folder itself get into the page.
    """
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
    """Names of at most 30 rows that are not empty, in their order, that differ most from the sum of all (total
    variation); and how many are left out."""
    filled = {name: row for name, row in rows.items() if sum(row)}
    whole = [sum(column) for column in zip(*filled.values(), strict=True)]
    shares = [value / sum(whole) for value in whole]

    def unlike(name: str) -> float:
        row = filled[name]
        return sum(abs(value / sum(row) - share) for value, share in zip(row, shares, strict=True))

    kept = set(sorted(filled, key=unlike, reverse=True)[:MOST_CLASSES])
    return [name for name in filled if name in kept], len(filled) - len(kept)
