"""Hiera as facebookresearch/hiera publishes it for videos: fine-tuned, such as hiera_base_16x224.pth, and pretrained.

They are files {"model_state": ...}, and model.safetensors of its hub. Their licence, CC-BY-NC, is not that of its code.
"""

import re

from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.heads import MeanPoolClassifier
from vidtrain.models.hiera import Hiera
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights
from vidtrain.models.weights.formats.vit3d import fit_separate_positions, leave_out_head, set_aside

WRAPPER = re.compile(r"^(?:model_state\.|state_dict\.|model\.|module\.)+")
NAMES = Renaming(
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
    ("decoder_", "mask_token", "encoder_norm.", "multi_scale_fusion_heads."), "of pretraining only"
)
HEADS = {96: 1, 112: 2, 144: 2, 256: 4}  # of the first stage by its width; they show in no shape


def _recognizes(weights: Weights) -> bool:
    there = {WRAPPER.sub("", name) for name in weights.tensors}
    wanted = {
        "patch_embed.proj.weight",
        "pos_embed_spatial",
        "pos_embed_temporal",
        "blocks.0.attn.qkv.weight",
    }
    return wanted <= there and "cls_token" not in there


def _convert(weights: Weights, model: EncoderWithHead) -> Converted:
    bare = {WRAPPER.sub("", name): each for name, each in weights.tensors.items()}
    tensors, left_out = set_aside(bare, PRETRAINING)
    found = NAMES.convert(tensors)
    found.left_out = left_out
    head = model.head
    if not (isinstance(head, MeanPoolClassifier) and head.pool == "mean" and head.norm):
        leave_out_head(found, NAMES, "the model's head pools in another way")
    else:
        found.requires["head.norm_eps"] = 1e-6
    assert isinstance(model.encoder, Hiera)
    fit_separate_positions(
        found,
        "encoder.stem.pos_embed_spatial",
        "encoder.stem.pos_embed_temporal",
        model.encoder.stem.table_grid,
    )
    width = len(tensors["patch_embed.proj.weight"])
    if width in HEADS:
        found.requires["encoder.num_heads"] = HEADS[width]
    blocks = {int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")}
    starts = sorted(block for block in blocks if f"blocks.{block}.proj.weight" in tensors)
    ends = [*starts, 1 + max(blocks)]
    found.requires["encoder.depths"] = [end - start for start, end in zip([0, *starts], ends, strict=True)]
    return found


HIERA = Format(
    name="Hiera, video",
    encoder=Hiera,
    models="model=hiera_b_video, hiera_bplus_video, hiera_l_video or hiera_h_video",
    recognizes=_recognizes,
    convert=_convert,
    revert=NAMES.revert,
)
