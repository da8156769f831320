"""Makes report.html of a finished run from the other files in its folder; no video and no model is opened.

Training writes it at its end; `python -m vidtrain.compare RUN` writes it again, with the results of later evaluations.
"""

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from vidtrain.config.renames import rename_override
from vidtrain.config.targets import PRESETS, preset_settings
from vidtrain.data.manifest.split_records import SplitRecord
from vidtrain.data.stores.places import absolute
from vidtrain.errors import UserError
from vidtrain.evaluation.calibrated import STORED, Calibration, read_calibration
from vidtrain.evaluation.metrics import CLOSING_DIRECTIONS, UNLABELED
from vidtrain.evaluation.protocols import headline
from vidtrain.evaluator.baselines import compare_with_known
from vidtrain.files.atomic import each_json_line, read_json, write_text_atomic
from vidtrain.files.escaping import read_csv, read_records
from vidtrain.reports.run_page import MATRIX_UP_TO, Picture, curve_panels, run_page
from vidtrain.runs.attempts import STARTED, read_attempts
from vidtrain.runs.folder import SPLITS, stored_settings
from vidtrain.tracking.run_log import each_metric

Plain = dict[str, Any]

PAGE = "report.html"
NEEDS = "a run's page needs it"
MOST_PICTURE = 1 << 20  # bytes; larger files are ignored (ours have some ten thousand)
WEBP, PNG = (b"RIFF", b"WEBP"), b"\x89PNG\r\n\x1a\n"
VERSIONS = ("vidtrain", "torchvision", "timm", "av", "numpy")


def write_page(folder: Path, page: Path) -> None:
    """Writes the page of the finished run in `folder`. Raises `UserError` naming the file that is absent or damaged."""
    try:
        facts = read_facts(folder)
        text = run_page(facts, _pictures(folder, facts["summary"]["split"]))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{folder} has no page: a file in it is damaged or was not written by a run ({cause})"
        ) from error
    write_text_atomic(page, text)


def read_facts(folder: Path) -> Plain:
    """Everything that the page of a run shows, as plain values; None or empty if the run does not have it."""
    summary = _read(folder / "summary.json", "split", "monitor", "best", "best_step", "steps", "minutes")
    if "pretraining" in summary:
        return _shared(folder, summary) | _of_pretraining(folder, summary)
    split, data = summary["split"], _read_if_there(folder / "dataset.json")
    evaluation = folder / "eval" / _one_name(split)
    evaluated = _read(evaluation / "metrics.json", "metrics", "protocol", "coverage", "missing")
    multi_label = "exact_match" in evaluated["metrics"]
    settings, by_class = stored_settings(folder), _table(evaluation / "per_class.csv")
    # by F1; classes without videos come last
    weakest = sorted(by_class, key=lambda row: (not row["support"], -1.0 if row["f1"] is None else row["f1"]))
    comparisons, baseline_notes = _baselines(summary, settings, data, evaluation / "predictions.csv", multi_label)
    calibration, calibration_notes = _calibration(folder)
    return _shared(folder, summary) | {
        "pretraining": None,
        "evaluated": evaluated,
        "metric": headline(multi_label),
        "notes": [*_notes(folder, summary, evaluated), *baseline_notes, *calibration_notes],
        "baselines": [_judged(row) for row in comparisons],
        "most_common": None if multi_label else _most_common(by_class),
        "heads": _table(folder / "heads.csv") if (folder / "heads.csv").is_file() else [],
        "confusion": None if multi_label else _confusion(evaluation),
        "classes": weakest,
        "reliability": _reliability(folder, split, evaluated, calibration),
        "calibration": calibration and {**calibration.record, "scaling": str(calibration)},
        "probes": _probes(folder, headline(multi_label)),
    }


