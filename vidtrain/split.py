"""Splits videos into train, val and test, and writes a listing of each; no file is moved.

python -m vidtrain.split path=/data/mine out=/data/mine_split
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidtrain.app.launch import launch
from vidtrain.config.dataset_schemas import SplitConfig
from vidtrain.config.overrides import quoted
from vidtrain.config.targets import check_settings
from vidtrain.errors import UserError, pluralize
from vidtrain.files.escaping import shown_some
from vidtrain.files.folders import install_hint

if TYPE_CHECKING:  # so that --help does not wait for the import of numpy
    from vidtrain.data.manifest.manifest import Manifest

SEPARATOR = "|"  # between the labels of a video, unless the listing has a separator
ANNOTATIONS = "annotations.json"
SPLITS = ("train", "val", "test")
FEW = 5000  # videos for which experiment=few_labels is advised
NAMED = 10  # at most this many absent classes are named
# Settings of a listing that are not in `listing` here, and settings of sources that have another name here
BESIDE_LISTING = ("group_column", "group_pattern", "classes")
RENAMED = {"root": "path", "split": "shares"}


def check(cfg: Any) -> list[tuple[str, str]]:
    from vidtrain.data.manifest.splitting import shares_of

    faults = check_settings(cfg, SplitConfig)
    for key in ("path", "out"):
        if cfg[key] is None:
            faults.append((key, f"must be given: {key}=..."))
    if (cfg.source == "frame_folders") != (cfg.ground_truth is not None):
        faults.append(("ground_truth", "goes with source=frame_folders, and only with it"))
    if cfg.group_column is not None and cfg.source != "listing":
        faults.append(("group_column", f"goes with source=listing; {cfg.source} has no columns"))
    if cfg.classes is not None and cfg.source == "class_folders":
        faults.append(("classes", "the class folders are the classes; set classes=null"))
    try:
        shares_of(list(cfg.shares))
    except UserError as error:
        faults.append(("shares", str(error)))
    return faults


def split(cfg: Any) -> None:
    from vidtrain.data.manifest import files, splitting
    from vidtrain.tracking.console import make_console

    console, out = make_console(is_main=True), Path(cfg.out)
    pool = read_pool(cfg)
    splitting.check_splits({"all": pool})
    splits = splitting.split_manifest(pool, splitting.shares_of(list(cfg.shares)), cfg.seed)
    separator = (cfg.listing.label_separator or SEPARATOR) if pool.multi_label else ""
    folder = None if cfg.paths == "absolute" else out
    root = cfg.path  # paths in annotations.json are relative to it
    if cfg.source == "listing":
        root = os.path.dirname(cfg.path) if cfg.listing.root is None else cfg.listing.root
    texts = {f"{name}.csv": files.csv_text(part, separator, folder) for name, part in splits.items()}
    texts[ANNOTATIONS] = files.annotations_text(splits, root, cfg.source == "frame_folders")
    files.write_split(out, texts, cfg.overwrite)
    columns = ("split", "videos", "share", "groups", "classes", "videos a class")
    title = f"{pluralize(len(pool), 'video')} of {pluralize(len(pool.classes), 'class')}"
    rows = splitting.split_rows(pool, splits)
    console.table(title, columns, rows)
    if all(row[1] == row[3] for row in rows):  # every video is a group
        console.info(
            "each video is a group of its own. If several show one person, place or recording, name their group with "
            "group_pattern= or group_column= (see --help): in different splits they make results too good"
        )
    for name, part in splits.items():
        absent = splitting.absent_classes(part)
        if absent:
            few = f"{len(absent)} of {len(pool.classes)} classes, which have too few groups"
            console.warn(f"{name} lacks {few}: {shown_some(absent, NAMED)}")
    console.info(f"wrote {', '.join(texts)} into {out}")
    overrides = _training_overrides(cfg, pool, "test" in splits, separator)
    console.info(f"train with: python -m vidtrain.train {' '.join(overrides)}")
    if len(pool) <= FEW:
        console.info(
            "with so few videos, and no GPU, add experiment=few_labels, which needs ImageNet weights: "
            f"{install_hint('weights')}"
        )


def read_pool(cfg: Any) -> "Manifest":
    """All videos of the configured source. Error messages name the settings of this program, not those of sources."""
    from vidtrain.data.sources.folders import ClassFolders, FrameFolders
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
            return read_pool(cfg.path, layout)
        truth = {"frame_rate": cfg.frame_rate, "ground_truth": cfg.ground_truth}
        return FrameFolders(root=cfg.path, **truth, **grouped).pool()
    except UserError as error:

        def setting_here(match: re.Match[str]) -> str:
            if cfg.source == "listing":
                return match[1] if match[1] in BESIDE_LISTING else f"listing.{match[1]}"
            return RENAMED[match[1]] if match[1] in RENAMED else match[1]

        raise UserError(re.sub(r"\+?dataset\.source\.(\w+)", setting_here, str(error))) from error


def _training_overrides(cfg: Any, pool: "Manifest", has_test: bool, separator: str) -> list[str]:
    """The overrides with which vidtrain.train reads the new splits, quoted for a shell."""
    out = os.path.abspath(cfg.out)
    settings: dict[str, Any] = {"dataset": "listing", "dataset.name": os.path.basename(out)}
    if cfg.source == "frame_folders":
        settings["dataset"] = "frame_folders"
        settings["dataset.source.root"] = os.path.abspath(cfg.path)
        settings["dataset.source.annotations"] = os.path.join(out, ANNOTATIONS)
    else:
        settings["dataset.folder"] = out
        # Without it, a class that is absent from train would be unknown, and names that are numbers would be indices
        settings["dataset.source.classes"] = os.path.join(out, ANNOTATIONS)
        if not has_test:
            settings["dataset.source.test"] = None
    if pool.frame_rate is not None:
        settings["dataset.source.frame_rate"] = pool.frame_rate
    if pool.multi_label:
        settings |= {"dataset.source.label_separator": separator, "loss": "bce", "trainer.monitor": "map"}
    return [quoted(key, value) for key, value in settings.items()]


def main() -> None:
    launch("split", split, check)


if __name__ == "__main__":
    main()
