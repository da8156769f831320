"""Says what is in videos, with the transforms and the protocol that a checkpoint carries.

python -m vidtrain.predict checkpoint=outputs/motion/NAME clip.mp4
"""

import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from vidtrain.app.launch import fail, launch
from vidtrain.build.checkpoint_loader import locate, open_trained
from vidtrain.config.command_line import positional_to_override
from vidtrain.config.targets import check_targets, suggest
from vidtrain.data.manifest.class_names import describe_alike, one_spelling
from vidtrain.errors import UserError
from vidtrain.files.escaping import shown, shown_lines
from vidtrain.tracking.streams import as_data

if TYPE_CHECKING:  # importing torch takes seconds, which --help should not
    from vidtrain.prediction.run import Judge, Plan, Reader

FORMATS = ("table", "json", "csv")
HEATS = ("auto", "attention", "grad_cam", "none")
FILES = (".csv", ".json")
EXIT_UNREAD = 1
MOST_NAMED = 20


def with_videos(arguments: Sequence[str]) -> list[str]:
    """The command line with its bare files and folders gathered into `videos=[...]`, as Hydra takes only overrides.

    Raises `UserError` where videos are given in both ways.
    """
    return positional_to_override(arguments, "videos")


# --- what is wrong, as far as the command line tells ------------------------------------------------------


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = check_targets(cfg) + _check_places(cfg) + _check_windows(cfg.windows)
    choices = {"format": FORMATS, "heat": HEATS}
    for key in (key for key in ("precision", "fusion") if cfg[key] is not None):
        from vidtrain.models.classifier import FUSIONS
        from vidtrain.training.precision import PRECISIONS

        choices[key] = {"precision": tuple(PRECISIONS), "fusion": FUSIONS}[key]
    if cfg.size_changes is not None:
        from vidtrain.data.decoding.conversion import SIZE_CHANGES

        choices["size_changes"] = SIZE_CHANGES
    for key, known in choices.items():
        if cfg[key] not in known:
            faults.append((key, f"{cfg[key]} is unknown{suggest(cfg[key], known)}"))
    least = {"topk": 1, "eval_clips": 1, "crops": 1, "batch_size": 1, "num_workers": 0, "max_pixels": 1}
    for key, lowest in least.items():
        if cfg[key] is not None and cfg[key] < lowest:
            faults.append((key, f"{cfg[key]} must be {lowest} or more"))
    for key in ("frame_rate", "time_limit"):
        if cfg[key] is not None and not cfg[key] > 0:
            faults.append((key, f"{cfg[key]} must be above 0"))
    if cfg.heat_class is not None and not cfg.render:
        faults.append(("heat_class", "is the class of the heat map of render=true, which is not asked for"))
    if cfg.heat_class is not None and cfg.heat in ("attention", "none"):
        faults.append(("heat_class", f"heat={cfg.heat} is of no class; say heat=grad_cam"))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        faults.append(
            (
                "device",
                "predict runs in one process; without torchrun, start it once for each share of videos",
            )
        )
    return faults


