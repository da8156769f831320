"""Loads weights into a model: recognizes the format, checks that it is for this model, and reports which tensors
fit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vidtrain.errors import UserError
from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.lora import Base, BaseFile
from vidtrain.models.weights import image_models, residual_networks, torchvision, videomae, vjepa
from vidtrain.models.weights.files import content_hash, read, stamp
from vidtrain.models.weights.format import OWN, Converted, Format, LoadReport, Weights
from vidtrain.models.weights.pretraining import take_pretraining

# To add a format, write a file and name the format here
FORMATS: tuple[Format, ...] = (
    OWN,
    vjepa.VJEPA_1,
    vjepa.VJEPA_2,
    vjepa.VJEPA_2_1,
    vjepa.VJEPA_PROBE,
    vjepa.VJEPA_2_TRANSFORMERS,
    videomae.VIDEOMAE,
    videomae.VIDEOMAE_PRETRAINED,
    videomae.VIDEOMAE_TRANSFORMERS,
    torchvision.TORCHVISION_RESNET,
    torchvision.TORCHVISION_S3D,
    torchvision.TORCHVISION_MVIT,
    torchvision.TORCHVISION_SWIN,
    residual_networks.PYTORCHVIDEO_SLOWFAST,
    residual_networks.PYTORCHVIDEO_SLOW,
    residual_networks.PYTORCHVIDEO_X3D,
    residual_networks.PYSLOWFAST,
    residual_networks.PYSLOWFAST_SLOW,
    residual_networks.PYSLOWFAST_X3D,
    torchvision.PYSLOWFAST_MVIT,
    torchvision.PYTORCHVIDEO_MVIT,
    torchvision.HIERA,
    residual_networks.CLASSY_VISION_RESNEXT3D,
    image_models.EFFICIENTNET_LITE,
    image_models.TIMM_VIT,
    image_models.TIMM_FRAMES,  # last: any image model could be of timm
)
NEARLY = 0.9  # share of tensors; if fewer fit, the weights belong to another model


def load_pretrained(
    model: EncoderWithHead, source: str, path: Path, min_match: float, part: str | None = None
) -> LoadReport:
    """Loads the published weights at `path`, which the user named `source`, into a model.

    `part` chooses the encoder of a pretraining checkpoint (`Weights.part`). Raises `UserError`, before the model is
    changed, if the file cannot be read, its format is unknown or for another family of models, a setting of the model
    contradicts the weights, or less than `min_match` of the encoder's tensors, in file and model together, fit.
    """
    return load_weights(model, read(path, source), path, min_match, part)


def load_weights(
    model: EncoderWithHead, weights: Weights, path: Path, min_match: float, part: str | None = None
) -> LoadReport:
    """`load_pretrained` for weights that were already read from `path`."""
    format, converted = _convert(model, weights, path, part)
    return place(model, converted, weights.source, format, min_match)


def check_pretrained(
    model: EncoderWithHead, source: str, path: Path, min_match: float, part: str | None = None
) -> None:
    """Raises the same errors as `load_pretrained` for a model with the file's number of classes, without loading.
    `model` may be on the meta device, so that a file can be compared with a configuration before data is read."""
    format, converted = _convert(model, read(path, source), path, part)
    own = model.state_dict()
    for name, tensor in converted.tensors.items():
        if name.startswith("head.linear.") and name in own and own[name].shape[1:] == tensor.shape[1:]:
            converted.tensors[name] = own[name]
    match(model, converted, source, format, min_match)


def _convert(model: EncoderWithHead, weights: Weights, path: Path, part: str | None = None) -> tuple[Format, Converted]:
    weights = replace(weights, part=part)
    if weights.adapters is not None and weights.adapters.base is not None:
        base = base_tensors(model, weights.adapters.base, path)
        weights = replace(weights, tensors=OWN.revert(base) | dict(weights.tensors))
    format = recognize(weights, model)
    converted = format.convert(weights, model)
    take_pretraining(weights, model, format, converted)
    return format, converted


# --- the base of a checkpoint that holds adapters ---------------------------------------------------------


def load_base(model: EncoderWithHead, base: Base, checkpoint: Path) -> None:
    """Loads the tensors that `checkpoint` does not hold into a model without adapters. Raises `UserError` as
    `locate_base` does, and if a tensor is not in the files."""
    tensors = base_tensors(model, base, checkpoint)
    absent = [name for name in base.tensors if name not in tensors]
    if absent:
        files = ", ".join(file.path for file in base.files)
        raise UserError(
            f"{files}, the base of checkpoint {checkpoint}, has no tensor that fits the model's "
            f"{', '.join(absent[:4])}: the checkpoint may be of another model than its configuration says"
        )
    model.load_state_dict(tensors, strict=False)


def base_tensors(model: EncoderWithHead, base: Base, checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of `base` that fit `model`, by the model's names, from the files that `checkpoint` names."""
    own, tensors = model.state_dict(), dict[str, Tensor]()
    for file in base.files:
        path = locate_base(file, checkpoint)
        converted = _convert(model, read(path, file.source), path)[1]
        tensors |= {
            name: tensor
            for name, tensor in converted.tensors.items()
            if name in own and own[name].shape == tensor.shape
        }
    return {name: tensors[name] for name in base.tensors if name in tensors}


