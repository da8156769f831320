"""Builds manifests, and the batches of training and evaluation, from a configuration."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from vidtrain.build.parts import clip_protocol, clip_size, instantiate_component, num_workers, share_of_cores
from vidtrain.config.references import to_dict
from vidtrain.config.schemas import DataSettings
from vidtrain.config.targets import components
from vidtrain.data.augment.geometry import SquashedFrame, WholeFrame
from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.loading.dataset import Batch, VideoDataset
from vidtrain.data.loading.file_checks import VideoFilter
from vidtrain.data.loading.loaders import Loader, eval_loader, train_loader
from vidtrain.data.loading.quarantine import Quarantine
from vidtrain.data.loading.samplers import (
    EvalShard,
    MixtureSource,
    MixtureStream,
    TrainStream,
    class_balance,
    every_for,
    records_by_source,
)
from vidtrain.data.manifest.files import open_manifests
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.manifest.splitting import check_present
from vidtrain.data.prepared.copy import PreparedCopy, prepared_folder
from vidtrain.data.sampling.clips import ClipProtocol
from vidtrain.data.sources.motion import MARKER, Motion
from vidtrain.data.stores.cache import use_cache
from vidtrain.errors import UserError
from vidtrain.files.escaping import shown
from vidtrain.training.distributed import Ranks
from vidtrain.training.run import Console

MAX_VAL_VIDEOS = 200  # without a val split, pretraining evaluates on about this many training videos
INDEX_ROOT, DATA_ROOT = DataSettings().index_root, "data"  # the defaults of the schema


@dataclass(frozen=True)
class EvalData:
    """A split to evaluate: its manifest, this rank's batches and the number of crops per clip."""

    split: str
    manifest: Manifest
    loader: Loader
    crops: int

    def batches(self, console: Console) -> Iterator[Batch]:
        """Yields this rank's batches, and shows the progress."""
        with console.phase(self.split, len(self.loader)):
            for number, batch in enumerate(self.loader, start=1):
                yield batch
                console.advance(number, {})


@dataclass(frozen=True)
class Reading:
    """The files that all readers of a run's videos share."""

    index: VideoIndex  # facts about the videos
    quarantine: Path | None  # file that lists videos that crashed a worker


def reading(cfg: DictConfig, ranks: Ranks, folder: Path | None) -> Reading:
    """The dataset's index, which all ranks and runs share and rank 0 creates, and this rank's quarantine file in the
    run folder."""
    path = index_file(cfg)
    use_cache(cfg.data.cache, cfg.data.cache_size)
    ranks.on_main(lambda: VideoIndex(path).close())
    quarantine = folder / f"quarantine_rank{ranks.rank}.jsonl" if folder else None
    return Reading(VideoIndex(path, cfg.data.max_pixels, cfg.clip.sample_aspect), quarantine)


def index_folder(cfg: DictConfig) -> Path:
    """The folder of a dataset's index: `index_file` holds facts about its videos, manifests/ its lists of videos."""
    return Path(cfg.data.index_root) / cfg.dataset.name


def keep_index_here(cfg: DictConfig, sets_data_root: bool, console: Console) -> None:
    """Chooses the folder of the index for a checkpoint that may come from somebody else. Programs create and remove
    files in this folder. So the folder in the checkpoint is used only if an index exists there, or if it is below the
    data root of this command line; otherwise the default folder is used.

    Raises `UserError` for a name of a dataset that leads out of that folder.
    """
    name = Path(str(cfg.dataset.name))
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise UserError(
            f"dataset.name={cfg.dataset.name} in the checkpoint must be a relative path without ..; set dataset="
        )
    follows_data_root = to_dict(cfg.data)["index_root"] == INDEX_ROOT
    if index_file(cfg).is_file() or (sets_data_root and follows_data_root):
        return
    stored_root, default_root = str(cfg.data.index_root), INDEX_ROOT.replace("${data_root}", DATA_ROOT)
    if stored_root != default_root:
        cfg.data.index_root = default_root
        console.info(
            f"the checkpoint names {stored_root}, which has no index of the videos; it is created in {default_root}"
        )


def check_made_here(cfg: DictConfig, sets_data_root: bool) -> None:
    """Raises `UserError` if a checkpoint, which may come from somebody else, would create the motion dataset outside
    the data root: that of this command line, or the default one. An existing dataset may be anywhere."""
    data_root = os.path.realpath(cfg.data_root if sets_data_root else DATA_ROOT)
    for path, node in components(cfg.dataset.source, "dataset.source"):
        if to_dict(node)["_target_"] != f"{Motion.__module__}.{Motion.__qualname__}":
            continue
        root = instantiate_component(node).root
        if not (Path(root) / MARKER).is_file() and not os.path.realpath(root).startswith(f"{data_root}{os.sep}"):
            raise UserError(
                f"the checkpoint would create the motion dataset in {path}.root={root}; choose a folder with "
                "data_root=, or another dataset="
            )


