"""Builds the parts of a run from its configuration; every program uses it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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

from vidtrain.config.references import describe_published, to_list, unseen_clips
from vidtrain.config.targets import reason
from vidtrain.config.trust import as_text, check_trust
from vidtrain.data.augment.device import DeviceTransform
from vidtrain.data.augment.geometry import ANTIALIASED, PLACEMENTS, UNCUT, EvalGeometry, WholeFrame
from vidtrain.data.loading.workers import KEPT_BY_NETWORKS, keep_freed_memory
from vidtrain.data.sampling.clips import ClipProtocol
from vidtrain.errors import UserError, pluralize
from vidtrain.files.atomic import write_json_atomic
from vidtrain.models.classifier import Encoder, EncoderWithHead, VideoClassifier
from vidtrain.models.lora import Adapters, Base, BaseFile, adapter_parameters
from vidtrain.models.masked_models import MaskedModel
from vidtrain.models.vit3d import ViT3D
from vidtrain.training.checkpoint import resumable
from vidtrain.training.distributed import Ranks
from vidtrain.training.process import cores
from vidtrain.training.run import Console, LoraSettings, PhaseSettings
from vidtrain.training.stages import lora_of, never_trained

if TYPE_CHECKING:  # with all formats its import takes seconds
    from vidtrain.models.weights.format import Weights

# Settings of clips that are also fields of `ClipProtocol`
PROTOCOL_KEYS = (
    "frames", "frame_step", "fps", "duration", "short_video_policy", "frame_order", "sampling", "overlap"
)  # fmt: skip
Mix = Callable[[Tensor, Tensor, tuple[int, ...]], tuple[Tensor, Tensor]]
MAX_WORKERS = 8
# The words in a protocol's text for the reference code whose frame indices clip.sampling reproduces
REFERENCE_CODE = {
    "vjepa2": " as in V-JEPA 2 (windows fixed)",
    "vjepa2_random": " as in V-JEPA 2 (windows drawn, seed {seed})",
    "videomae": " as in VideoMAE",
    "pyslowfast": " as in PySlowFast",
    "pyslowfast_offset": " as in PySlowFast (USE_OFFSET_SAMPLING)",
}
# The code whose resize clip.resize reproduces
PUBLISHERS = {"vjepa2": "V-JEPA", "videomae": "VideoMAE", "pyslowfast": "PySlowFast"}


def instantiate_component(node: DictConfig | None, **arguments: Any) -> Any:
    """Builds the object that a node with a _target_ describes. If `arguments` are given, the node is a partial, which
    gets them. Raises `UserError` with the constructor's message, without Hydra's text around it."""
    try:
        component = instantiate(node, _convert_="all")  # constructors get plain lists and dicts
        return component(**arguments) if arguments else component
    except (InstantiationException, OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(reason(error)) from error


def clip_size(cfg: DictConfig) -> tuple[int, int]:
    """`clip.size` as (height, width)."""
    size = cfg.clip.size
    pair = [size, size] if isinstance(size, int) else list(size) if isinstance(size, ListConfig) else size
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise UserError(f"clip.size={size} must be one number of pixels, or [height, width]")
    return pair[0], pair[1]


def check_resize(cfg: DictConfig) -> None:
    """Raises `UserError` with a line for each setting that does not match `clip.resize`."""
    if cfg.clip.resize not in PLACEMENTS:
        return
    clip, size, prepared, interpolation = cfg.clip, clip_size(cfg), cfg.data.prepared, cfg.clip.interpolation
    faults = [
        f"resize={clip.resize} {why}"
        for why, is_wrong in (
            (f"is bilinear; set clip.interpolation=bilinear (it is {interpolation})", interpolation != "bilinear"),
            (f"crops squares; set clip.size to one number (it is {list(size)})", size[0] != size[1]),
            (f"needs the original files; set data.prepared=null (the copy {prepared} is already scaled)", prepared),
        )
        if is_wrong
    ]  # fmt: skip
    if faults:
        raise UserError("\n".join(faults))


def clip_protocol(cfg: DictConfig, training: bool) -> ClipProtocol:
    clip = cfg.clip
    num_clips = clip.train_clips if training else clip.eval_clips
    return ClipProtocol(num_clips=num_clips, **{key: clip[key] for key in PROTOCOL_KEYS})


def protocol_text(cfg: DictConfig, fusion: str) -> str:
    """How videos are evaluated, such as `16x4 frames at 224x224, 3 clips x 1 crop, mean_logits`."""
    geometry: EvalGeometry = instantiate_component(cfg.augmentation.eval)
    crops = UNCUT.get(type(geometry)) or pluralize(geometry.crops, "crop")
    return f"{frames_text(cfg, cfg.clip.frame_order)}, {pluralize(cfg.clip.eval_clips, 'clip')} x {crops}, {fusion}"


def frames_text(cfg: DictConfig, frame_order: str) -> str:
    """The frames of one view, such as `16x4 frames at 224x224`; `frame_order` is named unless it is forward."""
    clip, (height, width) = cfg.clip, clip_size(cfg)
    shown = f"{clip.frames}x{clip.frame_step} frames"
    if clip.fps is not None:
        shown = f"{clip.frames} frames at {clip.fps:g} fps"
    if clip.duration is not None:
        shown = f"{clip.frames} frames over {clip.duration:g} s"
    order = "" if frame_order == "forward" else f" {frame_order}"
    if clip.sampling == "uniform":
        shown = f"{clip.frames} uniform frames"
    indices = REFERENCE_CODE[clip.sampling].format(seed=cfg.seed) if clip.sampling in REFERENCE_CODE else ""
    geometry: EvalGeometry = instantiate_component(cfg.augmentation.eval)
    size = f"{height}x{width}"
    if isinstance(geometry, WholeFrame):
        size = f"short side {geometry.short_side or min(height, width)}"
    square = ", square pixels" if clip.sample_aspect == "apply" else ""
    resized = "" if clip.resize == ANTIALIASED else f", resized as in {PUBLISHERS[clip.resize]}"
    return f"{shown}{order}{indices} at {size}{square}{resized}"


def share_of_cores(ranks: Ranks) -> int:
    return max(1, cores() // ranks.local_world_size)


def num_workers(setting: int | None, ranks: Ranks) -> int:
    """Decoding processes of this rank: the setting or, if None, its share of the cores, at most `MAX_WORKERS`. Without
    a GPU it is half of the share, as computing needs the other half."""
    share = share_of_cores(ranks) if ranks.device.type == "cuda" else share_of_cores(ranks) // 2
    return max(1, min(MAX_WORKERS, share)) if setting is None else setting


def set_cpu_threads(setting: int | None, ranks: Ranks) -> None:
    """Sets the number of computing threads on a CPU, and keeps freed memory for the activations of the next batch.

    The number does not depend on the number of workers, which may change when a run is resumed: sums over another
    number of threads would differ in the last bit.
    """
    if ranks.device.type == "cpu":
        torch.set_num_threads(setting or max(1, share_of_cores(ranks) // 2))
        keep_freed_memory(KEPT_BY_NETWORKS)


def device_transform(cfg: DictConfig, device: torch.device) -> DeviceTransform:
    names = ("color", "rand_augment", "erasing")
    stages = {name: instantiate_component(cfg.augmentation[name]) for name in names}
    return DeviceTransform(list(cfg.clip.mean), list(cfg.clip.std), **stages).to(device)


def mixing(cfg: DictConfig, num_classes: int) -> Mix:
    """A function that mixes the samples of a batch: (clips, labels, key) -> (clips, targets); `key` seeds it."""
    mix = instantiate_component(cfg.augmentation.mixing)
    if mix is None:
        return lambda clips, labels, key: (clips, labels)
    # No label smoothing here, as the loss applies it
    copies = cfg.clip.repeated_augmentation
    return lambda clips, labels, key: mix(clips, labels, num_classes, key, copies=copies)


def model(cfg: DictConfig, num_classes: int, ranks: Ranks) -> VideoClassifier:
    """The configured model on its device, initialized from the seed alone."""
    torch.manual_seed(cfg.seed)
    return instantiate_component(cfg.model, num_classes=num_classes).to(ranks.device)


def masked_model(cfg: DictConfig, encoder: Encoder, with_weights: bool = True) -> MaskedModel:
    """The model that pretrains `encoder`. Without `with_weights`, the weights of the teacher that `objective.teacher`
    names are not loaded."""
    if cfg.objective.get("teacher") is None:
        return instantiate_component(cfg.objective, encoder=encoder)
    objective = cfg.objective.copy()
    source, objective.teacher = objective.teacher, None
    return instantiate_component(objective, encoder=encoder, teacher=_teacher(cfg, source, with_weights))


def _teacher(cfg: DictConfig, name: str, with_weights: bool) -> Encoder:
    """The encoder of the teacher. A checkpoint of vidtrain holds its configuration; for other weights it is built like
    the model's own encoder."""
    from vidtrain.models.weights.files import check_source, locate, stamp
    from vidtrain.models.weights.loading import load_weights

    source = _best_of_run(name)
    check_source(source)
    path = locate(source, cfg.pretrained_revision)
    weights = _read_teacher(path, source, stamp(path))
    config, node = weights.config, cfg.model.encoder
    if config is not None and "model" in config:
        check_trust(config, str(path))  # the file may come from somebody else and name any class
        node = OmegaConf.create(as_text(config)[0])
        node = node.model.encoder
        if str(node["_target_"]) != f"{ViT3D.__module__}.{ViT3D.__qualname__}":
            raise UserError(f"objective.teacher={name} has a {node['_target_']}, but must have a ViT3D")
    teacher = EncoderWithHead()
    teacher.encoder, teacher.head = instantiate_component(node), nn.Identity()
    if with_weights:
        load_weights(teacher, weights, path, cfg.init_match)
        _read_teacher.cache_clear()  # frees memory
    return teacher.encoder