def _shared(folder: Path, summary: Plain) -> Plain:
    """The facts that runs of classification and of pretraining have in common."""
    settings = stored_settings(folder)
    overrides = [rename_override(text) for text in _read(folder / "run.json", "overrides")["overrides"]]
    data = _read_if_there(folder / "dataset.json")
    return {
        "run": folder.resolve().name,
        "summary": summary,
        "model": {part: _setting(settings, f"model.{part}._target_") for part in ("encoder", "head")},
        "dataset": _setting(settings, "dataset.name"),
        "name": _setting(settings, "name"),
        "data": data,
        "start": _read_if_there(folder / "starting_point.json"),
        "settings": _chosen(overrides, settings),
        "panels": curve_panels(each_metric(folder), summary["best_step"]),
        "audit": _audit(folder, _setting(settings, "dataset.name"), data),
        "made_with": _made_with(folder, settings, overrides),
    }


def _of_pretraining(folder: Path, summary: Plain) -> Plain:
    """The facts of a pretraining run: each metric before and after training; facts of classifiers are empty."""
    first = next((row for row in each_metric(folder) if row["step"] == 0), {})
    names = [name for name in UNLABELED if name in summary]
    evaluated = {"metrics": {name: summary[name] for name in names}, "missing": []}
    evaluated |= {key: summary[key] for key in ("protocol", "coverage")}
    empty: Plain = dict.fromkeys(("baselines", "heads", "classes", "reliability", "probes"), [])
    return (
        dict.fromkeys(("metric", "most_common", "confusion", "calibration"))
        | empty
        | {
            "pretraining": {name: _setting(first, f"val/{name}") for name in names},
            "evaluated": evaluated,
            "notes": _notes(folder, summary, evaluated),
        }
    )


# --- settings, notes, how to reproduce --------------------------------------------------------------------


def _chosen(overrides: Iterable[str], settings: Plain) -> list[tuple[str, str, list[str]]]:
    """Settings and options that were chosen: rows of (group, what set them, texts KEY=VALUE). They were set by the
    command line or by a preset that it chose."""
    pairs = (text.partition("=") for text in overrides)
    chosen = {key.lstrip("+"): ("command line", value) for key, _, value in pairs if key != "run_dir"}
    for preset in [name for name in PRESETS if name in chosen]:
        option = chosen[preset][1]
        for key, value in preset_settings(preset, option).items():
            shown = settings[key] if key in settings else value
            chosen.setdefault(key, (option, "null" if shown is None else str(shown)))
    cells: dict[tuple[str, str], list[str]] = {}
    for key, (by, value) in chosen.items():
        group, _, rest = key.replace("/", ".", 1).partition(".")
        cells.setdefault((group, by), []).append(f"{rest}={value}" if rest else value)
    groups = list(dict.fromkeys(group for group, _ in cells))
    rows = ((group, by, texts) for (group, by), texts in cells.items())
    return sorted(rows, key=lambda row: groups.index(row[0]))


def _notes(folder: Path, summary: Plain, evaluated: Plain) -> list[str]:
    """Sentences that a reader of the metrics must know."""
    notes = []
    if _setting(summary, "split_also_selected"):
        notes.append(f"There is no test split: {summary['split']} also selected the checkpoint, so its numbers are "
                     "too optimistic.")  # fmt: skip
    if _setting(summary, "data_changed"):
        notes.append("The data were changed during the run: data_changes.jsonl lists the differences.")
    if evaluated["missing"]:
        missing = len(evaluated["missing"])
        notes.append(f"Videos that could not be read and are not counted: {missing}.")
    faults = chain(*map(each_json_line, folder.glob("faults_rank*.jsonl")))
    replaced = {row["path"] for row in faults if row["split"] == "train"}
    if replaced:
        notes.append(f"Videos of train that could not be read and were replaced by others: {len(replaced)}.")
    return notes


def _made_with(folder: Path, settings: Plain, overrides: Iterable[str]) -> Plain:
    """How to reproduce the run: its command, versions, commit and seed."""
    environment, git = (_read_if_there(folder / f"{name}.json") for name in ("environment", "git"))
    words = [text for text in overrides if not text.startswith("run_dir=")]
    packages = environment["packages"] if environment else {}
    return {
        "command": shlex.join(["python", "-m", "vidtrain.train", *words]),
        "environment": environment,
        "git": git,
        "versions": [f"{name} {packages[name]}" for name in VERSIONS if name in packages],
        "seed": _setting(settings, "seed"),
        "deterministic": _setting(settings, "trainer.deterministic"),
        "attempts": sum(row["event"] == STARTED for row in read_attempts(folder)),
    }


