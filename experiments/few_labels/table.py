"""The tables of README.md, as Markdown, from a folder of sweeps that launch.sh made.

python experiments/few_labels/table.py multirun/few_labels

A sweep SET_ROW holds runs over folds and seeds; times.csv has a line SWEEP,SEEDS,LOAD,USER,SYSTEM,WALL for each start.
"""

import csv
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from vidtrain.evaluator.baselines import compare_with_known

SETS = {
    "sports": "ucf101_5",
    "gestures": "gestures of one left out",
    "alone": "gestures, from one alone",
    "shapes": "shapes left out",
    "motion": "motion",
}
# Overrides that name the data or the run, or that only decide when it is evaluated
NOT_CHANGED = ("experiment=", "logger=", "dataset", "data_root=", "seed=", "trainer.eval_every=")


class Run(NamedTuple):
    folder: Path
    config: DictConfig
    split: str
    right: int
    videos: int


def runs_of(sweep: Path) -> list[Run]:
    """The finished runs of a sweep."""
    runs = []
    for path in sorted(sweep.glob("*/summary.json")):
        summary, config = json.loads(path.read_text()), OmegaConf.load(path.parent / "config.yaml")
        videos = int(summary["coverage"].partition("/")[0])
        runs.append(Run(path.parent, config, summary["split"], round(summary["top1"] * videos), videos))
    return runs


def results_by_seed(name: str, runs: Sequence[Run]) -> str:
    """The result of each seed: for sports the mean top-1 over folds, for others the number of correct predictions."""
    by_seed = defaultdict(list)
    for run in runs:
        by_seed[run.config.seed].append(run)
    folds = [by_seed[seed] for seed in sorted(by_seed)]
    if name == "sports":
        return ", ".join(f"{sum(run.right / run.videos for run in seed) / len(seed):.3f}" for seed in folds)
    counts = ", ".join(str(sum(run.right for run in seed)) for seed in folds)
    return f"{counts} of {sum(run.videos for run in folds[0])}" if folds else ""


def changed(sweep: Path) -> str:
    """The overrides of a sweep's trials that differ from the recipe's."""
    overrides = json.loads((sweep / "sweep.json").read_text())["trials"][0]["overrides"]
    own = [text for text in overrides if not text.startswith(NOT_CHANGED)]
    return f"`{' '.join(own)}`" if own else ""


def baselines(runs: Iterable[Run]) -> dict[str, list[int]]:
    """Correct predictions of each baseline on the videos of runs, and the number of videos."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for run in runs:
        index = Path(run.config.data.index_root) / run.config.dataset.name
        digests = json.loads((run.folder / "dataset.json").read_text())["digests"]
        predictions = run.folder / "eval" / run.split / "predictions.csv"
        for known in compare_with_known(index, digests, run.split, predictions, False):
            counts[known.name][0] += round(known.baseline * known.videos)
            counts[known.name][1] += known.videos
    return counts


def times(root: Path) -> dict[str, list[tuple[str, str]]]:
    """(seeds, times as text) of each start of a sweep."""
    starts, path = defaultdict(list), root / "times.csv"
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            for sweep, seeds, load, user, system, wall in csv.reader(file):
                seconds = f"{float(user) + float(system):.0f} ({float(wall):.0f}, {float(load):.0f})"
                starts[sweep].append((seeds, seconds))
    return starts


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"{title}\n")
    for cells in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(cells)} |")
    print()


def by_row(cells: Mapping[str, str], rows: Iterable[str]) -> Iterable[list[str]]:
    """The cells of sweeps SET_ROW, a line a row."""
    for row in rows:
        yield [row, *(cells.get(f"{name}_{row}", "") for name in SETS)]


def main(root: Path) -> None:
    sweeps = {path.parent.name: path.parent for path in sorted(root.glob("*/sweep.json"))}
    runs = {sweep: runs_of(path) for sweep, path in sweeps.items()}
    rows = list(dict.fromkeys(sweep.partition("_")[2] for sweep in sweeps))
    results = {sweep: results_by_seed(sweep.partition("_")[0], of) for sweep, of in runs.items()}
    settings = {sweep.partition("_")[2]: changed(path) for sweep, path in sweeps.items()}
    columns = ["row", *SETS.values()]
    table(
        "Correct predictions, a number for each seed; for ucf101_5 the mean top-1 of the folds",
        [*columns, "changed"],
        ([*cells, settings[cells[0]]] for cells in by_row(results, rows)),
    )
    baseline_cells = {
        f"{name}_{baseline}": f"{right} of {videos}"
        for name in SETS
        if f"{name}_recipe" in runs
        for baseline, (right, videos) in baselines(
            run for run in runs[f"{name}_recipe"] if run.config.seed == 0
        ).items()
    }
    table("Baselines", columns, by_row(baseline_cells, dict.fromkeys(key.partition("_")[2] for key in baseline_cells)))
    starts = times(root)
    for start, title in enumerate(("the first seed, encoding included", "further seeds")):
        cells = {
            sweep: f"{seconds}, seeds {seeds}"
            for sweep, of in starts.items()
            for seeds, seconds in of[start : start + 1]
        }
        table(f"Processor seconds (wall seconds, load) of {title}", columns, by_row(cells, rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
