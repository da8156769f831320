"""The protocols of a view table as files: protocols.csv, probes.csv, views_curve.csv, and all in protocols.json."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vidtrain.evaluation.protocols import Point, Probe, Protocol, as_row, notes
from vidtrain.files.escaping import csv_text


def write_protocols(
    folder: Path,
    about: Mapping[str, Any],
    protocols: Sequence[Protocol],
    found: Sequence[Probe],
    points: Sequence[Point],
    fusion: str,
    metric: str,
) -> None:
    """Writes the files into `folder`; `points` are of `metric` under `fusion`.

    Clips and crops are numbered from 1; a number that was not to be had is empty in CSV and null in JSON.
    """
    rows = [as_row(each) for each in protocols]
    probe_rows = [
        as_row(each.protocol) | {"change": each.change, "same_class": each.same_class} for each in found
    ]
    of = {"order": about["orders"][0], "fusion": fusion, "metric": metric}
    curve_rows = [of | asdict(each) for each in points]
    _write_csv(folder / "protocols.csv", rows)
    _write_csv(folder / "probes.csv", probe_rows)
    _write_csv(folder / "views_curve.csv", curve_rows)
    whole = {
        "coverage": about["coverage"],
        "clips": about["clip_names"],
        "crops": about["crops"],
        "orders": about["orders"],
        "joint": about["joint"],
        "notes": notes(about),
        "protocols": rows,
        "probes": probe_rows,
        "views_curve": curve_rows,
    }
    (folder / "protocols.json").write_text(
        json.dumps(_finite(whole), indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of rows with the same keys; without any, a file that an earlier evaluation left is removed."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    cells = [[_cell(value) for value in row.values()] for row in rows]
    with open(path, "w", newline="", encoding="utf-8") as file:
        file.write(csv_text([list(rows[0]), *cells], end="\r\n"))


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return f"{value:.6f}" if math.isfinite(value) else ""
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