def index_file(cfg: DictConfig) -> Path:
    return index_folder(cfg) / "videos.sqlite"


def manifests(cfg: DictConfig, ranks: Ranks, console: Console) -> dict[str, Manifest]:
    """The splits of the configured dataset, with the paths to read. Rank 0 opens them first, as it may create files."""
    source, folder = instantiate_component(cfg.dataset.source), index_folder(cfg)
    opened_on_main: list[dict[str, Manifest]] = []
    ranks.on_main(lambda: opened_on_main.append(open_manifests(source, folder)))
    splits = opened_on_main[0] if opened_on_main else open_manifests(source, folder)
    if cfg.objective is None:
        multi_label = {split: manifest.multi_label for split, manifest in splits.items()}
        independent = instantiate_component(cfg.loss).independent
        check_dataset(cfg.dataset.name, splits["train"].classes, multi_label, independent)
    elif "val" not in splits:  # pretraining evaluates on some training videos
        train = splits["train"]
        splits = {**splits, "val": train.subset(range(0, len(train), every_for(len(train), MAX_VAL_VIDEOS)))}
    splits = redirected(cfg, splits, console)
    ranks.on_main(lambda: check_present(splits, missing_hint(cfg), console.warn))
    return splits


def check_dataset(name: str, classes: Sequence[str], multi_label: Mapping[str, bool], independent: bool) -> None:
    """Raises `UserError` for a dataset that no classifier can train on: with one class, with videos that may have
    several labels (`multi_label`, by split) and a loss that is not `independent`, or with such videos only in some
    splits."""
    if len(classes) < 2:
        raise UserError(f"dataset {name} has one class, {shown(classes[0])}: training needs two or more")
    if any(multi_label.values()) and not independent:
        raise UserError(
            f"videos of dataset {name} may have several labels, so the loss must score classes independently: choose "
            "loss=bce (or focal), with trainer.monitor=map"
        )
    if any(multi_label.values()) and not all(multi_label.values()):
        splits = ", ".join(split for split, has_several in multi_label.items() if has_several)
        raise UserError(f"videos of dataset {name} may have several labels in {splits} only; all splits must agree")


def listed_splits(cfg: DictConfig, console: Console) -> dict[str, Manifest]:
    """The splits of the configured dataset, with the paths to read, for a program that trains no model."""
    splits = open_manifests(instantiate_component(cfg.dataset.source), index_folder(cfg))
    splits = redirected(cfg, splits, console)
    check_present(splits, missing_hint(cfg), console.warn)
    return splits


def redirected(cfg: DictConfig, splits: dict[str, Manifest], console: Console) -> dict[str, Manifest]:
    """`splits` with the paths of the prepared copy, if `data.prepared` names one."""
    if cfg.data.prepared is None:
        return splits
    copy = PreparedCopy.open(prepared_folder(cfg.data_root, cfg.dataset.name, cfg.data.prepared))
    console.info(f"reading the prepared copy {copy.folder}")
    return {split: copy.redirect(manifest) for split, manifest in splits.items()}


def missing_hint(cfg: DictConfig) -> str:
    """A hint for the user when files of a dataset are missing."""
    source = cfg.dataset.source
    if "root" in source and source.root is not None:
        return f"check dataset.source.root={source.root}"
    if "root" in source:
        return "paths are relative to the folder of the listing, unless dataset.source.root names another folder"
    return f"check the paths in dataset.source, and data_root={cfg.data_root}"


def video_filter(cfg: DictConfig) -> VideoFilter:
    return VideoFilter(cfg.data.min_frames, cfg.data.min_seconds, cfg.data.max_seconds, cfg.data.max_bytes)


def filtered(cfg: DictConfig, train: Manifest, index: VideoIndex, ranks: Ranks, console: Console) -> Manifest:
    """The training videos within the bounds of `data`, such as data.min_frames; without bounds, all of them."""
    bounds = video_filter(cfg)
    if bounds.keeps_all:
        return train

    def show(done: int) -> None:
        console.advance(done, {})

    def read_lengths() -> tuple[np.ndarray, dict[str, int]]:
        with console.phase("reading lengths of videos", len(train)):
            return bounds.kept(train, index, share_of_cores(ranks), cfg.data.decode_timeout_s, show)

    kept, dropped = ranks.on_main(read_lengths)
    counts = ", ".join(f"{count} by data.{name}" for name, count in sorted(dropped.items()))
    console.info(f"training videos out of bounds: {counts or 'none'}")
    return train.subset(kept)


