"""UCF-101 as class folders of links: python experiments/videomae_staged/folders.py DATA/ucf101 OUT [FOLD].

Val is a tenth of the official training list and test is the official test list; clips cut from one video stay
together. OUT/{train,val,test}/<class>/ is what dataset.source.root names; no file is copied.
"""

import sys
from pathlib import Path

from vidtrain.data.sources.published import UCF101


def main(data: Path, out: Path, fold: int = 1) -> None:
    splits = UCF101(root=str(data / "videos"), annotations=str(data / "splits"), fold=fold).manifests()
    for split, manifest in splits.items():
        for record in manifest:
            video = Path(record.path).resolve()
            link = out / split / manifest.classes[record.label] / video.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(video)
        print(f"{out}/{split}: {len(manifest)} videos")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *(int(fold) for fold in sys.argv[3:]))
