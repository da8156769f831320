"""What is wrong with predict's settings, as far as the command line tells, and the videos that it names.

Imports no torch, so that a mistake is answered at once.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from vidtrain.build.checkpoint_loader import find_checkpoint
from vidtrain.config.schemas import PredictConfig
from vidtrain.config.targets import check_settings, check_targets
from vidtrain.errors import UserError

FILES = (".csv", ".json")


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = check_targets(cfg) + check_settings(cfg, PredictConfig)
    faults += _check_places(cfg) + _check_windows(cfg.windows)
    if cfg.heat_class is not None and not cfg.render:
        faults.append(("heat_class", "is the class of the heat map of render=true, which is not asked for"))
    if cfg.heat_class is not None and cfg.heat in ("attention", "none"):
        faults.append(("heat_class", f"heat={cfg.heat} is of no class; say heat=grad_cam"))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        faults.append(
            (
                "device",
                "predict runs in one process: without torchrun, start it once for each share of videos",
            )
        )
    return faults


def _check_places(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = []
    if OmegaConf.is_missing(cfg, "checkpoint"):
        faults.append(("checkpoint", "must be given: a run's folder, a checkpoint, or an exported file"))
    else:
        try:
            find_checkpoint(cfg.checkpoint)
        except UserError as error:
            faults.append(("checkpoint", str(error).removeprefix("checkpoint=")))
    if cfg.videos is None:
        faults.append(("videos", "must be given: files, folders, patterns in quotes, or listings"))
    elif not isinstance(cfg.videos, str | ListConfig) or not all(
        isinstance(place, str) for place in _places(cfg)
    ):
        faults.append(
            ("videos", f"{cfg.videos} must be a file, folder, pattern or listing, or a list of them")
        )
    elif not _places(cfg):
        faults.append(("videos", "the list is empty"))
    else:
        faults += [("videos", why) for why in _find(tuple(_places(cfg)), cfg.frame_rate)[1]]
    if cfg.out is not None:
        out = Path(cfg.out)
        asking = [name for name in ("logits", "render") if cfg[name]]
        asking += ["windows.stride"] if cfg.windows.stride is not None else []
        if out.suffix in FILES and asking:
            faults.append(
                ("out", f"{out} is one file, and {' and '.join(asking)} give several: name a folder")
            )
        elif out.is_file() and out.suffix not in FILES:
            faults.append(("out", f"{out} is a file: name a folder, or a file that ends with .csv or .json"))
    return faults


def _check_windows(windows: DictConfig) -> list[tuple[str, str]]:
    faults = []
    for key in ("stride", "length"):
        if windows[key] is not None and not 0 < windows[key] < float("inf"):
            faults.append((f"windows.{key}", f"{windows[key]} must be above 0 seconds"))
    if windows.smooth < 1 or windows.smooth % 2 == 0:
        faults.append(("windows.smooth", f"{windows.smooth} must be an odd number of windows: 1, 3, 5 ..."))
    if windows.threshold is not None and not 0 <= windows.threshold <= 1:
        faults.append(("windows.threshold", f"{windows.threshold} must be a probability, from 0 to 1"))
    if windows.stride is None:
        for key in ("length", "threshold"):
            if windows[key] is not None:
                faults.append((f"windows.{key}", "has no effect without windows.stride"))
        if windows.smooth != 1:
            faults.append(("windows.smooth", "has no effect without windows.stride"))
    return faults


def find_videos(cfg: DictConfig) -> list[str]:
    """The files that `videos` names, in order."""
    return _find(tuple(_places(cfg)), cfg.frame_rate)[0]


def _places(cfg: DictConfig) -> list[Any]:
    return [cfg.videos] if isinstance(cfg.videos, str) else list(cfg.videos)


@lru_cache(maxsize=1)  # checked twice, then used
def _find(places: tuple[str, ...], frame_rate: float | None) -> tuple[list[str], list[str]]:
    from vidtrain.data.loading.video_paths import find_videos as find

    return find(places, frame_rate)
