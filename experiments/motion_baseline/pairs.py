"""How often a prediction is right, and right within its pair, from a predictions.csv of the motion dataset.

python experiments/motion_baseline/pairs.py RUN/eval/test/predictions.csv
"""

import csv
import sys

from vidtrain.data.sources.motion import PAIRS

PAIR_OF = {name: pair for pair in PAIRS for name in pair}


def main(path: str) -> None:
    with open(path, newline="", encoding="utf-8") as file:
        rows = [(row["label"], row["prediction"]) for row in csv.DictReader(file)]
    same_pair = [(label, found) for label, found in rows if PAIR_OF[label] == PAIR_OF[found]]
    right = sum(label == found for label, found in rows)
    within = sum(label == found for label, found in same_pair)
    print(f"top-1 {right / len(rows):.3f} ({right}/{len(rows)})")
    print(f"the right pair {len(same_pair) / len(rows):.3f} ({len(same_pair)}/{len(rows)})")
    print(f"the right member, given the right pair {within / max(1, len(same_pair)):.3f} ({within}/{len(same_pair)})")


if __name__ == "__main__":
    main(sys.argv[1])
