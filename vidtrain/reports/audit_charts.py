"""Charts of the audit page as inline SVG: how often each value is in each class."""

from collections.abc import Mapping, Sequence

from vidtrain.reports.markup import escape

WIDTH = 1060
NAMES = 190  # pixels for the names of classes
ROW = 26
BAR = "#3f74b5"
FEWEST_SHOWN = 0.005  # share of a class below which a cell stays empty
MOST_ROWS = 30
CHARACTERS = 26  # of a class's name that have room


def chart(labels: Sequence[str], counts: Mapping[str, Sequence[int]], ordered: bool) -> str:
    """A row for every class that has videos, `counts` of which fall to each of `labels`: bars over an axis where the
    labels are `ordered`, else shaded cells with percentages. At most 30 classes are drawn, those that differ most
    from the whole.
    """
    rows = {name: row for name, row in counts.items() if sum(row)}
    chosen = most_unlike(rows)
    step = (WIDTH - NAMES) / max(1, len(labels))
    draw = _bars if ordered else _cells
    parts = [_header(labels, step)] if not ordered else []
    top = 0 if ordered else ROW
    for number, name in enumerate(chosen):
        parts.append(_name(name, top + number * ROW))
        parts.append(draw(rows[name], top + number * ROW, step))
    height = top + len(chosen) * ROW
    if ordered:
        parts.append(_axis(labels, height, step))
        height += ROW
    left_out = len(rows) - len(chosen)
    note = (
        f'<p class="soft">{left_out} more classes, which differ less from the whole.</p>' if left_out else ""
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" style="max-width:100%" role="img">'
        f"{''.join(parts)}</svg>{note}"
    )


def most_unlike(rows: Mapping[str, Sequence[int]]) -> list[str]:
    """Names of at most 30 rows, in their order, that differ most from the sum of all (total variation)."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    whole = [sum(column) for column in zip(*rows.values(), strict=True)]
    shares = [value / sum(whole) for value in whole]

    def unlike(name: str) -> float:
        row = rows[name]
        return sum(abs(value / sum(row) - share) for value, share in zip(row, shares, strict=True))

    kept = set(sorted(rows, key=unlike, reverse=True)[:MOST_ROWS])
    return [name for name in rows if name in kept]


def _name(name: str, top: float) -> str:
    short = name if len(name) <= CHARACTERS else f"{name[: CHARACTERS - 1]}…"
    return (
        f'<text x="{NAMES - 10}" y="{top + 17}" font-size="13" text-anchor="end" fill="#1c2430">'
        f"<title>{escape(name)}</title>{escape(short)}</text>"
    )


def _header(labels: Sequence[str], step: float) -> str:
    return "".join(
        f'<text x="{NAMES + (number + 0.5) * step:.1f}" y="17" font-size="12" text-anchor="middle" fill="#45505f">'
        f"{escape(label)}</text>"
        for number, label in enumerate(labels)
    )


def _cells(row: Sequence[int], top: float, step: float) -> str:
    parts = []
    for number, count in enumerate(row):
        share = count / sum(row)
        left = NAMES + number * step
        parts.append(
            f'<rect x="{left:.1f}" y="{top + 1}" width="{step - 2:.1f}" height="{ROW - 2}" fill="{BAR}" '
            f'fill-opacity="{0.04 + 0.9 * share:.3f}"/>'
        )
        if share >= FEWEST_SHOWN:
            color = "#fff" if share > 0.5 else "#1c2430"
            parts.append(
                f'<text x="{left + step / 2:.1f}" y="{top + 17}" font-size="12" text-anchor="middle" fill="{color}">'
                f"{share:.0%}</text>"
            )
    return "".join(parts)


def _bars(row: Sequence[int], top: float, step: float) -> str:
    highest = max(row)
    base = top + ROW - 2
    parts = [f'<line x1="{NAMES}" x2="{WIDTH}" y1="{base}" y2="{base}" stroke="#dde2ea"/>']
    for number, count in enumerate(row):
        if count:
            height = (ROW - 5) * count / highest
            parts.append(
                f'<rect x="{NAMES + number * step:.1f}" y="{base - height:.1f}" width="{step - 1.5:.1f}" '
                f'height="{height:.1f}" fill="{BAR}"><title>{count}</title></rect>'
            )
    return "".join(parts)


def _axis(labels: Sequence[str], top: float, step: float) -> str:
    every = max(1, len(labels) // 8)
    return "".join(
        f'<text x="{NAMES + number * step:.1f}" y="{top + 15}" font-size="12" fill="#45505f">{escape(label)}</text>'
        for number, label in enumerate(labels)
        if number % every == 0
    )
