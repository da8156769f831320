"""Says what is in videos, with the transforms and the protocol that a checkpoint carries.

python -m vidtrain.predict checkpoint=outputs/motion/NAME clip.mp4
"""

import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vidtrain.app.launch import fail, launch
from vidtrain.build.checkpoint_loader import find_checkpoint, open_trained
from vidtrain.config.overrides import positional_to_override
from vidtrain.errors import UserError
from vidtrain.files.escaping import shown
from vidtrain.prediction.options import FILES, check, find_videos
from vidtrain.tracking.console import as_data

if TYPE_CHECKING:  # importing torch takes seconds, which --help should not
    from vidtrain.prediction.outputs import Outputs
    from vidtrain.prediction.run import Plan, Predictor, Reader

EXIT_UNREAD = 1
MAX_NAMED = 20  # unreadable videos that the closing message lists


def predict(cfg: DictConfig) -> None:
    from vidtrain.app.launch import report as report_faults
    from vidtrain.build.parts import protocol_text, set_cpu_threads
    from vidtrain.data.decoding.index import VideoIndex
    from vidtrain.prediction import setup
    from vidtrain.prediction.run import Reader
    from vidtrain.tracking.console import make_console
    from vidtrain.training.ranks.distributed import join_ranks

    for handler in logging.getLogger().handlers:  # standard output is for results
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)
    console, path = make_console(is_main=True, stderr=True), find_checkpoint(cfg.checkpoint)
    paths, out = find_videos(cfg), _output_place(cfg)
    with join_ranks(cfg.device) as ranks, tempfile.TemporaryDirectory() as temporary:
        opened = open_trained(path, cfg.trust_targets)
        opened.check_computed((*setup.USED, *setup.CHANGES.values()), setup.CHANGES, cfg)
        trained = setup.as_trained(opened.config, cfg)
        heat_class = setup.class_number(cfg.heat_class, opened.classes, path)
        faults = setup.check_trained(trained, cfg)
        report_faults([("the checkpoint's configuration, as changed", key, why) for key, why in faults])
        set_cpu_threads(trained.trainer.cpu_threads, ranks)
        model = opened.model(trained, ranks).eval()
        setup.check_graph(trained, model, path)
        heat, why_none = setup.heat_kind(cfg, trained, model)
        if cfg.render and heat is None:
            console.warn(f"render=true draws no heat map: {why_none}")
        # the reading processes share what they learn of a file; a video that is read once needs no such file
        shared = Path(temporary) / "videos.sqlite" if cfg.windows.stride or cfg.render else None
        index = VideoIndex(shared, trained.data.max_pixels, trained.clip.sample_aspect)
        reader = Reader(trained, ranks, index, paths, opened.classes, cfg.frame_rate, console)
        transform = opened.transform(trained, model, ranks.device)
        predictor = setup.make_predictor(trained, model, transform, ranks, heat, heat_class)
        stride, length = cfg.windows.stride, cfg.windows.length
        plans = reader.whole() if stride is None else reader.windows(stride, length)
        note = setup.heat_note(heat, model, cfg.heat_class, why_none)
        outputs = _make_outputs(cfg, protocol_text(trained, model.fusion), reader, predictor, out, note)
        _answer(cfg, outputs, predictor, plans, out)
        index.close()


def _output_place(cfg: DictConfig) -> Path | None:
    """The folder or file for the results; None where standard output is all. Raises `UserError` if it is read-only."""
    from vidtrain.files.folders import check_writable

    if cfg.out:
        out = Path(cfg.out)
    elif cfg.logits or cfg.render or cfg.windows.stride is not None:  # these are several files
        out = Path(f"outputs/predict/{datetime.now():%Y-%m-%d_%H-%M-%S}")
    else:
        return None
    check_writable(out.parent if out.suffix in FILES else out)
    return out


def _make_outputs(
    cfg: DictConfig, protocol: str, reader: "Reader", predictor: "Predictor", out: Path | None, note: str
) -> "Outputs":
    from vidtrain import __version__
    from vidtrain.prediction.files import Results, folders_of
    from vidtrain.prediction.outputs import Outputs, labeling

    about: dict[str, Any] = {"checkpoint": cfg.checkpoint, "protocol": protocol, "vidtrain": __version__}
    label = None
    if cfg.windows.stride is not None:
        label = labeling(cfg.windows.smooth, cfg.windows.threshold, predictor.independent)
        about["windows"] = {**cfg.windows, "threshold": label.threshold}
    results = Results(about, reader.classes, cfg.topk, label is not None)
    folders = folders_of(reader.paths, out) if out is not None and out.suffix not in FILES else {}
    from_even = predictor.heat == "attention"
    return Outputs(results, reader, folders, label, cfg.logits, cfg.render, note, from_even)


def _answer(
    cfg: DictConfig, outputs: "Outputs", predictor: "Predictor", plans: "Sequence[Plan]", out: Path | None
) -> None:
    """Predicts, writes the results, and ends with status 1 if anything could not be read."""
    from vidtrain.prediction.files import AsTheyCome, partial_of, print_results, write_results

    results, reader, started = outputs.results, outputs.reader, time.perf_counter()
    streams = cfg.format == "csv" and not sys.stdout.isatty()  # a terminal has the progress bar
    partial = None if out is None else partial_of(out)
    as_they_come = AsTheyCome(results, as_data(sys.stdout) if streams else None, partial)
    try:
        for prediction in reader.predictions(plans, predictor, pictures=cfg.render) if plans else ():
            outputs.take(prediction)
            as_they_come.give()
    except BaseException:  # Ctrl-C too
        if partial is not None:
            reader.console.warn(f"ended early: the answers to {len(results.videos)} videos are in {partial}")
        raise
    seconds = time.perf_counter() - started
    if not streams:
        print_results(results, reader.failures, cfg.format)
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
        unread = {failure.path for failure in reader.failures}
        where = f"; all are in {out / 'failures.csv'}" if out is not None and outputs.folders else ""
        lines = [f"{shown(failure.path)}: {shown(failure.cause)}" for failure in reader.failures[:MAX_NAMED]]
        what = f"{len(unread)} of {len(reader.paths)} videos could not be read, or not wholly{where}"
        fail("\n  ".join([what, *lines]), status=EXIT_UNREAD)


def main() -> None:
    try:
        sys.argv[1:] = positional_to_override(sys.argv[1:], "videos")  # Hydra takes only overrides
    except UserError as error:
        fail(str(error))
    launch("predict", predict, check)


if __name__ == "__main__":
    main()
