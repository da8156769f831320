"""The settings of prediction: their faults, the videos that they name, and the checkpoint's configuration with them.

This module does not import torch, so that a mistake is reported at once.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from vidtrain.build.checkpoint_loader import changed_config, check_checkpoint
from vidtrain.config.overrides import quoted
from vidtrain.config.schemas import PredictConfig, WindowSettings
from vidtrain.config.targets import check_settings, check_targets, suggest
from vidtrain.errors import UserError
from vidtrain.files.folders import check_writable

if TYPE_CHECKING:  # importing torch takes seconds, which --help should not
    from vidtrain.models.classifier import VideoClassifier
    from vidtrain.models.exporting import OnnxClassifier

FILES = (".csv", ".json")
# Option of the program -> key in the checkpoint's configuration that it sets
CHANGES = {
    "eval_clips": "clip.eval_clips",
    "crops": "augmentation.eval.crops",
    "fusion": "model.fusion",
    "batch_size": "trainer.eval_batch_size",
    "precision": "trainer.precision",
    "decode_timeout_s": "data.decode_timeout_s",
    "max_pixels": "data.max_pixels",
    "size_changes": "data.size_changes",
}
# Keys of that configuration that prediction uses; an exported file of published weights has no others
USED = ("clip", "model", "loss", "augmentation.eval")


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = check_targets(cfg) + check_settings(cfg, PredictConfig)
    faults += _check_places(cfg) + _check_windows(cfg.windows)
    if cfg.heat_class is not None and not cfg.render:
        faults.append(("heat_class", "has no effect without render=true"))
    if cfg.heat_class is not None and cfg.heat in ("attention", "none"):
        faults.append(("heat_class", f"has no effect with heat={cfg.heat}; set heat=grad_cam"))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        why = "predict runs in one process: without torchrun, start it once for each share of videos"
        faults.append(("device", why))
    return faults


def _check_places(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = []
    if OmegaConf.is_missing(cfg, "checkpoint"):
        faults.append(("checkpoint", "must be given: a run's folder, a checkpoint, or an exported file"))
    else:
        faults += check_checkpoint(cfg.checkpoint)
    if cfg.videos is None:
        faults.append(("videos", "must be given: files, folders, patterns in quotes, or listings"))
    elif not (isinstance(cfg.videos, str | ListConfig) and all(isinstance(item, str) for item in _places(cfg))):
        why = f"{cfg.videos} must be a file, folder, pattern or listing, or a list of them"
        faults.append(("videos", why))
    elif not _places(cfg):
        faults.append(("videos", "the list is empty"))
    else:
        runs = [place for place in _places(cfg) if (Path(place) / "run.json").is_file()]
        if runs and OmegaConf.is_missing(cfg, "checkpoint"):
            return [("checkpoint", f"must be given: {quoted('checkpoint', runs[0])}, as this is the folder of a run")]
        faults += [("videos", why) for why in _find(tuple(_places(cfg)), cfg.frame_rate)[1]]
    if cfg.out is not None:
        out = Path(cfg.out)
        several = [name for name in ("logits", "render") if cfg[name]]
        several += ["windows.stride"] if cfg.windows.stride is not None else []
        if out.suffix in FILES and several:
            why = f"{out} is one file, and {' and '.join(several)} give several: name a folder"
            faults.append(("out", why))
        elif out.is_file() and out.suffix not in FILES:
            faults.append(("out", f"{out} is a file: name a folder, or a file that ends with .csv or .json"))
    return faults


def _check_windows(windows: DictConfig) -> list[tuple[str, str]]:
    if windows.stride is not None:
        return []
    defaults = vars(WindowSettings())
    idle = [key for key, value in defaults.items() if windows[key] != value]
    return [(f"windows.{key}", "has no effect without windows.stride") for key in idle]


def find_videos(cfg: DictConfig) -> list[str]:
    """The files that `videos` names, in order."""
    return _find(tuple(_places(cfg)), cfg.frame_rate)[0]


def _places(cfg: DictConfig) -> list[Any]:
    return [cfg.videos] if isinstance(cfg.videos, str) else list(cfg.videos)


@lru_cache(maxsize=1)  # checked twice, then used
def _find(places: tuple[str, ...], frame_rate: float | None) -> tuple[list[str], list[str]]:
    from vidtrain.data.sources.unlabeled import find_videos as find

    return find(places, frame_rate)


def output_place(cfg: DictConfig) -> Path | None:
    """The folder or file for the results; None if they only go to standard output. Raises `UserError` if it is
    read-only."""
    if cfg.out:
        out = Path(cfg.out)
    elif cfg.logits or cfg.render or cfg.windows.stride is not None:  # these are several files
        out = Path(f"outputs/predict/{datetime.now():%Y-%m-%d_%H-%M-%S}")
    else:
        return None
    check_writable(out.parent if out.suffix in FILES else out)
    return out


# --- the checkpoint -------------------------------------------------------------------------------------------


def as_trained(config: Mapping[str, Any], cfg: DictConfig) -> DictConfig:
    """The checkpoint's configuration, changed by the options of the command line."""
    trained = changed_config(config, cfg, CHANGES)
    trained.trainer.num_workers = cfg.num_workers  # for this machine, not for the one that trained
    if cfg.windows.stride is not None and cfg.eval_clips is None and trained.model.fusion != "joint":
        trained.clip.eval_clips = 1  # several clips of one window would be nearly equal
    return trained


