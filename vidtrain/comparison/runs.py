"""What finished runs left in their folders, for programs that look at several of them."""

import glob
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidtrain.config.overrides import quoted
from vidtrain.errors import UserError
from vidtrain.runs.folder import CHANGES, FAILED, finished, stored_settings
from vidtrain.runs.status import DIVERGED, OUT_OF_MEMORY, PRUNED, last_step, read_outcome
from vidtrain.runs.status import FAILED as FAULTY
from vidtrain.sweeps.record import SWEEP, TRIAL, SweepRecord
from vidtrain.sweeps.status import shortened
from vidtrain.tracking.run_log import each_metric

if TYPE_CHECKING:  # --help should not wait for numpy
    from vidtrain.evaluation.predictions import Predictions

MOST_FAULTS = 8  # that are listed
ENDED_AS = {
    FAULTY: "failed",
    DIVERGED: "diverged",
    OUT_OF_MEMORY: "ran out of memory",
    PRUNED: "was ended by its sweep",
}


@dataclass(frozen=True)
class Run:
    """A finished run. `metrics` are those of the evaluation of `split`; `history` holds the validations, oldest first.

    `commit` is the code that it was made with, with a mark where that had been changed, or None where it is not known.
    """

    folder: Path
    settings: dict[str, Any]
    overrides: list[str]
    monitor: str
    best: float  # of monitor, on val
    best_step: int
    steps: int
    minutes: float
    split: str
    protocol: str
    coverage: str
    metrics: dict[str, float | None]
    history: list[dict[str, Any]]
    predictions: "Predictions"
    commit: str | None
    digests: dict[str, str]  # of what its splits held, where it says so
    data_changed: bool  # whether it went on with other data in mid-run

    def validated(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of a metric on val."""
        key = f"val/{metric}"
        return [(row["step"], row[key]) for row in self.history if key in row and row[key] is not None]


@dataclass(frozen=True)
class Found:
    """Folders of finished runs, and those that were left out with the reason why."""

    runs: list[Path]
    left_out: list[tuple[Path, str]]
    sweeps: list[Path]


def find_runs(places: Sequence[str]) -> Found:
    """The finished runs in `places`: run folders, folders that hold some at any depth, or patterns of those.

    An unfinished run is left out where a folder or a pattern led to it. Raises `UserError` with all that is wrong: a
    place that is absent or holds no run, or an unfinished run that was named itself.
    """
    runs: dict[Path, Path] = {}  # by what a link leads to
    left_out: dict[Path, str] = {}
    sweeps: list[Path] = []
    faults = []
    for place in places:
        matches = [place] if Path(place).exists() else sorted(glob.glob(place, recursive=True))
        if not matches:
            faults.append(f"{place}: there is no such folder")
        folders = [folder for match in matches for folder in _runs_below(Path(match), sweeps)]
        if matches and not folders:
            faults.append(
                f"{place}: it is not the folder of a run, and no run lies below it (none has a run.json)"
            )
        named_itself = folders == [Path(place)]
        for folder in folders:
            if finished(folder):
                runs.setdefault(folder.resolve(), folder)
            elif named_itself:
                again = f"python -m vidtrain.train {quoted('run_dir', str(folder))}"
                faults.append(f"{folder}: {_progress(folder)}; finish it with {again}, or leave it out")
            else:
                left_out[folder] = _progress(folder)
    if faults:
        raise UserError("these runs cannot be compared:\n  " + "\n  ".join(faults))
    return Found(list(runs.values()), list(left_out.items()), sweeps)


def _runs_below(folder: Path, sweeps: list[Path]) -> list[Path]:
    """Run folders; of a sweep, which is added to `sweeps`, all trials in order, those included that did not begin. A
    run folder holds no others."""
    if (folder / SWEEP).is_file():
        sweeps.append(folder)
        return [folder / each.folder for each in SweepRecord.read(folder).trials]
    if (folder / "run.json").is_file() or (folder / TRIAL).is_file():
        return [folder]
    if not folder.is_dir():
        return []
    inside = sorted((each for each in folder.iterdir() if each.is_dir()), key=_by_number)
    return [run for each in inside for run in _runs_below(each, sweeps)]


def _by_number(folder: Path) -> tuple[bool, int, str]:
    digits = folder.name.isdecimal()
    return not digits, int(folder.name) if digits else 0, folder.name


def _progress(folder: Path) -> str:
    ended = read_outcome(folder)
    if ended is not None:
        return f"the run {ENDED_AS[ended['status']]}: {shortened(' '.join(ended['cause'].split()))}"
    if not (folder / "run.json").is_file():
        return "the run has not begun"
    record = read_json(folder / "run.json")
    if FAILED in record:
        return f"the run failed: {record[FAILED].splitlines()[0]}"
    step = last_step(folder)
    return (
        "the run logged nothing yet"
        if step is None
        else f"the run is not finished, its last logged step is {step}"
    )


def read_run(folder: Path, split: str | None) -> Run:
    """Reads a finished run, and its evaluation below eval/`split`; None is the one that it closed with.

    Raises `UserError` naming the file that is absent or damaged.
    """
    from vidtrain.evaluation.predictions import read_predictions

    summary, record = read_json(folder / "summary.json"), read_json(folder / "run.json")
    closing = folder / "eval" / (split or _key(summary, "split", folder / "summary.json"))
    if not closing.is_dir():
        known = sorted(each.parent.name for each in folder.glob("eval/*/metrics.json"))
        raise UserError(
            f"{folder} has no evaluation {closing.name}; it has {', '.join(known) or 'none'}. Choose one with split=, "
            f"or make it: python -m vidtrain.evaluate ... out={closing}"
        )
    evaluated = read_json(closing / "metrics.json")
    metrics = _key(evaluated, "metrics", closing / "metrics.json")

    def closed(key: str) -> Any:
        return _key(summary, key, folder / "summary.json")

    return Run(
        folder=folder,
        settings=stored_settings(folder),
        overrides=_key(record, "overrides", folder / "run.json"),
        monitor=closed("monitor"),
        best=closed("best"),
        best_step=closed("best_step"),
        steps=closed("steps"),
        minutes=closed("minutes"),
        split=closing.name,
        protocol=_key(evaluated, "protocol", closing / "metrics.json"),
        coverage=_key(evaluated, "coverage", closing / "metrics.json"),
        metrics={
            # JSON of metrics may hold NaN, of what was nothing to measure in
            name: value if isinstance(value, int | float) and math.isfinite(value) else None
            for name, value in metrics.items()
        },
        history=[row for row in each_metric(folder) if any(key.startswith("val/") for key in row)],
        predictions=read_predictions(closing / "predictions.csv", several="exact_match" in metrics),
        commit=_commit(folder),
        digests=_digests(folder),
        data_changed=(folder / CHANGES).is_file(),
    )


def read_all(folders: Sequence[Path], split: str | None, advance: Callable[[int], None]) -> list[Run]:
    """`read_run` of every folder. Raises one `UserError` for all that cannot be read."""
    runs, faults = [], []
    for number, folder in enumerate(folders, start=1):
        try:
            runs.append(read_run(folder, split))
        except UserError as error:
            faults.append(str(error))
        advance(number)
    if faults:
        more = [f"and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
        raise UserError("these runs cannot be compared:\n  " + "\n  ".join(faults[:MOST_FAULTS] + more))
    return runs


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not what a run writes: it holds no mapping")
    return found


def _key(found: dict[str, Any], key: str, path: Path) -> Any:
    if key not in found:
        raise UserError(f"{path} has no {key}: it was made by other code, or changed")
    return found[key]


def _digests(folder: Path) -> dict[str, str]:
    path = folder / "dataset.json"
    found = read_json(path) if path.is_file() else {}
    if "digests" not in found or not isinstance(found["digests"], dict):
        return {}  # a run from before they were recorded
    return {str(split): str(digest) for split, digest in found["digests"].items()}


def _commit(folder: Path) -> str | None:
    path = folder / "git.json"
    if not path.is_file():
        return None
    git = read_json(path)
    commit = _key(git, "commit", path)
    if commit is None:
        return None
    return commit[:12] + (" with changes" if git["dirty"] else "")
