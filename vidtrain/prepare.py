"""Re-encodes a dataset once, with small frames and frequent keyframes; all frames keep their times.

python -m vidtrain.prepare dataset=class_folders dataset.source.root=/data/mine short_side=256 gop=12

Training reads the copy with data.prepared=short256_gop12. A stopped run continues when the command is repeated.

python -m vidtrain.prepare dataset=class_folders dataset.source.root=/data/mine shards=1GiB out=/data/shards

packs the videos, or those of the copy `prepared`, unchanged into tar files that dataset=shards reads.
"""

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from vidtrain.app.launch import fail, launch
from vidtrain.config.dataset_schemas import PrepareConfig
from vidtrain.config.overrides import quoted
from vidtrain.config.targets import check_of_dataset
from vidtrain.errors import UserError, pluralize
from vidtrain.training.process import cores

if TYPE_CHECKING:  # so that --help does not wait for the imports of PyAV and numpy
    from vidtrain.data.manifest.manifest import Manifest
    from vidtrain.data.prepared.reencode import EncodeSettings
    from vidtrain.training.run import Console

EXIT_TOO_MANY_UNREADABLE = 3
# Modules that the fork server imports once for all workers; the first one imports all that this program imports
PRELOAD = ("vidtrain.app.launch", "vidtrain.data.prepared.reencode")
SHOWN = 10
MB = 1_000_000


def settings_of(cfg: DictConfig) -> "EncodeSettings":
    from vidtrain.data.prepared.reencode import EncodeSettings

    return EncodeSettings(cfg.short_side, cfg.gop, cfg.b_frames, cfg.crf, cfg.preset, cfg.data.size_changes)


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = check_of_dataset(cfg, PrepareConfig)
    try:
        settings_of(cfg)
    except UserError as error:
        key, _, why = str(error).partition("=")
        if key not in dict(faults):
            faults.append((key, why))
    if (cfg.shards is None) != (cfg.out is None) or (cfg.prepared and not cfg.shards):
        faults.append(("shards", "goes with out=FOLDER, and prepared=COPY with both"))
    if cfg.name is not None and (Path(cfg.name).name != cfg.name or cfg.name == ".."):
        faults.append(("name", f"{cfg.name!r} must be the name of a folder, not a path"))
    return faults


def prepare(cfg: DictConfig) -> None:
    from vidtrain.build.data import index_folder, missing_hint
    from vidtrain.build.parts import instantiate_component
    from vidtrain.data.loading.workers import guarded
    from vidtrain.data.manifest.files import open_manifests
    from vidtrain.data.manifest.splitting import check_present
    from vidtrain.data.prepared.copy import PreparedCopy, encode_all, prepared_folder
    from vidtrain.files.folders import RunLock, check_links
    from vidtrain.tracking.console import make_console

    console, started = make_console(True), time.monotonic()
    name = cfg.name or f"short{cfg.short_side}_gop{cfg.gop}"
    files: dict[str, float | None] = {}
    manifests = open_manifests(instantiate_component(cfg.dataset.source), index_folder(cfg))
    check_present(manifests, missing_hint(cfg), console.warn)
    for manifest in manifests.values():
        files |= dict.fromkeys(manifest.paths, manifest.frame_rate)
    if cfg.shards is not None:
        copy_folder = prepared_folder(cfg.data_root, cfg.dataset.name, cfg.prepared or "")
        copy = PreparedCopy.open(copy_folder) if cfg.prepared else None
        pack({split: copy.redirect(one) if copy else one for split, one in manifests.items()}, cfg, console)
        return
    command = shlex.join(["python", "-m", "vidtrain.prepare", *sys.argv[1:]])
    check_links(folder := prepared_folder(cfg.data_root, cfg.dataset.name, name))
    with RunLock(folder):
        copy = PreparedCopy.begin(folder, list(files), settings_of(cfg), command)
        console.info(f"dataset {cfg.dataset.name}: {pluralize(len(files), 'file')}, prepared in {folder}")
        copy.clean()
        try:
            look_at = partial(guarded, time_limit=cfg.decode_timeout_s, preload=PRELOAD)
            encode_all(copy, files, cfg.data.max_pixels, cfg.num_workers or cores(), look_at, console)
        except KeyboardInterrupt:
            console.info("stopped; the same command continues from there")
            raise
        finally:
            copy.clean()
        counts, unreadable = copy.finish(list(files))
    show_unreadable(unreadable, console)
    if unreadable:
        console.info(f"all of them are in {folder / 'unreadable.csv'}; training reads their originals")
    console.info(
        f"{len(files) - len(unreadable)} of {len(files)} files prepared, {counts['source_bytes'] / MB:.1f} -> "
        f"{counts['bytes'] / MB:.1f} MB, after {time.monotonic() - started:.0f} s"
    )
    console.info(f"train with: data.prepared={name}")
    check_share(len(unreadable) / len(files), cfg)


def show_unreadable(unreadable: Sequence[tuple[str, str]], console: "Console") -> None:
    if unreadable:
        more = f"; the first {SHOWN}" if len(unreadable) > SHOWN else ""
        console.table(f"unreadable: {len(unreadable)}{more}", ("file", "cause"), unreadable[:SHOWN])


def check_share(share: float, cfg: DictConfig) -> None:
    if cfg.max_unreadable_share is not None and share > cfg.max_unreadable_share:
        bound = f"max_unreadable_share={cfg.max_unreadable_share}"
        fail(f"{share:.1%} of the files cannot be read, more than {bound}", EXIT_TOO_MANY_UNREADABLE)


def pack(splits: "Mapping[str, Manifest]", cfg: DictConfig, console: "Console") -> None:
    """Packs the videos of all splits into tar files, and says how to train from them."""
    from vidtrain.build.data import index_file
    from vidtrain.data.loading.workers import guarded
    from vidtrain.data.prepared.shards import pack_dataset
    from vidtrain.data.stores.cache import bytes_in
    from vidtrain.files.folders import RunLock

    workers, index = cfg.num_workers or cores(), (index_file(cfg), cfg.data.max_pixels)
    look_at = partial(guarded, num_workers=workers, time_limit=cfg.decode_timeout_s, preload=PRELOAD)
    folder = Path(cfg.out)
    with RunLock(folder):
        shards, unreadable = pack_dataset(splits, folder, bytes_in(cfg.shards), *index, look_at, console)
    show_unreadable(unreadable, console)
    count = sum(len(shard.videos) for shard in shards)
    console.info(f"{pluralize(count, 'video')} in {pluralize(len(shards), 'tar file')} of {folder}")
    where = quoted("dataset.folder", os.path.abspath(folder))
    console.info(f"train with: dataset=shards {quoted('dataset.name', cfg.dataset.name)} {where}")
    check_share(len(unreadable) / count, cfg)


def main() -> None:
    launch("prepare", prepare, check)


if __name__ == "__main__":
    main()
