"""Classy Vision's ResNeXt3D: a whole training checkpoint, a model's `get_classy_state()`, or a plain state dict.

Strides and the stem's max pool cannot be read from tensors: set them as in the published config. Kernels of one frame,
from image models, are inflated to the model's (Carreira and Zisserman 2017, arXiv:1705.07750).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from einops import repeat
from torch import Tensor

from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.residual3d import BASIC, POSTACTIVATED, PREACTIVATED, ResNeXt3D
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights

STATE = re.compile(
    r"(?:(?:classy_state_dict\.)?base_model\.)?(?:model\.)?(?:module\.)?"
    r"(?:trunk\.(?P<trunk>.+)|_?heads\.(?P<head>[^.]+\.[^.]+)\.(?P<inside>.+)|(?P<plain>(?:stem|stages)\..+))"
)
BLOCK = re.compile(r"trunk\.stages\.(\d+)\.pathway0\.pathway0-stage\d+-block(\d+)\..+")
OUR_BLOCK = re.compile(r"encoder\.stages\.(\d+)\.(\d+)\..+")
STEM = "trunk.stem.stem.stem-path0"
FIRST = "trunk.stages.0.pathway0.pathway0-stage1-block0"
HEAD_ID = "default_head"  # the name of the head in Classy Vision's configs
BOTTLENECK = {f"branch2{part}": f"conv_{part}" for part in "abc"}
BOTTLENECK |= {f"branch2{part}_bn": f"norm_{part}" for part in "abc"}
BASIC_PARTS = {
    "transform.0": "conv_a",
    "transform.1": "norm_a",
    "transform.3": "conv_b",
    "transform.4": "norm_b",
}


def _names(num_blocks: list[int], residual: str) -> Renaming:
    pairs = [(f"{STEM}.conv", "encoder.stem.conv"), (f"{STEM}.bn", "encoder.stem.norm")]
    for stage in range(len(num_blocks)):
        theirs = f"trunk.stages.{stage}.pathway0.pathway0-stage{stage + 1}-block{{n}}"
        ours = f"encoder.stages.{stage}.{{n}}"
        for part, name in (BASIC_PARTS if residual == BASIC else BOTTLENECK).items():
            pairs.append((f"{theirs}.residual.{part}", f"{ours}.branch.{name}"))
        pairs.append((f"{theirs}.skip.branch1", f"{ours}.shortcut.conv"))
        pairs.append((f"{theirs}.skip.branch1_bn", f"{ours}.shortcut.norm"))
    last = f"pathway0-stage{len(num_blocks)}-block{num_blocks[-1] - 1}"
    if residual == PREACTIVATED:
        pairs.append((f"trunk.stages.{len(num_blocks) - 1}.pathway0.{last}-bn", "encoder.norm.0"))
        last += "-relu"
    return Renaming([*pairs, (f"heads.{last}.{HEAD_ID}.head_fcl.projection", "head.linear")])


def _counted(names: Iterable[str], block: re.Pattern[str]) -> list[int]:
    """The number of blocks of each stage."""
    counts: dict[int, int] = defaultdict(int)
    for match in filter(None, map(block.fullmatch, names)):
        counts[int(match[1])] = max(counts[int(match[1])], int(match[2]) + 1)
    return [counts[stage] for stage in sorted(counts)]


def _trunk(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    converted = {}
    for name, tensor in tensors.items():
        match = STATE.fullmatch(name)
        if match and not match["head"]:
            # In a plain state dict, a block with a head is wrapped in another module
            converted["trunk." + (match["trunk"] or match["plain"]).replace("._module.", ".")] = tensor
    return converted


def _heads(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each head, by their names inside it. The name of a head consists of its block's name and its
    own."""
    heads: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        match = STATE.fullmatch(name)
        if match and match["head"]:
            heads[match["head"]][match["inside"]] = tensor
    return heads


def _recognizes(weights: Weights) -> bool:
    names = _trunk(weights.tensors).keys()
    return f"{STEM}.conv.weight" in names and any(map(BLOCK.fullmatch, names))


