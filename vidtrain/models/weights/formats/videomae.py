"""VideoMAE as MCG-NJU publishes it: fine-tuned models, and pretraining files with their decoder.

Read from MCG-NJU/VideoMAE: modeling_finetune.py, modeling_pretrain.py and run_class_finetuning.py. Attention has biases
for queries and values; a bias of the keys would move all scores of a query alike, which softmax does not see, so ours
is set to zero and is dropped on the way back.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vidtrain.models.linear_heads import MeanPoolClassifier
from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights
from vidtrain.models.weights.formats.vit3d import (
    explain_rest,
    first_prefix,
    fit_patches,
    heads_of,
    leave_out_head,
    under,
)

WRAPPERS = ("module.", "model.", "")
QUERIES, VALUES, BIAS = ".attn.q_bias", ".attn.v_bias", ".attn.qkv.bias"
NAMES = Renaming(
    [
        ("patch_embed", "encoder.patch_embed"),
        ("blocks.{n}", "encoder.blocks.{n}"),
        ("norm", "encoder.norm"),
        ("fc_norm", "head.fc_norm"),
        ("head", "head.linear"),
    ]
)
PRETRAINED = "encoder."  # where a pretraining file keeps the encoder
DECODER = "the decoder, which only pretraining needs"
REST = dict.fromkeys(("decoder.", "encoder_to_decoder.", "mask_token"), DECODER)
FRESH_NORM = "pretraining's last norm; fine-tuning starts with a fresh one after the mean, as in the original"
JOINED_BIAS = "biases of queries and values joined, with zeros for keys"


def _prefix(tensors: Mapping[str, Tensor], inner: str) -> str | None:
    """Where the model lies in the file: under its container, and `inner`."""
    prefix = first_prefix(tensors, [wrapper + inner for wrapper in WRAPPERS], "blocks.0.attn.q_bias")
    there = prefix is not None and f"{prefix}patch_embed.proj.weight" in tensors
    return prefix if there and f"{prefix}cls_token" not in tensors else None


def _convert(weights: Weights, model: nn.Module, inner: str) -> Converted:
    prefix = _prefix(weights.tensors, inner)
    found = NAMES.convert(_join_biases(under(weights.tensors, prefix)))
    explain_rest(
        found, weights.tensors, prefix, {prefix.removesuffix(inner) + name: why for name, why in REST.items()}
    )
    fit_patches(found, model.encoder)
    found.changed = {name: JOINED_BIAS for name in found.tensors if name.endswith(BIAS)}
    found.requires = heads_of(found) | {
        "encoder.positions": "sincos_1d",
        "encoder.norm_eps": 1e-6,
        "encoder.activation": "gelu",
    }
    if not isinstance(model.head, MeanPoolClassifier):
        reason = f"a layer over the mean of the tokens, and the model's head is {type(model.head).__name__}"
        leave_out_head(found, NAMES, reason)
    return found


def _convert_finetuned(weights: Weights, model: nn.Module) -> Converted:
    found = _convert(weights, model, "")
    found.requires["encoder.final_norm"] = False
    if isinstance(model.head, MeanPoolClassifier):
        found.requires |= {"head.pool": "mean", "head.norm": True, "head.norm_eps": 1e-6}
    return found


def _convert_pretrained(weights: Weights, model: nn.Module) -> Converted:
    found = _convert(weights, model, PRETRAINED)
    leave_out_norm(found, model, f"{PRETRAINED}norm")
    return found


def leave_out_norm(found: Converted, model: nn.Module, theirs: str) -> None:
    """Pretraining's last norm, unless the model has one there."""
    for kind in ("weight", "bias"):
        if f"encoder.norm.{kind}" in found.tensors and not model.encoder.final_norm:
            del found.tensors[f"encoder.norm.{kind}"]
            found.left_out[f"{theirs}.{kind}"] = FRESH_NORM


def _join_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    joined = dict(tensors)
    for name in tensors:
        if name.endswith(QUERIES):
            block = name.removesuffix(QUERIES)
            queries, values = joined.pop(name), joined.pop(block + VALUES)
            joined[block + BIAS] = torch.cat((queries, torch.zeros_like(queries), values))
    return joined


def _revert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = NAMES.revert(tensors)
    for name in list(found):
        if name.endswith(BIAS):
            block = name.removesuffix(BIAS)
            found[block + QUERIES], _, found[block + VALUES] = found.pop(name).chunk(3)
    return found


def _revert_pretrained(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder; pretraining has no head."""
    encoder = {name: each for name, each in tensors.items() if name.startswith("encoder.")}
    return {PRETRAINED + name: each for name, each in _revert(encoder).items()}


VIDEOMAE = Format(
    name="VideoMAE fine-tuned, original",
    encoder=ViT3D,
    models="model=videomae_base, or another videomae_*",
    recognizes=lambda weights: _prefix(weights.tensors, "") is not None,
    convert=_convert_finetuned,
    revert=_revert,
)
VIDEOMAE_PRETRAINED = Format(
    name="VideoMAE pretrained, original",
    encoder=ViT3D,
    models="model=videomae_base, or another videomae_*",
    recognizes=lambda weights: _prefix(weights.tensors, PRETRAINED) is not None,
    convert=_convert_pretrained,
    revert=_revert_pretrained,
)
