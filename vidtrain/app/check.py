"""Checks a configuration before any data is read, and finds all faults at once."""

import copy
import re
from collections import defaultdict
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from vidtrain.build import data as build_data
from vidtrain.build import parts as build
from vidtrain.config.references import to_phases, to_settings
from vidtrain.config.schemas import ExportSettings, RunConfig
from vidtrain.config.targets import Faults, check_settings, check_targets
from vidtrain.data.augment.geometry import WholeFrame
from vidtrain.data.sampling.clips import check_jitter
from vidtrain.errors import UserError
from vidtrain.evaluation.metrics import NO_LABELS
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.dense_joint_embedding import DenseJointEmbedding
from vidtrain.models.exporting import check_onnx
from vidtrain.models.lora import adapter_parameters
from vidtrain.runs.export import check_geometry
from vidtrain.training.distributed import Ranks
from vidtrain.training.process import launch_info
from vidtrain.training.run import LoraSettings, TrainerSettings
from vidtrain.training.schedules import in_steps, ramp_steps, steps
from vidtrain.training.stages import apply_phase, check_average, lora_of
from vidtrain.training.validation import selecting_weights

TRAINING_ONLY = ("optimizer", "schedule", "stage", "objective", "probe", "logger", "init_from", "pretrained", "export")
GROUPS = ("name", "clip", "dataset", "augmentation", "model", "loss", "optimizer", "schedule", "stage", "trainer",
          "logger")  # fmt: skip
# A group is only tested if the groups that it requires have no faults: a model needs a valid clip size, for example
REQUIRES = defaultdict(
    tuple,
    model=("clip", "loss"),
    augmentation=("clip",),
    stage=("clip", "model", "augmentation"),
    export=("augmentation",),
    objective=("clip", "model", "augmentation", "stage"),
)
# Plain values whose types the schema checks: they are tested even if they have other faults
TYPED = ("clip", "data")
LINE_BY_LINE = (*TYPED, "dataset", "objective", "export")  # each line of their error messages is a fault
# The parts of these groups, and whether each may be null. A part is a mapping with a _target_
PARTS = {
    "dataset": {"source": False},
    "augmentation": {"train": False, "eval": False, "temporal": True, "color": True, "rand_augment": True,
                     "erasing": True, "mixing": True},
    "model": {"encoder": False, "head": False},
    "schedule": {"lr": False, "weight_decay": False},
}  # fmt: skip


def check_run(cfg: DictConfig, training: bool = True) -> Faults:
    """All faults of a configuration that can be found without data; without `training`, only in groups that evaluation
    uses.

    Components whose arguments fit the signatures are built as a test, the model on the meta device. So only their
    constructors need to hold the rules for their values.
    """
    missing = [group for group in GROUPS if (training or group not in TRAINING_ONLY) and not _is_chosen(cfg, group)]
    if missing:
        return [(group, f"must be chosen: {group}=OPTION") for group in missing]
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        return [(error.full_key or "", str(error).splitlines()[0])]
    used = cfg
    if not training:
        used = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in TRAINING_ONLY])
    faults = _check_parts(cfg, training)
    if faults:
        return faults
    faults = check_targets(used) + _check_settings(cfg, training)
    broken = {key.split(".")[0] for key, _ in faults}
    model = cache(partial(build.model_without_memory, cfg))  # built once for all tests, as it takes a while
    tests: dict[str, Callable[[], object]] = {
        "clip": lambda: try_clip(cfg),
        "data": lambda: build_data.video_filter(cfg),
        "dataset": lambda: build.instantiate_component(cfg.dataset.source),
        "augmentation": lambda: _try_augmentation(cfg),
        "model": lambda: _try_model(cfg, model()),
        "stage": lambda: _phases_of(cfg, model()),
        "objective": lambda: _try_objective(cfg, model()),
        "loss": lambda: build.instantiate_component(cfg.loss),
        "optimizer": lambda: _try_optimizer(cfg),
        "schedule": lambda: _try_schedule(cfg),
        "trainer": lambda: (
            build_data.stream(cfg, None, unjoined_ranks(), 0, 1),
            selecting_weights(cfg.trainer.monitor_weights, cfg.trainer.ema),
        ),
        "logger": lambda: build.instantiate_component(cfg.logger),
        "pretrained" if cfg.init_from is None else "init_from": lambda: build.check_starting_point(
            cfg, None if broken & {"clip", "model"} else model()
        ),
        "export": lambda: _try_export(cfg),
    }
    for key, test in tests.items():
        if not training and key in (*TRAINING_ONLY, "trainer"):
            continue
        if key not in TYPED and broken & {key, *REQUIRES[key]}:
            continue
        try:
            test()
        except (UserError, OmegaConfBaseException) as error:
            faults += _lines(cfg, key, error) if key in LINE_BY_LINE else [(key, str(error))]
            broken.add(key)
    return faults


