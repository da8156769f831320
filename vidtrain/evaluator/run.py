"""The pass that fills a view table, by all ranks and across kills: each video is read once, for all of its views."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vidtrain.build import data as build_data
from vidtrain.build import parts as build
from vidtrain.config.references import fingerprints
from vidtrain.config.renames import rename_settings
from vidtrain.data.augment.geometry import EvalGeometry, WholeFrame
from vidtrain.data.decoding.video import DecodeError
from vidtrain.data.loading.dataset import VideoDataset
from vidtrain.data.loading.file_checks import refused_videos
from vidtrain.data.loading.loaders import eval_loader
from vidtrain.data.loading.samplers import EvalUnits
from vidtrain.data.manifest.class_names import describe_alike
from vidtrain.data.manifest.manifest import Manifest, in_order_of
from vidtrain.data.sampling.clips import clip_indices
from vidtrain.data.sampling.temporal import frame_picks
from vidtrain.errors import UserError
from vidtrain.evaluation import view_store
from vidtrain.evaluation.view_shards import ShardWriter
from vidtrain.evaluation.view_store import StoredViews
from vidtrain.evaluation.views import batch_views
from vidtrain.files.escaping import shown
from vidtrain.training.ranks.distributed import Ranks, autocast

# Settings of the clip that change nothing in evaluation; the orders of frames are listed by themselves
NOT_OF_VIEWS = ("train_clips", "repeated_augmentation", "frame_order")
MOST_REFUSED = 10  # videos that are listed


@dataclass(frozen=True)
class Pass:
    """What is to be judged: a split of the data in some orders of frames, with clips x crops views in each.

    `cfg` is the configuration that the checkpoint carries, as changed; `settings` the same as plain data. The first of
    `orders` is the one that is asked for, the others are probes.
    """

    cfg: Any
    settings: Mapping[str, Any]
    source: Path  # the checkpoint, or the exported file
    weights: str | None
    split: str
    manifest: Manifest
    reading: build_data.Reading
    orders: tuple[str, ...]

    @property
    def joint(self) -> bool:
        return self.cfg.model.fusion == "joint"

    @property
    def geometry(self) -> EvalGeometry:
        return build.instantiate_component(self.cfg.augmentation.eval)

    @property
    def dataset(self) -> VideoDataset:
        """Reads clips for all orders at once: their frames in forward order, and the one that single_frame repeats."""
        dataset = build_data.eval_dataset(self.cfg, self.split, self.manifest, self.reading)
        if len(self.orders) == 1:
            return dataset
        middle = "single_frame" in self.orders
        return replace(dataset, protocol=replace(dataset.protocol, frame_order="forward", middle=middle))

    def identity(self, device: torch.device) -> dict[str, Any]:
        """All that decides on the numbers in the table. Videos go by path, size, cut and label."""
        shard = build_data.eval_shard(self.cfg, self.dataset, Ranks(device))
        clip = {
            f"clip.{key}": value for key, value in self.settings["clip"].items() if key not in NOT_OF_VIEWS
        }
        if clip.get("clip.sample_aspect") == "ignore":  # tables from before there was a choice lack it
            del clip["clip.sample_aspect"]
        return {
            "checkpoint": _digest(self.source),
            "weights": self.weights or "as stored",
            "dataset": self.cfg.dataset.name,
            "prepared": self.cfg.data.prepared,
            "split": self.split,
            "videos": _videos_digest(self.manifest),
            **clip,
            "orders": list(self.orders),
            **{
                f"augmentation.eval.{key}": value
                for key, value in self.settings["augmentation"]["eval"].items()
            },
            "clips jointly": self.joint,
            "batch_size": shard.batch_size,
            "every": shard.every,
            "precision": self.cfg.trainer.precision,
            "device": device.type,
            **self._read(),
        }

    def _read(self) -> dict[str, Any]:
        """What tells whether settings of `identity` still read the same in the environment, where any reads there."""
        nodes = {"clip": self.settings["clip"], "augmentation.eval": self.settings["augmentation"]["eval"]}
        of_views = {f"{group}.{key}": value for group, node in nodes.items() for key, value in node.items()}
        found = fingerprints(self.cfg, of_views)
        return {"read in the environment": found} if found else {}

    def about(self, geometry: EvalGeometry) -> dict[str, Any]:
        """What views.json says of the table, the same on whichever machine it is computed."""
        count, asked = self.cfg.clip.eval_clips, len(range(0, len(self.manifest), self._every))
        names = [f"clip {number + 1} of {count}" for number in range(count)]
        return {
            "total": len(self.manifest),
            "asked": asked,
            "dataset": self.cfg.dataset.name,
            "split": self.split,
            "orders": list(self.orders),
            "clip_names": [f"all {count} clips, attended jointly"] if self.joint else names,
            "crops": crop_names(geometry),
            "classes": list(self.manifest.classes),
            "num_clips": count,
            "sampling": self.cfg.clip.sampling,
            "overlap": self.cfg.clip.overlap,
            "whole_frame": isinstance(geometry, WholeFrame),
            "frames": {order: build.frames_text(self.cfg, order) for order in self.orders},
            "fusion": self.cfg.model.fusion,
            "joint": self.joint,
            "independent": build.instantiate_component(self.cfg.loss).independent,
        }

    @property
    def _every(self) -> int:
        return build_data.eval_shard(self.cfg, self.dataset, Ranks(torch.device("cpu"))).every


def in_order_of_checkpoint(manifest: Manifest, classes: Sequence[str], checkpoint: Path) -> Manifest:
    """The manifest with its classes numbered as in the checkpoint. Raises `UserError` where they are other classes."""
    if sorted(manifest.classes) == sorted(classes):
        return in_order_of(manifest, classes)
    differing = sorted(set(manifest.classes) ^ set(classes))
    raise UserError(
        f"the checkpoint {checkpoint} tells other classes apart than the dataset has: {len(classes)} and "
        f"{len(manifest.classes)}; differing: {', '.join(map(shown, differing[:8]))}"
        + describe_alike(manifest.classes, classes)
    )


def start_table(work: Pass, folder: Path, cpu_threads: int | None, overwrite: bool, ranks: Ranks) -> int:
    """Begins the table of `work` in `folder`, or finds it there; returns how many threads are to compute it."""
    return view_store.begin(
        folder,
        work.identity(ranks.device),
        cpu_threads,
        torch.get_num_threads(),
        overwrite,
        renamed=rename_settings,
    )


def crop_names(geometry: EvalGeometry) -> list[str]:
    """What a reader may call the crops of a geometry, in order: along the frame's longer side."""
    if isinstance(geometry, WholeFrame):
        return ["whole frame"]
    if geometry.crops == 1:
        return ["center"]
    inner = [f"{number + 1} of {geometry.crops}" for number in range(geometry.crops)]
    if geometry.crops % 2:
        inner[geometry.crops // 2] = "center"
    return ["left or top", *inner[1:-1], "right or bottom"]


def fill(
    work: Pass,
    folder: Path,
    make_model: Callable[[], tuple[nn.Module, nn.Module]],
    ranks: Ranks,
    console: Any,
) -> StoredViews:
    """The table of `work` in `folder`, by all ranks: what it lacks is computed, then rank 0 puts it together.

    `make_model` gives the model and the transform before it; of a complete table it is not called. Raises `UserError`
    where videos are too short for the protocol.
    """
    if ranks.on_main(lambda: view_store.is_complete(folder)):
        console.info(f"the views lie in {folder}: no video is read")
        ranks.on_main(lambda: view_store.clean(folder))
        return view_store.open_views(folder)
    dataset = work.dataset
    if work.cfg.clip.short_video_policy == "error":
        ranks.on_main(lambda: refuse_short(work, dataset, ranks, console))
    shard = build_data.eval_shard(work.cfg, dataset, ranks)
    done = ranks.on_main(lambda: frozenset(view_store.units_done(folder)))
    units = EvalUnits(len(dataset), shard.batch_size, ranks.rank, ranks.world_size, shard.every, done)
    if done:
        console.info(f"going on with the table in {folder}: {len(done)} of {units.total} batches are in it")
    if len(done) < units.total:
        _compute(work, folder, dataset, units, make_model, ranks, console)
    ranks.barrier()
    geometry = work.geometry

    def merge() -> None:
        classes = work.manifest.classes
        clips = 1 if work.joint else work.cfg.clip.eval_clips
        shape = (len(work.orders), clips, geometry.crops, len(classes))
        view_store.merge(
            folder,
            work.about(geometry),
            work.manifest.paths,
            lambda label: _spell(label, classes),
            shape,
        )
        view_store.clean(folder)

    ranks.on_main(merge)
    return view_store.open_views(folder)


def _compute(
    work: Pass,
    folder: Path,
    dataset: VideoDataset,
    units: EvalUnits,
    make_model: Callable[[], tuple[nn.Module, nn.Module]],
    ranks: Ranks,
    console: Any,
) -> None:
    model, transform = make_model()
    model.eval()
    workers = build.num_workers(work.cfg.trainer.num_workers, ranks)
    loader = eval_loader(dataset, units, workers, ranks.device.type == "cuda", work.cfg.data.decode_timeout_s)
    context, crops = autocast(ranks, work.cfg.trainer.precision), work.geometry.crops
    frames = work.cfg.clip.frames
    orders = [torch.from_numpy(frame_picks(order, frames)) for order in work.orders]
    shown = orders if len(orders) > 1 else [None]
    writer = ShardWriter(folder / view_store.UNITS / f"rank{ranks.rank}.bin")
    title = f"{work.split}, {len(shown)} orders of frames" if len(shown) > 1 else work.split
    try:
        with console.phase(title, len(units)):
            for number, (unit, batch) in enumerate(zip(units.units, loader, strict=True), start=1):
                found = batch_views(model, batch, transform, ranks.device, context, crops, shown)
                spans = [_frames(dataset, index, frames) for index in found.indices.tolist()]
                nothing = np.zeros((0, dataset.protocol.num_clips, frames))
                writer.append(unit, found, np.stack(spans) if spans else nothing)
                console.advance(number, {})
    finally:
        writer.close()


def _frames(dataset: VideoDataset, index: int, frames: int) -> np.ndarray:
    """The frame indices [n t] of a video's clips; -1 where the file, read just before, cannot be looked at again."""
    record = dataset.manifest[index]
    try:
        video = dataset.index.info(record.path, dataset.manifest.frame_rate)
    except DecodeError:
        return np.full((dataset.protocol.num_clips, frames), -1)
    found = clip_indices(
        video.num_frames, video.timestamps, dataset.protocol, None, start=record.start, end=record.end
    )
    return found[:, :frames]


def refuse_short(work: Pass, dataset: VideoDataset, ranks: Ranks, console: Any) -> None:
    """Raises `UserError` naming the videos that the protocol does not allow, before anything is computed."""
    with console.phase("looking at lengths", len(work.manifest)):
        refused = refused_videos(
            work.manifest,
            dataset.protocol,
            work.reading.index,
            build.share_of_cores(ranks),
            work.cfg.data.decode_timeout_s,
            lambda done: console.advance(done, {}),
        )
    if refused:
        lines = [f"{shown(path)}: {why.partition(';')[0]}" for path, why in refused[:MOST_REFUSED]]
        more = [f"and {len(refused) - MOST_REFUSED} more"] if len(refused) > MOST_REFUSED else []
        raise UserError(
            f"short_video_policy=error, and {len(refused)} of {build.pluralize(len(work.manifest), 'video')} of "
            f"{work.split} cannot be judged with {build.frames_text(work.cfg, work.orders[0])}, "
            f"{build.pluralize(work.cfg.clip.eval_clips, 'clip')}:\n  "
            + "\n  ".join(lines + more)
            + "\nShow them anyway with short_video_policy=repeat_last or wrap"
        )


def _spell(label: np.ndarray, classes: tuple[str, ...]) -> str:
    numbers = np.flatnonzero(label) if label.ndim else [int(label)]
    return ";".join(classes[number] for number in numbers)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _videos_digest(manifest: Manifest) -> str:
    whole = hashlib.sha256("\n".join(manifest.classes).encode(errors="surrogateescape"))
    for record in manifest:
        size = os.path.getsize(record.path) if os.path.isfile(record.path) else 0
        labels = list(record.labels) if manifest.multi_label else record.label
        row = f"{record.path}\t{size}\t{record.start}\t{record.end}\t{labels}\n"
        whole.update(row.encode(errors="surrogateescape"))
    return f"{len(manifest)} videos, {whole.hexdigest()}"