@lru_cache(maxsize=1)
def _read_teacher(path: Path, source: str, stamp: str) -> "Weights":
    """Reads the teacher's file, in full for its checksums. It is cached, as the check before the start and the start
    itself both need it."""
    from vidtrain.models.weights.files import read

    return read(path, source)


def trained_model(cfg: DictConfig, num_classes: int, ranks: Ranks) -> VideoClassifier | MaskedModel:
    """The model that a run trains, on its device: the classifier, or for pretraining its encoder in a `MaskedModel`."""
    if cfg.objective is None:
        return model(cfg, num_classes, ranks)
    torch.manual_seed(cfg.seed)
    return masked_model(cfg, instantiate_component(cfg.model.encoder)).to(ranks.device)


def model_without_memory(cfg: DictConfig) -> VideoClassifier:
    """The configured model on the meta device, for checks. Raises `UserError` for settings that do not match."""
    with torch.device("meta"):
        return instantiate_component(cfg.model, num_classes=2)


# --- where weights start: init_from, else pretrained, else from scratch ----------------------------------------


def check_starting_point(cfg: DictConfig, model: EncoderWithHead | None) -> None:
    """Raises `UserError` for weights with an unknown name, and for a local file that does not fit `model`. `model` may
    be on the meta device, or None if its own settings have faults. Nothing is downloaded here: downloaded weights are
    compared with the model when they are loaded. A resumed run needs no starting point."""
    if cfg.run_dir is not None and resumable(Path(cfg.run_dir) / "checkpoints"):
        return
    sources = _sources(cfg)
    if not sources:
        return
    from vidtrain.models.weights.files import check_source, local_path
    from vidtrain.models.weights.loading import check_pretrained

    for source in sources:
        if cfg.init_from is None:
            check_source(source)
    for source in sources:
        path = Path(source) if cfg.init_from is not None else local_path(source)
        if path is not None and model is not None:
            check_pretrained(model, source, path, cfg.init_match, cfg.init_part)


