"""Everything that can be wrong with a configuration before any data is seen, found at once."""

import os
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from vidtrain import build
from vidtrain.config import check_targets, suggest
from vidtrain.data.conversion import INTERPOLATIONS
from vidtrain.data.sampling import check_jitter
from vidtrain.errors import UserError
from vidtrain.evaluation.metrics import DIRECTIONS
from vidtrain.starting_point import check_starting_point
from vidtrain.training.distributed import Ranks
from vidtrain.training.loop import PRECISIONS
from vidtrain.training.schedules import steps
from vidtrain.training.stages import apply_phase

TRAINING_ONLY = ("optimizer", "schedule", "stage", "logger", "pretrained")
GROUPS = (
    "name",
    "clip",
    "dataset",
    "augmentation",
    "model",
    "optimizer",
    "schedule",
    "stage",
    "trainer",
    "logger",
)


def check_run(cfg: DictConfig, training: bool = True) -> list[tuple[str, str]]:
    """Every fault of a configuration that shows without data, as (key, what is wrong); for evaluation, only of
    what evaluating uses.

    What the signatures allow is built for trial, the model without memory, so that the rules live in the
    constructors alone.
    """
    missing = [
        group
        for group in GROUPS
        if group not in cfg or OmegaConf.is_missing(cfg, group) or cfg[group] is None
    ]
    if missing:
        return [(group, f"must be chosen: {group}=OPTION") for group in missing]
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        return [(error.full_key or "", str(error).splitlines()[0])]
    used = cfg if training else OmegaConf.masked_copy(cfg, [key for key in cfg if key not in TRAINING_ONLY])
    faults = check_targets(used) + _check_settings(cfg)
    broken = {key.split(".")[0] for key, _ in faults}
    trials: dict[str, Callable[[], object]] = {
        "clip": lambda: (
            build.clip_size(cfg),
            build.clip_protocol(cfg, training=True),
            build.clip_protocol(cfg, training=False),
        ),
        "data": lambda: build.video_filter(cfg),
        "augmentation": lambda: _try_augmentation(cfg),
        "model": lambda: _model_without_memory(cfg),
        "stage": lambda: _phases_of(cfg),
        "optimizer": lambda: build.part(cfg.optimizer, params=[{"params": [nn.Parameter(torch.zeros(1))]}]),
        "schedule": lambda: [each.in_steps(1000, 100) for each in build.part(cfg.schedule).values()],
        "trainer": lambda: build.stream(cfg, None, ranks_to_come(), 0, 1),
        "logger": lambda: build.part(cfg.logger),
        "pretrained": lambda: check_starting_point(cfg),
    }
    for key, trial in trials.items():
        if not training and key in (*TRAINING_ONLY, "trainer"):
            continue
        if broken & {key, *RESTS_ON[key]}:
            continue
        try:
            trial()
        except (UserError, OmegaConfBaseException) as error:
            faults.append((key, str(error)))
            broken.add(key)
    return faults


# A model has the clip's size, and a phase the model's blocks: what they rest on must be sound before they are tried
RESTS_ON = defaultdict(tuple, model=("clip",), augmentation=("clip",), stage=("clip", "model"))

CHOICES = {
    "trainer.monitor": DIRECTIONS,
    "trainer.precision": PRECISIONS,
    "clip.interpolation": INTERPOLATIONS,
}

# Settings with a least value; null is allowed where the schema allows it
LEAST = {
    "seed": 0,
    "clip.train_clips": 1,
    "clip.train_copies": 1,
    "clip.eval_clips": 1,
    "trainer.epochs": 1,
    "trainer.batch_size": 1,
    "trainer.accumulation": 1,
    "trainer.steps_per_epoch": 1,
    "trainer.eval_batch_size": 1,
    "trainer.max_eval_videos": 1,
    "trainer.num_workers": 0,
    "trainer.cpu_threads": 1,
    "trainer.patience": 1,
    "trainer.log_every": 1,
}


def _check_settings(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = []
    for key, known in CHOICES.items():
        chosen = OmegaConf.select(cfg, key)
        if chosen not in known:
            faults.append((key, f"{chosen} is unknown{suggest(chosen, list(known))}"))
    for key, least in LEAST.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and value < least:
            faults.append((key, f"{value} must be {least} or more"))
    if cfg.trainer.clip_grad is not None and cfg.trainer.clip_grad <= 0:
        faults.append(("trainer.clip_grad", f"{cfg.trainer.clip_grad} must be above 0; null does not clip"))
    for key in ("trainer.label_smoothing", "trainer.max_fault_share"):
        if not 0 <= OmegaConf.select(cfg, key) <= 1:
            faults.append((key, f"{OmegaConf.select(cfg, key)} must lie between 0 and 1"))
    for key in ("mean", "std"):
        values = list(cfg.clip[key])
        if len(values) != 3 or (key == "std" and min(values) <= 0):
            faults.append((f"clip.{key}", f"{values} must be three numbers, one a channel (std above 0)"))
    if not cfg.stage:
        faults.append(("stage", "holds no phase; choose stage=full"))
    durations = {f"trainer.{key}": cfg.trainer[key] for key in ("eval_every", "save_every", "keep_every")}
    durations |= {f"stage.{name}.duration": phase.duration for name, phase in cfg.stage.items()}
    for key, duration in durations.items():
        try:
            if duration is not None:
                steps(duration, 1000, 100)
        except UserError as error:
            faults.append((key, str(error)))
    return faults


def _phases_of(cfg: DictConfig) -> None:
    model = _model_without_memory(cfg)
    for name, phase in cfg.stage.items():
        try:
            apply_phase(model, phase)
        except UserError as error:
            raise UserError(f"stage.{name}.{error}") from error


def _try_augmentation(cfg: DictConfig) -> None:
    """On a frame of 320x240, which shows what sizes do not go together."""
    parts = build.part(cfg.augmentation)
    size = build.clip_size(cfg)
    parts["train"](320, 240, size, cfg.clip.frames, np.random.default_rng(0))
    parts["eval"](320, 240, size)
    if parts["temporal"] is not None:
        check_jitter(build.clip_protocol(cfg, training=True), parts["temporal"])
    if parts["mixing"] is not None:
        ranks = ranks_to_come().world_size
        samples = cfg.trainer.batch_size // (ranks * cfg.trainer.accumulation) * cfg.clip.train_copies
        if samples < 2:
            raise UserError(
                f"mixing needs two samples or more in a batch of a rank, and trainer.batch_size="
                f"{cfg.trainer.batch_size} leaves {samples}; raise it, or set augmentation.mixing=null"
            )


def _model_without_memory(cfg: DictConfig) -> nn.Module:
    with torch.device("meta"):
        return build.part(cfg.model, num_classes=2)


def ranks_to_come() -> Ranks:
    """As many ranks as torchrun says there will be."""
    return Ranks(torch.device("cpu"), world_size=int(os.environ.get("WORLD_SIZE", "1")))
