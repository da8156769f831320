"""Classifies videos, with the transforms and the protocol of a checkpoint.

python -m vidtrain.predict checkpoint=outputs/motion/NAME clip.mp4
"""

import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vidtrain.app.launch import launch
from vidtrain.build.checkpoint_loader import find_checkpoint, open_trained
from vidtrain.prediction.options import (
    CHANGES,
    FILES,
    USED,
    as_trained,
    check,
    check_graph,
    check_trained,
    class_number,
    find_videos,
    output_place,
)

if TYPE_CHECKING:  # so that --help does not wait seconds for the import of torch
    from vidtrain.build.checkpoint_loader import LoadedCheckpoint
    from vidtrain.prediction.outputs import Outputs
    from vidtrain.prediction.run import Predictor, Reader
    from vidtrain.training.distributed import Ranks
    from vidtrain.training.run import Console


def predict(cfg: DictConfig) -> None:
    from vidtrain.build import parts as build
    from vidtrain.evaluation.calibrated import STORED, find_calibration
    from vidtrain.evaluator.report import apply_to
    from vidtrain.prediction.outputs import write_predictions
    from vidtrain.prediction.pictures import heat_kind, heat_note
    from vidtrain.prediction.run import Predictor
    from vidtrain.tracking.console import make_console
    from vidtrain.training.distributed import autocast, join_ranks

    for handler in logging.getLogger().handlers:  # log on standard error, as standard output is for results
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)
    console, path = make_console(is_main=True, stderr=True), find_checkpoint(cfg.checkpoint)
    paths, out = find_videos(cfg), output_place(cfg)
    with join_ranks(cfg.device) as ranks, tempfile.TemporaryDirectory() as temporary:
        opened = open_trained(path, cfg.trust_targets)
        trained = _configure(cfg, opened)
        heat_class = class_number(cfg.heat_class, opened.classes, path)
        protocol = build.protocol_text(trained, trained.model.fusion)
        calibration = find_calibration(path, opened.card, STORED, cfg.calibrated)
        apply_to(calibration, trained.model.fusion, protocol, console)
        build.set_cpu_threads(trained.trainer.cpu_threads, ranks)
        model = opened.model(trained, ranks, merged=True).eval()
        clip_shape = (trained.clip.frames, *build.clip_size(trained))
        check_graph(trained, model, (3, *clip_shape), path)
        heat, reason = heat_kind(cfg.heat, cfg.heat_class, model, clip_shape) if cfg.render else (None, "")
        if cfg.render and heat is None:
            console.warn(f"render=true draws no heat map: {reason}")
        reader = _make_reader(cfg, trained, paths, opened.classes, Path(temporary), ranks, console)
        predictor = Predictor(
            model=model,
            transform=opened.transform(trained, model, ranks.device),
            device=ranks.device,
            context=autocast(ranks, trained.trainer.precision),
            crops=build.instantiate_component(trained.augmentation.eval).crops,
            independent=build.instantiate_component(trained.loss).independent,
            heat=heat,
            heat_class=heat_class,
            calibration=calibration,
        )
        stride, length = cfg.windows.stride, cfg.windows.length
        plans = reader.whole() if stride is None else reader.windows(stride, length)
        note = heat_note(heat, getattr(model, "head", None), cfg.heat_class, reason)
        outputs = _make_outputs(cfg, protocol, reader, predictor, out, note)
        write_predictions(outputs, predictor, plans, cfg.format, out)
        reader.videos.index.close()


def _configure(cfg: DictConfig, opened: "LoadedCheckpoint") -> DictConfig:
    """The checkpoint's configuration with the changes of the command line, checked."""
    from vidtrain.app.launch import report as report_faults

    opened.check_computed((*USED, *CHANGES.values()), CHANGES, cfg)
    trained = as_trained(opened.config, cfg)
    faults = check_trained(trained, cfg)
    report_faults([("the checkpoint's configuration, as changed", key, why) for key, why in faults])
    return trained


def _make_reader(
    cfg: DictConfig,
    trained: DictConfig,
    paths: "Sequence[str]",
    classes: "Sequence[str]",
    temporary: Path,
    ranks: "Ranks",
    console: "Console",
) -> "Reader":
    from vidtrain.build import data as build_data
    from vidtrain.build.parts import num_workers
    from vidtrain.data.decoding.index import VideoIndex
    from vidtrain.data.manifest.manifest import Manifest, Record
    from vidtrain.prediction.run import Reader

    # Reading processes share facts about files in this database; if each video is read only once, none is needed
    shared = temporary / "videos.sqlite" if cfg.windows.stride or cfg.render else None
    index = VideoIndex(shared, trained.data.max_pixels, trained.clip.sample_aspect)
    manifest = Manifest([Record(path, 0, path) for path in paths], classes, cfg.frame_rate)
    videos = build_data.eval_dataset(trained, "predict", manifest, build_data.Reading(index, None))
    workers = num_workers(trained.trainer.num_workers, ranks)
    batch_size, decode_timeout_s = trained.trainer.eval_batch_size, trained.data.decode_timeout_s
    return Reader(videos, ranks.device, workers, batch_size, decode_timeout_s, console)


def _make_outputs(
    cfg: DictConfig, protocol: str, reader: "Reader", predictor: "Predictor", out: Path | None, note: str
) -> "Outputs":
    from vidtrain import __version__
    from vidtrain.prediction.outputs import Outputs, Results, folders_of, labeling

    label, calibration, independent = None, predictor.calibration, predictor.independent
    calibrated = None if calibration is None else str(calibration)
    about: dict[str, Any] = {"checkpoint": cfg.checkpoint, "protocol": protocol, "calibration": calibrated,
                             "vidtrain": __version__}  # fmt: skip
    if cfg.windows.stride is not None:
        label = labeling(cfg.windows.smooth, cfg.windows.threshold, independent, calibration)
        threshold = label.threshold if isinstance(label.threshold, float) else "by class"
        about["windows"] = {**cfg.windows, "threshold": threshold}
        if calibration is not None and calibration.sets is not None:
            reader.console.warn("windows have no prediction sets, which were fitted to whole videos")
    results = Results(about, reader.classes, cfg.topk, label is not None, calibration, independent)
    folders = folders_of(reader.paths, out) if out is not None and out.suffix not in FILES else {}
    from_even = predictor.heat == "attention"
    return Outputs(results, reader, folders, label, cfg.logits, cfg.render, note, from_even)


def main() -> None:
    launch("predict", predict, check, bare_words_are="videos")


if __name__ == "__main__":
    main()
