"""SlowFast, Slow and X3D as facebookresearch/SlowFast (PySlowFast) saves them, such as SLOWFAST_8x8_R50.pyth: the
networks of PyTorchVideo by other names. Read from its slowfast/models: video_model_builder.py and the *_helper.py.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.slowfast import SlowFast
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights
from vidtrain.models.weights.formats.pytorchvideo import (
    PATHS,
    PYTORCHVIDEO_SLOW,
    PYTORCHVIDEO_SLOWFAST,
    PYTORCHVIDEO_X3D,
    STAGES,
)

WRAPPED = re.compile(r"(?:(?:model_state|state_dict|model|module)\.)*((?:s\d(?:_fuse)?|head)\..+)")
BRANCH = {f"branch2.{layer}": f"branch2.conv_{layer}" for layer in "abc"}
BRANCH |= {f"branch2.{layer}_bn": f"branch2.norm_{layer}" for layer in "abc"}
BRANCH |= {"branch1": "branch1_conv", "branch1_bn": "branch1_norm"}


def _blocks(pathway: int, stage_of: str) -> list[tuple[str, str]]:
    """Names of a pathway's residual blocks; `stage_of` is what PyTorchVideo calls it in a stage."""
    return [
        (
            f"s{stage + 1}.pathway{pathway}_res{{n}}.{theirs}",
            f"{stage_of.format(stage)}.res_blocks.{{n}}.{torchs}",
        )
        for stage in STAGES
        for theirs, torchs in BRANCH.items()
    ]


def _stem(pathway: int, name: str) -> list[tuple[str, str]]:
    theirs = f"s1.pathway{pathway}_stem"
    return [(f"{theirs}.conv", f"{name}.conv"), (f"{theirs}.bn", f"{name}.norm")]


def _slowfast_names() -> Renaming:
    pairs = [("head.projection", "blocks.6.proj")]
    for pathway in PATHS.values():
        pairs += _stem(pathway, f"blocks.0.multipathway_blocks.{pathway}")
        pairs += _blocks(pathway, f"blocks.{{}}.multipathway_blocks.{pathway}")
    for stage in STAGES:
        theirs, torchs = f"s{stage}_fuse", f"blocks.{stage - 1}.multipathway_fusion"
        pairs += [(f"{theirs}.conv_f2s", f"{torchs}.conv_fast_to_slow"), (f"{theirs}.bn", f"{torchs}.norm")]
    return Renaming(pairs)


SLOWFAST_NAMES = _slowfast_names()
SLOW_NAMES = Renaming([("head.projection", "blocks.5.proj"), *_stem(0, "blocks.0"), *_blocks(0, "blocks.{}")])


def _x3d_names() -> Renaming:
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
    return Renaming([*pairs, *_blocks(0, "blocks.{}")])


X3D_NAMES = _x3d_names()


def _renamed(weights: Weights, names: Renaming) -> tuple[Weights, list[str]]:
    """With PyTorchVideo's names; and what has none, such as non-local blocks."""
    tensors, unexpected = {}, []
    for name, tensor in weights.tensors.items():
        match = WRAPPED.fullmatch(name)
        torchs = names.to_ours(match[1]) if match else name
        if torchs is None:
            unexpected.append(name)
        else:
            tensors[torchs] = tensor
    return replace(weights, tensors=tensors), unexpected


def _format(name: str, names: Renaming, base: Format) -> Format:
    def recognizes(weights: Weights) -> bool:
        bare = {match[1] for match in map(WRAPPED.fullmatch, weights.tensors) if match}
        two_paths = "s1_fuse.conv_f2s.weight" in bare
        known = "s1.pathway0_stem.conv.weight" in bare and two_paths == (base.encoder is SlowFast)
        return known and base.recognizes(_renamed(weights, names)[0])

    def convert(weights: Weights, model: EncoderWithHead) -> Converted:
        renamed, unexpected = _renamed(weights, names)
        found = base.convert(renamed, model)
        found.unexpected += unexpected
        return found

    def revert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return names.revert(base.revert(tensors))

    return Format(name, base.encoder, base.models, recognizes, convert, revert)


PYSLOWFAST = _format("PySlowFast, SlowFast", SLOWFAST_NAMES, PYTORCHVIDEO_SLOWFAST)
PYSLOWFAST_SLOW = _format("PySlowFast, Slow", SLOW_NAMES, PYTORCHVIDEO_SLOW)
PYSLOWFAST_X3D = _format("PySlowFast, X3D", X3D_NAMES, PYTORCHVIDEO_X3D)
