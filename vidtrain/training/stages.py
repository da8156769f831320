"""Stages: which parts of the model a phase trains, at which rate and weight decay. The other parts stay frozen."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidtrain.errors import UserError
from vidtrain.models.classifier import Encoder, EncoderWithHead, ManyHeads
from vidtrain.models.lora import adapter_parameters
from vidtrain.training.distributed import Ranks
from vidtrain.training.run import Evaluation, HeadGridSettings, LoraSettings, PhaseSettings, TrainerSettings
from vidtrain.training.schedules import steps

Table = list[tuple[str, str, str, str]]
ScaledModule = tuple[str, float, Iterable[tuple[str, nn.Parameter]]]  # name, lr scale, named parameters
BATCH_NORMS = {
    "train": "normalize by the batch of each rank",
    "sync": "normalize by the batch of all ranks",
    "frozen_statistics": "keep their running statistics; scale and shift train",
    "frozen": "keep their running statistics, scale and shift",
}
# Matches the parameter names of learned positions and tokens, in our, torchvision's and timm's models, and of adapters
NOT_DECAYED = re.compile(
    r"pos_embed|(^|\.)((spatial|temporal)_pos|rel_pos_\w+|relative_position_bias_table|(cls|class|dist|reg|register)_tokens?|lora_[AB])$"
)


def apply_phase(model: EncoderWithHead, phase: PhaseSettings) -> None:
    """Sets `requires_grad` of every parameter: the head trains, and the encoder's last blocks as configured.

    Layers after the first trained block, such as a final norm, train with it. With `lora` the adapters of all blocks
    train, too; without it, only those of trained blocks. Raises `UserError` when the encoder has fewer blocks, for
    invalid rates, and for settings that need a frozen encoder if the encoder trains.
    """
    check_phase(phase)
    model.head.requires_grad_(True)
    model.encoder.requires_grad_(phase.encoder_blocks is None)
    if phase.cache_features and next(model.encoder.parameters(), None) is None:
        name = type(model.encoder).__name__
        raise UserError(f"cache_features: {name} has no parameters, so a cache would save nothing; set it to false")
    if phase.encoder_blocks:
        layers, blocks = list(model.encoder.layers), list(model.encoder.blocks)
        if phase.encoder_blocks > len(blocks):
            raise UserError(
                f"encoder_blocks={phase.encoder_blocks}, but the encoder has {len(blocks)} blocks; "
                "write null to train all of it"
            )
        first = next(i for i, layer in enumerate(layers) if layer is blocks[-phase.encoder_blocks])
        for layer in layers[first:]:
            layer.requires_grad_(True)
    if phase.lora is not None:
        adapters = adapter_parameters(model.encoder)
        if not adapters:
            raise UserError(f"lora: {type(model.encoder).__name__} has no adapters")
        for parameter in adapters:
            parameter.requires_grad_(True)


def check_phases(model: EncoderWithHead, phases: Mapping[str, PhaseSettings], epochs: int, per_epoch: int) -> None:
    """Checks every phase before the first one starts, so that no phase trains in vain before a later one fails."""
    for name, phase in phases.items():
        if steps(phase.duration, epochs * per_epoch, per_epoch) < 1:
            raise UserError(f"stage.{name}.duration={phase.duration} is less than one step; lengthen it")
        apply_phase(model, phase)
        parameter_groups(model, phase)


def check_phase(phase: PhaseSettings) -> None:
    """Raises `UserError` for settings that are wrong for every model."""
    for key in ("lr_scale", "encoder_lr_scale"):
        scale = getattr(phase, key)
        if not 0 < scale < math.inf:
            instead = "; encoder_blocks=0 freezes the encoder" if key == "encoder_lr_scale" else ""
            raise UserError(f"{key}={scale:g} must be above 0{instead}")
    if not 0 < phase.layer_decay <= 1:
        raise UserError(
            f"layer_decay={phase.layer_decay:g} must be above 0, and 1 at most; 1 gives all layers one rate"
        )
    blocks = phase.encoder_blocks
    if blocks is not None and blocks < 0:
        raise UserError(f"encoder_blocks={blocks}: write how many of the last blocks train, 0 or more")
    if phase.lora is not None and blocks is None:
        raise UserError(
            "lora trains adapters of layers that are frozen, and encoder_blocks=null trains all layers; set "
            "encoder_blocks=0, or how many of the last blocks train beside the adapters"
        )
    for key, needs_frozen in (("heads", phase.heads is not None), ("cache_features", phase.cache_features)):
        if needs_frozen and phase.lora is not None:
            raise UserError(f"{key} needs a frozen encoder, and lora trains adapters in it; remove {key} or lora")
        if needs_frozen and blocks != 0:
            raise UserError(
                f"{key} needs a frozen encoder, and encoder_blocks={'null' if blocks is None else blocks} trains it; "
                "set encoder_blocks=0"
            )
    if phase.cache_features and phase.cache_views is not None and phase.cache_views < 1:
        raise UserError(f"cache_views={phase.cache_views} must be 1 or more, or null for the view that evaluation uses")
    if phase.heads is not None:
        _check_grid("lr", phase.heads.lr, "above 0")
        _check_grid("weight_decay", phase.heads.weight_decay, "0 or more")


def _check_grid(key: str, values: Sequence[float], bound: str) -> None:
    if not values:
        raise UserError(f"heads.{key}=[] must hold at least one number, such as [1e-3, 1e-4]")
    if any(not 0 <= value < math.inf or (value == 0 and bound == "above 0") for value in values):
        raise UserError(f"heads.{key}={values}: every number must be {bound}")
    if len(set(values)) < len(values):
        raise UserError(f"heads.{key}={values} holds a number twice")


def lora_of(phases: Mapping[str, PhaseSettings]) -> LoraSettings | None:
    """The adapter settings of a run, or None if none of its `phases` trains adapters.

    Raises `UserError` if two phases differ: adapters are part of the model, which is the same in all phases."""
    adapted = {name: phase.lora for name, phase in phases.items() if phase.lora is not None}
    for name, lora in adapted.items():
        first = next(iter(adapted))
        if lora != adapted[first]:
            raise UserError(
                f"stage.{name}.lora is {lora}, and stage.{first}.lora is {adapted[first]}: all phases of a run must "
                "have the same adapters"
            )
    return next(iter(adapted.values()), None)


def never_trained(model: EncoderWithHead, phases: Mapping[str, PhaseSettings]) -> set[str]:
    """The names of the parameters that every phase leaves frozen."""
    frozen = {name for name, _ in model.named_parameters()}
    for phase in phases.values():
        apply_phase(model, phase)
        frozen -= {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return frozen


def check_average(phase: PhaseSettings, settings: TrainerSettings) -> None:
    """Raises `UserError` for an average of the weights in a phase that trains a grid of heads."""
    if phase.heads is not None and settings.ema is not None:
        raise UserError(
            f"heads cannot be averaged: trainer.ema={settings.ema:g} averages one model; set trainer.ema=null"
        )


def set_train_mode(model: EncoderWithHead, batch_norm: str = "train") -> None:
    """Puts layers that train into training mode, and frozen layers into evaluation mode.

    A frozen layer in training mode would still update its batch statistics and apply drop path. If `batch_norm` (one
    of `BATCH_NORMS`) freezes the statistics, batch norms of trained layers are in evaluation mode, too.
    """
    model.train()
    modules: list[nn.Module | Encoder] = [*model.encoder.layers, model.head, model.encoder]
    for module in modules:
        if not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()
    if batch_norm in ("frozen", "frozen_statistics"):
        for norm in batch_norms(model):
            norm.eval()


def parameter_table(model: EncoderWithHead, peak_lrs: Mapping[Tensor, float], heads: Sequence[str] = ("",)) -> Table:
    """Rows (module, parameters, trained, peak learning rate): a row for each layer, and for each of the `heads`.

    `peak_lrs` maps each parameter that an optimizer holds to its peak learning rate.
    """
    modules: list[tuple[str, Iterable[nn.Parameter]]] = [
        ("encoder." + _layer_name(model.encoder, layer), layer.parameters()) for layer in model.encoder.layers
    ]
    if isinstance(model, ManyHeads) and len(heads) > 1:
        names = (f"head.{name}" for name in heads)
        modules += [(name, head.parameters()) for name, head in zip(names, model.head, strict=True)]
    else:
        modules.append(("head", model.head.parameters()))
    rows = []
    for name, module_parameters in modules:
        parameters = list(module_parameters)
        count, trained = _count(parameters)
        peak = max((peak_lrs[parameter] for parameter in parameters if parameter in peak_lrs), default=None)
        rows.append((name, f"{count:,}", f"{trained:,}", "frozen" if peak is None else f"{peak:.3g}"))
    total, trained = _count(model.parameters())
    return [*rows, ("total", f"{total:,}", f"{trained:,}", f"{trained / max(1, total):.1%}")]


def _count(parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
    """How many elements the parameters have, and how many of these train."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in parameters]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)


