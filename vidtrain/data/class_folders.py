"""The plainest source: root/split/class/video."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidtrain.data.manifest import Manifest, Record, check_same_classes
from vidtrain.errors import UserError

SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp")


@dataclass(frozen=True)
class ClassFolders:
    """Videos in class folders: `root/split/class/**/*.suffix`.

    The sorted folder names of a split are its classes, and every split must have the same ones. Only
    "test" may be absent. Suffixes are matched in any letter case; hidden files and folders are passed over.
    Nothing is known of how videos belong together, so each is a group of its own.

    `manifests` raises `UserError` where the layout is not as stated.
    """

    root: str
    splits: Sequence[str] = ("train", "val", "test")
    suffixes: Sequence[str] = SUFFIXES

    def manifests(self) -> dict[str, Manifest]:
        root = Path(self.root)
        if not root.is_dir():
            raise UserError(f"no dataset folder {root}; {self._layout()}")
        found = [split for split in self.splits if split != "test" or (root / split).is_dir()]
        videos = {split: self._videos(root / split) for split in found}
        # before the manifests, whose own complaint could not name the folder
        manifests = {}
        for split, by_class in videos.items():
            empty = [name for name, paths in by_class.items() if not paths]
            if len(empty) == len(by_class) or (split == "train" and empty):
                raise UserError(
                    f"no videos in {root / split} for {', '.join(empty)}; "
                    f"looked for {' '.join(self.suffixes)}; {self._layout()}"
                )
            manifests[split] = Manifest(
                [
                    Record(path, label, group=os.path.relpath(path, root))
                    for label, paths in enumerate(by_class.values())
                    for path in paths
                ],
                tuple(by_class),
            )
        check_same_classes(manifests)
        return manifests

    def _videos(self, folder: Path) -> dict[str, list[str]]:
        if not folder.is_dir():
            raise UserError(f"no folder {folder} for split {folder.name!r}; {self._layout()}")
        classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not classes:
            raise UserError(f"no class folders in {folder}; {self._layout()}")
        return {path.name: sorted(self._walk(path)) for path in classes}

    def _walk(self, folder: Path) -> Iterator[str]:
        suffixes = tuple(suffix.lower() for suffix in self.suffixes)
        for parent, folders, files in os.walk(folder, followlinks=True):  # datasets are often linked together
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                if name.lower().endswith(suffixes) and not name.startswith("."):
                    yield os.path.join(parent, name)

    def _layout(self) -> str:
        return f"expected {self.root}/{{{','.join(self.splits)}}}/<class>/<video>"