def _check_places(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = []
    if OmegaConf.is_missing(cfg, "checkpoint"):
        faults.append(("checkpoint", "must be given: a run's folder, a checkpoint, or an exported file"))
    else:
        try:
            locate(cfg.checkpoint)
        except UserError as error:
            faults.append(("checkpoint", str(error).removeprefix("checkpoint=")))
    if cfg.videos is None:
        faults.append(("videos", "must be given: files, folders, patterns in quotes, or listings"))
    elif not isinstance(cfg.videos, str | ListConfig) or not all(
        isinstance(each, str) for each in _places(cfg)
    ):
        faults.append(
            ("videos", f"{cfg.videos} must be a file, folder, pattern or listing, or a list of them")
        )
    elif not _places(cfg):
        faults.append(("videos", "the list is empty"))
    else:
        faults += [("videos", why) for why in _found(tuple(_places(cfg)), cfg.frame_rate)[1]]
    if cfg.out is not None:
        out = Path(cfg.out)
        asking = [name for name in ("logits", "render") if cfg[name]]
        asking += ["windows.stride"] if cfg.windows.stride is not None else []
        if out.suffix in FILES and asking:
            faults.append(
                ("out", f"{out} is one file, and {' and '.join(asking)} give several: name a folder")
            )
        elif out.is_file() and out.suffix not in FILES:
            faults.append(("out", f"{out} is a file: name a folder, or a file that ends with .csv or .json"))
    return faults


def _check_windows(windows: DictConfig) -> list[tuple[str, str]]:
    faults = []
    for key in ("stride", "length"):
        if windows[key] is not None and not 0 < windows[key] < float("inf"):
            faults.append((f"windows.{key}", f"{windows[key]} must be above 0 seconds"))
    if windows.smooth < 1 or windows.smooth % 2 == 0:
        faults.append(("windows.smooth", f"{windows.smooth} must be an odd number of windows: 1, 3, 5 ..."))
    if windows.threshold is not None and not 0 <= windows.threshold <= 1:
        faults.append(("windows.threshold", f"{windows.threshold} must be a probability, from 0 to 1"))
    if windows.stride is None:
        for key in ("length", "threshold"):
            if windows[key] is not None:
                faults.append((f"windows.{key}", "has no effect without windows.stride"))
        if windows.smooth != 1:
            faults.append(("windows.smooth", "has no effect without windows.stride"))
    return faults


def _places(cfg: DictConfig) -> list[Any]:
    return [cfg.videos] if isinstance(cfg.videos, str) else list(cfg.videos)


@lru_cache(maxsize=1)  # checked twice, then used
def _found(places: tuple[str, ...], frame_rate: float | None) -> tuple[list[str], list[str]]:
    from vidtrain.data.loading.video_paths import find_videos

    return find_videos(places, frame_rate)


# --- the work ---------------------------------------------------------------------------------------------


def predict(cfg: DictConfig) -> None:
    from vidtrain.app.launch import report as report_faults
    from vidtrain.build import parts as build
    from vidtrain.data.decoding.index import VideoIndex
    from vidtrain.files.links import writable
    from vidtrain.prediction.run import Judge, Reader
    from vidtrain.prediction.setup import (
        CHANGES,
        USED,
        as_trained,
        check_graph,
        check_trained,
        heat_kind,
        heat_note,
    )
    from vidtrain.tracking.console import make_console
    from vidtrain.training.precision import autocast
    from vidtrain.training.ranks.distributed import join_ranks

    for handler in logging.getLogger().handlers:  # standard output is for results
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)
    console, path = make_console(is_main=True, stderr=True), locate(cfg.checkpoint)
    paths, _ = _found(tuple(_places(cfg)), cfg.frame_rate)
    several = cfg.logits or cfg.render or cfg.windows.stride is not None
    out = (
        Path(cfg.out)
        if cfg.out
        else Path(f"outputs/predict/{datetime.now():%Y-%m-%d_%H-%M-%S}")
        if several
        else None
    )
    if out is not None:
        writable(out.parent if out.suffix in FILES else out)
    with join_ranks(cfg.device) as ranks, tempfile.TemporaryDirectory() as temporary:
        opened = open_trained(path, cfg.trust_targets)
        opened.check_computed((*USED, *CHANGES.values()), CHANGES, cfg)
        trained = as_trained(opened.config, cfg)
        heat_class = None if cfg.heat_class is None else known_class(cfg.heat_class, opened.classes, path)
        found = check_trained(trained, cfg)
        report_faults([("the checkpoint's configuration, as changed", key, why) for key, why in found])
        build.set_cpu_threads(trained.trainer.cpu_threads, ranks)
        model = opened.model(trained, ranks).eval()
        check_graph(trained, model, path)
        kind, why_none = heat_kind(cfg, trained, model)
        if cfg.render and kind is None:
            console.warn(f"render=true draws no heat map: {why_none}")
        # the processes that read share what they find out; a video that is read once needs no such thing
        known = Path(temporary) / "videos.sqlite" if cfg.windows.stride or cfg.render else None
        index = VideoIndex(known, trained.data.max_pixels, trained.clip.sample_aspect)
        reader = Reader(trained, ranks, index, paths, opened.classes, cfg.frame_rate, console)
        judge = Judge(
            model=model,
            transform=opened.transform(trained, model, ranks.device),
            device=ranks.device,
            context=autocast(ranks, trained.trainer.precision),
            crops=reader.videos.geometry.crops,
            independent=build.part(trained.loss).independent,
            heat=kind,
            heat_class=heat_class,
        )
        plans = reader.whole()
        if cfg.windows.stride is not None:
            plans = reader.windows(cfg.windows.stride, cfg.windows.length)
        protocol = build.protocol_text(trained, judge.model.fusion)
        work(cfg, protocol, reader, judge, plans, out, heat_note(kind, model, cfg.heat_class, why_none))
        index.close()


