"""The tasks of phases with a frozen encoder: a head grid, which encodes each clip once for all heads, and cached
features, which encode each clip once and keep its tokens on disk.

With V cached views, epoch e of training reads the tokens of epoch e mod V of training without a cache, rounded to
float16. The views of evaluation depend on neither seed nor split, so their tokens are copied from any cache that has
them.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from vidtrain.build.parts import share_of_cores
from vidtrain.config.renames import LATER_DEFAULTS, with_first_names
from vidtrain.data.loading.dataset import Batch, Fault, VideoDataset
from vidtrain.data.loading.file_checks import joint_digest, record_digests
from vidtrain.data.loading.loaders import START_METHOD, Loader
from vidtrain.data.loading.samplers import EvalShard, MixtureStream, SampleKey, TrainStream
from vidtrain.errors import UserError, pluralize
from vidtrain.evaluation.report import Report
from vidtrain.models.classifier import Encoder, ManyHeads, VideoClassifier, encode
from vidtrain.runs.token_store import LARGEST, TokenStore
from vidtrain.training.distributed import Ranks
from vidtrain.training.run import Console, Evaluation, PhaseSettings, PhaseTask

FORMAT = "vidtrain-features/1"
# Encoder settings that were added later, with the values that older caches have; with these they are not in digests
FIRST_SETTINGS = {"input": "rgb", "spatial_size": None}
CHUNK = 16  # readings of a video per chunk; a kill loses at most the chunks that are being written
# Settings that the tokens of a split depend on, beside weights and files, with and without training
DECIDING = {
    True: ("clip", "seed", "augmentation.train", "augmentation.temporal", "augmentation.color",
           "augmentation.rand_augment", "augmentation.erasing"),
    False: ("clip", "augmentation.eval"),
}  # fmt: skip


def heads_of(model: VideoClassifier, phase: PhaseSettings) -> list[nn.Module]:
    """The heads that a phase trains: one copy of the model's head for each head of the grid, or the model's own head.
    All start from the same weights, so that they differ only in learning rate and weight decay."""
    if phase.heads is None:
        return [model.head]
    count = len(phase.heads.lr) * len(phase.heads.weight_decay)
    return [copy.deepcopy(model.head) for _ in range(count)]


def head_task(
    model: VideoClassifier,
    phase: PhaseSettings,
    transform: nn.Module,
    mix: Callable,
    train_batches: Callable,
    evaluate: Callable[[ManyHeads], Sequence[Evaluation]],
) -> PhaseTask:
    """The task of a phase with a head grid on clips, without a cache."""
    heads = ManyHeads(model, heads_of(model, phase))
    return PhaseTask(heads, transform, mix, train_batches, lambda: evaluate(heads))


@dataclass(frozen=True)
class CachedFeatureTask:
    """The parts of a run that phases with cached features need. A call makes the task of such a phase."""

    train: VideoDataset  # reads training videos with random clips and augmentation
    evaluated: Callable[[str], VideoDataset]  # opens a split with the views of evaluation
    eval_views: int  # number of views per video in evaluation
    stream: Callable[[int, int], TrainStream | MixtureStream]  # (first step, last step + 1) -> samples
    shard: Callable[[VideoDataset], EvalShard]  # the samples of an evaluation on this rank
    # (heads, batches, transform) -> a report for each head
    evaluate: Callable[[ManyHeads, Iterable[Batch], nn.Module], list[Report]]
    transform: nn.Module
    context: AbstractContextManager
    config: Mapping[str, Any]  # the run's configuration in plain values, from which digests are computed
    root: Path  # folder of the caches
    batch_size: int  # number of readings of a video that are encoded at once
    num_workers: int
    decode_timeout_s: float
    ranks: Ranks
    console: Console

    def __call__(self, model: VideoClassifier, phase: PhaseSettings) -> PhaseTask:
        """Encodes the videos that are not cached yet, and returns the task of `phase`. Raises `UserError` for clips of
        different shapes, for tokens outside of the range of float16, and for the errors of `TokenStore` and of reading
        videos."""
        train, val = self.train, self.evaluated("val")
        if any(source.frames not in (None, train.protocol.frames) for source in train.manifest.sources):
            raise UserError(
                "cache_features needs clips of one shape, and a listing of the mixture has its own frames: set its "
                "dataset.source.parts.NAME.frames=null"
            )
        # Whole frames, which have no common grid, were refused when the configuration was checked
        grid = model.encoder.grid(train.protocol.frames, *train.size)
        if model.encoder.grid(val.protocol.frames, *val.size) != grid:
            raise UserError("cache_features needs clips of one size in training and evaluation")
        if phase.cache_views is None and train.copies > 1:
            raise UserError(
                f"cache_views=null caches the views of evaluation, but clip.repeated_augmentation={train.copies} needs "
                "random ones: set one of them to 1"
            )
        if phase.cache_views is None:
            cached_train = self._open_evaluated("train", self.evaluated("train"), model, replaced=True)
        else:
            cached_train = self._open("train", train, phase.cache_views, train.protocol.num_clips, model)
        cached_val = self._open_evaluated("val", val, model)
        heads = ManyHeads(model, heads_of(model, phase), grid)
        return PhaseTask(
            heads,
            AsFloat(),
            lambda clips, labels, key: (clips, labels),
            lambda start, stop: cached_train.batches(self.stream(start, stop)),
            lambda: self.evaluate(heads, cached_val.batches(self.shard(val)), AsFloat()),
        )

    def closing(self, model: VideoClassifier, split: str) -> tuple[ManyHeads, Iterable[Batch], nn.Module]:
        """For an evaluation on the cached tokens of a split, which are encoded now if absent: the model, its batches,
        and their transform."""
        dataset = self.evaluated(split)
        cached = self._open_evaluated(split, dataset, model)
        grid = model.encoder.grid(dataset.protocol.frames, *dataset.size)
        return ManyHeads(model, [model.head], grid), cached.batches(self.shard(dataset)), AsFloat()

    def _open_evaluated(
        self, split: str, dataset: VideoDataset, model: VideoClassifier, replaced: bool = False
    ) -> "CachedSplit":
        cached = self._open(split, dataset, 1, self.eval_views, model)
        return cached.without_unread() if replaced else cached

    def _open(self, split: str, dataset: VideoDataset, views: int, clips: int, model: VideoClassifier) -> "CachedSplit":
        """Opens the cached tokens of a split, with `views` readings of each video and `clips` clips per reading. Tokens
        that are absent are computed now."""
        ranks, console = self.ranks, self.console
        encoder = TokenEncoder(model.encoder, self.transform, self.context, ranks.device, self.batch_size)
        videos = ranks.on_main(lambda: self._digests(split, dataset))
        digests = {
            "weights": weights_digest(model.encoder, self.config["model"]["encoder"]),
            "protocol": protocol_digest(self.config, dataset.training, views),
            "videos": joint_digest(videos),
        }
        name = f"{self.config['dataset']['name']}-{split}"
        folder = self.root / "-".join([name, *(digest[:12] for digest in digests.values())])
        shape = (_copies(dataset), clips, *encoder.token_shape(dataset.protocol.frames, dataset.size))
        key = {"format": FORMAT, "dataset": name, **digests}
        store = TokenStore(folder, key, views * len(dataset), shape, CHUNK)
        ranks.on_main(store.prepare)
        if not dataset.training:
            ranks.on_main(lambda: store.take_over(videos))
        pending = ranks.broadcast_object(store.pending())
        size = f"{store.bytes / 1e6:.3g} MB of tokens in {store.folder}"
        if pending:
            complete, often = store.num_chunks - len(pending), f" in {views} views" if views > 1 else ""
            started = f", of which {complete} of {store.num_chunks} chunks are there" if complete else ""
            console.info(f"{name}: encoding {pluralize(len(dataset), 'video')}{often}, {size}{started}")
            self._encode(store, pending[ranks.rank :: ranks.world_size], dataset, encoder, name)
            ranks.barrier()
        else:
            console.info(f"{name}: reading {size}")
        return CachedSplit(store, dataset, views)

    def _digests(self, split: str, dataset: VideoDataset) -> list[str]:
        def show(done: int) -> None:
            self.console.advance(done, {})

        with self.console.phase(f"looking at the files of {split}", len(dataset)):
            workers = share_of_cores(self.ranks)
            return record_digests(dataset.manifest, dataset.index, workers, self.decode_timeout_s, show)

    def _encode(
        self,
        store: TokenStore,
        chunks: Sequence[int],
        dataset: VideoDataset,
        encoder: "TokenEncoder",
        name: str,
    ) -> None:
        # A batch is always one chunk: so the tokens have the same bits with any number of ranks, and after a kill
        keys = [[SampleKey(*divmod(row, len(dataset))) for row in store.rows_of(chunk)] for chunk in chunks]
        pin = self.ranks.device.type == "cuda"
        loader = Loader(dataset, keys, self.num_workers, pin, False, 0, self.decode_timeout_s, START_METHOD)
        with self.console.phase(f"encoding {name}", len(keys)):
            for done, (chunk, samples, batch) in enumerate(zip(chunks, keys, loader, strict=True), start=1):
                if batch.refusal:
                    raise UserError(batch.refusal)
                store.add_faults([(fault.path, fault.cause) for fault in batch.faults], self.ranks.rank)
                store.write(chunk, *_chunk(store, samples, batch, encoder, dataset))
                self.console.advance(done, {})


class AsFloat(nn.Module):
    """Replaces the transform of clips: converts cached tokens to float32."""

    def forward(self, tokens: Tensor, seeds: Tensor | None = None) -> Tensor:
        return tokens.float()


@dataclass(frozen=True)
class CachedSplit:
    """The cached tokens of a split. Row (view * number of videos + video) holds one reading of a video. `rows`, if
    given, maps each row to the row that is read in its place."""

    store: TokenStore
    dataset: VideoDataset
    views: int
    rows: np.ndarray | None = None

    def without_unread(self) -> "CachedSplit":
        """Replaces each video that could not be read by the next readable one, as training needs full batches."""
        readable = np.flatnonzero(self.store.read >= 0)
        if not len(readable):
            raise UserError(f"none of the {len(self.dataset)} training videos could be read; audit says why")
        following = np.searchsorted(readable, np.arange(self.store.rows)) % len(readable)
        return replace(self, rows=readable[following])

    def batches(self, sampler: Iterable[list[SampleKey]]) -> Iterator[Batch]:
        """Yields batches like the loader's, with tokens float16 [b n m d] instead of clips."""
        return map(self._batch, sampler)

    def _batch(self, keys: Sequence[SampleKey]) -> Batch:
        rows = np.array([key.epoch % self.views * len(self.dataset) + key.record for key in keys])
        rows = rows if self.rows is None else self.rows[rows]
        read = self.store.read[rows]
        manifest, causes = self.dataset.manifest, self.store.causes
        faults = []
        for key, index in zip(keys, read.tolist(), strict=True):
            if index != key.record:
                path = manifest.paths[key.record]
                cause = causes[path] if path in causes else "it could not be read for the cache"
                faults.append(Fault(path, cause))
        rows, read = rows[read >= 0], read[read >= 0]
        tokens = torch.from_numpy(self.store.tokens[rows])
        copies = tokens.shape[1]
        labels = [self.dataset.target(manifest[index]) for index in read.tolist()]
        no_labels = torch.empty(0, dtype=torch.int64)
        return Batch(
            clips=rearrange(tokens, "b c n m d -> (b c) n m d"),
            labels=torch.stack(labels).repeat_interleave(copies, 0) if labels else no_labels,
            indices=torch.from_numpy(read).repeat_interleave(copies),
            seeds=torch.zeros(len(read) * copies, tokens.shape[2], dtype=torch.int64),
            faults=faults,
        )