def _sources(cfg: DictConfig) -> list[str]:
    """The sources of the weights: `init_from` if set, else `pretrained`. A run's folder stands for its best.pt."""
    if cfg.init_from is None:
        if cfg.pretrained is None:
            return []
        from vidtrain.models.weights.files import as_sources  # imports all formats, which takes seconds

        return [_best_of_run(source) for source in as_sources(cfg.pretrained)]
    return [_best_of_run(cfg.init_from)]


def _best_of_run(source: str) -> str:
    best = Path(source) / "checkpoints" / "best.pt"
    return str(best) if best.is_file() else source


@dataclass(frozen=True)
class LoadedSource:
    """A source of the weights that a run starts from."""

    name: str  # as the user named it
    path: Path
    loaded: frozenset[str]  # names of the model's tensors that were loaded from it


@dataclass(frozen=True)
class StartingPoint:
    """The origin of the weights of a new run."""

    origin: str  # a phrase for the log, such as "from scratch"
    sources: tuple[LoadedSource, ...] = ()


def interpolated_positions(model: EncoderWithHead, frames: int, size: tuple[int, int]) -> str | None:
    """A warning if the encoder interpolates its table of positions to the shape of the clips."""
    encoder = model.encoder
    if not isinstance(encoder, ViT3D) or not encoder.interpolates(frames, *size):
        return None
    side = size[0] if size[0] == size[1] else str(list(size)).replace(" ", "")
    return (
        f"positions of {encoder.num_frames} frames of {encoder.image_size} pixels are interpolated to {frames} of "
        f"{side}. This is right for weights that were trained with the former shape; for weights of the latter, set "
        f"model.encoder.num_frames={frames} model.encoder.image_size={side}"
    )


