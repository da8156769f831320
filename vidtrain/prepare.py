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
from vidtrain.config.schemas import PrepareConfig
from vidtrain.config.targets import check_of_dataset
from vidtrain.errors import UserError
from vidtrain.training.ranks.rendezvous import cores

if TYPE_CHECKING:  # --help should not wait for PyAV and numpy
    from vidtrain.data.prepared.copy import PreparedCopy
    from vidtrain.data.prepared.reencode import EncodeSettings
    from vidtrain.tracking.console import Console, NullConsole

EXIT_TOO_MANY_UNREADABLE = 3
# Imported once by the process that workers are forked from; the first is what this program itself imports
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
    if cfg.name is not None and (Path(cfg.name).name != cfg.name or cfg.name == ".."):
        faults.append(("name", f"{cfg.name!r} must be the name of a folder, not a path"))
    return faults


def prepare(cfg: DictConfig) -> None:
    from vidtrain.build.data import index_folder, missing_hint
    from vidtrain.build.parts import instantiate_component
    from vidtrain.data.manifest.files import open_manifests
    from vidtrain.data.manifest.splitting import check_present
    from vidtrain.data.prepared.copy import PreparedCopy, prepared_folder
    from vidtrain.files.folders import RunLock, check_links
    from vidtrain.tracking.console import make_console

    console, started = make_console(True), time.monotonic()
    name = cfg.name or f"short{cfg.short_side}_gop{cfg.gop}"
    files: dict[str, float | None] = {}
    manifests = open_manifests(instantiate_component(cfg.dataset.source), index_folder(cfg))
    check_present(manifests, missing_hint(cfg), console.warn)
    for manifest in manifests.values():
        files |= dict.fromkeys(manifest.paths, manifest.frame_rate)
    command = shlex.join(["python", "-m", "vidtrain.prepare", *sys.argv[1:]])
    check_links(folder := prepared_folder(cfg.data_root, cfg.dataset.name, name))
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
    console.info(
        f"{len(files) - len(unreadable)} of {len(files)} files prepared, {counts['source_bytes'] / MB:.1f} -> "
        f"{counts['bytes'] / MB:.1f} MB, after {time.monotonic() - started:.0f} s"
    )
    console.info(f"train with: data.prepared={name}")
    share = len(unreadable) / len(files)
    if cfg.max_unreadable_share is not None and share > cfg.max_unreadable_share:
        bound = f"max_unreadable_share={cfg.max_unreadable_share}"
        fail(f"{share:.1%} of the files cannot be read, more than {bound}", EXIT_TOO_MANY_UNREADABLE)


def encode_all(
    copy: "PreparedCopy", files: Mapping[str, float | None], cfg: DictConfig, console: "Console | NullConsole"
) -> None:
    """Makes the copies that are missing. `files` gives the frame rate of those that are folders of images."""
    from vidtrain.data.loading.workers import guarded
    from vidtrain.data.prepared.copy import signature
    from vidtrain.data.prepared.reencode import Job, Made, prepare_file

    waiting = copy.pending(files)
    done, older = len(files) - len(waiting), sum(earlier is not None for earlier in waiting.values())
    if done:
        console.info(f"{done} of {len(files)} files are there already")
    if older:
        console.info(
            f"{older} copies are of an earlier version: each is looked at, and made anew where it must be"
        )
    # taken before they are read: one that changes meanwhile is made anew the next time
    before = {source: signature(source) or (0, 0) for source in waiting}
    jobs = [
        Job(source, copy.target(source), copy.settings, files[source], cfg.data.max_pixels, earlier)
        for source, earlier in waiting.items()
    ]
    workers = min(cfg.num_workers or cores(), len(jobs) or 1)
    read = written = unreadable = 0
    with console.phase("preparing", len(files), start_step=done):
        for result in guarded(prepare_file, jobs, workers, cfg.decode_timeout_s, PRELOAD):
            source = result.item.source
            outcome = result.value or Made(cause=result.failure)
            if outcome.refusal:
                raise UserError(f"{outcome.refusal}; mend that, and the same command goes on from there")
            copy.record(source, before[source], outcome)
            done += 1
            unreadable += bool(outcome.cause)
            read, written = read + before[source][0] * (not outcome.cause), written + outcome.bytes
            console.advance(done, {"MB": f"{read / MB:.1f} -> {written / MB:.1f}", "unreadable": unreadable})


def main() -> None:
    launch("prepare", prepare, check)


if __name__ == "__main__":
    main()
