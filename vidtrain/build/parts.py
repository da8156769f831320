"""From configuration to parts: the one place where names become objects. Used by every program."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from vidtrain.config.references import (
    describe_published,
    settled,
    to_dict,
    to_list,
    unseen_clips,
    with_published,
)
from vidtrain.config.targets import reason
from vidtrain.config.trust import as_text, check_trust, with_references
from vidtrain.data.augment.device import DeviceTransform
from vidtrain.data.augment.geometry import UNCUT, EvalGeometry, WholeFrame
from vidtrain.data.sampling.clips import ClipProtocol
from vidtrain.errors import UserError
from vidtrain.files.atomic import write_json_atomic
from vidtrain.files.escaping import masked_values
from vidtrain.models.classifier import Encoder, EncoderWithHead, VideoClassifier
from vidtrain.models.pretraining.masked_model import MaskedModel
from vidtrain.models.vit3d import ViT3D
from vidtrain.training.checkpoint import resumable
from vidtrain.training.ranks.distributed import Ranks
from vidtrain.training.ranks.rendezvous import cores
from vidtrain.training.run import Console

if TYPE_CHECKING:  # with all formats its import takes seconds
    from vidtrain.models.weights.format import Weights

Mix = Callable[[Tensor, Tensor, tuple[int, ...]], tuple[Tensor, Tensor]]
MOST_WORKERS = 8
# Where frames lie as in others' code, by clip.sampling
PLACES = {
    "vjepa2": " as in V-JEPA 2 (windows fixed)",
    "vjepa2_random": " as in V-JEPA 2 (windows drawn, seed {seed})",
    "pyslowfast": " as in PySlowFast",
    "pyslowfast_offset": " as in PySlowFast (USE_OFFSET_SAMPLING)",
}


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
    crops = UNCUT.get(type(geometry)) or pluralize(geometry.crops, "crop")
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
    indices = PLACES[clip.sampling].format(seed=cfg.seed) if clip.sampling in PLACES else ""
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


def num_workers(setting: int | None, ranks: Ranks) -> int:
    """Decoding processes for this rank: as set, or its share of the cores, of which computing takes half."""
    share = share_of_cores(ranks) if ranks.device.type == "cuda" else share_of_cores(ranks) // 2
    return max(1, min(MOST_WORKERS, share)) if setting is None else setting


def set_cpu_threads(setting: int | None, ranks: Ranks) -> None:
    """How many threads compute on a CPU. It must not follow the number of workers, which may change when a
    run is resumed: sums over another number of threads differ in the last bit."""
    if ranks.device.type == "cpu":
        torch.set_num_threads(setting or max(1, share_of_cores(ranks) // 2))


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


def masked_model(cfg: DictConfig, encoder: Encoder, with_weights: bool = True) -> MaskedModel:
    """`encoder` in what pretrains it. A teacher that `objective.teacher` names is loaded, unless weights are of no
    interest."""
    if cfg.objective.get("teacher") is None:
        return instantiate_component(cfg.objective, encoder=encoder)
    objective = cfg.objective.copy()
    source, objective.teacher = objective.teacher, None
    return instantiate_component(objective, encoder=encoder, teacher=_teacher(cfg, source, with_weights))


def _teacher(cfg: DictConfig, name: str, with_weights: bool) -> Encoder:
    """The encoder of a run or checkpoint of ours, as that has it; of other weights, one like the model's own."""
    from vidtrain.models.weights.files import check_source, locate, stamp
    from vidtrain.models.weights.loading import load_weights

    source = _best_of_run(name)
    check_source(source)
    path = locate(source, cfg.pretrained_revision)
    weights = _read_teacher(path, source, stamp(path))
    config = weights.config
    node = cfg.model.encoder
    if config is not None and "model" in config:
        check_trust(config, str(path))  # a file from elsewhere may name anything to be built
        node = OmegaConf.create(as_text(config)[0])
        if str(node.model.encoder["_target_"]) != f"{ViT3D.__module__}.{ViT3D.__qualname__}":
            raise UserError(
                f"objective.teacher={name} has a {node.model.encoder['_target_']}, and must have a ViT3D"
            )
        node = node.model.encoder
    teacher = EncoderWithHead()
    teacher.encoder, teacher.head = instantiate_component(node), nn.Identity()
    if with_weights:
        load_weights(teacher, weights, path, cfg.init_match)
        _read_teacher.cache_clear()  # its memory
    return teacher.encoder