def locate_base(file: BaseFile, checkpoint: Path) -> Path:
    """The present path of a file of weights that `checkpoint` names: its stored path, or beside the checkpoint. The
    file is hashed unless its stamp is unchanged. Raises `UserError` naming file and hashes if it is absent or
    changed."""
    changed = []
    for place in (Path(file.path), checkpoint.parent / Path(file.path).name):
        if not place.is_file() and not place.is_dir():
            continue
        if stamp(place) == file.stamp:
            return place
        now = content_hash(place)
        if now == file.sha256:
            return place
        changed.append(f"{place} has changed: its sha256 is {now}")
    why = "; ".join(dict.fromkeys(changed)) or f"{file.path} does not exist"
    raise UserError(
        f"checkpoint {checkpoint} holds adapters of {file.source} and not the weights themselves, and {why}. The base "
        f"has sha256 {file.sha256}: put it at {file.path}, or beside the checkpoint"
    )


# --- comparing weights with a model -----------------------------------------------------------------------


def recognize(weights: Weights, model: EncoderWithHead) -> Format:
    """The format of `weights`. Raises `UserError` if it is unknown, or for another kind of encoder."""
    formats = [format for format in FORMATS if format.recognizes(weights)]
    if not formats:
        names = ", ".join(list(weights.tensors)[:6])
        known = "\n  ".join(sorted(format.name for format in FORMATS))
        raise UserError(
            f"{weights.source} has an unknown format; its first tensors are {names}. Known formats:\n  {known}"
        )
    for format in formats:
        if isinstance(model.encoder, format.encoder):
            return format
    kind = type(model.encoder).__name__
    raise UserError(f"{weights.source} is {formats[0].name}, which does not fit {kind}; choose {formats[0].models}")


def check_settings(model: EncoderWithHead, requires: Mapping[str, Any], source: str) -> None:
    """Raises `UserError` naming every setting of the model that contradicts the weights."""
    wrong = _contradictions(model, requires)
    if wrong:
        raise UserError(
            f"{source} was trained with other settings than the model's, and would compute something else; write\n  "
            + "\n  ".join(wrong)
        )


def _contradictions(model: EncoderWithHead, requires: Mapping[str, Any]) -> list[str]:
    values = {key: _setting(model, key) for key in requires}
    return [
        f"{_override(key, wanted)} (it is {_spell(values[key])})"
        for key, wanted in requires.items()
        if not _equal(values[key], wanted)
    ]


def place(model: EncoderWithHead, converted: Converted, source: str, format: Format, min_match: float) -> LoadReport:
    """Copies the tensors that `match` finds fitting into `model`. Raises as `match` does."""
    report, fitting = match(model, converted, source, format, min_match)
    model.load_state_dict(fitting, strict=False)
    return report


