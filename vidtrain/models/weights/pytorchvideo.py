"""Weights of SlowFast, Slow and X3D from PyTorchVideo, such as SLOWFAST_8x8_R50.pyth and X3D_S.pyth, and from
facebookresearch/SlowFast (PySlowFast), which has the same networks with other names.

Files are {"model_state": ...}; a plain state dict, also of a wrapped network, works too. For PySlowFast's names see its
slowfast/models: video_model_builder.py and the *_helper.py.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from einops import rearrange
from torch import Tensor

from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.residual3d import X3D
from vidtrain.models.slowfast import NUM_BLOCKS, SlowFast, SlowOnly
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights

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


def _num_blocks(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The number of blocks of each stage; with two pathways, those of the slow one."""
    blocks = [(int(match[1]), int(match[2])) for match in map(BLOCK.fullmatch, tensors) if match]
    return tuple(1 + max((block for own, block in blocks if own == stage), default=-1) for stage in STAGES)


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
    depth = DEPTHS.get(_num_blocks(tensors))
    if depth is not None:
        converted.requires["encoder.depth"] = depth
        if (depth, kernel) in PUBLISHED_ALPHA:
            converted.requires["encoder.alpha"] = PUBLISHED_ALPHA[depth, kernel]
    return converted


def _convert_slow(weights: Weights, model: EncoderWithHead) -> Converted:
    tensors, converted = _unwrapped(weights), _named(weights, SLOW_NAMES)
    converted.requires = {"encoder.width": len(tensors["blocks.0.conv.weight"])}
    depth = DEPTHS.get(_num_blocks(tensors))
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
        "encoder.num_blocks": list(_num_blocks(tensors)),
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

# --- PySlowFast: names are converted to PyTorchVideo's first ------------------------------------------------

PYSLOWFAST_WRAPPED = re.compile(r"(?:(?:model_state|state_dict|model|module)\.)*((?:s\d(?:_fuse)?|head)\..+)")
BRANCH = {f"branch2.{layer}": f"branch2.conv_{layer}" for layer in "abc"}
BRANCH |= {f"branch2.{layer}_bn": f"branch2.norm_{layer}" for layer in "abc"}
BRANCH |= {"branch1": "branch1_conv", "branch1_bn": "branch1_norm"}


def _pathway(pathway: int, stem: str, stage_of: str) -> Pairs:
    """Pairs of names for a pathway's stem and blocks; `stage_of` is PyTorchVideo's name of the pathway in a stage."""
    theirs = f"s1.pathway{pathway}_stem"
    pairs = [(f"{theirs}.conv", f"{stem}.conv"), (f"{theirs}.bn", f"{stem}.norm")]
    for stage in STAGES:
        theirs, torchs = (
            f"s{stage + 1}.pathway{pathway}_res{{n}}",
            f"{stage_of.format(stage)}.res_blocks.{{n}}",
        )
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