def _layer_name(encoder: Encoder, layer: nn.Module) -> str:
    """The layer's name in the encoder. A layer that is not a submodule of the encoder gets the names of its parts."""
    names = {module: name for name, module in encoder.named_modules()}
    if layer in names:
        return names[layer]
    layer_parameters = set(layer.parameters())
    parts = [names[module] for module in layer.modules() if module in names]
    parts += [name for name, parameter in encoder.named_parameters() if parameter in layer_parameters]
    largest = [part for part in parts if not any(part.startswith(f"{other}.") for other in parts)]
    return ", ".join(largest)


# --- parameter groups: they hold scales, by which `set_rates` multiplies the scheduled rates -------------


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter.

    It does not apply to biases, norms (one dimension), absolute or relative positions, and class and register tokens,
    as in ViT, Swin and MViT, nor to adapters, as is usual with peft. It applies to the query of an attentive pooler,
    as in V-JEPA."""
    return parameter.ndim > 1 and not name.endswith("bias") and NOT_DECAYED.search(name) is None


def parameter_groups(model: EncoderWithHead, phase: PhaseSettings) -> list[dict[str, Any]]:
    """The trainable parameters of `model.encoder` and `model.head`, grouped by their scales.

    Each group holds `params`, a `name` such as `encoder.layer03.no_decay`, `lr_scale` and `wd_scale` (1 or 0).
    With `layer_decay` d, the scale of a layer has the factor d^p, with p from `layer_powers`. The head has p = 0.
    """
    modules: list[ScaledModule] = [("head", 1.0, model.head.named_parameters())]
    names = {parameter: name for name, parameter in model.encoder.named_parameters()}
    layers = list(model.encoder.layers)
    for index, (layer, power) in enumerate(zip(layers, layer_powers(model.encoder), strict=True)):
        scale = phase.encoder_lr_scale * phase.layer_decay**power
        name = "encoder" if phase.layer_decay == 1 else f"encoder.layer{index:02d}"
        modules.append((name, scale, [(names[parameter], parameter) for parameter in layer.parameters()]))
    groups = group_parameters(modules, phase.lr_scale)
    grouped = {parameter for group in groups for parameter in group["params"]}
    missing = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter not in grouped
    ]
    if missing:
        raise UserError(
            f"parameters that train but lie in neither encoder.layers nor the head: {', '.join(missing[:8])}; "
            "let the encoder's `layers` hold them"
        )
    return groups


def group_parameters(modules: Iterable[ScaledModule], lr_scale: float) -> list[dict[str, Any]]:
    """The trainable parameters of `modules`, in groups like those of `parameter_groups`."""
    groups: dict[str, dict[str, Any]] = {}
    for module, scale, parameters in modules:
        for name, parameter in parameters:
            if not parameter.requires_grad:
                continue
            decay = decays(name, parameter)
            group_name = module if decay else f"{module}.no_decay"
            group = {"name": group_name, "params": [], "lr_scale": lr_scale * scale, "wd_scale": float(decay)}
            groups.setdefault(group_name, group)["params"].append(parameter)
    return list(groups.values())


def layer_powers(encoder: Encoder) -> list[int]:
    """The exponent of `layer_decay` for each of `encoder.layers`, as in BEiT, MAE, VideoMAE and timm.

    It is 1 for the last block, one more for each block before it, and one more again for the stem (the layers before
    the first block). A layer between two blocks, such as a patch merging, has the exponent of the later block. Layers
    after the last block, such as a final norm, have that of the head, 0.
    """
    blocks = set(encoder.blocks)
    powers, passed = [], 0
    for layer in reversed(list(encoder.layers)):
        passed += layer in blocks
        powers.append(passed + (passed == len(blocks) and layer not in blocks))
    return powers[::-1]


# --- heads: an ordinary phase trains one head, a grid many -----------------------------------------------
#
# The heads of a grid are one module that returns the logits of all heads side by side. Their losses are summed. The
# encoder is frozen and the heads share no parameters, so one backward pass gives each head its own gradients. Each
# head of a grid has its own optimizer, gradient clipping and scaler, so it trains as it would alone.

RAW, EMA = "raw", "ema"  # the trained weights, and their moving average


def head_names(grid: HeadGridSettings | None) -> list[str]:
    """A name for each head of a grid, in order, such as lr0.001_wd0.1; without a grid, the one name "raw"."""
    return [RAW] if grid is None else [f"lr{lr:g}_wd{decay:g}" for lr, decay in head_choices(grid)]


def head_choices(grid: HeadGridSettings) -> list[tuple[float, float]]:
    """The (peak learning rate, weight decay) of each head."""
    return list(itertools.product(grid.lr, grid.weight_decay))


def finite_mean(values: Sequence[float]) -> float:
    """The mean of the finite values, or NaN without any. A head that diverges so does not stop the others."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def head_value(report: Evaluation, monitor: str) -> float:
    """The report's value of `monitor`; NaN if any logits are NaN, because their argmax would count as class 0."""
    return report.metrics[monitor] if not report.has_nan else math.nan