def one_batch(train: Manifest, size: int, seed: int) -> dict[str, Manifest]:
    """A dataset of one batch of training videos, which are both train and val."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:size].tolist()
    batch = train.subset(order)
    return {"train": batch, "val": batch}


def train_batches(
    cfg: DictConfig, manifest: Manifest, reading: Reading, ranks: Ranks
) -> tuple[Callable[[int, int], Iterable], int]:
    """A function (first step, last step + 1) -> micro-batches of these steps, and the number of steps per epoch."""
    dataset = train_dataset(cfg, manifest, reading)
    workers = num_workers(cfg.trainer.num_workers, ranks)
    pin = ranks.device.type == "cuda"

    def batches(start: int, stop: int) -> Iterable[Batch]:
        samples = stream(cfg, manifest, ranks, start, stop)
        return train_loader(dataset, samples, workers, pin, cfg.data.decode_timeout_s)

    per_pass = stream(cfg, manifest, ranks, 0, 0).steps_per_pass
    return batches, cfg.trainer.steps_per_epoch or per_pass


def train_dataset(cfg: DictConfig, manifest: Manifest, reading: Reading) -> VideoDataset:
    return VideoDataset(
        manifest,
        clip_protocol(cfg, training=True),
        instantiate_component(cfg.augmentation.train),
        clip_size(cfg),
        cfg.seed,
        training=True,
        copies=cfg.clip.repeated_augmentation,
        jitter=instantiate_component(cfg.augmentation.temporal),
        interpolation=cfg.clip.interpolation,
        size_changes=cfg.data.size_changes,
        resize=cfg.clip.resize,
        index=reading.index,
        quarantine=Quarantine(reading.quarantine, "train"),
    )


def stream(
    cfg: DictConfig, manifest: Manifest | None, ranks: Ranks, start: int, stop: int
) -> TrainStream | MixtureStream:
    """The samples of the steps `start` to `stop` - 1. Without a manifest, this only checks the settings."""
    placement = {
        "batch_size": cfg.trainer.batch_size,
        "seed": cfg.seed,
        "start_step": start,
        "stop_step": stop,
        "accumulation": cfg.trainer.accumulation,
        "rank": ranks.rank,
        "world_size": ranks.world_size,
    }
    if manifest is None:
        return TrainStream(1, **placement)
    balance = class_balance(manifest, cfg.data.class_balanced_sampling)
    if manifest.columns.sources is None:
        return TrainStream(len(manifest), balance=balance, **placement)
    records = records_by_source(manifest.columns.sources, len(manifest.sources))
    sources = [
        MixtureSource(source.name, own_records, source.weight, source.frames or cfg.clip.frames)
        for source, own_records in zip(manifest.sources, records, strict=True)
    ]
    return MixtureStream(sources, **placement)


def eval_data(cfg: DictConfig, split: str, manifest: Manifest, reading: Reading, ranks: Ranks) -> EvalData:
    dataset = eval_dataset(cfg, split, manifest, reading)
    shard = eval_shard(cfg, dataset, ranks)
    workers = num_workers(cfg.trainer.num_workers, ranks)
    loader = eval_loader(dataset, shard, workers, ranks.device.type == "cuda", cfg.data.decode_timeout_s)
    return EvalData(split, manifest, loader, instantiate_component(cfg.augmentation.eval).crops)


def eval_dataset(cfg: DictConfig, split: str, manifest: Manifest, reading: Reading) -> VideoDataset:
    return VideoDataset(
        manifest,
        clip_protocol(cfg, training=False),
        instantiate_component(cfg.augmentation.eval),
        clip_size(cfg),
        cfg.seed,
        training=False,
        interpolation=cfg.clip.interpolation,
        size_changes=cfg.data.size_changes,
        resize=cfg.clip.resize,
        index=reading.index,
        quarantine=Quarantine(reading.quarantine, split),
    )


def whole_frames(cfg: DictConfig, split: str, manifest: Manifest, workers: int) -> EvalData:
    """A split for baselines: one video per batch, in clips of whole frames that are resized to squares."""
    dataset = VideoDataset(
        manifest,
        ClipProtocol(frames=cfg.frames, fps=cfg.fps, num_clips=cfg.clips),
        SquashedFrame(),
        (cfg.size, cfg.size),
        seed=0,
        training=False,
        interpolation="bilinear",
        size_changes=cfg.data.size_changes,
        index=VideoIndex(index_file(cfg), cfg.data.max_pixels),
        quarantine=Quarantine(None, split),
    )
    max_videos = cfg.max_train_videos if split == "train" else cfg.max_eval_videos
    shard = EvalShard(len(manifest), 1, every=every_for(len(manifest), max_videos))
    return EvalData(split, manifest, eval_loader(dataset, shard, workers, False, cfg.decode_timeout_s), 1)


def eval_shard(cfg: DictConfig, dataset: VideoDataset, ranks: Ranks) -> EvalShard:
    every = every_for(len(dataset), cfg.trainer.max_eval_videos)
    # Whole frames differ in shape between videos, so they cannot be stacked
    batch_size = 1 if isinstance(dataset.geometry, WholeFrame) else cfg.trainer.eval_batch_size
    return EvalShard(len(dataset), batch_size, ranks.rank, ranks.world_size, every)