@dataclass(frozen=True)
class TokenEncoder:
    """Computes tokens of clips: the frozen encoder with its device, autocast context and transform."""

    encoder: Encoder
    transform: nn.Module
    context: AbstractContextManager
    device: torch.device
    batch_size: int  # number of readings of a video that are encoded at once

    @torch.no_grad()
    def __call__(self, batch: Batch, training: bool) -> Tensor:
        """Tokens float32 [b n m d] on the CPU."""
        self.encoder.eval()
        tokens = []
        parts = zip(batch.clips.split(self.batch_size), batch.seeds.split(self.batch_size), strict=True)
        for clips, seeds in parts:
            clips = self.transform(clips.to(self.device), seeds if training else None)
            with self.context:
                tokens.append(encode(self.encoder, clips).float().cpu())
        return torch.cat(tokens)

    def token_shape(self, frames: int, size: tuple[int, int]) -> tuple[int, ...]:
        """The number of tokens of a clip, and their dimension: (m, d)."""
        clip = torch.zeros(1, 1, 3, frames, *size, dtype=torch.uint8)
        one = torch.zeros(1, dtype=torch.int64)
        return tuple(self(Batch(clip, one, one, one, []), False).shape[2:])


def weights_digest(encoder: Encoder, settings: Mapping[str, Any]) -> str:
    """BLAKE2b of all tensors of the encoder, and of the settings that it was built with."""
    chosen = {
        name: value for name, value in settings.items() if name not in FIRST_SETTINGS or FIRST_SETTINGS[name] != value
    }
    if "input" not in chosen:  # difference_gain has an effect only with another input than rgb
        chosen.pop("difference_gain", None)
    digest = hashlib.blake2b(json.dumps(chosen, sort_keys=True).encode(), digest_size=16)
    for name, tensor in encoder.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def protocol_digest(config: Mapping[str, Any], training: bool, views: int) -> str:
    """BLAKE2b of the settings that decide how clips are cut, transformed and encoded."""
    chosen: dict[str, Any] = {
        "precision": config["trainer"]["precision"],
        "views": views,
        "training": training,
    }
    for key in DECIDING[training]:
        group, _, name = key.partition(".")
        chosen[key] = config[group][name] if name else config[group]
    # Settings of evaluation do not affect tokens of training, and vice versa
    other = "eval_" if training else "train_"
    clip = with_first_names("clip", config["clip"])  # so that caches from before a renaming are still used
    chosen["clip"] = {name: value for name, value in clip.items() if not name.startswith(other)}
    for key, default in LATER_DEFAULTS.items():  # older caches do not have these settings
        if chosen["clip"].get(key) == default:
            del chosen["clip"][key]
    return hashlib.blake2b(json.dumps(chosen, sort_keys=True).encode(), digest_size=16).hexdigest()