def _try_export(cfg: DictConfig) -> None:
    settings = to_settings(cfg.export, ExportSettings)
    if "onnx" in (settings.formats or ()):
        check_onnx(settings.opset)
    check_geometry(build.instantiate_component(cfg.augmentation.eval), settings)


def _try_objective(cfg: DictConfig, model: VideoClassifier) -> None:
    """Raises `UserError`, with a line for each fault, if the model or other settings do not fit the objective."""
    if cfg.objective is None:
        for key, value in (("dataset", "null"), ("pictures", "false")):
            if cfg.probe[key]:
                raise UserError(f"is null, but probe.{key} is only for pretraining: set it to {value}")
        return
    wrong = [
        f"{key} {why}"
        for key, why, is_wrong in (
            ("augmentation.mixing", "mixes clips by their labels, which pretraining ignores; set it to null",
             cfg.augmentation.mixing is not None),
            ("trainer.overfit_one_batch", "measures accuracy, which pretraining does not have; set it to false",
             cfg.trainer.overfit_one_batch),
            ("export", "writes classifiers, but pretraining trains none", bool(cfg.export.formats or cfg.export.card)),
            *((f"stage.{name}", "has a grid of heads, cached features or adapters, which are for classifiers",
               phase.heads is not None or phase.cache_features or phase.lora is not None)
              for name, phase in to_phases(cfg.stage).items()),
        )
        if is_wrong
    ]  # fmt: skip
    names = [name for name in NO_LABELS if cfg.probe.dataset is not None or not name.endswith("top1")]
    if cfg.trainer.monitor not in names:
        wrong.append(f"trainer.monitor={cfg.trainer.monitor} is not one of {', '.join(names)}")
    if wrong:
        raise UserError("\n".join(wrong))
    with torch.device("meta"):
        network = build.masked_model(cfg, model.encoder, with_weights=False)
    if isinstance(network, DenseJointEmbedding):
        ramp_steps(network.context_warmup, 1000, 100, "objective.context_warmup")
    network.masks.check(network.encoder.tubelets(cfg.clip.frames, *build.clip_size(cfg)))


def _try_schedule(cfg: DictConfig) -> None:
    for schedule in build.instantiate_component(cfg.schedule).values():
        in_steps(schedule, 1000, 100)


def _is_chosen(cfg: DictConfig, group: str) -> bool:
    if group not in cfg or OmegaConf.is_missing(cfg, group) or cfg[group] is None:
        return False
    # The schema itself sets dataset.flip, so a dataset with only this key is not chosen
    return group != "dataset" or not OmegaConf.is_dict(cfg.dataset) or set(cfg.dataset) != {"flip"}


def _check_parts(cfg: DictConfig, training: bool) -> Faults:
    faults = []
    for group, parts in PARTS.items():
        if not training and group in TRAINING_ONLY:
            continue
        for name, may_be_null in parts.items():
            node = OmegaConf.select(cfg, f"{group}.{name}")
            if (node is None and may_be_null) or (isinstance(node, DictConfig) and "_target_" in node):
                continue
            actual = "a mapping without it" if isinstance(node, DictConfig) else repr(node)
            actual, null = "null" if node is None else actual, ", or null" if may_be_null else ""
            faults.append((f"{group}.{name}", f"must be a part with a _target_{null}; it is {actual}"))
    extra = [name for name in cfg.schedule if name not in PARTS["schedule"]] if training else []
    return faults + [(f"schedule.{name}", "schedule has no such part; it has lr and weight_decay") for name in extra]


def _try_optimizer(cfg: DictConfig) -> None:
    """Builds the optimizer on two parameter groups, like those of `vidtrain.training.stages.parameter_groups`."""
    groups = [
        {"name": name, "params": [nn.Parameter(torch.zeros(1))], "lr_scale": 1.0, "wd_scale": decay}
        for name, decay in (("head", 1.0), ("encoder.no_decay", 0.0))
    ]
    built = build.instantiate_component(cfg.optimizer, params=groups)
    absent = sorted({"lr", "weight_decay"} - built.defaults.keys())
    if absent:
        raise UserError(f"{type(built).__name__} has no {' and no '.join(absent)}, which schedules set; choose another")


