"""Accuracy on the test split by labeling strategy and number of labels.

python experiments/label_next/measure.py EMBEDDINGS

Five videos of the other splits, drawn, have a label at first; five more get one at a time, up to fifty. Seeds decide on
the first five and on what is drawn at random. Per row: strategy, seed, then the accuracy at 5, 10, ... 50 labels.
"""

import sys

import numpy as np

from vidtrain.embeddings.ranking import choose_next
from vidtrain.embeddings.store import Embeddings
from vidtrain.evaluator.classifiers import logistic_regression

SEEDS, STEP, MOST = 5, 5, 50
STRATEGIES = ("random", "margin", "entropy", "k_center")


def accuracy(known: Embeddings, test: Embeddings) -> float:
    present, numbers = np.unique(known.labels, return_inverse=True)
    groups = np.unique(known.groups, return_inverse=True)[1]
    predict = logistic_regression(known.vectors, np.eye(len(present))[numbers], groups, False)
    return float((present[predict(test.vectors).argmax(axis=1)] == test.labels).mean())


def curve(pool: Embeddings, test: Embeddings, strategy: str, seed: int) -> list[float]:
    order = np.random.default_rng(seed).permutation(len(pool))
    known, rest, reached = order[:STEP], np.sort(order[STEP:]), []
    while True:
        reached.append(accuracy(pool.take(known), test))
        if len(known) >= MOST:
            return reached
        if len(np.unique(pool.labels[known])) < 2:  # a classifier needs two classes
            rows = np.arange(len(rest))[:STEP]
        else:
            rows, _ = choose_next(pool.take(known), pool.take(rest), strategy, STEP, seed + len(known))
        known, rest = np.concatenate([known, rest[rows]]), np.delete(rest, rows)


def main(named: str) -> None:
    embeddings = Embeddings.open(named)
    is_test = embeddings.splits == "test"
    test, pool = embeddings.take(np.flatnonzero(is_test)), embeddings.take(np.flatnonzero(~is_test))
    curves = {}
    for strategy in STRATEGIES:
        curves[strategy] = []
        for seed in range(SEEDS):
            curves[strategy].append(curve(pool, test, strategy, seed))
            print(strategy, seed, *(f"{value:.3f}" for value in curves[strategy][-1]), flush=True)
    for strategy in STRATEGIES:
        means = np.mean(curves[strategy], axis=0)
        better = np.mean(curves[strategy], axis=1) - np.mean(curves["random"], axis=1)
        print(f"{strategy}: {' '.join(f'{value:.3f}' for value in means)}; mean over labels less random's, by seed: "
              f"{' '.join(f'{value:+.3f}' for value in better)}")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
