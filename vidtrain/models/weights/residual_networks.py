"""Weights of 3D residual networks: SlowFast, Slow and X3D of PyTorchVideo and PySlowFast; Classy Vision's ResNeXt3D."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from einops import rearrange, repeat
from torch import Tensor

from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.residual3d import BASIC, POSTACTIVATED, PREACTIVATED, X3D, ResNeXt3D
from vidtrain.models.slowfast import NUM_BLOCKS, SlowFast, SlowOnly
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights

# --- PyTorchVideo, such as SLOWFAST_8x8_R50.pyth: {"model_state": ...} or a plain state dict ---------------------

WRAPPED = re.compile(r"(?:(?:model_state|state_dict|model|module)\.)*(blocks\.\d+\..+)")
BLOCK = re.compile(r"blocks\.([1-4])\.(?:multipathway_blocks\.0\.)?res_blocks\.(\d+)\.branch2\.conv_a\.weight")
STAGES = range(1, 5)  # theirs; block 0 is the stem, the last one the head
PATHS = {"slow": 0, "fast": 1}
DEPTHS = {tuple[int, ...](counts): depth for depth, counts in NUM_BLOCKS.items()}
# The stride of the slow pathway's frames cannot be read from tensors: the published ones by (depth, fusion kernel)
PUBLISHED_ALPHA = {(50, 7): 4, (50, 5): 8, (101, 5): 4}
STEMS = [f"blocks.0.multipathway_blocks.{index}.conv.weight" for index in PATHS.values()]
FUSION = "blocks.0.multipathway_fusion.conv_fast_to_slow.weight"
LAST_LAYER = "blocks.5.pool.post_conv.weight"

Pairs = list[tuple[str, str]]


def _residual(theirs: str, ours: str) -> Pairs:
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
    for stage in STAGES:  # their lateral connection ends a stage, ours starts the next one
        theirs, ours = f"blocks.{stage - 1}.multipathway_fusion", f"encoder.stages.{stage - 1}.0.fusion"
        pairs += [(f"{theirs}.conv_fast_to_slow", f"{ours}.conv"), (f"{theirs}.norm", f"{ours}.norm")]
    return Renaming(pairs)


def _one_path_names(pairs: Pairs, norm_b: bool) -> Renaming:
    """A renaming of `pairs` and the blocks; with `norm_b`, it includes squeeze and excitation after that norm."""
    for stage in STAGES:
        theirs, ours = f"blocks.{stage}.res_blocks.{{n}}", f"encoder.stages.{stage - 1}.{{n}}"
        if norm_b:
            pairs += [
                (f"{theirs}.branch2.norm_b.0", f"{ours}.branch.norm_b"),
                (f"{theirs}.branch2.norm_b.1.block.0", f"{ours}.branch.squeeze.fc1"),
                (f"{theirs}.branch2.norm_b.1.block.2", f"{ours}.branch.squeeze.fc2"),
            ]
        pairs += _residual(theirs, ours)
    return Renaming(pairs)


SLOWFAST_NAMES = _slowfast_names()
SLOW_NAMES = _one_path_names([("blocks.0", "encoder.stem"), ("blocks.5.proj", "head.linear")], norm_b=False)
X3D_NAMES = _one_path_names(
    [
        # PyTorchVideo calls the spatial convolution conv_t, and the temporal one conv_xy
        ("blocks.0.conv.conv_t", "encoder.stem.conv_xy"),
        ("blocks.0.conv.conv_xy", "encoder.stem.conv_t"),
        ("blocks.0.norm", "encoder.stem.norm"),
        ("blocks.5.pool.pre_conv", "encoder.conv5.conv"),
        ("blocks.5.pool.pre_norm", "encoder.conv5.norm"),
        ("blocks.5.pool.post_conv", "head.hidden.0"),
        ("blocks.5.proj", "head.linear"),
    ],
    norm_b=True,
)


def _unwrapped(weights: Weights) -> dict[str, Tensor]:
    """The network's tensors, without prefixes of wrappers."""
    matches = ((WRAPPED.fullmatch(name), tensor) for name, tensor in weights.tensors.items())
    return {match[1]: tensor for match, tensor in matches if match}


def _named(weights: Weights, names: Renaming) -> Converted:
    converted = names.convert(_unwrapped(weights))
    outside = [name for name in weights.tensors if not WRAPPED.fullmatch(name)]
    converted.left_out = dict.fromkeys(outside, "not part of the network")
    return converted


