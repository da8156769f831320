"""What a phase on a frozen encoder trains and reads: heads that each clip is encoded once for, in all or for good."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vidtrain.build import data as build_data
from vidtrain.build import parts as build
from vidtrain.data.loading.dataset import VideoDataset
from vidtrain.data.loading.file_checks import manifest_digest
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.errors import UserError
from vidtrain.evaluation.report import Report
from vidtrain.features.cache import (
    AsFloat,
    CachedSplit,
    Encoding,
    open_split,
    protocol_digest,
    same_grid,
    weights_digest,
)
from vidtrain.files.atomic import write_text_atomic
from vidtrain.files.escaping import csv_text
from vidtrain.models.classifier import ManyHeads
from vidtrain.training.ranks.distributed import Ranks
from vidtrain.training.run import PhaseSettings, PhaseTask

MOST_SHOWN = 40  # heads in the closing table


def heads_of(model: nn.Module, phase: PhaseSettings) -> list[nn.Module]:
    """The heads that a phase trains: copies of the model's, as many as the grid has; or the model's own.

    All start from the same weights, so that they differ by their rate and weight decay alone.
    """
    if phase.heads is None:
        return [model.head]
    count = len(phase.heads.lr) * len(phase.heads.weight_decay)
    return [copy.deepcopy(model.head) for _ in range(count)]


def head_task(
    model: nn.Module,
    phase: PhaseSettings,
    transform: nn.Module,
    mix: Callable,
    train_batches: Callable,
    evaluate: Callable[[nn.Module], list[Report]],
) -> PhaseTask:
    """The heads of a phase on clips."""
    heads = ManyHeads(model, heads_of(model, phase))
    return PhaseTask(heads, transform, mix, train_batches, lambda: evaluate(heads))


@dataclass(frozen=True)
class CachedFeatureTask:
    """What a run gives to phases that train on cached features; calling it makes such a phase.

    `config` is `cfg` in plain values, and `judge` makes reports, one a head, of what a model gives for batches after
    a transform.
    """

    cfg: Any
    config: Mapping[str, Any]
    splits: Mapping[str, Manifest]
    reading: build_data.Reading
    ranks: Ranks
    console: Any
    transform: nn.Module
    context: AbstractContextManager
    judge: Callable[[nn.Module, Iterable, nn.Module], list[Report]]

    def __call__(self, model: nn.Module, phase: PhaseSettings) -> PhaseTask:
        """Encodes what is not cached yet. Raises `UserError` for clips of different shapes and as `open_split` does."""
        cfg, ranks, splits = self.cfg, self.ranks, self.splits
        train = build_data.train_dataset(cfg, splits["train"], self.reading)
        val = build_data.eval_dataset(cfg, "val", splits["val"], self.reading)
        if any(source.frames not in (None, cfg.clip.frames) for source in splits["train"].sources):
            raise UserError(
                "cache_features needs clips of one shape, and a listing of the mixture has its own frames: set its "
                "dataset.source.parts.NAME.frames=null"
            )
        grid = same_grid(train, val, model.encoder)
        weights = weights_digest(model.encoder, self.config["model"]["encoder"])
        cached_train = self._open("train", train, phase.cache_views, cfg.clip.train_clips, model, weights)
        cached_val = self._open("val", val, 1, cfg.clip.eval_clips * val.geometry.crops, model, weights)
        heads = ManyHeads(model, heads_of(model, phase), grid)

        def train_batches(start: int, stop: int) -> Iterable:
            return cached_train.batches(build_data.stream(cfg, splits["train"], ranks, start, stop))

        def evaluate() -> list[Report]:
            return self.judge(heads, cached_val.batches(build_data.eval_shard(cfg, val, ranks)), AsFloat())

        return PhaseTask(
            heads, AsFloat(), lambda clips, labels, key: (clips, labels), train_batches, evaluate
        )

    def _open(
        self, split: str, dataset: VideoDataset, views: int, clips: int, model: nn.Module, weights: str
    ) -> CachedSplit:
        cfg, ranks = self.cfg, self.ranks

        def videos() -> str:
            with self.console.phase(f"looking at the files of {split}", len(dataset)):
                workers, show = build.share_of_cores(ranks), lambda done: self.console.advance(done, {})
                return manifest_digest(
                    dataset.manifest, self.reading.index, workers, cfg.data.decode_timeout_s, show
                )

        return open_split(
            dataset,
            views,
            Encoding(model.encoder, self.transform, self.context, ranks.device, cfg.trainer.eval_batch_size),
            {
                "weights": weights,
                "protocol": protocol_digest(self.config, dataset.training, views),
                "videos": ranks.on_main(videos),
            },
            Path(cfg.data.features_root),
            f"{cfg.dataset.name}-{split}",
            clips,
            build.num_workers(cfg.trainer.num_workers, ranks),
            cfg.data.decode_timeout_s,
            ranks,
            self.console,
        )


def write_head_table(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """heads.csv: a row for each head, the best first."""
    write_text_atomic(path, csv_text([list(table[0]), *(list(row.values()) for row in table)]))


def show_head_table(console: Any, table: Sequence[Mapping[str, Any]], monitor: str) -> None:
    """The closing table of a grid; the first row is the head that best.pt holds, unless a later phase did better."""
    shown = [name for name in (monitor, "top1", "map", "loss") if name in table[0]]
    columns = ("", "phase", "lr", "weight decay", "step", *(f"val {name}" for name in dict.fromkeys(shown)))
    rows = []
    for place, row in enumerate(table[:MOST_SHOWN]):
        values = ("diverged" if row[name] is None else f"{row[name]:.4f}" for name in dict.fromkeys(shown))
        given = (row["phase"], f"{row['lr']:g}", f"{row['weight_decay']:g}", str(row["step"]))
        rows.append(("best" if place == 0 else "", *given, *values))
    console.table(f"{len(table)} heads, by {monitor} on val", columns, rows)
    if len(table) > MOST_SHOWN:
        console.info(f"{len(table) - MOST_SHOWN} more heads are in heads.csv")
