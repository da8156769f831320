"""Computes embeddings of videos with a checkpoint or published weights: the mean of a frozen encoder's tokens."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from vidtrain.app.check import check_run
from vidtrain.app.launch import report as report_faults
from vidtrain.build import data as build_data
from vidtrain.build import parts as build
from vidtrain.build.checkpoint_loader import (
    LoadedCheckpoint,
    changed_config,
    find_checkpoint,
    open_trained,
    published_config,
)
from vidtrain.config.references import to_dict, to_phases
from vidtrain.data.augment.geometry import WholeFrame
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.sources.unlabeled import UNLABELED as ONE_CLASS
from vidtrain.embeddings.store import PICTURES, PROGRESS, UNLABELED, Embeddings, Progress, joined
from vidtrain.errors import UserError, pluralize
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.weights.files import as_sources, locate
from vidtrain.models.weights.loading import load_pretrained
from vidtrain.runs.examples import frames_of, moving_picture
from vidtrain.runs.frozen_encoder import TokenEncoder, protocol_digest, weights_digest
from vidtrain.runs.token_store import LARGEST
from vidtrain.training.distributed import Ranks, autocast
from vidtrain.training.run import Console

# Option of the program -> key that it sets in the configuration of a checkpoint, or of published weights
CHANGES = {
    "dataset": "dataset",
    "data_root": "data_root",
    "prepared": "data.prepared",
    "eval_clips": "clip.eval_clips",
    "batch_size": "trainer.eval_batch_size",
    "num_workers": "trainer.num_workers",
    "precision": "trainer.precision",
    "decode_timeout_s": "data.decode_timeout_s",
    "max_pixels": "data.max_pixels",
}
# Keys of that configuration that embedding uses
USED = ("seed", "data_root", "clip", "data", "dataset", "augmentation.eval", "model", "trainer.precision")
VIDEOS = "videos"  # the split of videos that are given by path
TOKENS = "tokens.npy"  # float16 [v n m d], n clips of m tokens, beside the embeddings


@dataclass(frozen=True)
class OpenedEncoder:
    """A frozen encoder on the ranks' device, the configuration of its clips, and `about`, the description for the
    file."""

    config: DictConfig
    encode: TokenEncoder
    about: Mapping[str, Any]


def open_encoder(cfg: DictConfig, ranks: Ranks, console: Console) -> OpenedEncoder:
    """The encoder of `checkpoint`, or of `model` with the weights `pretrained`.

    Raises `UserError` for an exported graph, which has no tokens, and for weights or settings that do not fit.
    """
    opened = None if cfg.checkpoint is None else _open_checkpoint(cfg)
    sources = as_sources(cfg.pretrained) if opened is None else [str(opened.source)]
    source = ", ".join(sources)
    trained = to_dict(published_config(cfg, source)) if opened is None else opened.config
    config = changed_config(_with_videos(trained, cfg), cfg, CHANGES)
    faults = check_run(config, training=False)
    report_faults([("the encoder's configuration, as changed", key, why) for key, why in faults])
    if opened is not None and not cfg.trust_targets:
        build_data.keep_index_here(config, cfg.data_root is not None, console)
        if cfg.dataset is None and cfg.videos is None:
            build_data.check_made_here(config, cfg.data_root is not None)
    model: Any
    if opened is not None and not opened.is_pretraining:
        model = opened.model(config, ranks, merged=True)
    else:
        model = build.model(config, 2, ranks)  # its head is not used
        for name in sources:
            path = locate(name, cfg.pretrained_revision) if opened is None else opened.source
            report = load_pretrained(model, name, path, cfg.init_match, cfg.init_part)
            console.info("weights of " + "\n  ".join(report.lines()))
    assert isinstance(model, VideoClassifier)
    config.trainer.max_eval_videos = None
    build.set_cpu_threads(None, ranks)
    transform = build.device_transform(config, ranks.device)
    context = autocast(ranks, config.trainer.precision)
    encode = TokenEncoder(model.encoder, transform, context, ranks.device, config.trainer.eval_batch_size)
    plain = to_dict(config, resolve=True)
    about = {
        "weights": weights_digest(model.encoder, plain["model"]["encoder"]),
        "protocol": protocol_digest(plain, False, 1),
        "source": source,
        "clips": build.protocol_text(config, "mean of tokens"),
        "learned_from": None if opened is None else _learned_from(config),
    }
    return OpenedEncoder(config, encode, about)


def _open_checkpoint(cfg: DictConfig) -> LoadedCheckpoint:
    path = find_checkpoint(cfg.checkpoint)
    opened = open_trained(path, cfg.trust_targets, pretraining=True)
    if opened.weights is None:
        raise UserError(f"{path} is an exported graph, which gives no tokens; name the run or checkpoint")
    if cfg.init_part is not None and not opened.is_pretraining:
        raise UserError(f"init_part={cfg.init_part}: {path} is of a classifier, with one encoder; leave it out")
    opened.check_computed(USED, CHANGES, cfg)
    return opened


def _with_videos(config: Mapping[str, Any], cfg: DictConfig) -> Mapping[str, Any]:
    """The configuration with a dataset of the `videos` of `cfg`, if there are any."""
    if cfg.videos is None:
        return config
    places = [cfg.videos] if isinstance(cfg.videos, str) else list(cfg.videos)
    target = "vidtrain.data.sources.unlabeled.Unlabeled"
    source = {"_target_": target, "path": places, "val_share": None, "frame_rate": cfg.frame_rate}
    return {**config, "dataset": {"name": VIDEOS, "flip": 0.0, "source": source}}


def _learned_from(config: DictConfig) -> str | None:
    """The dataset whose labels the encoder was trained on; None if it stayed frozen or was trained without labels."""
    if OmegaConf.is_missing(config, "stage") or config.get("objective") is not None:
        return None
    phases = to_phases(config.stage).values()
    frozen = all(phase.encoder_blocks == 0 and phase.lora is None for phase in phases)
    return None if frozen else str(config.name)


def embed(opened: OpenedEncoder, cfg: DictConfig, out: Path, ranks: Ranks, console: Console) -> Embeddings:
    """Embeds every readable video of the configured splits, and warns of the others. Goes on after a killed call from
    `out` / `PROGRESS`, which the caller removes.

    Writes moving pictures with `cfg.pictures`, and all tokens with `cfg.tokens`, below `out`. Raises `UserError` if no
    video can be read, for an absent split, and for tokens that float16 cannot hold.
    """
    config, frame_geometry = opened.config, build.instantiate_component(opened.config.augmentation.eval)
    if cfg.tokens and isinstance(frame_geometry, WholeFrame):
        raise UserError("tokens=true needs clips of one size, and whole frames keep their own; leave it out")
    splits = _splits(config, cfg, console)
    reading = build_data.reading(config, ranks, None)
    if cfg.pictures:
        (out / PICTURES).mkdir(exist_ok=True)
    listed = [[split, [(record.path, record.start, record.end) for record in splits[split]]] for split in splits]
    progress = Progress(out / PROGRESS, [opened.about, cfg.pictures, cfg.tokens, listed])
    if progress.rows:
        console.info(f"an interrupted call already embedded {pluralize(len(progress.rows), 'video')}")
    kept = TokenFile(out / TOKENS, sum(map(len, splits.values()))) if cfg.tokens else None
    for number, (split, manifest) in enumerate(splits.items()):
        pending = progress.pending(number, len(manifest))
        if not len(pending):
            continue
        data = build_data.eval_data(config, split, manifest.subset(pending.tolist()), reading, ranks)
        for index, vector, tokens, views in _videos(opened, data, console):
            row = len(progress.rows)
            if kept is not None:
                kept.write(row, tokens, data.manifest.paths[index])
            if cfg.pictures:
                picture = moving_picture(frames_of(views).numpy())
                (out / PICTURES / f"{row:06d}.webp").write_bytes(picture)
            progress.add(number, int(pending[index]), vector)
    reading.index.close()
    progress.close()
    if not progress.rows:
        raise UserError("none of the videos could be read; python -m vidtrain.audit shows the causes")
    if kept is not None:
        kept.close(len(progress.rows))
    return _joined(progress, splits, opened.about)


def _joined(progress: Progress, splits: Mapping[str, Manifest], about: Mapping[str, Any]) -> Embeddings:
    """The embeddings of all videos, in the order of pictures and tokens."""
    numbers, videos = (np.array(column) for column in list(zip(*progress.rows, strict=True))[:2])
    vectors = np.stack([vector for _, _, vector in progress.rows])
    parts = []
    for number, (split, manifest) in enumerate(splits.items()):
        in_split = numbers == number
        if in_split.any():
            parts.append(_described(manifest.subset(videos[in_split].tolist()), split, vectors[in_split], about))
    return joined(parts).take(np.argsort(np.argsort(numbers, kind="stable")))


def _splits(config: DictConfig, cfg: DictConfig, console: Console) -> dict[str, Manifest]:
    splits = build_data.listed_splits(config, console)
    if cfg.videos is not None:
        return {VIDEOS: splits["train"]}
    wanted = list(splits) if cfg.splits is None else list(cfg.splits)
    absent = [split for split in wanted if split not in splits]
    if absent:
        raise UserError(f"splits={absent} are not in the dataset; it has {', '.join(splits)}")
    return {split: splits[split] for split in wanted}


def _videos(
    opened: OpenedEncoder, data: build_data.EvalData, console: Console
) -> Iterator[tuple[int, np.ndarray, torch.Tensor, torch.Tensor]]:
    """Yields, for every readable video of a split, its number, vector float32 [d], tokens [n m d] and views
    uint8 [n 3 t h w]."""
    for batch in data.batches(console):
        if batch.refusal:
            raise UserError(batch.refusal)
        for fault in batch.faults:
            console.warn(f"missing from {data.split}: {fault.path} ({fault.cause})")
        if not len(batch.indices):
            continue
        for index, tokens, views in zip(batch.indices.tolist(), opened.encode(batch, False), batch.clips, strict=True):
            vector = tokens.mean(dim=(0, 1)).numpy()
            if not np.isfinite(vector).all():
                path = data.manifest.paths[index]
                raise UserError(f"the tokens of {path} are not finite; set precision=fp32")
            yield index, vector, tokens, views


class TokenFile:
    """Writes the file `TOKENS`, which has at most `videos` rows."""

    def __init__(self, path: Path, videos: int):
        self._path, self._videos = path, videos
        self._rows: np.memmap | None = None

    def write(self, row: int, tokens: torch.Tensor, path: str) -> None:
        """Writes the tokens [n m d] of the video `path`. Raises `UserError` if they exceed the range of float16."""
        if float(tokens.abs().max()) > LARGEST:
            raise UserError(f"tokens of {path} exceed {LARGEST:.0f}, the largest float16 number; set tokens=false")
        if self._rows is None:
            mode = "r+" if row else "w+"  # a killed call has left the earlier rows
            self._rows = np.lib.format.open_memmap(self._path, mode, np.float16, (self._videos, *tokens.shape))
        self._rows[row] = tokens.half().numpy()

    def close(self, rows: int) -> None:
        """Cuts the file to the first `rows`, as some videos may be unreadable."""
        if self._rows is None:  # a killed call has written all rows
            return
        self._rows.flush()
        if rows < self._videos:
            np.save(self._path, np.array(self._rows[:rows]))


def _described(manifest: Manifest, split: str, vectors: np.ndarray, about: Mapping[str, Any]) -> Embeddings:
    """The embeddings of a manifest's videos, from their vectors [v d]."""
    records, classes = list(manifest), manifest.classes
    if classes == (ONE_CLASS,):
        classes, labels = (), np.full(len(records), UNLABELED, np.int64)
    elif manifest.multi_label:
        labels = np.zeros((len(records), len(classes)), np.uint8)
        for row, record in enumerate(records):
            labels[row, list(record.labels)] = 1
    else:
        labels = manifest.labels
    cuts = [[getattr(record, end) for record in records] for end in ("start", "end")]
    starts, ends = (np.array([np.nan if time is None else time for time in times], np.float64) for times in cuts)
    return Embeddings(
        vectors=vectors.astype(np.float32),
        paths=np.array([record.path for record in records], dtype=np.str_),
        splits=np.full(len(records), split, dtype=f"<U{len(split)}"),
        groups=np.array([record.group for record in records], dtype=np.str_),
        classes=np.array(classes, dtype=np.str_),
        labels=labels,
        starts=starts,
        ends=ends,
        encoder=about,
    )
