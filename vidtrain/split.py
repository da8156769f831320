"""Splits videos into train, val and test, and writes the lists; moves no file.

python -m vidtrain.split path=/data/mine out=/data/mine_split
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidtrain.app.launch import launch
from vidtrain.config.overrides import quoted
from vidtrain.config.targets import suggest
from vidtrain.errors import UserError
from vidtrain.files.escaping import shown_some

if TYPE_CHECKING:  # --help should not wait for numpy
    from vidtrain.data.manifest.manifest import Manifest

SEPARATOR = "|"  # between the labels of a record, where the listing names none
ANNOTATIONS = "annotations.json"
SOURCES = ("class_folders", "listing", "frame_folders")
SPLITS = ("train", "val", "test")
PATHS = ("absolute", "relative")
NAMED = 10
# Settings of a listing that stand beside it here, and settings of sources that have another name here
BESIDE_LISTING = ("group_column", "group_pattern", "classes")
RENAMED = {"root": "path", "split": "shares"}


def check(cfg: Any) -> list[tuple[str, str]]:
    from vidtrain.data.manifest.splitting import shares_of

    faults = []
    if cfg.source not in SOURCES:
        faults.append(("source", f"{cfg.source} is unknown{suggest(cfg.source, SOURCES)}"))
    for key in ("path", "out"):
        if cfg[key] is None:
            faults.append((key, f"must be given: {key}=..."))
    if cfg.paths not in PATHS:
        faults.append(("paths", f"{cfg.paths} is unknown{suggest(cfg.paths, PATHS)}"))
    if (cfg.source == "frame_folders") != (cfg.ground_truth is not None):
        faults.append(("ground_truth", "goes with source=frame_folders, and only with it"))
    if cfg.group_column is not None and cfg.source != "listing":
        faults.append(("group_column", f"goes with source=listing; {cfg.source} has no columns"))
    if cfg.classes is not None and cfg.source == "class_folders":
        faults.append(("classes", "class_folders are the classes; take it back"))
    if cfg.seed < 0:
        faults.append(("seed", f"{cfg.seed} must be 0 or more"))
    if not cfg.frame_rate > 0:
        faults.append(("frame_rate", f"{cfg.frame_rate} must be above 0 images a second"))
    try:
        shares_of(list(cfg.shares))
    except UserError as error:
        faults.append(("shares", str(error)))
    return faults


def split(cfg: Any) -> None:
    from vidtrain.data.manifest.splitting import (
        annotations_text,
        check_splits,
        class_counts,
        csv_text,
        shares_of,
        split_manifest,
        split_rows,
        write_split,
    )
    from vidtrain.tracking.console import make_console

    console, out = make_console(is_main=True), Path(cfg.out)
    pool = read_pool(cfg)
    check_splits({"all": pool})
    splits = split_manifest(pool, shares_of(list(cfg.shares)), cfg.seed)
    separator = _separator(cfg) if pool.multi_label else ""
    folder = None if cfg.paths == "absolute" else out
    texts = {f"{name}.csv": csv_text(part, separator, folder) for name, part in splits.items()}
    texts[ANNOTATIONS] = annotations_text(splits, _root(cfg), cfg.source == "frame_folders")
    write_split(out, texts, cfg.overwrite)
    columns = ("split", "videos", "share", "groups", "classes", "videos a class")
    console.table(f"{len(pool)} videos of {len(pool.classes)} classes", columns, split_rows(pool, splits))
    for name, part in splits.items():
        absent = [pool.classes[label] for label, count in enumerate(class_counts(part)) if not count]
        if absent:
            console.warn(
                f"{name} lacks {len(absent)} of {len(pool.classes)} classes, which have too few groups: "
                f"{shown_some(absent, NAMED)}"
            )
    console.info(f"wrote {', '.join(texts)} into {out}")
    console.info(
        f"train with: python -m vidtrain.train {' '.join(_training_overrides(cfg, pool, list(splits)))}"
    )


def read_pool(cfg: Any) -> "Manifest":
    """All videos of the configured source; faults name this program's settings."""
    from vidtrain.data.sources.class_folders import ClassFolders
    from vidtrain.data.sources.frame_folders import FrameFolders
    from vidtrain.data.sources.listings import ListingFormat, read_pool

    named_like_splits = [name for name in SPLITS if os.path.isdir(os.path.join(cfg.path, name))]
    if cfg.source == "class_folders" and named_like_splits:
        raise UserError(
            f"{cfg.path} holds the folders {', '.join(named_like_splits)}, so it seems to be split already; train with "
            f"dataset=class_folders {quoted('dataset.source.root', cfg.path)}"
        )
    classes = cfg.classes if cfg.classes is None or isinstance(cfg.classes, str) else list(cfg.classes)
    grouped = {"classes": classes, "group_pattern": cfg.group_pattern}
    try:
        if cfg.source == "class_folders":
            return ClassFolders(cfg.path, group_pattern=cfg.group_pattern, split=list(cfg.shares)).pool()
        if cfg.source == "listing":
            layout = ListingFormat(**cfg.listing, group_column=cfg.group_column, **grouped)
            return read_pool(Path(cfg.path), layout)
        truth = {"frame_rate": cfg.frame_rate, "ground_truth": cfg.ground_truth}
        return FrameFolders(root=cfg.path, **truth, **grouped).pool()
    except UserError as error:

        def here(match: re.Match[str]) -> str:
            name = match[1]
            if cfg.source == "listing":
                return name if name in BESIDE_LISTING else f"listing.{name}"
            return RENAMED[name] if name in RENAMED else name

        raise UserError(re.sub(r"\+?dataset\.source\.(\w+)", here, str(error))) from error


def _training_overrides(cfg: Any, pool: "Manifest", splits: Sequence[str]) -> list[str]:
    """What the training app must be told to read what was written, as it is written in a shell."""
    out = os.path.abspath(cfg.out)
    settings: dict[str, Any] = {"dataset": "listing", "dataset.name": os.path.basename(out)}
    if cfg.source == "frame_folders":
        settings["dataset"] = "frame_folders"
        settings["dataset.source.root"] = os.path.abspath(cfg.path)
        settings["dataset.source.annotations"] = os.path.join(out, ANNOTATIONS)
    else:
        settings["dataset.folder"] = out
        # a class may be absent from train, and others be named by numbers
        settings["dataset.source.classes"] = os.path.join(out, ANNOTATIONS)
        if "test" not in splits:
            settings["dataset.source.test"] = None
    if pool.frame_rate is not None:
        settings["dataset.source.frame_rate"] = pool.frame_rate
    if pool.multi_label:
        settings["dataset.source.label_separator"] = _separator(cfg)
        settings |= {"loss": "bce", "trainer.monitor": "map"}
    return [quoted(key, value) for key, value in settings.items()]


def _separator(cfg: Any) -> str:
    return cfg.listing.label_separator or SEPARATOR


def _root(cfg: Any) -> str:
    """What the paths of annotations.json are relative to."""
    if cfg.source != "listing":
        return cfg.path
    return os.path.dirname(cfg.path) if cfg.listing.root is None else cfg.listing.root


def main() -> None:
    launch("split", split, check)


if __name__ == "__main__":
    main()