def _check_settings(cfg: DictConfig, training: bool) -> Faults:
    faults = check_settings(cfg, RunConfig)
    for key in ("mean", "std"):
        values = list(cfg.clip[key])
        if len(values) != 3 or (key == "std" and min(values) <= 0):
            faults.append((f"clip.{key}", f"{values} must be three numbers, one for each channel (std above 0)"))
    phases = cfg.stage if training else {}
    if training and not phases:
        faults.append(("stage", "holds no phase; choose stage=full"))
    durations = {f"trainer.{key}": cfg.trainer[key] for key in ("eval_every", "save_every", "keep_every")}
    durations |= {f"stage.{name}.duration": phase.duration for name, phase in phases.items()}
    for name, phase in phases.items():
        if phase.lora is not None:
            faults += check_settings(phase.lora, LoraSettings, f"stage.{name}.lora.")
    for key, duration in durations.items():
        try:
            if duration is not None:
                steps(duration, 1000, 100)
        except UserError as error:
            faults.append((key, str(error)))
    return faults


def _lines(cfg: DictConfig, group: str, error: Exception) -> Faults:
    """One fault for each line of an error message; in a line that begins with `name=value`, `name` is its key."""
    faults = []
    for line in str(error).splitlines():
        name, equals, why = line.removeprefix(f"{group}.").partition("=")
        is_key = equals and re.fullmatch(r"[a-z_.]+", name)
        setting_exists = is_key and OmegaConf.select(cfg, f"{group}.{name}", default=None) is not None
        faults.append((f"{group}.{name}", why) if setting_exists else (group, line))
    return faults


def try_clip(cfg: DictConfig) -> None:
    """Raises `UserError` with a line for each fault of the settings in `clip`."""
    lines: list[str] = []
    for test in (
        lambda: build.clip_size(cfg),
        lambda: build.clip_protocol(cfg, training=True),
        lambda: build.clip_protocol(cfg, training=False),
        lambda: build.check_resize(cfg),
    ):
        try:
            test()
        except UserError as error:
            lines += str(error).splitlines()
    # ClipProtocol's num_clips is train_clips or eval_clips, whose ranges are checked under their own names
    lines = [line for line in dict.fromkeys(lines) if not line.startswith("num_clips=")]
    if lines:
        raise UserError("\n".join(lines))


def _phases_of(cfg: DictConfig, model: VideoClassifier) -> None:
    phases = to_phases(cfg.stage)
    lora = lora_of(phases)
    if lora is not None:
        model = copy.deepcopy(model)  # other tests compare weights with the model without adapters
    for name, phase in phases.items():
        try:
            if lora is not None and phase.lora is not None and not adapter_parameters(model):
                build.adapters_of(lora).add_to(model)
            apply_phase(model, phase)
            check_average(phase, to_settings(cfg.trainer, TrainerSettings))
            if phase.cache_features:
                _check_cache(cfg)
        except UserError as error:
            raise UserError(f"stage.{name}.{error}") from error


def _check_cache(cfg: DictConfig) -> None:
    if cfg.augmentation.mixing is not None:
        raise UserError(
            "cache_features keeps the tokens of single videos, but augmentation.mixing mixes clips before they are "
            "encoded; set augmentation.mixing=null"
        )
    if isinstance(build.instantiate_component(cfg.augmentation.eval), WholeFrame):
        raise UserError("cache_features needs clips of one shape, which whole frames are not; choose crops")


def _try_augmentation(cfg: DictConfig) -> None:
    """Builds the augmentations and applies them to a frame of 320x240, to find sizes that do not match."""
    parts = build.instantiate_component(cfg.augmentation)
    size = build.clip_size(cfg)
    parts["train"](320, 240, size, cfg.clip.frames, np.random.default_rng(0))
    parts["eval"](320, 240, size)
    if parts["temporal"] is not None:
        check_jitter(build.clip_protocol(cfg, training=True), parts["temporal"])
    if parts["mixing"] is not None:
        ranks = unjoined_ranks().world_size
        videos = cfg.trainer.batch_size // (ranks * cfg.trainer.accumulation)
        if videos < 2:
            raise UserError(
                f"mixing needs two videos or more in each rank's batch, but trainer.batch_size="
                f"{cfg.trainer.batch_size} leaves {videos}; raise it, or set augmentation.mixing=null"
            )


def _try_model(cfg: DictConfig, model: VideoClassifier) -> None:
    """Raises `UserError` if the encoder does not support the clip's shape, or the head the loss."""
    model.encoder.grid(cfg.clip.frames, *build.clip_size(cfg))
    windows = getattr(model.head, "window_fusion", None)
    if windows == "mean_probs" and build.instantiate_component(cfg.loss).independent:
        raise UserError(
            "model.head.window_fusion=mean_probs is for one label per video, but the loss scores classes "
            "independently; set it to mean_logits"
        )


def unjoined_ranks() -> Ranks:
    """A `Ranks` with the number of ranks from the environment of torchrun or SLURM, without a process group."""
    return Ranks(torch.device("cpu"), world_size=launch_info().world_size)