@lru_cache(maxsize=1)
def _read_teacher(path: Path, source: str, stamp: str) -> "Weights":
    """Once for the check before the start and the start itself: all of the file is read, for its checksums."""
    from vidtrain.models.weights.files import read

    return read(path, source)


def describe_objective(cfg: DictConfig) -> str:
    """Such as `MaskedAutoencoder, with TubeMasks(ratio=0.9)`."""
    network = str(cfg.objective["_target_"]).rpartition(".")[2]
    return f"{network}, with {instantiate_component(cfg.objective.masks)}"


def trained_model(cfg: DictConfig, num_classes: int, ranks: Ranks) -> VideoClassifier | MaskedModel:
    """What a run trains, on its device: the model, or where there is an objective without labels its encoder."""
    if cfg.objective is None:
        return model(cfg, num_classes, ranks)
    torch.manual_seed(cfg.seed)
    return masked_model(cfg, instantiate_component(cfg.model.encoder)).to(ranks.device)


def model_without_memory(cfg: DictConfig) -> VideoClassifier:
    """The configured model, with shapes but no values, to be checked. Raises `UserError` for what does not fit."""
    with torch.device("meta"):
        return instantiate_component(cfg.model, num_classes=2)


# --- what others must know of a trained model -----------------------------------------------------------------


@dataclass(frozen=True)
class ModelSpec:
    """What must be known of a trained model to use it without its configuration, in plain values.

    `clip` are the settings of its clips, [height, width] `size` of theirs, and `geometry` cuts them out of frames.
    `settings` is the whole configuration with its references followed, but for those to the environment; `config` the
    same with its references, as far as there are values.
    """

    name: str
    clip: Mapping[str, Any]
    size: tuple[int, int]
    geometry: EvalGeometry
    fusion: str
    independent: bool  # whether classes are judged each by itself
    protocol: str
    settings: Mapping[str, Any]
    config: Mapping[str, Any]


def model_spec(cfg: DictConfig) -> ModelSpec:
    # published weights have no dataset, optimizer ...
    there = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if not OmegaConf.is_missing(cfg, key)])
    return ModelSpec(
        name=cfg.name,
        clip=to_dict(cfg.clip, resolve=True),
        size=clip_size(cfg),
        geometry=instantiate_component(cfg.augmentation.eval),
        fusion=cfg.model.fusion,
        independent=instantiate_component(cfg.loss).independent,
        protocol=protocol_text(cfg, cfg.model.fusion),
        settings=with_references(settled(cfg)),
        config=masked_values(with_references(to_dict(with_published(there)))),
    )


# --- where weights start: init_from, else pretrained, else from scratch ----------------------------------------


def check_starting_point(cfg: DictConfig, model: EncoderWithHead | None) -> None:
    """Raises `UserError` for a name of weights that nothing can be found under, and for a file on this machine that
    does not fit `model`, which may lie on the meta device, or be None where there is none to hold it against.

    Goes to no network: what is yet to be downloaded is held against the model when it is loaded. A run that is
    resumed needs no starting point.
    """
    if cfg.run_dir is not None and resumable(Path(cfg.run_dir) / "checkpoints"):
        return
    sources = _sources(cfg)
    if not sources:
        return
    from vidtrain.models.weights.files import check_source, local_path
    from vidtrain.models.weights.loading import check_pretrained

    if cfg.init_from is None:
        for source in sources:
            check_source(source)
    if model is not None:
        for source in sources:
            path = Path(source) if cfg.init_from is not None else local_path(source)
            if path is not None:
                check_pretrained(model, source, path, cfg.init_match, cfg.init_part)