# --- results ----------------------------------------------------------------------------------------------


def _baselines(
    summary: Plain, settings: Plain, data: Plain | None, predictions: Path, several: bool
) -> tuple[list[Plain], list[str]]:
    """The run compared with baselines: as stored at its end or, if there were none, with those measured since then; and
    a note if these are damaged."""
    if _setting(summary, "baselines"):
        return summary["baselines"], []
    root, name = _setting(settings, "data.index_root"), _setting(settings, "dataset.name")
    if root is None or name is None or not data or "digests" not in data:
        return [], []
    try:
        index = Path(root) / _one_name(name)
        comparisons = compare_with_known(index, data["digests"], summary["split"], predictions, several)
    except UserError as error:
        return [], [f"Baselines are left out: {error}."]
    return [asdict(comparison) for comparison in comparisons], []


def _judged(row: Plain) -> Plain:
    """A baseline with a verdict: better or worse if the interval of the run's difference does not contain 0, alike if
    it does, unknown without an interval."""
    sign = -1 if row["metric"] in CLOSING_DIRECTIONS and CLOSING_DIRECTIONS[row["metric"]] == "min" else 1
    bounds = [row[key] for key in ("low", "high")]
    verdict = "unknown" if None in bounds else "alike"
    if None not in bounds and (bounds[0] > 0 or bounds[1] < 0):
        verdict = "better" if sign * bounds[0] > 0 else "worse"
    return {**row, "verdict": verdict}


def _most_common(by_class: Sequence[Mapping[str, Any]]) -> float | None:
    """The accuracy of always answering the most common class."""
    supports = [row["support"] for row in by_class]
    return max(supports) / sum(supports) if supports and sum(supports) else None


def _confusion(evaluation: Path) -> Plain | None:
    """The confusion matrix: `rows` of counts if there are at most 30 classes, and all `pairs` of confused classes, the
    most frequent first."""
    matrix, listed = evaluation / "confusion.csv", evaluation / "confusion_pairs.csv"
    if matrix.is_file():
        header, *rows = read_csv(matrix, NEEDS)
        classes, counts = header[1:], [[int(cell) for cell in row[1:]] for row in rows]
        pairs = [
            (classes[label], classes[prediction], count, sum(row))
            for label, row in enumerate(counts)
            for prediction, count in enumerate(row)
            if count and label != prediction
        ]
        few = len(classes) <= MATRIX_UP_TO
        most_often = sorted(pairs, key=lambda pair: -pair[2])
        return {"classes": classes, "rows": counts if few else None, "pairs": most_often}
    if not listed.is_file():
        return None
    counted = [(label, prediction, int(count)) for label, prediction, count in read_csv(listed, NEEDS)[1:]]
    totals: dict[str, int] = {}
    for label, _, count in counted:
        totals[label] = totals.setdefault(label, 0) + count
    wrong = [(label, other, count, totals[label]) for label, other, count in counted if label != other]
    return {"classes": list(totals), "rows": None, "pairs": sorted(wrong, key=lambda pair: -pair[2])}


def _calibration(folder: Path) -> tuple[Calibration | None, list[str]]:
    """The calibration of the best checkpoint; a note if it is damaged or belongs to another checkpoint."""
    try:
        return read_calibration(folder / "checkpoints" / "best.pt", STORED), []
    except UserError as error:
        return None, [f"The calibration is left out: {error}."]


