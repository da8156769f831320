"""Tokens of a frozen encoder, computed once, kept on disk and read by the phases that train heads on them.

A view is what training would make of a video in an epoch of its own: cached epoch e is epoch e mod V of training
without a cache, to the rounding of float16.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from vidtrain.config.renames import with_first_names
from vidtrain.data.loading.dataset import Batch, Fault, VideoDataset
from vidtrain.data.loading.loaders import START_METHOD, Loader
from vidtrain.data.loading.samplers import EvalShard, SampleKey, TrainStream
from vidtrain.errors import UserError
from vidtrain.features.store import LARGEST, TokenStore
from vidtrain.models.classifier import Encoder, encode
from vidtrain.training.ranks.distributed import Ranks

FORMAT = "vidtrain-features/1"
CHUNK = 16  # readings of a video: what a kill may cost
# What decides the tokens of a split, apart from weights and files
DECIDING = {
    True: ("clip", "seed", "augmentation.train", "augmentation.temporal", "augmentation.color",
           "augmentation.rand_augment", "augmentation.erasing"),
    False: ("clip", "augmentation.eval"),
}  # fmt: skip


class AsFloat(nn.Module):
    """Cached tokens as the heads take them, in place of the transform of clips."""

    def forward(self, tokens: Tensor, seeds: Tensor | None = None) -> Tensor:
        return tokens.float()


@dataclass(frozen=True)
class CachedSplit:
    """The tokens of a split; row view * videos + video holds the views [m n] of one reading of a video."""

    store: TokenStore
    dataset: VideoDataset
    views: int

    def batch(self, keys: Sequence[SampleKey]) -> Batch:
        """What the loader would give, with tokens float16 [b n m d] in place of clips."""
        rows = np.array([key.epoch % self.views * len(self.dataset) + key.record for key in keys])
        read = self.store.read[rows]
        manifest, causes = self.dataset.manifest, self.store.causes
        faults = []
        for key, found in zip(keys, read.tolist(), strict=True):
            if found != key.record:
                path = manifest.paths[key.record]
                cause = causes[path] if path in causes else "it could not be read for the cache"
                faults.append(Fault(path, cause))
        rows, read = rows[read >= 0], read[read >= 0]
        tokens = torch.from_numpy(self.store.tokens[rows])
        copies = tokens.shape[1]
        labels = [self.dataset.target(manifest[index]) for index in read.tolist()]
        return Batch(
            clips=rearrange(tokens, "b c n m d -> (b c) n m d"),
            labels=torch.stack(labels).repeat_interleave(copies, 0)
            if labels
            else torch.empty(0, dtype=torch.int64),
            indices=torch.from_numpy(read).repeat_interleave(copies),
            seeds=torch.zeros(len(read) * copies, tokens.shape[2], dtype=torch.int64),
            faults=faults,
        )

    def batches(self, sampler: TrainStream | EvalShard) -> Iterator[Batch]:
        for keys in sampler:
            yield self.batch(keys)


@dataclass(frozen=True)
class Encoding:
    """How clips become tokens: the frozen encoder, on its device, in a precision, after a transform."""

    encoder: Encoder
    transform: nn.Module
    context: AbstractContextManager
    device: torch.device
    most: int  # readings of a video that are encoded at once

    @torch.no_grad()
    def __call__(self, batch: Batch, training: bool) -> Tensor:
        """Tokens float32 [b n m d] on the CPU."""
        self.encoder.eval()
        found = []
        for clips, seeds in zip(batch.clips.split(self.most), batch.seeds.split(self.most), strict=True):
            clips = self.transform(clips.to(self.device), seeds if training else None)
            with self.context:
                found.append(encode(self.encoder, clips).float().cpu())
        return torch.cat(found)

    def shape(self, frames: int, size: tuple[int, int]) -> tuple[int, int]:
        """The tokens of a clip, and their dimension."""
        clip = torch.zeros(1, 1, 3, frames, *size, dtype=torch.uint8)
        one = torch.zeros(1, dtype=torch.int64)
        return tuple(self(Batch(clip, one, one, one, []), False).shape[2:])


def weights_digest(encoder: Encoder, settings: Mapping[str, Any]) -> str:
    """BLAKE2b over every tensor of the encoder, and over the settings that it was built with."""
    whole = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
    for name, tensor in encoder.state_dict().items():
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return whole.hexdigest()


def protocol_digest(config: Mapping[str, Any], training: bool, views: int) -> str:
    """BLAKE2b over what decides how clips are cut, transformed and encoded."""
    chosen: dict[str, Any] = {
        "precision": config["trainer"]["precision"],
        "views": views,
        "training": training,
    }
    for key in DECIDING[training]:
        node: Any = config
        for part in key.split("."):
            node = node[part]
        chosen[key] = node
    # how many clips the other one of training and evaluation has changes nothing
    other = "eval_" if training else "train_"
    clip = with_first_names("clip", config["clip"])  # so that tokens from before a renaming are found
    chosen["clip"] = {name: value for name, value in clip.items() if not name.startswith(other)}
    if chosen["clip"].get("sample_aspect") == "ignore":
        del chosen["clip"]["sample_aspect"]  # tokens from before there was a choice lack it
    return hashlib.blake2b(json.dumps(chosen, sort_keys=True).encode(), digest_size=16).hexdigest()


def open_split(
    dataset: VideoDataset,
    views: int,
    encoding: Encoding,
    digests: Mapping[str, str],
    root: Path,
    name: str,
    clips: int,
    num_workers: int,
    time_limit: float,
    ranks: Ranks,
    console: Any,
) -> CachedSplit:
    """The cached tokens of a split, computed now where they are not all there.

    `digests` name what they rest on: weights, protocol and videos. `clips` are the views of one reading. Raises
    `UserError` for tokens that float16 does not hold, and what `TokenStore` and reading raise.
    """
    copies = dataset.copies if dataset.training else 1
    shape = (copies, clips, *encoding.shape(dataset.protocol.frames, dataset.size))
    short = "-".join(digests[part][:12] for part in ("weights", "protocol", "videos"))
    key = {"format": FORMAT, "dataset": name, **digests}
    store = TokenStore(root / f"{name}-{short}", key, views * len(dataset), shape, CHUNK)
    ranks.on_main(store.prepare)
    pending = ranks.broadcast_object(store.pending())
    size = f"{store.bytes / 1e9:.3g} GB of tokens in {store.folder}"
    if not pending:
        console.info(f"{name}: reading {size}")
        return CachedSplit(store, dataset, views)
    started = (
        f", of which {store.num_chunks - len(pending)} of {store.num_chunks} chunks are there"
        if (len(pending) < store.num_chunks)
        else ""
    )
    console.info(f"{name}: encoding {len(dataset)} videos {views} times, {size}{started}")
    mine = pending[ranks.rank :: ranks.world_size]
    keys = [
        [SampleKey(*divmod(row, len(dataset))) for row in store.rows_of(number)] for number in mine
    ]  # of a fixed chunk: the same bits at any number of ranks, and after a kill
    loader = Loader(
        dataset, keys, num_workers, encoding.device.type == "cuda", False, 0, time_limit, START_METHOD
    )
    with console.phase(f"encoding {name}", len(keys)):
        for done, (number, asked, batch) in enumerate(zip(mine, keys, loader, strict=True), start=1):
            if batch.refusal:
                raise UserError(batch.refusal)
            store.add_faults([tuple(fault) for fault in batch.faults], ranks.rank)
            store.write(number, *_chunk(store, asked, batch, encoding, dataset, copies))
            console.advance(done, {})
    ranks.barrier()
    return CachedSplit(store, dataset, views)


def _chunk(
    store: TokenStore,
    asked: Sequence[SampleKey],
    batch: Batch,
    encoding: Encoding,
    dataset: VideoDataset,
    copies: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a chunk's rows, zeros where a video is missing, and the records that they were read from."""
    tokens = np.zeros((len(asked), *store.shape), np.float16)
    read = np.full(len(asked), -1, np.int64)
    if not len(batch.indices):
        return tokens, read
    found = batch.indices[::copies].numpy()
    # in training each sample is there, of another record where its own could not be read
    places = (
        np.arange(len(asked))
        if dataset.training
        else np.isin([key.record for key in asked], found).nonzero()[0]
    )
    encoded = encoding(batch, dataset.training)
    _check_range(encoded, batch, dataset)
    tokens[places] = rearrange(encoded.half(), "(b c) n m d -> b c n m d", c=copies).numpy()
    read[places] = found
    return tokens, read


def _check_range(tokens: Tensor, batch: Batch, dataset: VideoDataset) -> None:
    largest = tokens.abs().flatten(1).amax(dim=1)
    for place in (~(largest <= LARGEST)).nonzero().flatten().tolist():
        path = dataset.manifest.paths[int(batch.indices[place])]
        raise UserError(
            f"tokens of {path} reach {largest[place]:.3g}, and float16, in which features are cached, ends at "
            f"{LARGEST:.0f}: train without cache_features"
        )


def same_grid(train: VideoDataset, val: VideoDataset, encoder: Encoder) -> tuple[int, int, int]:
    """How the tokens of every clip lie; frames that keep their own shape have no common one, and are refused before."""
    grid = encoder.grid(train.protocol.frames, *train.size)
    if encoder.grid(val.protocol.frames, *val.size) != grid:
        raise UserError("cache_features needs clips of one size in training and evaluation")
    return grid
