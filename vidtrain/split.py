"""Splits videos into train, val and test, and writes the lists; moves no file.

python -m vidtrain.split path=/data/mine out=/data/mine_split
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidtrain.app.launch import launch
from vidtrain.config.overrides import quoted
from vidtrain.config.targets import suggest
from vidtrain.errors import UserError
from vidtrain.files.escaping import shown

if TYPE_CHECKING:  # --help should not wait for numpy
    from vidtrain.data.manifest.manifest import Manifest
    from vidtrain.tracking.console import Console, NullConsole

SEPARATOR = "|"  # between the labels of a record, where the listing names none
ANNOTATIONS = "annotations.json"
SPLITS = ("train", "val", "test")
PATHS = ("absolute", "relative")
NAMED = 10


def check(cfg: Any) -> list[tuple[str, str]]:
    from vidtrain.data.manifest.splitting import shares_of

    faults = []
    if cfg.source not in READERS:
        faults.append(("source", f"{cfg.source} is unknown{suggest(cfg.source, list(READERS))}"))
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


# --- what there is to split -------------------------------------------------------------------------------


def _class_folders(cfg: Any) -> "Manifest":
    from vidtrain.data.sources.class_folders import ClassFolders

    source = ClassFolders(cfg.path, group_pattern=cfg.group_pattern, split=list(cfg.shares))
    return source.pool()


def _listing(cfg: Any) -> "Manifest":
    from vidtrain.data.manifest.manifest import Manifest
    from vidtrain.data.sources.listing_format import ListingFormat
    from vidtrain.data.sources.listings import read_listing

    layout = ListingFormat(
        **cfg.listing,
        group_column=cfg.group_column,
        group_pattern=cfg.group_pattern,
        classes=_classes(cfg),
    )
    labels = layout.label_reader()
    columns = read_listing(Path(cfg.path), layout, labels)
    classes, order = labels.settle()
    columns = columns if order is None else columns.relabeled(order)
    return Manifest.from_columns(columns, classes, cfg.listing.frame_rate)


def _frame_folders(cfg: Any) -> "Manifest":
    from vidtrain.data.sources.frame_folders import FrameFolders

    source = FrameFolders(
        root=cfg.path,
        frame_rate=cfg.frame_rate,
        ground_truth=cfg.ground_truth,
        classes=_classes(cfg),
        group_pattern=cfg.group_pattern,
    )
    return source.pool()


def _classes(cfg: Any) -> str | list[str] | None:
    return cfg.classes if cfg.classes is None or isinstance(cfg.classes, str) else list(cfg.classes)


READERS: dict[str, Callable[[Any], "Manifest"]] = {
    "class_folders": _class_folders,
    "listing": _listing,
    "frame_folders": _frame_folders,
}


TOP = (
    "group_column",
    "group_pattern",
    "classes",
    "ground_truth",
    "frame_rate",
)  # settings that are not of listing
RENAMED = {"root": "path", "split": "shares"}


def read_pool(cfg: Any) -> "Manifest":
    """All videos of the configured source; faults name this program's settings."""
    named_like_splits = [name for name in SPLITS if os.path.isdir(os.path.join(cfg.path, name))]
    if cfg.source == "class_folders" and named_like_splits:
        raise UserError(
            f"{cfg.path} holds the folders {', '.join(named_like_splits)}, so it seems to be split already; train with "
            f"dataset=class_folders {quoted('dataset.source.root', cfg.path)}"
        )
    try:
        return READERS[cfg.source](cfg)
    except UserError as error:

        def own(found: re.Match) -> str:
            name = found[1]
            if cfg.source == "listing":
                return name if name in TOP and name != "frame_rate" else f"listing.{name}"
            return RENAMED[name] if name in RENAMED else name

        raise UserError(re.sub(r"\+?dataset\.source\.(\w+)", own, str(error))) from error


# --- the program ------------------------------------------------------------------------------------------


def split(cfg: Any) -> None:
    from vidtrain.data.manifest.checks import check_splits
    from vidtrain.data.manifest.split_files import annotations_text, csv_text
    from vidtrain.data.manifest.splitting import shares_of, split_manifest
    from vidtrain.files.atomic import write_text_atomic
    from vidtrain.tracking.console import make_console

    console, out = make_console(is_main=True), Path(cfg.out)
    pool = read_pool(cfg)
    check_splits({"all": pool})
    found = split_manifest(pool, shares_of(list(cfg.shares)), cfg.seed)
    separator = _separator(cfg) if pool.multi_label else ""
    folder = None if cfg.paths == "absolute" else out
    texts = {f"{name}.csv": csv_text(part, separator, folder) for name, part in found.items()}
    texts[ANNOTATIONS] = annotations_text(found, _root(cfg), cfg.source == "frame_folders")
    _refuse_to_overwrite(out, texts, cfg.overwrite)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text_atomic(out / name, text)
    except OSError as error:
        raise UserError(f"cannot write into out={out}: {error.strerror}; choose another folder") from error
    _report(console, pool, found)
    console.info(f"wrote {', '.join(texts)} into {out}")
    console.info(
        f"train with: python -m vidtrain.train {' '.join(training_overrides(cfg, pool, list(found)))}"
    )


def training_overrides(cfg: Any, pool: "Manifest", splits: Sequence[str]) -> list[str]:
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


def _refuse_to_overwrite(out: Path, texts: Mapping[str, str], overwrite: bool) -> None:
    folders = [name for name in texts if (out / name).is_dir()]
    if folders:
        raise UserError(f"{out / folders[0]} is a folder: choose another out=")
    other = [
        name
        for name, text in texts.items()
        if (out / name).exists() and (out / name).read_bytes() != text.encode(errors="surrogateescape")
    ]
    # a split that has no test must not stand beside the test of another
    other += [name for name in ("test.csv",) if name not in texts and (out / name).exists()]
    if other and not overwrite:
        raise UserError(
            f"{out} holds another split ({', '.join(other)}): choose another folder with out=, or overwrite=true"
        )
    for name in other:
        if name not in texts:
            (out / name).unlink()


def _report(console: "Console | NullConsole", pool: "Manifest", found: Mapping[str, "Manifest"]) -> None:
    import numpy as np

    from vidtrain.data.manifest.splitting import group_numbers

    counts = {name: _class_counts(part) for name, part in found.items()}
    rows = [
        (
            name,
            len(part),
            f"{len(part) / len(pool):.1%}",
            int(group_numbers(part).max()) + 1,
            int(np.count_nonzero(counts[name])),
            f"{counts[name].min()} to {counts[name].max()}",
        )
        for name, part in found.items()
    ]
    columns = ("split", "videos", "share", "groups", "classes", "videos a class")
    console.table(f"{len(pool)} videos of {len(pool.classes)} classes", columns, rows)
    for name, each in counts.items():
        absent = [pool.classes[label] for label in np.flatnonzero(each == 0)]
        if absent:
            more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
            console.warn(
                f"{name} lacks {len(absent)} of {len(pool.classes)} classes, which have too few groups: "
                f"{', '.join(map(shown, absent[:NAMED]))}{more}"
            )


def _class_counts(manifest: "Manifest") -> Any:
    import numpy as np

    columns = manifest.columns
    labels = columns.labels if columns.all_labels is None else columns.all_labels
    return np.bincount(labels, minlength=len(manifest.classes))


def main() -> None:
    launch("split", split, check)


if __name__ == "__main__":
    main()
