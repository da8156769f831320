"""A training run on one batch in memory, for benchmarks of a step without its data."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from vidtrain.build import parts as build
from vidtrain.data.loading.dataset import Batch
from vidtrain.evaluation.report import Report, report
from vidtrain.evaluation.views import ViewTable
from vidtrain.tracking.console import NullConsole
from vidtrain.tracking.run_log import RunLog
from vidtrain.training.distributed import Ranks
from vidtrain.training.run import Run

CLASSES = 10


def batch_of(cfg: DictConfig) -> Batch:
    """Random clips of the configuration's shape, of every class in turn."""
    size = (cfg.trainer.batch_size, cfg.clip.train_clips, 3, cfg.clip.frames, *build.clip_size(cfg))
    clips = torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(size[0])
    return Batch(clips, numbers % CLASSES, numbers, torch.zeros(size[:2], dtype=torch.int64), [])


def run_of(
    cfg: DictConfig,
    model: nn.Module,
    ranks: Ranks,
    log: RunLog,
    folder: Path,
    train_batches: Callable[[int, int], Iterable[Batch]],
    steps: int,
) -> Run:
    """A run of `steps` an epoch on the batches of `train_batches`, without evaluation; checkpoints lie in `folder`."""

    def evaluate() -> Report:
        none = torch.zeros(1, dtype=torch.int64)
        return report(ViewTable(none, none, torch.zeros(1, 1, CLASSES), [], 1), model.fusion, "")

    return Run(
        model=model,
        transform=build.device_transform(cfg, ranks.device),
        mix=lambda clips, labels, key: (clips, labels),
        train_batches=train_batches,
        train_paths=[""] * cfg.trainer.batch_size,
        steps_per_epoch=steps,
        evaluate=evaluate,
        loss=build.instantiate_component(cfg.loss),
        class_weights=None,
        multi_label=False,
        optimizer=build.instantiate_component(cfg.optimizer),
        lr=build.instantiate_component(cfg.schedule.lr),
        weight_decay=build.instantiate_component(cfg.schedule.weight_decay),
        phases=OmegaConf.to_object(cfg.stage),
        settings=OmegaConf.to_object(cfg.trainer),
        ranks=ranks,
        seed=0,
        log=log,
        console=NullConsole(),
        checkpoints=folder / "checkpoints",
        metadata={},
    )