def _reliability(folder: Path, split: str, evaluated: Plain, calibration: Calibration | None) -> list[Plain]:
    """The reliability of probabilities before and after calibration: at the end of the run, on the videos of the
    calibration, and in later evaluations."""
    closing = _setting(evaluated, "reliability") or []  # earlier versions did not write it
    rows = [{"name": f"{split}, at the end of the run", "before": row, "after": None} for row in closing[:1]]
    if calibration is not None:
        record = calibration.record
        name = f"{record['split']}, held out from the fit"
        rows.append({"name": name, "before": record["before"], "after": record["after"]})
    for path in sorted(folder.glob("eval/*/metrics.json")):
        metrics = _read(path)
        if _setting(metrics, "calibrated"):
            after, before = metrics["reliability"]
            rows.append({"name": path.parent.name, "before": before, "after": after})
    return rows


def _probes(folder: Path, metric: str) -> list[Plain]:
    """The evaluations below eval/ with ablations of the frame order."""
    evaluations = []
    for path in sorted(folder.glob("eval/*/protocols.json")):
        protocols = _read(path, "probes", "coverage")
        if protocols["probes"]:
            rows = [{**row, "value": row[metric]} for row in protocols["probes"]]
            evaluations.append({"name": path.parent.name, "coverage": protocols["coverage"], "rows": rows})
    return evaluations


# --- audit ------------------------------------------------------------------------------------------------


def _audit(folder: Path, name: str | None, data: Plain | None) -> Plain | None:
    """The audit in outputs/audit/NAME, if it is of the run's data: the same classes, folder and number of videos in
    each split."""
    path = Path("outputs/audit", _one_name(name or "-"), "summary.json")
    if not (path.is_file() and data and (folder / SPLITS).is_dir()):
        return None
    audit = _read(path, "splits", "classes", "root", "bounds", "shortcuts")
    records = {file.stem: SplitRecord.open(file) for file in (folder / SPLITS).glob("*.npz")}
    counts = {split: len(record) for split, record in records.items()}
    same = audit["splits"] == counts and {row["name"] for row in audit["classes"]} == set(data["classes"])
    first_paths = [absolute(record.columns.paths[0]) for record in records.values() if len(record)]
    if not same or not all(first_path.startswith(os.path.join(audit["root"], "")) for first_path in first_paths):
        return None
    made = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    return {**audit, "file": str(path.resolve()), "made": made}


# --- pictures ---------------------------------------------------------------------------------------------


def _pictures(folder: Path, split: str) -> list[Picture]:
    """The animations of example videos of a split. Runs without them have sheets: of mistakes (earlier versions), or of
    masked videos and features (pretraining)."""
    record = folder / "plots" / f"examples_{split}" / "examples.json"
    if not record.is_file():
        names = ("wrong", "masked", "features")
        sheets = [_picture(folder / "plots" / f"{name}_{split}.png") for name in names]
        return [Picture("sheet", data, {}) for data in sheets if data.startswith(PNG)]
    pictures = []
    for video in _read(record, "examples")["examples"]:
        data = _picture(record.with_name(_one_name(video["file"])))
        if (data[:4], data[8:12]) == WEBP:
            pictures.append(Picture(video["kind"], data, video))
    return pictures


def _picture(path: Path) -> bytes:
    """The bytes of a picture; empty if it is absent, a link or too large, as the folder may come from someone else."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MOST_PICTURE:
        return b""
    return path.read_bytes()


# --- files ------------------------------------------------------------------------------------------------


def _one_name(name: str) -> str:
    """Returns `name`. Raises ValueError if it is a path to another folder."""
    if Path(name).name != name:
        raise ValueError(f"{name} is not the name of a file or folder")
    return name


def _setting(settings: Plain, key: str) -> Any:
    return settings[key] if key in settings else None


def _read(path: Path, *needed: str) -> Plain:
    return read_json(path, NEEDS, needed)


def _read_if_there(path: Path) -> Plain | None:
    return _read(path) if path.is_file() else None


def _table(path: Path) -> list[Plain]:
    """The rows of a CSV file by column, with numbers parsed and None for empty cells."""
    return [{key: _cell(key, text) for key, text in row.items()} for row in read_records(path, NEEDS)]


def _cell(column: str, text: str) -> Any:
    if column in ("class", "phase", "head"):  # names, which may look like numbers
        return text
    return None if text == "" else int(text) if text.isdecimal() else float(text)
