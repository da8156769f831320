"""Measures the accuracy of simple models on a dataset, to judge that of a trained model.

python -m vidtrain.baselines dataset=class_folders dataset.source.root=/data/mine
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vidtrain.app.launch import launch
from vidtrain.config.dataset_schemas import BaselinesConfig
from vidtrain.config.targets import check_of_dataset
from vidtrain.errors import UserError
from vidtrain.training.process import cores

if TYPE_CHECKING:  # so that --help does not wait for the import of torch
    from vidtrain.data.manifest.manifest import Manifest
    from vidtrain.evaluator.baselines import Baselines, Described, Descriptor
    from vidtrain.training.run import Console

NEIGHBORS_OF = ("mean_frame",)  # its nearest neighbors find near duplicates of test videos in train
SHOWN_MISSING = 5  # at most this many missing videos are printed


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    return check_of_dataset(cfg, BaselinesConfig)


def baselines(cfg: DictConfig) -> None:
    from vidtrain.build.data import index_folder, listed_splits
    from vidtrain.data.manifest.split_records import SplitRecord
    from vidtrain.evaluator.baselines import folder_for, open_baselines
    from vidtrain.files.folders import RunLock, check_links
    from vidtrain.tracking.console import make_console

    console = make_console(True)
    splits = listed_splits(cfg, console)
    if not splits.keys() - {"train"}:
        raise UserError(f"dataset={cfg.dataset.name} has neither val nor test, on which baselines are evaluated")
    digests = {split: SplitRecord.of(manifest).digest for split, manifest in splits.items()}
    settings = {key: cfg[key] for key in ("clips", "frames", "fps", "size", "max_train_videos", "max_eval_videos")}
    settings["networks"] = list(cfg.networks)
    folder = folder_for(index_folder(cfg), digests, settings)
    check_links(folder)
    with RunLock(folder):
        results = None if cfg.anew else open_baselines(folder)
        if results is None:
            results = measure_all(cfg, splits, folder, console)
            results.save(digests, settings)
    show(results, console)


def measure_all(cfg: DictConfig, splits: "Mapping[str, Manifest]", folder: Path, console: "Console") -> "Baselines":
    """Reads every video once and writes the predictions of every baseline into `folder`."""
    import numpy as np

    from vidtrain.evaluation.report import write_report
    from vidtrain.evaluator.baselines import PICTURES, Baselines, answers, compared_by

    started = time.monotonic()
    descriptors = PICTURES | network_features(cfg, console)
    described = {split: describe(cfg, split, splits[split], descriptors, console) for split in splits}
    several = splits["train"].multi_label
    names = [splits["train"][index].group for index in described["train"].table.indices.tolist()]
    groups = np.unique(np.array(names), return_inverse=True)[1]
    plan = [(name, "logistic") for name in descriptors] + [(name, "neighbors") for name in NEIGHBORS_OF]
    protocol = f"{cfg.clips} clips of {cfg.frames} frames at {cfg.fps:g} fps, {cfg.size}x{cfg.size}"
    results: dict[str, dict[str, Any]] = {split: {} for split in splits if split != "train"}
    stored = Baselines(folder, compared_by(several, len(splits["train"].classes)), results, seconds=0.0)
    for name, reports in answers(described, groups, plan, protocol, several):
        for split, report in reports.items():
            results[split][name] = report.metrics
            manifest = splits[split]
            write_report(report, stored.place(split, name), manifest.paths, manifest.classes, manifest.groups)
    return replace(stored, seconds=round(time.monotonic() - started, 1))


def network_features(cfg: DictConfig, console: "Console") -> "dict[str, Descriptor]":
    """The features of each of `networks`, by name. Networks that are not installed are left out with a note."""
    from vidtrain.evaluator.baselines import image_network

    features: dict[str, Descriptor] = {}
    for name in cfg.networks:
        try:
            features[f"{name}_features"] = image_network(name, cfg.size)
        except UserError as missing:  # its package is not installed
            console.info(f"{name}_features are left out: {missing}")
    return features


def describe(
    cfg: DictConfig, split: str, manifest: "Manifest", descriptors: "Mapping[str, Descriptor]", console: "Console"
) -> "Described":
    from vidtrain.build.data import whole_frames
    from vidtrain.evaluator.baselines import describe_split

    videos = whole_frames(cfg, split, manifest, cfg.num_workers or cores())
    described = describe_split(manifest, videos.batches(console), descriptors, len(videos.loader))
    for path, cause in described.table.missing[:SHOWN_MISSING]:
        console.warn(f"missing from {split}: {path} ({cause})")
    return described


def show(known: "Baselines", console: "Console") -> None:
    """Prints the table, in order of the last split's metric."""
    splits = list(known.results)
    last, metric = known.results[splits[-1]], known.metric
    rows = [
        (name, *(f"{known.results[split][name][metric]:.4f}" for split in splits))
        for name in sorted(last, key=lambda name: -last[name][metric])
    ]
    console.table(f"baselines, {metric}", ("", *splits), rows)
    console.info(f"predictions in {known.folder}, computed in {known.seconds:g} s")


def main() -> None:
    launch("baselines", baselines, check)


if __name__ == "__main__":
    main()
