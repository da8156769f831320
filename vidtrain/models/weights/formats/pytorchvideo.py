"""PyTorchVideo's SlowFast, Slow and X3D, such as SLOWFAST_8x8_R50.pyth, SLOW_8x8_R50.pyth and X3D_S.pyth of its model
zoo.

They are files {"model_state": ...}; a plain state dict, or that of a module that wraps the network, is read too.
"""

import re
from collections.abc import Mapping
from typing import Any

from einops import rearrange
from torch import Tensor

from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.slowfast import NUM_BLOCKS, SlowFast, SlowOnly
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights
from vidtrain.models.x3d import X3D

WRAPPED = re.compile(r"(?:(?:model_state|state_dict|model|module)\.)*(blocks\.\d+\..+)")
X3D_BLOCK = re.compile(r"blocks\.([1-4])\.res_blocks\.(\d+)\.branch2\.conv_a\.weight")
STAGES = range(1, 5)  # theirs; block 0 is the stem, the last one the head
PATHS = {"slow": 0, "fast": 1}
# How far apart the slow pathway's frames are is in no tensor; this is what was published, by depth and fusion kernel
PUBLISHED_ALPHA = {(50, 7): 4, (50, 5): 8, (101, 5): 4}


def _residual(theirs: str, ours: str) -> list[tuple[str, str]]:
    return [
        (f"{theirs}.branch1_conv", f"{ours}.shortcut.conv"),
        (f"{theirs}.branch1_norm", f"{ours}.shortcut.norm"),
        (f"{theirs}.branch2", f"{ours}.branch"),
    ]


def _slowfast_names() -> Renaming:
    pairs = [("blocks.6.proj", "head.linear")]
    for path, index in PATHS.items():
        pairs.append((f"blocks.0.multipathway_blocks.{index}", f"encoder.stem.{path}"))
        for stage in STAGES:
            theirs = f"blocks.{stage}.multipathway_blocks.{index}.res_blocks.{{n}}"
            pairs += _residual(theirs, f"encoder.stages.{stage - 1}.{{n}}.{path}")
    for stage in STAGES:  # theirs ends a stage with what ours begins the next one with
        theirs, ours = f"blocks.{stage - 1}.multipathway_fusion", f"encoder.stages.{stage - 1}.0.fusion"
        pairs += [(f"{theirs}.conv_fast_to_slow", f"{ours}.conv"), (f"{theirs}.norm", f"{ours}.norm")]
    return Renaming(pairs)


def _slow_names() -> Renaming:
    pairs = [("blocks.0", "encoder.stem"), ("blocks.5.proj", "head.linear")]
    for stage in STAGES:
        pairs += _residual(f"blocks.{stage}.res_blocks.{{n}}", f"encoder.stages.{stage - 1}.{{n}}")
    return Renaming(pairs)


def _x3d_names() -> Renaming:
    pairs = [
        # the first convolution is the one of a frame, whatever it is called
        ("blocks.0.conv.conv_t", "encoder.stem.conv_xy"),
        ("blocks.0.conv.conv_xy", "encoder.stem.conv_t"),
        ("blocks.0.norm", "encoder.stem.norm"),
        ("blocks.5.pool.pre_conv", "encoder.conv5.conv"),
        ("blocks.5.pool.pre_norm", "encoder.conv5.norm"),
        ("blocks.5.pool.post_conv", "head.hidden.0"),
        ("blocks.5.proj", "head.linear"),
    ]
    for stage in STAGES:
        theirs, ours = f"blocks.{stage}.res_blocks.{{n}}", f"encoder.stages.{stage - 1}.{{n}}"
        pairs += [
            (f"{theirs}.branch2.norm_b.0", f"{ours}.branch.norm_b"),
            (f"{theirs}.branch2.norm_b.1.block.0", f"{ours}.branch.squeeze.fc1"),
            (f"{theirs}.branch2.norm_b.1.block.2", f"{ours}.branch.squeeze.fc2"),
        ]
        pairs += _residual(theirs, ours)
    return Renaming(pairs)


SLOWFAST_NAMES = _slowfast_names()
SLOW_NAMES = _slow_names()
X3D_NAMES = _x3d_names()