def match(
    model: EncoderWithHead, converted: Converted, source: str, format: Format, min_match: float
) -> tuple[LoadReport, dict[str, Tensor]]:
    """The report, and the tensors that fit `model` by name and shape; the model is not changed.

    If the file has an encoder, the encoder must fit; if it has only a head, the head must. Raises `UserError` if less
    than `min_match` of its tensors fit, or if a setting of the model contradicts the weights. The last layer of a head
    for other classes is skipped. Every tensor that only the file or only the model has counts as not fitting, as it can
    change the result: positions, norms, scales.
    """
    own = model.state_dict()
    report = LoadReport(source, format.name, left_out=converted.left_out, seen=converted.seen)
    fitting: dict[str, Tensor] = {}
    parts = [part for part in ("encoder.", "head.") if any(name.startswith(part) for name in converted.tensors)]
    checked = parts[0] if parts else "encoder."
    for name, tensor in converted.tensors.items():
        if name not in own:
            report.unexpected.append(name)
        elif own[name].shape == tensor.shape:
            report.loaded.append(name)
            fitting[name] = tensor
        elif name.startswith("head.linear.") and (checked == "encoder." or own[name].shape[1:] == tensor.shape[1:]):
            report.skipped.append(f"{name} {list(tensor.shape)} for {list(own[name].shape)}")
        else:
            report.mismatched.append(f"{name} {list(tensor.shape)} for {list(own[name].shape)}")
    report.missing = [name for name in own if name not in converted.tensors and name.startswith(tuple(parts))]
    report.changed = {name: how for name, how in converted.changed.items() if name in fitting}
    report.resized = {name: how for name, how in converted.resized.items() if name in fitting}

    loaded = sum(name.startswith(checked) for name in report.loaded)
    # old files lack the number of batches that a norm has seen, which does not affect the outputs
    missing = [name for name in report.missing if not name.endswith(".num_batches_tracked")]
    not_loaded = sum(name.startswith(checked) for name in (*missing, *report.mismatched, *report.unexpected))
    report.match = loaded / max(1, loaded + not_loaded + len(converted.unexpected))
    report.unexpected += converted.unexpected
    if report.match < min_match:
        raise UserError(_misfit(model, converted, report, format, checked[:-1], min_match))
    check_settings(model, converted.requires, f"{source} ({format.name}, for {format.models})")
    return report, fitting


def _misfit(
    model: EncoderWithHead,
    converted: Converted,
    report: LoadReport,
    format: Format,
    part: str,
    min_match: float,
) -> str:
    lines = [
        f"{report.source} fits the model's {part} by only {report.match:.1%}, below init_match={min_match:g}: it may "
        f"have another architecture or size. Its format is for {format.models}"
    ]
    wrong = _contradictions(model, converted.requires)
    if wrong:
        lines.append(f"it needs {', '.join(wrong)}")
    elif report.match >= NEARLY:
        lines.append(
            f"init_match={math.floor(100 * report.match) / 100} would load the fitting tensors; the {part} then "
            "computes something else"
        )
    return "\n  ".join([*lines, *report.lines()])


def _setting(model: EncoderWithHead, key: str) -> Any:
    """The value at a dotted path of attributes; "not there" if the model has no such part."""
    node = model
    for name in key.split("."):
        if not hasattr(node, name):
            return "not there"
        node = getattr(node, name)
    return node


def _equal(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, float) and isinstance(value, int | float):
        return math.isclose(value, wanted)
    if isinstance(wanted, Sequence) and not isinstance(wanted, str) and isinstance(value, Sequence):
        return list(value) == list(wanted)
    return value == wanted


def _override(key: str, value: Any) -> str:
    """The setting as a user writes it. Inner parts, such as a head's pooler, get their settings from the outer part."""
    part, *names = key.split(".")
    return f"model.{'.'.join([part, *names[-1:]])}={_spell(value)}"


def _spell(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value)) if isinstance(value, tuple) else str(value)


def published_classes(source: str, path: Path) -> tuple[str, ...] | None:
    """The class names of the weights `source` at `path`, in the order of their logits; None if neither the name nor a
    config.json beside the weights gives them."""
    if torchvision.is_enum_name(source):
        return tuple(torchvision.enum_weights(source).meta["categories"])
    config = read(path, source).config
    if config is None or "id2label" not in config:
        return None
    by_number = {int(number): name for number, name in config["id2label"].items()}
    if sorted(by_number) != list(range(len(by_number))):
        raise UserError(f"{source}: id2label in config.json does not number its classes from 0; give classes=")
    return tuple(by_number[number] for number in range(len(by_number)))


def num_classes(sources: Sequence[str], paths: Sequence[Path], model: EncoderWithHead) -> int:
    """The number of classes of the published head; `model` may have any number of classes and be on the meta device.
    Raises UserError for weights without a head."""
    tensors: dict[str, Tensor] = {}
    for source, path in zip(sources, paths, strict=True):
        tensors |= _convert(model, read(path, source), path)[1].tensors
    if "head.linear.weight" not in tensors:
        raise UserError(
            f"{' and '.join(sources)} have an encoder but no classifier that fits model.head: train one first, with "
            "python -m vidtrain.train pretrained=..., and export that run"
        )
    return len(tensors["head.linear.weight"])
