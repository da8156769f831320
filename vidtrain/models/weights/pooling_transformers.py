"""Weights of MViT from PySlowFast and PyTorchVideo, such as MVIT_B_16x4.pyth, and of Hiera from facebookresearch/hiera,
such as hiera_base_16x224.pth. Files are {"model_state": ...}, or Hiera's model.safetensors from the hub.

MViT has torchvision's modules with other names (see slowfast/models/video_model_builder.py and attention.py, and
PyTorchVideo's vision_transformers.py). PySlowFast has queries, keys and values in one layer, PyTorchVideo in three;
both forms are accepted. Hiera's weights have another license than its code, CC-BY-NC.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.heads import MeanPoolClassifier
from vidtrain.models.hiera import Hiera
from vidtrain.models.torchvision_video import TorchvisionMViT
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights
from vidtrain.models.weights.torchvision import TORCHVISION_MVIT
from vidtrain.models.weights.vit3d import (
    fit_separate_positions,
    join,
    leave_out_head,
    set_aside,
    split,
)

WRAPPER = re.compile(r"^(?:model_state\.|state_dict\.|model\.|module\.)+")


def _unwrapped(weights: Weights) -> dict[str, Tensor]:
    return {WRAPPER.sub("", name): tensor for name, tensor in weights.tensors.items()}


# --- MViT -------------------------------------------------------------------------------------------------

PARTS = ("q", "k", "v")
TOKENS = (
    "class_token",
    "class_pos",
)  # shape [d], published as [1 1 d]; other positions are [n d], published as [1 n d]
BLOCK = [
    *((f"attn.pool_{part}", f"attn.pool_{part}.pool") for part in PARTS),
    *((f"attn.norm_{part}", f"attn.pool_{part}.norm_act.0") for part in PARTS),
    ("attn.proj", "attn.project.0"),
    ("mlp.fc1", "mlp.0"),
    ("mlp.fc2", "mlp.3"),
    ("proj", "project"),
    *((name, name) for name in ("norm1", "norm2", "attn")),
]


def _mvit(name: str, stem: str, token: str, norm: str, head: str, apart: bool) -> Format:
    """A format of MViT. `token` is the prefix of the class token and positions; `apart` says whether queries, keys and
    values have separate layers."""
    pairs = [(f"blocks.{{n}}.{theirs}", f"blocks.{{n}}.{ours}") for theirs, ours in BLOCK]
    pairs += [(stem, "conv_proj"), (norm, "norm"), (head, "head.1")]
    pairs.append((f"{token}cls_token", "pos_encoding.class_token"))
    tables = {"spatial": "spatial_pos", "temporal": "temporal_pos", "class": "class_pos"}
    pairs += [(f"{token}pos_embed_{theirs}", f"pos_encoding.{torchs}") for theirs, torchs in tables.items()]
    names = Renaming(pairs)

    def recognizes(weights: Weights) -> bool:
        anchors = {f"{stem}.weight", "blocks.1.attn.pool_q.weight", "blocks.1.attn.norm_q.weight"}
        return anchors <= _unwrapped(weights).keys()

    def convert(weights: Weights, model: EncoderWithHead) -> Converted:
        bare = _unwrapped(weights)
        tensors = join(bare, "qkv", PARTS)
        renamed, unexpected = {}, []
        for own, tensor in tensors.items():
            torchs = names.to_ours(own)
            if torchs is None:
                unexpected.append(own)
            elif torchs.startswith("pos_encoding."):
                renamed[torchs] = tensor.flatten() if torchs.endswith(TOKENS) else tensor.flatten(0, -2)
            else:
                renamed[torchs] = tensor
        converted = TORCHVISION_MVIT.convert(replace(weights, tensors=renamed), model)
        converted.unexpected += unexpected
        if tensors.keys() != bare.keys():
            joined = (own for own in converted.tensors if ".attn.qkv." in own)
            converted.changed |= dict.fromkeys(joined, "queries, keys and values joined")
        return converted

    def revert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        torchs = {
            own: tensor if not own.startswith("pos_encoding.")
            else tensor[None, None] if own.endswith(TOKENS) else tensor[None]
            for own, tensor in TORCHVISION_MVIT.revert(tensors).items()
        }  # fmt: skip
        reverted = names.revert(torchs)
        return split(reverted, "qkv", PARTS) if apart else reverted

    models = "model=mvit_v1_b, or mvit_v2_s for the second version"
    return Format(name, TorchvisionMViT, models, recognizes, convert, revert)


PYSLOWFAST_MVIT = _mvit("PySlowFast, MViT", "patch_embed.proj", "", "norm", "head.projection", apart=False)
PYTORCHVIDEO_MVIT = _mvit(
    "PyTorchVideo, MViT",
    "patch_embed.patch_model",
    "cls_positional_encoding.",
    "norm_embed",
    "head.proj",
    apart=True,
)

# --- Hiera ------------------------------------------------------------------------------------------------

HIERA_NAMES = Renaming(
    [
        ("patch_embed.proj", "encoder.stem.proj"),
        ("pos_embed_spatial", "encoder.stem.pos_embed_spatial"),
        ("pos_embed_temporal", "encoder.stem.pos_embed_temporal"),
        ("blocks", "encoder.blocks"),
        ("norm", "head.fc_norm"),
        ("head.projection", "head.linear"),
    ]
)
PRETRAINING = dict.fromkeys(
    ("decoder_", "mask_token", "encoder_norm.", "multi_scale_fusion_heads."), "only used in pretraining"
)
HEADS = {96: 1, 112: 2, 144: 2, 256: 4}  # of the first stage, by its width: no tensor shows them
ANCHORS = {"patch_embed.proj.weight", "pos_embed_spatial", "pos_embed_temporal", "blocks.0.attn.qkv.weight"}


def _is_hiera(weights: Weights) -> bool:
    names = _unwrapped(weights).keys()
    return names >= ANCHORS and "cls_token" not in names


def _convert_hiera(weights: Weights, model: EncoderWithHead) -> Converted:
    tensors, left_out = set_aside(_unwrapped(weights), PRETRAINING)
    converted = HIERA_NAMES.convert(tensors)
    converted.left_out = left_out
    head, encoder = model.head, model.encoder
    if isinstance(head, MeanPoolClassifier) and head.pool == "mean" and head.norm:
        converted.requires["head.norm_eps"] = 1e-6
    else:
        leave_out_head(converted, HIERA_NAMES, "the model's head pools in another way")
    assert isinstance(encoder, Hiera)
    tables = ("encoder.stem.pos_embed_spatial", "encoder.stem.pos_embed_temporal")
    fit_separate_positions(converted, *tables, encoder.stem.table_grid)
    width = len(tensors["patch_embed.proj.weight"])
    if width in HEADS:
        converted.requires["encoder.num_heads"] = HEADS[width]
    blocks = {int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")}
    starts = sorted(block for block in blocks if f"blocks.{block}.proj.weight" in tensors)
    ends = [*starts, 1 + max(blocks)]
    converted.requires["encoder.depths"] = [end - start for start, end in zip([0, *starts], ends, strict=True)]
    return converted


HIERA = Format(
    name="Hiera, video",
    encoder=Hiera,
    models="model=hiera_b_video, hiera_bplus_video, hiera_l_video or hiera_h_video",
    recognizes=_is_hiera,
    convert=_convert_hiera,
    revert=HIERA_NAMES.revert,
)
