"""From configuration to parts: the one place where names become objects. Used by every program."""

from collections.abc import Callable
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from vidtrain.config.targets import reason
from vidtrain.data.augment.device import DeviceTransform
from vidtrain.data.augment.geometry import EvalGeometry, WholeFrame
from vidtrain.data.sampling.clips import ClipProtocol
from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.training.ranks.distributed import Ranks
from vidtrain.training.ranks.rendezvous import cores

Mix = Callable[[Tensor, Tensor, tuple[int, ...]], tuple[Tensor, Tensor]]
MOST_WORKERS = 8


def instantiate_component(node: DictConfig | None, **late: Any) -> Any:
    """What a component node describes; `late` are the values that only a run knows, given to a partial.

    Raises `UserError` with what the constructor said, without Hydra's frame around it.
    """
    try:
        built = instantiate(node, _convert_="all")  # parts take plain lists and dicts
        return built(**late) if late else built
    except (InstantiationException, OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(reason(error)) from error


def clip_size(cfg: DictConfig) -> tuple[int, int]:
    """`clip.size` as (height, width)."""
    size = cfg.clip.size
    both = [size, size] if isinstance(size, int) else list(size) if isinstance(size, ListConfig) else size
    if not isinstance(both, list) or len(both) != 2 or not all(isinstance(n, int) and n > 0 for n in both):
        raise UserError(f"clip.size={size} must be one number of pixels, or [height, width]")
    return both[0], both[1]


def clip_protocol(cfg: DictConfig, training: bool) -> ClipProtocol:
    clip = cfg.clip
    return ClipProtocol(
        frames=clip.frames,
        frame_step=clip.frame_step,
        fps=clip.fps,
        duration=clip.duration,
        num_clips=clip.train_clips if training else clip.eval_clips,
        short_video_policy=clip.short_video_policy,
        frame_order=clip.frame_order,
        sampling=clip.sampling,
        overlap=clip.overlap,
    )


def protocol_text(cfg: DictConfig, fusion: str) -> str:
    """What a number was measured with, such as `16x4 frames at 224x224, 3 clips x 1 crop, mean_logits`."""
    geometry: EvalGeometry = instantiate_component(cfg.augmentation.eval)
    crops = "whole frame" if isinstance(geometry, WholeFrame) else pluralize(geometry.crops, "crop")
    return f"{frames_text(cfg, cfg.clip.frame_order)}, {pluralize(cfg.clip.eval_clips, 'clip')} x {crops}, {fusion}"


def frames_text(cfg: DictConfig, frame_order: str) -> str:
    """What one view shows in some order of frames, such as `16x4 frames at 224x224`."""
    clip, (height, width) = cfg.clip, clip_size(cfg)
    shown = f"{clip.frames}x{clip.frame_step} frames"
    if clip.fps is not None:
        shown = f"{clip.frames} frames at {clip.fps:g} fps"
    if clip.duration is not None:
        shown = f"{clip.frames} frames over {clip.duration:g} s"
    order = "" if frame_order == "forward" else f" {frame_order}"
    if clip.sampling == "uniform":
        shown = f"{clip.frames} uniform frames"
    indices = " as in V-JEPA 2" if clip.sampling == "vjepa2" else ""
    geometry: EvalGeometry = instantiate_component(cfg.augmentation.eval)
    size = f"{height}x{width}"
    if isinstance(geometry, WholeFrame):
        size = f"short side {geometry.short_side or min(height, width)}"
    square = ", square pixels" if clip.sample_aspect == "apply" else ""
    return f"{shown}{order}{indices} at {size}{square}"


def pluralize(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def share_of_cores(ranks: Ranks) -> int:
    return max(1, cores() // ranks.local_world_size)


def num_workers(asked: int | None, ranks: Ranks) -> int:
    """Decoding processes for this rank: as asked, or its share of the cores, of which computing takes half."""
    share = share_of_cores(ranks) if ranks.device.type == "cuda" else share_of_cores(ranks) // 2
    return max(1, min(MOST_WORKERS, share)) if asked is None else asked


def set_cpu_threads(asked: int | None, ranks: Ranks) -> None:
    """How many threads compute on a CPU. It must not follow the number of workers, which may change when a
    run is resumed: sums over another number of threads differ in the last bit."""
    if ranks.device.type == "cpu":
        torch.set_num_threads(asked or max(1, share_of_cores(ranks) // 2))


def device_transform(cfg: DictConfig, device: torch.device) -> DeviceTransform:
    stages = {
        name: instantiate_component(cfg.augmentation[name]) for name in ("color", "rand_augment", "erasing")
    }
    return DeviceTransform(list(cfg.clip.mean), list(cfg.clip.std), **stages).to(device)


def mixing(cfg: DictConfig, num_classes: int) -> Mix:
    """How the samples of a batch are mixed, by a key: clips and labels to clips and targets."""
    mix = instantiate_component(cfg.augmentation.mixing)
    if mix is None:
        return lambda clips, labels, key: (clips, labels)
    # without label smoothing, which the loss does
    copies = cfg.clip.repeated_augmentation
    return lambda clips, labels, key: mix(clips, labels, num_classes, key, copies=copies)


def model(cfg: DictConfig, num_classes: int, ranks: Ranks) -> VideoClassifier:
    """The configured model on its device, initialized from the seed alone."""
    torch.manual_seed(cfg.seed)
    return instantiate_component(cfg.model, num_classes=num_classes).to(ranks.device)


def model_without_memory(cfg: DictConfig) -> VideoClassifier:
    """The configured model, with shapes but no values, to be checked. Raises `UserError` for what does not fit."""
    with torch.device("meta"):
        return instantiate_component(cfg.model, num_classes=2)