@dataclass(frozen=True)
class Heads:
    """The heads of a phase, by their `names`: those of a `grid`, or one head if `grid` is None.

    Without a grid, `selecting` names the weights whose report selects the best checkpoint: "raw" or "ema".
    """

    grid: HeadGridSettings | None
    selecting: str = RAW

    @property
    def names(self) -> list[str]:
        return head_names(self.grid)

    def select(self, reports: Mapping[str, Evaluation], monitor: str, direction: str) -> str:
        """The name of the report that selects the best checkpoint.

        In a grid it is the head with the best `monitor`; of equal heads, the first. A head that has diverged is
        selected only if all have.
        """
        if self.grid is None:
            return self.selecting
        sign = -1 if direction == "max" else 1

        def cost(name: str) -> float:
            value = head_value(reports[name], monitor)
            return sign * value if math.isfinite(value) else math.inf

        return min(reports, key=cost)

    def put_into(self, model: EncoderWithHead, trained: EncoderWithHead, name: str) -> None:
        """Copies the head `name` from the grid in `trained` into `model`. Without a grid it does nothing, as the phase
        trains the head of `model` itself."""
        if isinstance(trained, ManyHeads) and self.grid is not None:
            model.head.load_state_dict(trained.head[self.names.index(name)].state_dict())

    def describe(self, trained: EncoderWithHead) -> str:
        """A line for the log: the size of the grid and the memory that it takes."""
        count = sum(parameter.numel() for parameter in trained.head.parameters())
        size = 4 * count * torch.float32.itemsize / 1e9
        return (
            f"{len(self.names)} heads train on one frozen encoder: {count / 1e6:.2f} M parameters, which take about "
            f"{size:.2g} GB with gradients and Adam's state, and the activations of all of them at once"
        )


# --- batch norms in fine-tuning --------------------------------------------------------------------------


def batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def prepare_batch_norm(model: EncoderWithHead, mode: str, ranks: Ranks) -> EncoderWithHead:
    """`model` with batch norms that support `mode`; parameters and buffers are the same.

    Raises `UserError` for sync on ranks without GPUs, where PyTorch does not support it.
    """
    if mode != "sync" or ranks.world_size == 1 or not batch_norms(model):
        return model
    if ranks.device.type != "cuda":
        raise UserError(
            f"trainer.batch_norm=sync needs a GPU for each of the {ranks.world_size} ranks, and this is a "
            f"{ranks.device.type}; choose train or frozen, or start one process"
        )
    # PyTorch's convert_sync_batchnorm would drop the activation functions inside timm's norms. The import takes seconds
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(model)


def freeze_batch_norm(model: nn.Module, mode: str) -> None:
    """Freezes scale and shift of all batch norms if `mode` is frozen. Call it after `apply_phase`."""
    if mode == "frozen":
        for norm in batch_norms(model):
            norm.requires_grad_(False)
