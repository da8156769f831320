"""Re-encodes a dataset once: small, with clean starts close together, and the same frames at the same times.

python -m vidtrain.prepare dataset=class_folders dataset.source.root=/data/mine short_side=256 gop=12

Training reads the copy with data.prepared=short256_gop12. A run that was stopped goes on when started again.
"""

import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from vidtrain.app.launch import fail, launch
from vidtrain.config.targets import check_targets
from vidtrain.errors import UserError
from vidtrain.training.ranks.rendezvous import cores

if TYPE_CHECKING:  # --help should not wait for PyAV and numpy
    from vidtrain.data.prepared.copy import PreparedCopy
    from vidtrain.data.prepared.reencode import EncodeSettings

EXIT_TOO_MANY_UNREADABLE = 3
# Imported once by the process that workers are forked from; the first is what this program itself imports
PRELOAD = ("vidtrain.app.launch", "vidtrain.data.prepared.reencode")
SHOWN = 10
MB = 1_000_000


def settings_of(cfg: DictConfig) -> "EncodeSettings":
    from vidtrain.data.prepared.reencode import EncodeSettings

    return EncodeSettings(cfg.short_side, cfg.gop, cfg.b_frames, cfg.crf, cfg.preset, cfg.data.size_changes)


def name_of(cfg: DictConfig) -> str:
    return cfg.name or f"short{cfg.short_side}_gop{cfg.gop}"


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = check_targets(cfg)
    if cfg.dataset is None:
        faults.append(("dataset", "must be chosen: dataset=OPTION"))
    try:
        settings_of(cfg)
    except UserError as error:
        key, _, why = str(error).partition("=")
        faults.append((key, why))  # data.size_changes among them
    if cfg.name is not None and (Path(cfg.name).name != cfg.name or cfg.name == ".."):
        faults.append(("name", f"{cfg.name!r} must be the name of a folder, not a path"))
    if cfg.num_workers is not None and cfg.num_workers < 1:
        faults.append(("num_workers", f"{cfg.num_workers} must be 1 or more, or null for one a core"))
    if cfg.data.max_pixels < 1:
        faults.append(("data.max_pixels", f"{cfg.data.max_pixels} must be 1 or more"))
    if cfg.decode_timeout_s <= 0:
        faults.append(("decode_timeout_s", f"{cfg.decode_timeout_s} must be above 0 seconds"))
    if cfg.max_unreadable_share is not None and not 0 <= cfg.max_unreadable_share <= 1:
        faults.append(
            ("max_unreadable_share", f"{cfg.max_unreadable_share} must lie between 0 and 1, or be null")
        )
    return faults


def encode_all(copy: "PreparedCopy", files: Mapping[str, float | None], cfg: DictConfig, console) -> None:
    """Makes the copies that are missing. `files` gives the frame rate of those that are folders of images."""
    from vidtrain.data.prepared.copy import signature
    from vidtrain.data.prepared.reencode import Job, Made, prepare_file
    from vidtrain.data.processes.workers import guarded

    waiting, older = list(copy.pending(files)), copy.older(files)
    done = len(files) - len(waiting)
    if done:
        console.info(f"{done} of {len(files)} files are there already")
    if older:
        console.info(
            f"{len(older)} copies are of an earlier version: each is looked at, and made anew where it must be"
        )
    # taken before they are read: one that changes meanwhile is made anew the next time
    before = {source: signature(source) or (0, 0) for source in waiting}
    jobs = [
        Job(
            source,
            copy.target(source),
            copy.settings,
            files[source],
            cfg.data.max_pixels,
            older[source] if source in older else None,
        )
        for source in waiting
    ]
    workers = min(cfg.num_workers or cores(), len(jobs) or 1)
    read = written = unreadable = 0
    with console.phase("preparing", len(files), start_step=done):
        for result in guarded(prepare_file, jobs, workers, cfg.decode_timeout_s, PRELOAD):
            source = result.item.source
            made = result.value or Made(cause=result.failure)
            if made.refusal:
                raise UserError(f"{made.refusal}; mend that, and the same command goes on from there")
            copy.record(source, before[source], made)
            done += 1
            unreadable += bool(made.cause)
            read, written = read + before[source][0] * (not made.cause), written + made.bytes
            console.advance(done, {"MB": f"{read / MB:.1f} -> {written / MB:.1f}", "unreadable": unreadable})


def prepare(cfg: DictConfig) -> None:
    from vidtrain.build.data import index_folder, missing_hint
    from vidtrain.build.parts import instantiate_component
    from vidtrain.data.manifest.files import open_manifests
    from vidtrain.data.manifest.splitting import check_present
    from vidtrain.data.prepared.copy import PreparedCopy, prepared_folder
    from vidtrain.files.folders import RunLock, check_links
    from vidtrain.tracking.console import make_console

    console, started, name = make_console(True), time.monotonic(), name_of(cfg)
    files: dict[str, float | None] = {}
    manifests = open_manifests(instantiate_component(cfg.dataset.source), index_folder(cfg))
    check_present(manifests, missing_hint(cfg), console.warn)
    for manifest in manifests.values():
        files |= dict.fromkeys(manifest.paths, manifest.frame_rate)
    folder = prepared_folder(cfg.data_root, cfg.dataset.name, name)
    command = shlex.join(["python", "-m", "vidtrain.prepare", *sys.argv[1:]])
    check_links(folder)
    with RunLock(folder):
        copy = PreparedCopy.begin(folder, list(files), settings_of(cfg), command)
        console.info(f"dataset {cfg.dataset.name}: {len(files)} files, prepared in {folder}")
        copy.clean()
        try:
            encode_all(copy, files, cfg, console)
        except KeyboardInterrupt:
            console.info("stopped; the same command goes on from there")
            raise
        finally:
            copy.clean()
        counts, unreadable = copy.finish(list(files))
    if unreadable:
        more = f"; the first {SHOWN}" if len(unreadable) > SHOWN else ""
        console.table(f"unreadable: {len(unreadable)}{more}", ("file", "cause"), unreadable[:SHOWN])
        console.info(f"all of them: {folder / 'unreadable.csv'}; training is given the originals")
    prepared, before, after = len(files) - len(unreadable), counts["source_bytes"], counts["bytes"]
    console.info(
        f"{prepared} of {len(files)} files prepared, {before / MB:.1f} -> {after / MB:.1f} MB, "
        f"after {time.monotonic() - started:.0f} s"
    )
    console.info(f"train with: data.prepared={name}")
    share = len(unreadable) / len(files)
    if cfg.max_unreadable_share is not None and share > cfg.max_unreadable_share:
        fail(
            f"{share:.1%} of the files cannot be read, more than max_unreadable_share={cfg.max_unreadable_share}",
            EXIT_TOO_MANY_UNREADABLE,
        )


def main() -> None:
    launch("prepare", prepare, check)


if __name__ == "__main__":
    main()