def _convert(weights: Weights, model: EncoderWithHead) -> Converted:
    trunk, heads = _trunk(weights.tensors), _heads(weights.tensors)
    num_blocks = _counted(trunk, BLOCK)
    residual = _residual(trunk)
    names = _names(num_blocks, residual)
    converted = names.convert(trunk)
    converted.left_out = {name: "not part of the network" for name in weights.tensors if not STATE.fullmatch(name)}
    for head, tensors in heads.items():
        for inside, tensor in tensors.items():
            name = f"heads.{head}.{inside}"
            if len(heads) > 1:
                converted.left_out[name] = "one of several heads; the model has one"
            elif inside.startswith("head_fcl.projection."):
                converted.tensors[f"head.linear.{inside.removeprefix('head_fcl.projection.')}"] = tensor
            else:
                converted.unexpected.append(name)
    converted.requires = _settings(trunk, num_blocks, residual)
    _inflate(converted, model)
    return converted


def _revert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in "model" of `get_classy_state()`, by dotted names, with the head called default_head."""
    residual = POSTACTIVATED if any(".branch.conv_c." in name for name in tensors) else BASIC
    if any(name.startswith("encoder.norm.") for name in tensors):
        residual = PREACTIVATED
    return _names(_counted(tensors, OUR_BLOCK), residual).revert(tensors)


def _residual(trunk: Mapping[str, Tensor]) -> str:
    if any(".residual.transform." in name for name in trunk):
        return BASIC
    norm_of_last_sum = any(name.endswith("-bn.weight") for name in trunk)
    return PREACTIVATED if norm_of_last_sum else POSTACTIVATED


def _settings(trunk: Mapping[str, Tensor], num_blocks: list[int], residual: str) -> dict[str, Any]:
    """The settings that can be read from the tensors."""
    middle = "transform.3" if residual == BASIC else "branch2b"
    last = "transform.3" if residual == BASIC else "branch2c"
    weights = {f"{FIRST}.residual.{part}.weight" for part in (middle, last)}
    settings: dict[str, Any] = {
        "encoder.num_blocks": num_blocks,
        "encoder.residual_transformation_type": residual,
        "encoder.stem_planes": trunk[f"{STEM}.conv.weight"].shape[0],
    }
    if weights <= trunk.keys():
        inner, in_group = trunk[f"{FIRST}.residual.{middle}.weight"].shape[:2]
        settings["encoder.num_groups"] = inner // in_group
        settings["encoder.stage_planes"] = trunk[f"{FIRST}.residual.{last}.weight"].shape[0]
        if residual != BASIC:
            settings["encoder.width_per_group"] = in_group
    for name, weight in trunk.items():
        if name.endswith(".skip.branch1.weight") and weight.shape[0] != weight.shape[1]:
            norm = name.replace("branch1.weight", "branch1_bn.weight")
            norm_last = norm in trunk and trunk[norm].shape[0] == weight.shape[0]
            kind = "postactivated_shortcut" if norm_last else "preactivated_shortcut"
            settings["encoder.skip_transformation_type"] = kind
    return settings


def _inflate(converted: Converted, model: EncoderWithHead) -> None:
    """Repeats kernels of one frame to the model's number of frames, divided by it, so that a still video gives the same
    output."""
    own = model.state_dict()
    for name, weight in converted.tensors.items():
        if name in own and weight.ndim == own[name].ndim == 5 and weight.shape[2] == 1 < own[name].shape[2]:
            frames = own[name].shape[2]
            converted.tensors[name] = repeat(weight, "o i 1 h w -> o i t h w", t=frames) / frames
            converted.resized[name] = f"a kernel of 1 frame inflated to {frames}"


CLASSY_VISION_RESNEXT3D = Format(
    name="Classy Vision, ResNeXt3D",
    encoder=ResNeXt3D,
    models="model=resnext3d_18, or another resnext3d_*",
    recognizes=_recognizes,
    convert=_convert,
    revert=_revert,
)