def _copies(dataset: VideoDataset) -> int:
    return dataset.copies if dataset.training else 1


def _chunk(
    store: TokenStore,
    samples: Sequence[SampleKey],
    batch: Batch,
    encoder: TokenEncoder,
    dataset: VideoDataset,
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a chunk's rows, and for each row the record that was read; zeros and -1 for a missing video. Raises
    `UserError` for tokens outside of the range of float16."""
    tokens = np.zeros((len(samples), *store.shape), np.float16)
    read = np.full(len(samples), -1, np.int64)
    if not len(batch.indices):
        return tokens, read
    records = batch.indices[:: _copies(dataset)].numpy()
    rows = np.arange(len(samples))
    # Evaluation leaves out videos that cannot be read; training reads others instead
    if not dataset.training:
        rows = np.isin([key.record for key in samples], records).nonzero()[0]
    encoded = encoder(batch, dataset.training)
    largest = encoded.abs().flatten(1).amax(dim=1)
    for place in (~(largest <= LARGEST)).nonzero().flatten().tolist():
        path = dataset.manifest.paths[int(batch.indices[place])]
        raise UserError(
            f"tokens of {path} reach {largest[place]:.3g}, but features are cached in float16, whose largest value is "
            f"{LARGEST:.0f}: train without cache_features"
        )
    tokens[rows] = rearrange(encoded.half(), "(b c) n m d -> b c n m d", c=_copies(dataset)).numpy()
    read[rows] = records
    return tokens, read