def load_starting_point(
    cfg: DictConfig, model: EncoderWithHead, ranks: Ranks, console: Console, folder: Path
) -> StartingPoint:
    """Loads the weights that the configuration names; writes the loaded tensors to the log and starting_point.json.
    Several sources, such as an encoder and a probe, are loaded one after the other."""
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
            console.info("init_from is set, so pretrained is not used")
    else:  # rank 0 downloads, and the other ranks read the same files
        paths = ranks.on_main(lambda: [locate(source, cfg.pretrained_revision) for source in sources])
    reports = [
        load_pretrained(model, source, path, cfg.init_match, cfg.init_part)
        for source, path in zip(sources, paths, strict=True)
    ]
    for report in reports:
        console.info("weights of " + "\n  ".join(report.lines()))
    loaded = {name for report in reports for name in report.loaded}
    initialized = [name for name in model.state_dict() if name not in loaded]
    if initialized:
        shown = ", ".join(initialized[:6]) + (", ..." if initialized[6:] else "")
        console.info(f"initialized at random: {pluralize(len(initialized), 'tensor')}: {shown}")
    if cfg.init_from is None:
        trained_clips = {key: value for report in reports for key, value in report.seen.items()}
        for warning in unseen_clips(cfg, trained_clips):
            console.warn(warning)
        if (positions_warning := interpolated_positions(model, cfg.clip.frames, clip_size(cfg))) is not None:
            console.warn(positions_warning)
    if ranks.is_main:
        record = {"sources": [report.as_dict() for report in reports], "initialized": initialized}
        write_json_atomic(folder / "starting_point.json", record)
    parts = zip(sources, paths, reports, strict=True)
    loaded_sources = (LoadedSource(source, path, frozenset(report.loaded)) for source, path, report in parts)
    return StartingPoint("starts from " + " and ".join(sources), tuple(loaded_sources))


# --- low-rank adapters of a run's encoder (LoRA), and their base: the frozen weights that checkpoints omit -----


def adapters_of(lora: LoraSettings) -> Adapters:
    targets = None if lora.targets is None else tuple(lora.targets)
    return Adapters(lora.rank, lora.alpha, lora.dropout, targets)


def start_adapters(
    model: VideoClassifier,
    phases: Mapping[str, PhaseSettings],
    start: StartingPoint,
    seed: int,
    ranks: Ranks,
    console: Console,
) -> Adapters | None:
    """Adds the adapters that `phases` train to the encoder of a new run, and returns them; None if they train none.

    Weights that were loaded from a file and stay frozen in every phase are the base: checkpoints omit them, and name
    the file with its SHA-256. Without such weights there is no base, and checkpoints hold all weights.
    """
    lora = lora_of(phases)
    if lora is None:
        return None
    adapters = adapters_of(lora)
    layers = adapters.add_to(model, seed)
    count = sum(parameter.numel() for parameter in adapter_parameters(model))
    line = f"lora: adapters of rank {lora.rank} in {pluralize(len(layers), 'layer')}, {count / 1e6:.3g} M parameters"
    frozen = never_trained(model, phases)
    sources = [source for source in start.sources if frozen & source.loaded]
    if not sources:
        console.info(f"{line}; no frozen weights are from a file, so checkpoints hold all weights")
        return adapters
    from vidtrain.models.weights.files import content_hash, stamp

    names = frozen & frozenset().union(*(source.loaded for source in sources))
    files = ranks.on_main(
        lambda: [
            BaseFile(source.name, str(source.path.absolute()), content_hash(source.path), stamp(source.path))
            for source in sources
        ]
    )
    file_list = ", ".join(f"{file.path} (sha256 {file.sha256})" for file in files)
    console.info(f"{line}; checkpoints hold only the trained weights, and name the file of the others: {file_list}")
    return replace(adapters, base=Base(tuple(files), tuple(name for name in model.state_dict() if name in names)))
