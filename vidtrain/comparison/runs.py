"""Finds and reads the folders of finished runs."""

import glob
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vidtrain.config.overrides import quoted
from vidtrain.errors import UserError
from vidtrain.files.atomic import read_json
from vidtrain.files.escaping import first_lines
from vidtrain.runs.attempts import DIVERGED, OUT_OF_MEMORY, PRUNED, last_step, read_outcome
from vidtrain.runs.attempts import FAILED as FAULTY
from vidtrain.runs.folder import CHANGES, FAILED, finished, stored_settings
from vidtrain.sweeps.record import SWEEP, TRIAL, SweepRecord, shortened
from vidtrain.tracking.run_log import each_metric

if TYPE_CHECKING:  # so that --help does not wait for the import of numpy
    from vidtrain.evaluation.predictions import Predictions

MOST_FAULTS = 8  # at most this many runs that cannot be read are listed
ENDED_AS = {
    FAULTY: "failed",
    DIVERGED: "diverged",
    OUT_OF_MEMORY: "ran out of memory",
    PRUNED: "was ended by its sweep",
}


class EvaluationKind(NamedTuple):
    """How a run was evaluated. `several` says whether videos may have several labels; `probed` names the labeled
    dataset by which a run of pretraining was probed."""

    split: str
    protocol: str
    several: bool
    probed: str | None


