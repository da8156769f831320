"""Top-1 of the runs in a folder of sweeps, a row a sweep: mean, least and greatest over seeds of the mean over folds.

python experiments/few_labels/table.py multirun/few_labels
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

from omegaconf import OmegaConf


def main(root: Path) -> None:
    for sweep in sorted(path for path in root.iterdir() if path.is_dir()):
        by_seed, minutes = defaultdict(list), []
        for summary in sorted(sweep.glob("*/summary.json")):
            result = json.loads(summary.read_text())
            seed = OmegaConf.load(summary.parent / "config.yaml").seed
            by_seed[seed].append(result["top1"])
            minutes.append(result["minutes"])
        means = [sum(values) / len(values) for values in by_seed.values()]
        if means:
            spread = f"{sum(means) / len(means):.3f} ({min(means):.3f} to {max(means):.3f})"
            print(f"{sweep.name}: {spread}, {len(minutes)} runs, {max(minutes):.1f} minutes at most")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
