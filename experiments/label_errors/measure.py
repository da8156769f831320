"""How well flipped labels are found: a tenth of all labels is changed to another class, with five seeds, and the
ranking is compared with cleanlab's on the same probabilities.

python experiments/label_errors/measure.py EMBEDDINGS
"""

import sys
import time
from dataclasses import replace

import numpy as np
from cleanlab.rank import get_label_quality_scores
from sklearn.metrics import average_precision_score

from vidtrain.embeddings.ranking import SCORES, find_suspects
from vidtrain.embeddings.store import Embeddings

SEEDS, SHARE, LOOKED_AT, FOLDS = 5, 0.1, 0.15, 5


def main(named: str) -> None:
    embeddings = Embeddings.open(named)
    count, classes = len(embeddings), len(embeddings.classes)
    ours, theirs, recalls = ({name: [] for name in SCORES} for _ in range(3))
    precision, recall, estimates, seconds = [], [], [], []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        flipped = np.zeros(count, bool)
        flipped[rng.choice(count, int(SHARE * count), replace=False)] = True
        labels = embeddings.labels.copy()
        labels[flipped] = (labels[flipped] + rng.integers(1, classes, flipped.sum())) % classes
        started = time.perf_counter()
        suspects, probabilities = find_suspects(replace(embeddings, labels=labels), FOLDS, "self_confidence")
        seconds.append(time.perf_counter() - started)
        for name, score in SCORES.items():
            values = score(probabilities, labels)
            ours[name].append(average_precision_score(flipped, -values))
            quality = get_label_quality_scores(labels, probabilities, method=name)
            theirs[name].append(average_precision_score(flipped, -quality))
            first = np.argsort(values, kind="stable")[: int(LOOKED_AT * count)]
            recalls[name].append(flipped[first].sum() / flipped.sum())
        likely = np.isin(np.arange(count), suspects.rows[suspects.likely])
        precision.append((likely & flipped).sum() / likely.sum())
        recall.append((likely & flipped).sum() / flipped.sum())
        estimates.append(suspects.estimate)
    shown = {"average precision": ours, "cleanlab's": theirs, f"recall in the first {LOOKED_AT:.0%}": recalls}
    for name in SCORES:
        for what, values in shown.items():
            print(f"{name}, {what}: {', '.join(f'{value:.4f}' for value in values[name])}")
    print(f"likely_wrong, precision: {', '.join(f'{value:.3f}' for value in precision)}")
    print(f"likely_wrong, recall: {', '.join(f'{value:.3f}' for value in recall)}")
    print(f"estimated of {int(SHARE * count)}: {', '.join(f'{value:.1f}' for value in estimates)}")
    print(f"seconds: {min(seconds):.1f} to {max(seconds):.1f}")


if __name__ == "__main__":
    main(sys.argv[1])