@dataclass(frozen=True)
class Run:
    """A finished run. `metrics` are those of the evaluation of `split`; `history` holds the validations, oldest first.

    A run of pretraining has an `objective`, and no predictions.
    `commit` is the code of the run, followed by "with changes" if it differed from the commit; None if not known.
    `baselines` holds the results of the baselines on its split, the best first; empty if none are known.
    """

    folder: Path
    settings: dict[str, Any]
    overrides: list[str]
    monitor: str
    best: float  # best value of `monitor` on val
    best_step: int
    steps: int
    minutes: float
    split: str
    protocol: str
    coverage: str
    metrics: dict[str, float | None]
    history: list[dict[str, Any]]
    predictions: "Predictions | None"
    objective: str | None
    commit: str | None
    digests: dict[str, str]  # digest of the data by split, if recorded
    data_changed: bool  # whether it was resumed with changed data
    baselines: list[dict[str, Any]]

    @property
    def kind(self) -> EvaluationKind:
        several = self.predictions is not None and self.predictions.several
        return EvaluationKind(self.split, self.protocol, several, self.settings.get("probe.dataset.name"))

    def validated(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of a metric in each validation that has it."""
        key = f"val/{metric}"
        return [(row["step"], row[key]) for row in self.history if key in row and row[key] is not None]


@dataclass(frozen=True)
class FoundRuns:
    """Folders of finished runs, folders of runs that were left out with the reason, and folders of sweeps."""

    runs: list[Path]
    left_out: list[tuple[Path, str]]
    sweeps: list[Path]


def find_runs(places: Sequence[str]) -> FoundRuns:
    """The finished runs in `places`: run folders, folders that hold some at any depth, or glob patterns of these. An
    unfinished run is left out if a folder or a pattern led to it. Raises one `UserError` for all faults: a place that
    is absent or holds no run, or an unfinished run that is itself one of `places`."""
    runs: dict[Path, Path] = {}  # by resolved path, so that links to a run do not count twice
    left_out: dict[Path, str] = {}
    sweeps: list[Path] = []
    faults = []
    for place in places:
        matches = [place] if Path(place).exists() else sorted(glob.glob(place, recursive=True))
        if not matches:
            faults.append(f"{place}: there is no such folder")
        folders = [folder for match in matches for folder in _runs_below(Path(match), sweeps)]
        if matches and not folders:
            faults.append(f"{place}: it is not the folder of a run, and no run lies below it (none has a run.json)")
        named_itself = folders == [Path(place)]
        for folder in folders:
            if finished(folder):
                runs.setdefault(folder.resolve(), folder)
            elif named_itself:
                command = f"python -m vidtrain.train {quoted('run_dir', str(folder))}"
                faults.append(f"{folder}: {_progress(folder)}; finish it with {command}, or leave it out")
            else:
                left_out[folder] = _progress(folder)
    _raise_all(faults)
    return FoundRuns(list(runs.values()), list(left_out.items()), sweeps)


def _runs_below(folder: Path, sweeps: list[Path]) -> list[Path]:
    """The run folders in `folder`. For a sweep, which is added to `sweeps`, these are all its trials in order, even if
    they have not begun. A run folder is not searched for others."""
    if (folder / SWEEP).is_file():
        sweeps.append(folder)
        return [folder / trial.folder for trial in SweepRecord.read(folder).trials]
    if (folder / "run.json").is_file() or (folder / TRIAL).is_file():
        return [folder]
    if not folder.is_dir():
        return []
    inside = sorted((child for child in folder.iterdir() if child.is_dir()), key=_by_number)
    return [run for child in inside for run in _runs_below(child, sweeps)]


def _by_number(folder: Path) -> tuple[bool, int, str]:
    digits = folder.name.isdecimal()
    return not digits, int(folder.name) if digits else 0, folder.name


def _progress(folder: Path) -> str:
    ended = read_outcome(folder)
    if ended is not None:
        return f"the run {ENDED_AS[ended['status']]}: {shortened(' '.join(ended['cause'].split()))}"
    if not (folder / "run.json").is_file():
        return "the run has not begun"
    record = _read(folder / "run.json")
    if FAILED in record:
        return f"the run failed: {record[FAILED].splitlines()[0]}"
    step = last_step(folder)
    if step is None:
        return "the run logged nothing yet"
    return f"the run is not finished, its last logged step is {step}"


def read_run(folder: Path, split: str | None) -> Run:
    """Reads a finished run, and its evaluation in eval/`split`; None means the evaluation at the end of the run. Raises
    `UserError` naming the file that is absent or damaged."""
    record = _read(folder / "run.json", "overrides")
    summary = _read(folder / "summary.json", "split", "monitor", "best", "best_step", "steps", "minutes")
    name = split or summary["split"]
    if "pretraining" in summary:
        evaluated, predictions = _evaluation_without_labels(folder, summary, split), None
    else:
        evaluated, predictions = _evaluation(folder, name)
    return Run(
        folder=folder,
        settings=stored_settings(folder),
        overrides=record["overrides"],
        monitor=summary["monitor"],
        best=summary["best"],
        best_step=summary["best_step"],
        steps=summary["steps"],
        minutes=summary["minutes"],
        split=name,
        protocol=evaluated["protocol"],
        coverage=evaluated["coverage"],
        metrics={
            # metrics.json may hold NaN for a metric that is undefined on these videos
            name: value if isinstance(value, int | float) and math.isfinite(value) else None
            for name, value in evaluated["metrics"].items()
        },
        history=[row for row in each_metric(folder) if any(key.startswith("val/") for key in row)],
        predictions=predictions,
        objective=summary.get("pretraining"),
        commit=_commit(folder / "git.json"),
        digests=_digests(folder / "dataset.json"),
        data_changed=(folder / CHANGES).is_file(),
        # older runs have no baselines
        baselines=summary.get("baselines", []) if name == summary["split"] else [],
    )


def _evaluation(folder: Path, name: str) -> tuple[dict[str, Any], "Predictions"]:
    """metrics.json of the evaluation eval/`name` of a classifier, and its predictions."""
    from vidtrain.evaluation.predictions import read_predictions

    closing = folder / "eval" / name
    if not closing.is_dir():
        known = sorted(file.parent.name for file in folder.glob("eval/*/metrics.json"))
        raise UserError(
            f"{folder} has no evaluation {name}; it has {', '.join(known) or 'none'}. Choose one with split=, or make "
            f"it: python -m vidtrain.evaluate ... out={closing}"
        )
    evaluated = _read(closing / "metrics.json", "metrics", "protocol", "coverage")
    return evaluated, read_predictions(closing / "predictions.csv", several="exact_match" in evaluated["metrics"])


def _evaluation_without_labels(folder: Path, summary: dict[str, Any], split: str | None) -> dict[str, Any]:
    """The content of metrics.json for a run of pretraining, whose only evaluation is in its summary."""
    if split is not None:
        raise UserError(f"{folder} is a run of pretraining, which has no evaluation {split}; leave out split=")
    from vidtrain.evaluation.metrics import UNLABELED

    metrics = {name: summary[name] for name in UNLABELED if name in summary}
    return {"metrics": metrics, "protocol": summary["protocol"], "coverage": summary["coverage"]}


def read_all(folders: Sequence[Path], split: str | None, advance: Callable[[int], None]) -> list[Run]:
    """Reads all runs (`read_run`). Raises one `UserError` for all that cannot be read, and one if only some are runs of
    pretraining."""
    runs, faults = [], []
    for number, folder in enumerate(folders, start=1):
        try:
            runs.append(read_run(folder, split))
        except UserError as error:
            faults.append(str(error))
        advance(number)
    _raise_all(first_lines(faults, MOST_FAULTS))
    pretraining = [run for run in runs if run.objective is not None]
    if pretraining and len(pretraining) < len(runs):
        other = next(run for run in runs if run.objective is None)
        raise UserError(
            f"{pretraining[0].folder} is a run of pretraining, and {other.folder} a classifier: compare runs of one "
            "kind"
        )
    return runs


def _raise_all(faults: Sequence[str]) -> None:
    if faults:
        raise UserError("these runs cannot be compared:\n  " + "\n  ".join(faults))


def _read(path: Path, *needed: str) -> dict[str, Any]:
    return read_json(path, "leave the run out, or copy the file again from where the run was made", needed)


def _digests(path: Path) -> dict[str, str]:
    digests = _read(path).get("digests") if path.is_file() else None  # older runs have none
    return {str(split): str(digest) for split, digest in digests.items()} if isinstance(digests, dict) else {}


def _commit(path: Path) -> str | None:
    git = _read(path, "commit", "dirty") if path.is_file() else {"commit": None}
    return git["commit"] and git["commit"][:12] + (" with changes" if git["dirty"] else "")
