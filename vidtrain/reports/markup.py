"""Building blocks of the HTML pages. What comes from outside is escaped; only what is written here is `Markup`."""

from collections.abc import Sequence
from html import escape as escape_markup

from vidtrain.files.escaping import shown

MOST_ROWS = 200  # of a table; all of them are in summary.json


class Markup(str):
    """Text that is HTML already."""


class Number(Markup):
    """A number in the form that it is to be shown in."""


def escape(words: object) -> str:
    """Text from outside as HTML: it opens no tag, ends no attribute, and turns no text around it."""
    return escape_markup(shown(words))


def text(value: object) -> str:
    """A value as HTML; None is a dash."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else escape(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], most: int = MOST_ROWS) -> Markup:
    """A table; columns that hold only numbers are aligned to the right. Rows beyond `most` are counted."""
    numeric = [
        all(isinstance(row[n], int | float | Number | None) for row in rows) for n in range(len(columns))
    ]
    kinds = [' class="number"' if each else "" for each in numeric]

    def line(tag: str, cells: Sequence[object]) -> str:
        inner = "".join(f"<{tag}{kind}>{text(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{inner}</tr>"

    body = "\n".join(line("td", row) for row in rows[:most])
    return Markup(f"<table>\n{line('th', columns)}\n{body}\n</table>{more(len(rows) - most, 'rows')}")


def paragraph(words: str, soft: bool = False) -> Markup:
    kind = ' class="soft"' if soft else ""
    return Markup(f"<p{kind}>{escape(words)}</p>")


def badge(kind: str, words: str) -> Markup:
    return Markup(f'<span class="{kind}">{escape(words)}</span>')


def code(words: str) -> Markup:
    return Markup(f"<code>{escape(words)}</code>")


def more(count: int, things: str) -> str:
    return paragraph(f"… and {count} more {things}, in summary.json.", soft=True) if count > 0 else ""
