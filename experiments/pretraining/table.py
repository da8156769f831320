"""The table of real videos in README.md, as Markdown, from the folder of runs that ucf101_5.sh made.

python experiments/pretraining/table.py outputs/pretraining_ucf101_5 videomae vjepa

Gains are means over seeds of paired differences, with their 95 % interval by Student's t.
"""

import json
import sys
from pathlib import Path

import numpy as np
from scipy.stats import t


def finished(folder: Path, name: str) -> dict[int, dict[str, float]]:
    """The summary of each finished run NAME_SEED, by seed."""
    runs = {int(run.name[len(name) :]): run for run in folder.glob(f"{name}[0-9]*")}
    return {
        seed: json.loads((run / "summary.json").read_text())
        for seed, run in sorted(runs.items())
        if (run / "summary.json").exists()
    }


def before_training(folder: Path, name: str, metric: str) -> dict[int, float]:
    """The metric of the untrained encoder, from the first row of each run's metrics."""
    first = {seed: (folder / f"{name}{seed}" / "metrics.jsonl").open().readline() for seed in finished(folder, name)}
    return {seed: json.loads(row)[f"val/{metric}"] for seed, row in first.items()}


def row(name: str, without: dict[int, float], after: dict[int, float]) -> str:
    seeds = sorted(without.keys() & after.keys())
    gain = np.array([after[seed] - without[seed] for seed in seeds])
    interval = ""
    if len(gain) > 1:
        half = t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / len(gain) ** 0.5
        interval = f"{gain.mean():+.3f} ({gain.mean() - half:+.3f} to {gain.mean() + half:+.3f})"
    columns = [", ".join(f"{values[seed]:.3f}" for seed in seeds) for values in (without, after)]
    return f"| {name} | {columns[0]} | {columns[1]} | {interval} |"


def main() -> None:
    folder, objectives = Path(sys.argv[1]), sys.argv[2:]
    print("| | without | pretrained | gain |\n|---|---|---|---|")
    for objective in objectives:
        runs = finished(folder, objective)
        for metric, probe in (("linear_top1", "logistic regression"), ("knn_top1", "neighbors")):
            after = {seed: summary[metric] for seed, summary in runs.items()}
            print(row(f"{objective}, {probe}", before_training(folder, objective, metric), after))
        for stage, learned in (("head", "attentive probe"), ("full", "fine-tuned")):
            reached = [
                {seed: summary["top1"] for seed, summary in finished(folder, f"{name}_{stage}").items()}
                for name in ("scratch", objective)
            ]
            print(row(f"{objective}, {learned}", *reached))


if __name__ == "__main__":
    main()
