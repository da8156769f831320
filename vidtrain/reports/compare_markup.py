"""Building blocks that only the page of a comparison has: signed numbers, intervals, verdicts."""

from collections.abc import Sequence
from typing import Any

from vidtrain.reports.markup import Markup, Number, badge, paragraph


def wide(inner: str) -> str:
    return f'<div class="wide">{inner}</div>'


def four(value: float | None) -> Number | None:
    return None if value is None else Number(f"{value:.4f}")


def plus(value: float | None) -> Number | None:
    return None if value is None else Number(f"{value:+.4f}")


def interval(bounds: Sequence[float] | None) -> Number | None:
    return None if bounds is None else Number(f"{bounds[0]:+.4f} to {bounds[1]:+.4f}")


def setting(value: Any) -> str:
    """A setting's value; `Number` where it is one, so that columns of them are aligned."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Number(f"{value:.4g}" if isinstance(value, float) else value)
    return "null" if value is None else str(value)


def verdict(words: str) -> Markup:
    return badge({"better": "good", "worse": "bad", "not told apart": "plain"}[words], words)


def rest(count: int, things: str, file: str) -> str:
    return paragraph(f"… and {count} more {things}, in {file}.", soft=True) if count > 0 else ""