def _counted(names: Iterable[str], block: re.Pattern[str]) -> list[int]:
    """The number of blocks of each stage; with two pathways, those of the slow one."""
    counts: dict[int, int] = defaultdict(int)
    for match in filter(None, map(block.fullmatch, names)):
        counts[int(match[1])] = max(counts[int(match[1])], int(match[2]) + 1)
    return [counts[stage] for stage in sorted(counts)]


def _is_slow(weights: Weights) -> bool:
    """Whether the tensors are Slow's. PyTorchVideo's other ResNets differ: I3D in the stem's kernel, C2D in the numbers
    of blocks, CSN in its 3 x 3 x 3 kernels."""
    tensors = _unwrapped(weights)
    stem, middle = "blocks.0.conv.weight", "blocks.4.res_blocks.0.branch2.conv_b.weight"
    if not {stem, middle} <= tensors.keys() or any(name.startswith("blocks.5.res_blocks.") for name in tensors):
        return False
    return tensors[stem].shape[2] == 1 and tensors[middle].shape[2] == 1


def _is_x3d(weights: Weights) -> bool:
    return {"blocks.0.conv.conv_t.weight", "blocks.5.pool.pre_conv.weight"} <= _unwrapped(weights).keys()


def _convert_slowfast(weights: Weights, model: EncoderWithHead) -> Converted:
    tensors, converted = _unwrapped(weights), _named(weights, SLOWFAST_NAMES)
    slow, fast = (len(tensors[stem]) for stem in STEMS)
    channels, fast_channels, kernel = tensors[FUSION].shape[:3]
    converted.requires = {
        "encoder.width": slow,
        "encoder.beta_inv": slow // fast,
        "encoder.fusion_ratio": channels // fast_channels,
        "encoder.fusion_kernel": kernel,
    }
    depth = DEPTHS.get(tuple(_counted(tensors, BLOCK)))
    if depth is not None:
        converted.requires["encoder.depth"] = depth
        if (depth, kernel) in PUBLISHED_ALPHA:
            converted.requires["encoder.alpha"] = PUBLISHED_ALPHA[depth, kernel]
    return converted


def _convert_slow(weights: Weights, model: EncoderWithHead) -> Converted:
    tensors, converted = _unwrapped(weights), _named(weights, SLOW_NAMES)
    converted.requires = {"encoder.width": len(tensors["blocks.0.conv.weight"])}
    depth = DEPTHS.get(tuple(_counted(tensors, BLOCK)))
    if depth is not None:
        converted.requires["encoder.depth"] = depth
    return converted


def _convert_x3d(weights: Weights, model: EncoderWithHead) -> Converted:
    tensors, converted = _unwrapped(weights), _named(weights, X3D_NAMES)
    hidden = "head.hidden.0.weight"
    if hidden in converted.tensors:
        converted.tensors[hidden] = converted.tensors[hidden].flatten(1)
        converted.changed[hidden] = "a 1x1x1 convolution, as a linear layer"
    converted.requires = {
        "encoder.num_blocks": _counted(tensors, BLOCK),
        "encoder.width": len(tensors["blocks.0.conv.conv_t.weight"]),
        "encoder.norm_first_shortcut": "blocks.1.res_blocks.0.branch1_norm.weight" in tensors,
    }
    return converted


