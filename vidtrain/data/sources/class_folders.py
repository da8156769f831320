"""The plainest source: root/split/class/video."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidtrain.data.manifest.checks import check_splits
from vidtrain.data.manifest.class_names import one_spelling
from vidtrain.data.manifest.columns import ColumnsBuilder
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.manifest.splitting import GroupPattern, shares_of, split_manifest
from vidtrain.errors import UserError
from vidtrain.files.escaping import shown

logger = logging.getLogger(__name__)

SUFFIXES = (
    ".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".3g2", ".asf",
    ".divx", ".dv", ".f4v", ".gif", ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2ts", ".m2v", ".mts", ".mxf", ".ogg",
    ".ogv", ".rm", ".rmvb", ".vob", ".y4m",
)  # fmt: skip


@dataclass(frozen=True)
class ClassFolders:
    """Videos in class folders: `root/split/class/**/*.suffix`, or, with `split`, `root/class/**/*.suffix`.

    The sorted folder names of a split, in one spelling (`one_spelling`), are its classes, and every split must have the
    same ones. Only "test" may be absent. Suffixes are matched in any letter case; hidden files and folders are passed
    over.

    `split` holds the shares of train, val and test that are dealt out, stratified, drawn from `seed`. Each
    video is a group of its own, or, with `group_pattern`, belongs with those of the same group (`GroupPattern`, on
    the path below `root`); groups stay whole.

    Raises `UserError` for shares and patterns that are none, and `manifests` where the layout is not as stated.
    """

    root: str
    splits: Sequence[str] = ("train", "val", "test")
    suffixes: Sequence[str] = SUFFIXES
    split: Sequence[float] | None = None
    group_pattern: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split is not None:
            shares_of(self.split)
        if self.group_pattern is not None:
            GroupPattern(self.group_pattern)

    def manifests(self) -> dict[str, Manifest]:
        if self.split is not None:
            manifests = split_manifest(self.pool(), shares_of(self.split), self.seed)
        else:
            root = self._existing_root()
            found = [split for split in self.splits if split != "test" or (root / split).is_dir()]
            manifests = {split: self._read(root / split, split) for split in found}
        check_splits(manifests)
        return manifests

    def pool(self) -> Manifest:
        """All videos of `root/class/**/*.suffix`, not split."""
        root = self._existing_root()
        named_like_splits = [name for name in self.splits if (root / name).is_dir()]
        if named_like_splits:
            raise UserError(
                f"{root} holds the folders {', '.join(named_like_splits)}, so it seems to be split already; "
                "take dataset.source.split back, or, where these are classes, say +dataset.source.splits=[]"
            )
        return self._read(root, None)

    def _existing_root(self) -> Path:
        if not Path(self.root).is_dir():
            raise UserError(f"no dataset folder {self.root}; {self._layout()}")
        return Path(self.root)

    def _read(self, folder: Path, split: str | None) -> Manifest:
        by_class = self._videos(folder, split)
        # before the manifest, whose own complaint could not name the folder
        empty = [name for name, paths in by_class.items() if not paths]
        if len(empty) == len(by_class) or (split in ("train", None) and empty):
            raise UserError(
                f"no videos in {folder} for {', '.join(map(shown, empty))}; "
                f"looked for {' '.join(self.suffixes)}; {self._layout()}"
            )
        pattern = None if self.group_pattern is None else GroupPattern(self.group_pattern)
        builder = ColumnsBuilder()
        for label, paths in enumerate(by_class.values()):
            names = [os.path.relpath(path, self.root) for path in paths] if pattern else []
            builder.extend(paths, [label] * len(paths), pattern.groups(names) if pattern else None)
        return Manifest.from_columns(builder.build(), tuple(by_class))

    def _videos(self, folder: Path, split: str | None) -> dict[str, list[str]]:
        if not folder.is_dir():
            raise UserError(f"no folder {folder} for split {split!r}; {self._layout()}")
        classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not classes:
            raise UserError(f"no class folders in {folder}; {self._layout()}")
        passed: list[str] = [str(path) for path in folder.iterdir() if path.is_file() and path.name[0] != "."]
        found: dict[str, list[str]] = {}
        for path in classes:
            name = one_spelling(path.name)
            if not name:
                raise UserError(f"{path} names no class, as nothing is seen of its name; rename the folder")
            if name in found:
                logger.warning("the class %s of %s lies in two folders that are spelled alike", name, folder)
            found[name] = found.get(name, []) + sorted(walk(path, self.suffixes, passed))
        found = dict(sorted(found.items()))
        if passed:
            logger.warning(
                "%d files in %s are not taken for videos of a class, such as %s",
                len(passed),
                folder,
                min(passed),
            )
        return found

    def _layout(self) -> str:
        if self.split is not None:
            return f"expected {self.root}/<class>/<video>, to be split"
        return (
            f"expected {self.root}/{{{','.join(self.splits)}}}/<class>/<video>; "
            "where classes are not split yet, say dataset.source.split=[0.8,0.1,0.1]"
        )


def leads_back(path: str) -> bool:
    """Whether a folder is a link to one that holds it: there, everything would be met again."""
    if not os.path.islink(path):
        return False
    return f"{os.path.realpath(os.path.dirname(path))}/".startswith(f"{os.path.realpath(path).rstrip('/')}/")


def walk(folder: Path, suffixes: Sequence[str], passed: list[str] | None = None) -> Iterator[str]:
    """The videos below `folder`; hidden files and folders are passed over. Other files are added to `passed`."""
    endings = tuple(suffix.lower() for suffix in suffixes)
    for parent, folders, files in os.walk(folder, followlinks=True):  # datasets are often linked together
        folders[:] = [
            name for name in folders if not (name.startswith(".") or leads_back(os.path.join(parent, name)))
        ]
        for name in files:
            if name.startswith("."):
                continue
            if name.lower().endswith(endings):
                yield os.path.join(parent, name)
            elif passed is not None:
                passed.append(os.path.join(parent, name))