def _sources(cfg: DictConfig) -> list[str]:
    """A checkpoint of ours, of a run's folder the best one, comes before published weights."""
    if cfg.init_from is None:
        if cfg.pretrained is None:
            return []
        from vidtrain.models.weights.files import as_sources  # which, with all formats, takes seconds

        return [_best_of_run(source) for source in as_sources(cfg.pretrained)]
    return [_best_of_run(cfg.init_from)]


def _best_of_run(source: str) -> str:
    best = Path(source) / "checkpoints" / "best.pt"
    return str(best) if best.is_file() else source


@dataclass(frozen=True)
class LoadedSource:
    """Weights that a run starts from: what the user named, where that lies, and the tensors of the model that it
    gave."""

    name: str
    path: Path
    loaded: frozenset[str]


@dataclass(frozen=True)
class StartingPoint:
    """Where the weights of a new run are from, in words and by source."""

    origin: str
    sources: tuple[LoadedSource, ...] = ()


def interpolated_positions(model: EncoderWithHead, frames: int, size: tuple[int, int]) -> str | None:
    """A warning where a table of positions is not of the clips; None where it is, or where there is none."""
    encoder = model.encoder
    if not isinstance(encoder, ViT3D) or not encoder.interpolates(frames, *size):
        return None
    side = size[0] if size[0] == size[1] else str(list(size)).replace(" ", "")
    return (
        f"positions of {encoder.num_frames} frames of {encoder.image_size} pixels are interpolated to {frames} of "
        f"{side}, which is meant for weights that were trained with the former; those of the latter want "
        f"model.encoder.num_frames={frames} model.encoder.image_size={side}"
    )


def load_starting_point(
    cfg: DictConfig, model: EncoderWithHead, ranks: Ranks, console: Console, folder: Path
) -> StartingPoint:
    """Loads the weights that the configuration names; says in the log and in starting_point.json what fitted.

    Several sources, such as an encoder and a probe, are loaded in turn.
    """
    if HydraConfig.initialized():
        context = HydraConfig.get()
        line = describe_published(cfg, to_list(context.overrides.task), context.runtime.choices)
        if line is not None:
            console.info(line)
    sources = _sources(cfg)
    if not sources:
        return StartingPoint("from scratch")
    from vidtrain.models.weights.files import locate
    from vidtrain.models.weights.loading import load_pretrained

    if cfg.init_from is not None:
        paths = [Path(source) for source in sources]
        if cfg.pretrained is not None:
            console.info("init_from comes before pretrained, which is not used")
    else:  # downloaded once; the others find it where rank 0 put it
        paths = ranks.on_main(lambda: [locate(source, cfg.pretrained_revision) for source in sources])
    reports = [
        load_pretrained(model, source, path, cfg.init_match, cfg.init_part)
        for source, path in zip(sources, paths, strict=True)
    ]
    for report in reports:
        console.info("weights of " + "\n  ".join(report.lines()))
    loaded = {name for report in reports for name in report.loaded}
    fresh = [name for name in model.state_dict() if name not in loaded]
    if fresh:
        shown = ", ".join(fresh[:6]) + (", ..." if fresh[6:] else "")
        console.info(f"initialized at random: {len(fresh)} tensors: {shown}")
    if cfg.init_from is None:
        seen = {key: value for report in reports for key, value in report.seen.items()}
        for warning in unseen_clips(cfg, sources, seen):
            console.warn(warning)
        if (stretched := interpolated_positions(model, cfg.clip.frames, clip_size(cfg))) is not None:
            console.warn(stretched)
    if ranks.is_main:
        record = {"sources": [report.as_dict() for report in reports], "initialized": fresh}
        write_json_atomic(folder / "starting_point.json", record)
    parts = zip(sources, paths, reports, strict=True)
    return StartingPoint(
        "starts from " + " and ".join(sources),
        tuple(LoadedSource(source, path, frozenset(report.loaded)) for source, path, report in parts),
    )