def _revert_x3d(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    reverted = X3D_NAMES.revert(tensors)
    if LAST_LAYER in reverted:
        reverted[LAST_LAYER] = rearrange(reverted[LAST_LAYER], "k d -> k d 1 1 1")
    return reverted


PYTORCHVIDEO_SLOWFAST = Format(
    name="PyTorchVideo, SlowFast",
    encoder=SlowFast,
    models="model=slowfast_r50",
    recognizes=lambda weights: {*STEMS, FUSION} <= _unwrapped(weights).keys(),
    convert=_convert_slowfast,
    revert=SLOWFAST_NAMES.revert,
)
PYTORCHVIDEO_SLOW = Format("PyTorchVideo, Slow", SlowOnly, "model=slow_r50", _is_slow, _convert_slow, SLOW_NAMES.revert)
PYTORCHVIDEO_X3D = Format(
    "PyTorchVideo, X3D", X3D, "model=x3d_xs, x3d_s, x3d_m or x3d_l", _is_x3d, _convert_x3d, _revert_x3d
)

# --- PySlowFast, with the names of its slowfast/models, which are converted to PyTorchVideo's first ---------------

PYSLOWFAST_WRAPPED = re.compile(r"(?:(?:model_state|state_dict|model|module)\.)*((?:s\d(?:_fuse)?|head)\..+)")
BRANCH = {f"branch2.{layer}": f"branch2.conv_{layer}" for layer in "abc"}
BRANCH |= {f"branch2.{layer}_bn": f"branch2.norm_{layer}" for layer in "abc"}
BRANCH |= {"branch1": "branch1_conv", "branch1_bn": "branch1_norm"}


def _pathway(pathway: int, stem: str, stage_of: str) -> Pairs:
    """Pairs of names for a pathway's stem and blocks; `stage_of` is PyTorchVideo's name of the pathway in a stage."""
    theirs = f"s1.pathway{pathway}_stem"
    pairs = [(f"{theirs}.conv", f"{stem}.conv"), (f"{theirs}.bn", f"{stem}.norm")]
    for stage in STAGES:
        theirs, torchs = f"s{stage + 1}.pathway{pathway}_res{{n}}", f"{stage_of.format(stage)}.res_blocks.{{n}}"
        pairs += [(f"{theirs}.{name}", f"{torchs}.{torch_name}") for name, torch_name in BRANCH.items()]
    return pairs


def _pyslowfast_slowfast() -> Pairs:
    pairs = [("head.projection", "blocks.6.proj")]
    for pathway in PATHS.values():
        inside = f"multipathway_blocks.{pathway}"
        pairs += _pathway(pathway, f"blocks.0.{inside}", f"blocks.{{}}.{inside}")
    for stage in STAGES:
        theirs, torchs = f"s{stage}_fuse", f"blocks.{stage - 1}.multipathway_fusion"
        pairs += [(f"{theirs}.conv_f2s", f"{torchs}.conv_fast_to_slow"), (f"{theirs}.bn", f"{torchs}.norm")]
    return pairs


def _pyslowfast_x3d() -> Pairs:
    pairs = [
        ("s1.pathway0_stem.conv_xy", "blocks.0.conv.conv_t"),
        ("s1.pathway0_stem.conv", "blocks.0.conv.conv_xy"),
        ("s1.pathway0_stem.bn", "blocks.0.norm"),
        ("head.conv_5", "blocks.5.pool.pre_conv"),
        ("head.conv_5_bn", "blocks.5.pool.pre_norm"),
        ("head.lin_5", "blocks.5.pool.post_conv"),
        ("head.projection", "blocks.5.proj"),
    ]
    for stage in STAGES:
        theirs, torchs = f"s{stage + 1}.pathway0_res{{n}}.branch2", f"blocks.{stage}.res_blocks.{{n}}.branch2"
        pairs += [
            (f"{theirs}.b_bn", f"{torchs}.norm_b.0"),
            (f"{theirs}.se.fc1", f"{torchs}.norm_b.1.block.0"),
            (f"{theirs}.se.fc2", f"{torchs}.norm_b.1.block.2"),
        ]
    return pairs + _pathway(0, "blocks.0", "blocks.{}")


def _pyslowfast(name: str, pairs: Pairs, base: Format) -> Format:
    """The format `base` with PySlowFast's names."""
    names = Renaming(pairs)

    def renamed(weights: Weights) -> tuple[Weights, list[str]]:
        """The weights with PyTorchVideo's names, and names without a counterpart, such as those of non-local blocks."""
        tensors, unexpected = {}, []
        for own, tensor in weights.tensors.items():
            match = PYSLOWFAST_WRAPPED.fullmatch(own)
            torchs = names.to_ours(match[1]) if match else own
            if torchs is None:
                unexpected.append(own)
            else:
                tensors[torchs] = tensor
        return replace(weights, tensors=tensors), unexpected

    def recognizes(weights: Weights) -> bool:
        bare = {match[1] for match in map(PYSLOWFAST_WRAPPED.fullmatch, weights.tensors) if match}
        two_paths = "s1_fuse.conv_f2s.weight" in bare
        matches = "s1.pathway0_stem.conv.weight" in bare and two_paths == (base.encoder is SlowFast)
        return matches and base.recognizes(renamed(weights)[0])

    def convert(weights: Weights, model: EncoderWithHead) -> Converted:
        own, unexpected = renamed(weights)
        converted = base.convert(own, model)
        converted.unexpected += unexpected
        return converted

    def revert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return names.revert(base.revert(tensors))

    return Format(name, base.encoder, base.models, recognizes, convert, revert)


PYSLOWFAST = _pyslowfast("PySlowFast, SlowFast", _pyslowfast_slowfast(), PYTORCHVIDEO_SLOWFAST)
PYSLOWFAST_SLOW = _pyslowfast(
    "PySlowFast, Slow",
    [("head.projection", "blocks.5.proj"), *_pathway(0, "blocks.0", "blocks.{}")],
    PYTORCHVIDEO_SLOW,
)
PYSLOWFAST_X3D = _pyslowfast("PySlowFast, X3D", _pyslowfast_x3d(), PYTORCHVIDEO_X3D)


# --- Classy Vision: a training checkpoint, a model's `get_classy_state()`, or a plain state dict. Strides and the -----
# --- stem's max pool cannot be read from tensors: set them as in the published config ------------------------------

STATE = re.compile(
    r"(?:(?:classy_state_dict\.)?base_model\.)?(?:model\.)?(?:module\.)?"
    r"(?:trunk\.(?P<trunk>.+)|_?heads\.(?P<head>[^.]+\.[^.]+)\.(?P<inside>.+)|(?P<plain>(?:stem|stages)\..+))"
)
CLASSY_BLOCK = re.compile(r"trunk\.stages\.(\d+)\.pathway0\.pathway0-stage\d+-block(\d+)\..+")
OUR_BLOCK = re.compile(r"encoder\.stages\.(\d+)\.(\d+)\..+")
STEM = "trunk.stem.stem.stem-path0"
FIRST = "trunk.stages.0.pathway0.pathway0-stage1-block0"
HEAD_ID = "default_head"  # the name of the head in Classy Vision's configs
BOTTLENECK = {f"branch2{part}": f"conv_{part}" for part in "abc"}
BOTTLENECK |= {f"branch2{part}_bn": f"norm_{part}" for part in "abc"}
BASIC_PARTS = {"transform.0": "conv_a", "transform.1": "norm_a", "transform.3": "conv_b", "transform.4": "norm_b"}


def _resnext_names(num_blocks: list[int], residual: str) -> Renaming:
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


def _trunk_and_heads(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The trunk, and the tensors of each head by their names inside it. A head's name is that of its block and its
    own."""
    trunk: dict[str, Tensor] = {}
    heads: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        match = STATE.fullmatch(name)
        if match and match["head"]:
            heads[match["head"]][match["inside"]] = tensor
        elif match:
            # In a plain state dict, a block with a head is wrapped in another module
            trunk["trunk." + (match["trunk"] or match["plain"]).replace("._module.", ".")] = tensor
    return trunk, heads


def _is_resnext(weights: Weights) -> bool:
    names = _trunk_and_heads(weights.tensors)[0].keys()
    return f"{STEM}.conv.weight" in names and any(map(CLASSY_BLOCK.fullmatch, names))


def _convert_resnext(weights: Weights, model: EncoderWithHead) -> Converted:
    trunk, heads = _trunk_and_heads(weights.tensors)
    num_blocks = _counted(trunk, CLASSY_BLOCK)
    residual = _residual_type(trunk)
    names = _resnext_names(num_blocks, residual)
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
    converted.requires = _resnext_settings(trunk, num_blocks, residual)
    _inflate(converted, model)
    return converted


def _revert_resnext(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in "model" of `get_classy_state()`, by dotted names, with the head called default_head."""
    residual = POSTACTIVATED if any(".branch.conv_c." in name for name in tensors) else BASIC
    if any(name.startswith("encoder.norm.") for name in tensors):
        residual = PREACTIVATED
    return _resnext_names(_counted(tensors, OUR_BLOCK), residual).revert(tensors)


def _residual_type(trunk: Mapping[str, Tensor]) -> str:
    if any(".residual.transform." in name for name in trunk):
        return BASIC
    norm_of_last_sum = any(name.endswith("-bn.weight") for name in trunk)
    return PREACTIVATED if norm_of_last_sum else POSTACTIVATED


def _resnext_settings(trunk: Mapping[str, Tensor], num_blocks: list[int], residual: str) -> dict[str, Any]:
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
    """Inflates kernels of one frame, of image models, to the model's (Carreira & Zisserman 2017, arXiv:1705.07750)."""
    own = model.state_dict()
    for name, weight in converted.tensors.items():
        if name in own and weight.ndim == own[name].ndim == 5 and weight.shape[2] == 1 < own[name].shape[2]:
            frames = own[name].shape[2]
            converted.tensors[name] = repeat(weight, "o i 1 h w -> o i t h w", t=frames) / frames
            converted.resized[name] = f"a kernel of 1 frame inflated to {frames}"


MODELS = "model=resnext3d_18, or another resnext3d_*"
CLASSY_VISION_RESNEXT3D = Format(
    "Classy Vision, ResNeXt3D", ResNeXt3D, MODELS, _is_resnext, _convert_resnext, _revert_resnext
)