def _unwrapped(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The network's tensors by their names in it, and why each of the others is left out."""
    found, left_out = {}, {}
    for name, tensor in tensors.items():
        match = WRAPPED.fullmatch(name)
        if match:
            found[match[1]] = tensor
        else:
            left_out[name] = "no part of the network"
    return found, left_out


def _depth(tensors: Mapping[str, Tensor], block: str) -> int | None:
    """The depth of the ResNet that has these stages; `block` is a block's name with {stage} and {index}."""
    name = block + ".branch2.conv_a.weight"
    for depth, counts in NUM_BLOCKS.items():
        within = all(
            name.format(stage=s, index=n - 1) in tensors for s, n in zip(STAGES, counts, strict=True)
        )
        beyond = any(name.format(stage=s, index=n) in tensors for s, n in zip(STAGES, counts, strict=True))
        if within and not beyond:
            return depth
    return None


def _is_slowfast(weights: Weights) -> bool:
    tensors, _ = _unwrapped(weights.tensors)
    stems = {f"blocks.0.multipathway_blocks.{index}.conv.weight" for index in PATHS.values()}
    return stems | {"blocks.0.multipathway_fusion.conv_fast_to_slow.weight"} <= tensors.keys()


def _is_slow(weights: Weights) -> bool:
    """Other ResNets of PyTorchVideo differ: I3D in the stem, C2D in its blocks' numbers, CSN in its 3 x 3 x 3."""
    tensors, _ = _unwrapped(weights.tensors)
    stem, middle = "blocks.0.conv.weight", "blocks.4.res_blocks.0.branch2.conv_b.weight"
    if not {stem, middle} <= tensors.keys() or any(
        name.startswith("blocks.5.res_blocks.") for name in tensors
    ):
        return False
    return tensors[stem].shape[2] == 1 and tensors[middle].shape[2] == 1


def _convert_slowfast(weights: Weights, model: EncoderWithHead) -> Converted:
    tensors, left_out = _unwrapped(weights.tensors)
    found = SLOWFAST_NAMES.convert(tensors)
    found.left_out = left_out
    slow, fast = (
        tensors[f"blocks.0.multipathway_blocks.{index}.conv.weight"].shape[0] for index in PATHS.values()
    )
    fusion = tensors["blocks.0.multipathway_fusion.conv_fast_to_slow.weight"]
    requires: dict[str, Any] = {
        "encoder.width": slow,
        "encoder.beta_inv": slow // fast,
        "encoder.fusion_ratio": fusion.shape[0] // fusion.shape[1],
        "encoder.fusion_kernel": fusion.shape[2],
    }
    depth = _depth(tensors, "blocks.{stage}.multipathway_blocks.0.res_blocks.{index}")
    if depth is not None:
        requires["encoder.depth"] = depth
    if depth is not None and (depth, fusion.shape[2]) in PUBLISHED_ALPHA:
        requires["encoder.alpha"] = PUBLISHED_ALPHA[depth, fusion.shape[2]]
    found.requires = requires
    return found


def _convert_slow(weights: Weights, model: EncoderWithHead) -> Converted:
    tensors, left_out = _unwrapped(weights.tensors)
    found = SLOW_NAMES.convert(tensors)
    found.left_out = left_out
    found.requires = {"encoder.width": tensors["blocks.0.conv.weight"].shape[0]}
    depth = _depth(tensors, "blocks.{stage}.res_blocks.{index}")
    if depth is not None:
        found.requires["encoder.depth"] = depth
    return found


def _is_x3d(weights: Weights) -> bool:
    tensors, _ = _unwrapped(weights.tensors)
    return {"blocks.0.conv.conv_t.weight", "blocks.5.pool.pre_conv.weight"} <= tensors.keys()


def _convert_x3d(weights: Weights, model: EncoderWithHead) -> Converted:
    tensors, left_out = _unwrapped(weights.tensors)
    found = X3D_NAMES.convert(tensors)
    found.left_out = left_out
    if "head.hidden.0.weight" in found.tensors:
        found.tensors["head.hidden.0.weight"] = found.tensors["head.hidden.0.weight"].flatten(1)
        found.changed["head.hidden.0.weight"] = "a convolution of one place, as a linear layer"
    blocks = [match for match in map(X3D_BLOCK.fullmatch, tensors) if match]
    found.requires = {
        "encoder.num_blocks": [
            1 + max((int(match[2]) for match in blocks if int(match[1]) == stage), default=-1)
            for stage in STAGES
        ],
        "encoder.width": tensors["blocks.0.conv.conv_t.weight"].shape[0],
        "encoder.norm_first_shortcut": "blocks.1.res_blocks.0.branch1_norm.weight" in tensors,
    }
    return found


def _revert_x3d(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = X3D_NAMES.revert(tensors)
    name = "blocks.5.pool.post_conv.weight"
    return found | {name: rearrange(found[name], "k d -> k d 1 1 1")} if name in found else found


PYTORCHVIDEO_SLOWFAST = Format(
    name="PyTorchVideo, SlowFast",
    encoder=SlowFast,
    models="model=slowfast_r50",
    recognizes=_is_slowfast,
    convert=_convert_slowfast,
    revert=SLOWFAST_NAMES.revert,
)
PYTORCHVIDEO_SLOW = Format(
    name="PyTorchVideo, Slow",
    encoder=SlowOnly,
    models="model=slow_r50",
    recognizes=_is_slow,
    convert=_convert_slow,
    revert=SLOW_NAMES.revert,
)
PYTORCHVIDEO_X3D = Format(
    name="PyTorchVideo, X3D",
    encoder=X3D,
    models="model=x3d_xs, x3d_s, x3d_m or x3d_l",
    recognizes=_is_x3d,
    convert=_convert_x3d,
    revert=_revert_x3d,
)