def check_trained(trained: DictConfig, cfg: DictConfig) -> list[tuple[str, str]]:
    """The faults of the keys in `USED` of a checkpoint's configuration, as changed by the command line."""
    absent = [key for key in USED if OmegaConf.select(trained, key) is None]
    if absent:
        return [(key, "is not in the checkpoint, but prediction needs it") for key in absent]
    faults = [fault for fault in check_targets(trained) if fault[0].startswith(USED)]
    if faults:
        return faults

    from vidtrain.app.check import try_clip
    from vidtrain.build import parts as build

    def try_geometry() -> None:
        build.instantiate_component(trained.augmentation.eval)(320, 240, build.clip_size(trained))

    def try_model() -> None:
        size = build.clip_size(trained)
        build.model_without_memory(trained).encoder.grid(trained.clip.frames, *size)

    attempts: dict[str, Callable[[], object]] = {
        "clip": lambda: try_clip(trained),
        "augmentation.eval": try_geometry,
        "model": try_model,
        "loss": lambda: build.instantiate_component(trained.loss),
    }
    for key, attempt in attempts.items():
        try:
            attempt()
        except UserError as error:
            faults.append((key, str(error)))
    if cfg.windows.stride is not None and cfg.windows.length is None and trained.clip.sampling == "uniform":
        why = "must be given: the checkpoint's clips (clip.sampling=uniform) have no length of their own"
        faults.append(("windows.length", why))
    return faults


def class_number(name: str | None, classes: Sequence[str], path: Path) -> int | None:
    """The number of the class that `heat_class` names. Raises `UserError` if the checkpoint at `path` lacks it."""
    from vidtrain.data.manifest.manifest import one_spelling

    if name is None:
        return None
    spelled = one_spelling(name)
    if spelled not in classes:
        raise UserError(f"heat_class={name} is not a class of {path}{suggest(spelled, list(classes))}")
    return classes.index(spelled)


def check_graph(
    trained: DictConfig, model: "VideoClassifier | OnnxClassifier", clip_shape: tuple[int, ...], path: Path
) -> None:
    """Raises `UserError` for an exported graph that takes clips of another shape than its card describes."""
    from vidtrain.build.parts import instantiate_component
    from vidtrain.data.augment.geometry import WholeFrame
    from vidtrain.models.exporting import OnnxClassifier

    if not isinstance(model, OnnxClassifier):
        return
    if isinstance(instantiate_component(trained.augmentation.eval), WholeFrame):
        raise UserError(f"{path} takes clips of one size, and its card asks for whole frames of any size")
    if model.clip_shape != clip_shape:
        raise UserError(
            f"{path} takes clips of {list(model.clip_shape)} (channels, frames, height, width), and its card says "
            f"{list(clip_shape)}: it was changed after it was exported; export it again"
        )
