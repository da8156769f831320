"""The listings of this experiment: gestures without one of three people, and of one alone; moving shapes without one of
them; sports with a few training videos a class.

python experiments/few_labels/lists.py DATA GESTURES SHAPES OUT

DATA/ucf101/{videos,splits} lie as dataset=ucf101 has them. GESTURES/groups.csv has the columns path, label and group.
SHAPES holds class folders of COLOR_SHAPE_NUMBER.mp4.
val.csv holds the left-out videos, or the official test split: runs on these evaluate once, at their end, and select
nothing.
"""

import csv
import random
import sys
from collections import defaultdict
from pathlib import Path

from vidtrain.data.sources.published import UCF101

Row = tuple[str, str]


def write(folder: Path, train: list[Row], val: list[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", train), ("val", val)):
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "label"), *rows])


def leave_out_shapes(shapes: Path, out: Path) -> None:
    videos = [(path, path.stem.split("_")[-2]) for path in sorted(shapes.glob("*/*.mp4"))]
    for shape in {shape for _, shape in videos}:
        left_out, others = (
            [(str(path), path.parent.name) for path, other in videos if (other == shape) is is_left_out]
            for is_left_out in (True, False)
        )
        write(out / f"shape_{shape}", others, left_out)


def main(data: Path, gestures: Path, shapes: Path, out: Path) -> None:
    leave_out_shapes(shapes, out)
    with open(gestures / "groups.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for person in sorted({row["group"] for row in rows}):
        left_out, others = (
            [(str(gestures / row["path"]), row["label"]) for row in rows if (row["group"] == person) is is_left_out]
            for is_left_out in (True, False)
        )
        write(out / person, others, left_out)
        write(out / f"only_{person}", left_out, others)
    for fold in (1, 2, 3):
        splits = UCF101(
            root=str(data / "ucf101/videos"), annotations=str(data / "ucf101/splits"), fold=fold
        ).manifests()
        videos = {
            split: [(record.path, splits[split].classes[record.label]) for record in splits[split]]
            for split in ("train", "test")
        }
        for seed in (0, 1, 2):
            by_class = defaultdict(list)
            for path, label in random.Random(seed).sample(videos["train"], len(videos["train"])):
                by_class[label].append((path, label))
            for count in (1, 2, 5):
                few = [row for members in by_class.values() for row in members[:count]]
                write(out / f"fold{fold}_{count}_seed{seed}", few, videos["test"])


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:5]))
