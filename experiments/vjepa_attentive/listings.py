"""UCF-101 as the two listings of the preset: python experiments/vjepa_attentive/listings.py DATA/ucf101 OUT [FOLD].

Val is a tenth of the official training list and test is the official test list; clips cut from one video stay together,
and so do they when every third of these videos goes to the second listing. OUT is what dataset.folder names.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from vidtrain.data.manifest.manifest import Record
from vidtrain.data.sources.published import UCF101


def main(data: Path, out: Path, fold: int = 1) -> None:
    splits = UCF101(root=str(data / "videos"), annotations=str(data / "splits"), fold=fold).manifests()
    groups = sorted({record.group for record in splits["train"]})
    second = set(groups[2::3])
    listings = {
        "first_train": [record for record in splits["train"] if record.group not in second],
        "second_train": [record for record in splits["train"] if record.group in second],
        "first_val": list(splits["val"]),
        "first_test": list(splits["test"]),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in splits["train"].classes), encoding="utf-8")
    for name, records in listings.items():
        (out / f"{name}.csv").write_text(lines(records), encoding="utf-8")
        print(f"{out}/{name}.csv: {len(records)} videos")


def lines(records: Sequence[Record]) -> str:
    """One line a video, `path label`: the format of V-JEPA's listings, which cannot hold a path with a space."""
    return "".join(f"{Path(record.path).resolve()} {record.label}\n" for record in records)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *(int(fold) for fold in sys.argv[3:]))
