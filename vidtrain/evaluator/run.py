"""Fills a view table: all ranks take part, and a killed evaluation continues. Each video is read once for all views."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vidtrain.build.parts import set_cpu_threads, share_of_cores
from vidtrain.config.renames import rename_settings
from vidtrain.data.augment.geometry import UNCUT
from vidtrain.data.decoding.video import DecodeError
from vidtrain.data.loading.dataset import VideoDataset
from vidtrain.data.loading.file_checks import refused_videos
from vidtrain.data.loading.loaders import eval_loader
from vidtrain.data.loading.samplers import EvalShard, EvalUnits
from vidtrain.data.manifest.manifest import Manifest, in_order_of
from vidtrain.data.sampling.clips import clip_indices, eval_generator
from vidtrain.data.sampling.temporal import frame_picks
from vidtrain.data.stores.files import ask_statuses, exists, file_status
from vidtrain.errors import UserError, pluralize
from vidtrain.evaluation import view_store
from vidtrain.evaluation.calibrated import STORED
from vidtrain.evaluation.view_store import ShardWriter, StoredViews
from vidtrain.evaluation.views import ClipModel, batch_views
from vidtrain.files.atomic import sha256
from vidtrain.files.escaping import first_lines, shown
from vidtrain.training.distributed import Ranks, autocast
from vidtrain.training.run import Console

MAX_LISTED = 10  # at most this many refused videos are listed
# Builds the model, and the transform of its input
MakeModel = Callable[[], tuple[ClipModel, nn.Module]]


@dataclass(frozen=True)
class EvaluationPlan:
    """One pass over a split: its videos in several frame orders, with clips x crops views in each order."""

    source: Path  # the checkpoint, or the exported file
    weights: str | None
    dataset_name: str
    prepared: str | None
    split: str
    dataset: VideoDataset
    orders: tuple[str, ...]  # the main frame order first, then the ablations
    frames: Mapping[str, str]  # for each order, a description of the frames of a view
    settings: Mapping[str, Any]  # the settings on which views depend, from `view_settings`
    crops: int
    fusion: str
    independent: bool  # whether a sigmoid scores each class by itself
    shard: EvalShard
    precision: str
    num_workers: int
    decode_timeout_s: float

    @property
    def joint(self) -> bool:
        return self.fusion == "joint"

    @property
    def manifest(self) -> Manifest:
        return self.dataset.manifest

    def reader(self) -> VideoDataset:
        """A dataset that reads the frames of all orders together: clips in forward order, and the middle frame for
        single_frame."""
        if len(self.orders) == 1:
            return self.dataset
        middle = "single_frame" in self.orders
        protocol = replace(self.dataset.protocol, frame_order="forward", middle=middle)
        return replace(self.dataset, protocol=protocol)

    def identity(self, device: torch.device) -> dict[str, Any]:
        """Everything that the table depends on. Videos are identified by path, file size, start, end and label."""
        return {
            "checkpoint": sha256(self.source),
            "weights": self.weights or STORED,
            "dataset": self.dataset_name,
            "prepared": self.prepared,
            "split": self.split,
            "videos": _videos_digest(self.manifest),
            "orders": list(self.orders),
            **self.settings,
            "clips jointly": self.joint,
            "batch_size": self.shard.batch_size,
            "every": self.shard.every,
            "precision": self.precision,
            "device": device.type,
        }

    def about(self) -> dict[str, Any]:
        """The description of the table in views.json, which does not depend on the machine."""
        protocol, uncut = self.dataset.protocol, UNCUT.get(type(self.dataset.geometry))
        count, videos = protocol.num_clips, len(self.manifest)
        names = [f"clip {number + 1} of {count}" for number in range(count)]
        return {
            "total": videos,
            "asked": len(range(0, videos, self.shard.every)),
            "dataset": self.dataset_name,
            "split": self.split,
            "orders": list(self.orders),
            "clip_names": [f"all {count} clips, attended jointly"] if self.joint else names,
            "crops": [uncut] if uncut else crop_names(self.crops),
            "classes": list(self.manifest.classes),
            "num_clips": count,
            "sampling": protocol.sampling,
            "overlap": protocol.overlap,
            "frames": dict(self.frames),
            "fusion": self.fusion,
            "joint": self.joint,
            "independent": self.independent,
        }


def crop_names(count: int) -> list[str]:
    """Names of the crops of a frame for people, in order along its longer side."""
    if count == 1:
        return ["center"]
    inner = [f"{number + 1} of {count}" for number in range(count)]
    if count % 2:
        inner[count // 2] = "center"
    return ["left or top", *inner[1:-1], "right or bottom"]


def in_order_of_checkpoint(manifest: Manifest, classes: Sequence[str], checkpoint: Path) -> Manifest:
    """The manifest with its classes in the order of the checkpoint. Raises `UserError` if the classes differ."""
    if sorted(manifest.classes) == sorted(classes):
        return in_order_of(manifest, classes)
    differing = sorted(set(manifest.classes) ^ set(classes))
    raise UserError(
        f"the checkpoint {checkpoint} has other classes than the dataset: {len(classes)} and "
        f"{len(manifest.classes)}; differing: {', '.join(map(shown, differing[:8]))}"
    )


def start_table(plan: EvaluationPlan, folder: Path, cpu_threads: int | None, overwrite: bool, ranks: Ranks) -> None:
    """Begins the table of `plan` in `folder`, or continues it with its first number of threads."""
    set_cpu_threads(cpu_threads, ranks)
    default_threads = torch.get_num_threads()

    def begin() -> int:
        return view_store.begin(
            folder, plan.identity(ranks.device), cpu_threads, default_threads, overwrite, rename_settings
        )

    begun_with = ranks.on_main(begin)
    set_cpu_threads(begun_with, ranks)


def fill(plan: EvaluationPlan, folder: Path, make_model: MakeModel, ranks: Ranks, console: Console) -> StoredViews:
    """Completes the table of `plan` in `folder`: all ranks compute missing batches, then rank 0 merges their
    files. `make_model` is only called if batches are missing. Raises `UserError` if videos are too short for the
    protocol."""
    if ranks.on_main(lambda: view_store.is_complete(folder)):
        console.info(f"all views are already in {folder}, so no video is read")
        ranks.on_main(lambda: view_store.clean(folder))
        return view_store.open_views(folder)
    if plan.dataset.protocol.short_video_policy == "error":
        ranks.on_main(lambda: _refuse_short(plan, ranks, console))
    done = ranks.on_main(lambda: frozenset(view_store.units_done(folder)))
    units = EvalUnits(len(plan.dataset), plan.shard.batch_size, ranks.rank, ranks.world_size, plan.shard.every, done)
    if done:
        console.info(f"continuing the table in {folder}: {len(done)} of {units.total} batches are in it")
    if len(done) < units.total:
        _compute(plan, folder, units, make_model, ranks, console)
    ranks.barrier()
    classes = plan.manifest.classes

    def spell(label: np.ndarray) -> str:
        numbers = np.flatnonzero(label) if label.ndim else [int(label)]
        return ";".join(classes[number] for number in numbers)

    def merge() -> None:
        clips = 1 if plan.joint else plan.dataset.protocol.num_clips
        shape = (len(plan.orders), clips, plan.crops, len(classes))
        view_store.merge(folder, plan.about(), plan.manifest.paths, spell, shape, plan.manifest.groups)
        view_store.clean(folder)

    ranks.on_main(merge)
    return view_store.open_views(folder)


def _compute(
    plan: EvaluationPlan, folder: Path, units: EvalUnits, make_model: MakeModel, ranks: Ranks, console: Console
) -> None:
    model, transform = make_model()
    model.eval()
    dataset = plan.reader()
    loader = eval_loader(dataset, units, plan.num_workers, ranks.device.type == "cuda", plan.decode_timeout_s)
    context = autocast(ranks, plan.precision)
    frames, clips = dataset.protocol.frames, dataset.protocol.num_clips
    orders = [torch.from_numpy(frame_picks(order, frames)) for order in plan.orders]
    several = len(orders) > 1
    writer = ShardWriter(folder / view_store.UNITS / f"rank{ranks.rank}.bin")
    title = f"{plan.split}, {len(orders)} orders of frames" if several else plan.split
    try:
        with console.phase(title, len(units)):
            for number, (unit, batch) in enumerate(zip(units.units, loader, strict=True), start=1):
                views = batch_views(
                    model, batch, transform, ranks.device, context, plan.crops, orders if several else (None,)
                )
                spans = [_frames(dataset, index)[:, :frames] for index in views.indices.tolist()]
                writer.append(unit, views, np.stack(spans) if spans else np.zeros((0, clips, frames)))
                console.advance(number, {})
    finally:
        writer.close()


def _frames(dataset: VideoDataset, index: int) -> np.ndarray:
    """The frame indices [n t] of a video's clips; -1 if the file can no longer be opened."""
    record, protocol = dataset.manifest[index], dataset.protocol
    try:
        video = dataset.index.info(record.path, dataset.manifest.frame_rate)
    except DecodeError:
        return np.full((protocol.num_clips, protocol.frames), -1)
    drawn = eval_generator(protocol, dataset.seed, record.path)
    return clip_indices(video.num_frames, video.timestamps, protocol, drawn, start=record.start, end=record.end)