def known_class(named: str, classes: Sequence[str], path: Path) -> int:
    """The number of the class that a setting names. Raises `UserError` where the checkpoint at `path` has none so."""
    found = one_spelling(named)
    if found not in classes:
        hint = describe_alike([found], classes) or suggest(found, list(classes))
        raise UserError(f"heat_class={named} is no class of {path}{hint}")
    return classes.index(found)


def work(
    cfg: DictConfig,
    protocol: str,
    reader: "Reader",
    judge: "Judge",
    plans: "Sequence[Plan]",
    out: Path | None,
    note: str,
) -> None:
    """Predicts, writes what is asked for, and ends with status 1 if anything could not be read."""
    from vidtrain import __version__
    from vidtrain.prediction.files import AsTheyCome, Results, folders_of, partial_of, show, write_results
    from vidtrain.prediction.outputs import Outputs, labeling
    from vidtrain.tracking.console import make_console

    windows, started = cfg.windows, time.perf_counter()
    about = {"checkpoint": cfg.checkpoint, "protocol": protocol, "vidtrain": __version__}
    label = None
    if windows.stride is not None:
        label = labeling(windows.smooth, windows.threshold, judge.independent)
        about |= {"windows": OmegaConf.to_container(windows) | {"threshold": label.threshold}}
    results = Results(about, reader.classes, cfg.topk, label is not None)
    folders = folders_of(reader.paths, out) if out is not None and out.suffix not in FILES else {}
    outputs = Outputs(
        results, reader, folders, label, cfg.logits, cfg.render, note, judge.heat == "attention"
    )
    streams = cfg.format == "csv" and not sys.stdout.isatty()  # a terminal has the progress bar
    partial = None if out is None else partial_of(out)
    as_they_come = AsTheyCome(results, as_data(sys.stdout) if streams else None, partial)
    try:
        for found in reader.predictions(plans, judge, pictures=cfg.render) if plans else ():
            outputs.take(found)
            as_they_come.give()
    except BaseException:  # Ctrl-C too
        if partial is not None:
            reader.console.warn(f"ended early: the answers to {len(results.videos)} videos are in {partial}")
        raise
    seconds = time.perf_counter() - started
    if cfg.format == "table":
        show(results, make_console(is_main=True))
    elif not streams:
        text = results.as_json(reader.failures) if cfg.format == "json" else results.as_csv()
        sys.stdout.write(shown_lines(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()
    if out is not None:
        write_results(results, reader.failures, out)
    as_they_come.close()
    reader.console.info(
        f"{len(results.videos)} of {len(reader.paths)} videos in {seconds:.1f} s with {reader.workers} reading "
        f"processes; after the first batch, {reader.clock.data_share:.0%} of the time was waiting for them"
    )
    if out is not None:
        reader.console.info(f"results in {out}")
    if reader.failures:
        unread = {each.path for each in reader.failures}
        where = f"; all are in {out / 'failures.csv'}" if folders else ""
        lines = [f"{shown(each.path)}: {shown(each.cause)}" for each in reader.failures[:MOST_NAMED]]
        fail(
            f"{len(unread)} of {len(reader.paths)} videos could not be read, or not wholly{where}\n  "
            + "\n  ".join(lines),
            status=EXIT_UNREAD,
        )


def main() -> None:
    try:
        sys.argv[1:] = with_videos(sys.argv[1:])
    except UserError as error:
        fail(str(error))
    launch("predict", predict, check)


if __name__ == "__main__":
    main()