def _refuse_short(plan: EvaluationPlan, ranks: Ranks, console: Console) -> None:
    """Raises `UserError` naming the videos that are too short for the protocol, before anything is computed."""
    dataset, videos = plan.dataset, len(plan.manifest)

    with console.phase("reading lengths of videos", videos):
        protocol, workers = plan.reader().protocol, share_of_cores(ranks)
        refused = refused_videos(
            plan.manifest,
            protocol,
            dataset.index,
            workers,
            plan.decode_timeout_s,
            lambda done: console.advance(done, {}),
        )
    if refused:
        lines = [f"{shown(path)}: {why.partition(';')[0]}" for path, why in refused]
        raise UserError(
            f"short_video_policy=error, but {len(refused)} of {pluralize(videos, 'video')} of {plan.split} "
            f"are too short for {plan.frames[plan.orders[0]]}, {pluralize(dataset.protocol.num_clips, 'clip')}:\n  "
            + "\n  ".join(first_lines(lines, MAX_LISTED))
            + "\nTo evaluate them, set short_video_policy=repeat_last or wrap"
        )


def _videos_digest(manifest: Manifest) -> str:
    digest = hashlib.sha256("\n".join(manifest.classes).encode(errors="surrogateescape"))
    ask_statuses(manifest.paths)
    for record in manifest:
        size = file_status(record.path).size if exists(record.path) else 0
        labels = list(record.labels) if manifest.multi_label else record.label
        row = f"{record.path}\t{size}\t{record.start}\t{record.end}\t{labels}\n"
        digest.update(row.encode(errors="surrogateescape"))
    return f"{len(manifest)} videos, {digest.hexdigest()}"
