"""Weights of V-JEPA 1, 2 and 2.1 from facebookresearch, and of V-JEPA 2 from transformers: pretraining files, encoders,
probes.

A pretraining file has an encoder in `encoder`, its moving average in `target_encoder` (in `ema_encoder` for distilled
models), and a predictor. We load the average, as the published evaluations do. See src/models, src/hub/backbones.py and
app/vjepa_2_1/models in facebookresearch/jepa and facebookresearch/vjepa2.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vidtrain.errors import UserError
from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.dense_joint_embedding import DenseJointEmbedding
from vidtrain.models.heads import AttentiveClassifier
from vidtrain.models.positions import TABLES
from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights import vit3d
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights, known, split_number

ROOTS = ("ema_encoder.", "target_encoder.", "encoder.", "")
WRAPPERS = ("module.backbone.", "module.", "backbone.", "")
PREFIXES = tuple(root + wrapper for root in ROOTS for wrapper in WRAPPERS)
PROBE_ROOTS = ("classifiers.{}.", "classifier.", "")
PROBE_PREFIXES = tuple(root + wrapper for root in PROBE_ROOTS for wrapper in ("module.", ""))
UNUSED = "head.pooler.cross_attention_block.xattn.proj."
HEADS_1 = {1408: 16, 1664: 16}  # attention heads of V-JEPA 1 by width, as in its code
HEADS_2 = {1408: 22, 1664: 26}  # V-JEPA 2 and 2.1, whose published models are "giant_xformers" and "gigantic_xformers"
PROBE_HEADS = {
    1024: 16,
    1280: 16,
    1408: 16,
}  # attention heads of probes by width; 16 for ViT-g too, whose encoder has 22

NAMES = Renaming(
    [
        ("patch_embed", "encoder.patch_embed"),
        ("blocks.{n}", "encoder.blocks.{n}"),
        ("norm", "encoder.norm"),
        ("pooler", "head.pooler"),
        ("linear", "head.linear"),
    ]
)
PREDICTOR = "the predictor, which only pretraining needs"
TRAINED = "the encoder as trained; its moving average is taken"
PRETRAINING = {
    "predictor.": PREDICTOR,
    "encoder.": TRAINED,
    "target_encoder.": "the teacher of a distilled model",
}
TABLE = {"pos_embed": "the position table follows from the configuration"}
NO_TABLE = {"pos_embed": "a table that rotary positions do not use"}
IMAGES = {
    "patch_embed_img.": "patches of single images, which are not supported",
    "img_mod_embed": "the modality of single images, which are not supported",
}
# V-JEPA 2.1: the blocks whose outputs have norms, by depth
NORMED_BLOCKS = {12: (2, 5, 8, 11), 24: (5, 11, 17, 23), 40: (9, 19, 29, 39), 48: (11, 23, 37, 47)}
MARK = "encoder.patch_embed.video_mod_embed"
TABLE_FRAMES = 16  # frames of V-JEPA 1's position table
TABLE_TOKENS = (8 * 14 * 14, 8 * 24 * 24)  # rows of the table in its published models: 16 frames at 224 and at 384


# --- recognition ---


def _generation(weights: Weights) -> str | None:
    """The version 1, 2 or 2.1; None if the weights are no V-JEPA encoder. Versions 1 and 2 have the same names and
    shapes, and 2 has a position table that it does not use. They are distinguished by the predictor (two mask tokens in
    1, ten in 2), or else by the size of the table."""
    tensors = weights.tensors
    prefix = _prefix(tensors)
    own = {} if prefix is None else vit3d.under(tensors, prefix)
    if any(name.startswith("norms_block.") for name in own):  # files of ours may have that of the last block alone
        return "2.1"
    if "norm.weight" not in own:
        return None
    masks = sum(".mask_tokens." in name for name in tensors if name.startswith("predictor."))
    first = 1 <= masks <= 2 or (masks == 0 and "pos_embed" in own and own["pos_embed"].shape[-2] in TABLE_TOKENS)
    return "1" if first and "pos_embed" in own else "2"


def _prefix(tensors: Mapping[str, Tensor]) -> str | None:
    """The prefix of the encoder's tensors; None if there is no V-JEPA encoder."""
    prefix = vit3d.first_prefix(tensors, PREFIXES, "patch_embed.proj.weight")
    if prefix is None or tensors[f"{prefix}patch_embed.proj.weight"].ndim != 5:
        return None
    has_bias = f"{prefix}blocks.0.attn.qkv.bias" in tensors
    others = {f"{prefix}cls_token", f"{prefix}pos_embed_spatial"}  # tensors of image ViTs and of Hiera
    return prefix if has_bias and not others & tensors.keys() else None


# --- encoders ---


def _convert(weights: Weights, model: EncoderWithHead, heads: Mapping[int, int]) -> tuple[Converted, dict[str, Tensor]]:
    """The conversion that all versions share; also returns the encoder's tensors by their published names."""
    prefix = known(_prefix(weights.tensors))
    own = vit3d.under(weights.tensors, prefix)
    converted = NAMES.convert(own)
    vit3d.explain_rest(converted, weights.tensors, prefix, PRETRAINING)
    vit3d.fit_patches(converted, vit3d.vit_of(model))
    converted.requires = vit3d.heads_of(converted, heads) | {
        "encoder.norm_eps": 1e-6,
        "encoder.final_norm": True,
        "encoder.activation": vit3d.activation_of(converted),
    }
    return converted, own


def _convert_1(weights: Weights, model: EncoderWithHead) -> Converted:
    converted, own = _convert(weights, model, HEADS_1)
    table = own["pos_embed"].squeeze(0)
    side = math.isqrt(len(table) // 8)
    patch = own["patch_embed.proj.weight"].shape[-1]
    converted.requires |= {
        "encoder.positions": _kind_of(table, (8, side, side), weights.source),
        "encoder.norm_per_layer": False,
        "encoder.num_frames": TABLE_FRAMES,
        "encoder.image_size": side * patch,
    }
    vit3d.leave_out(converted, TABLE)
    return converted


def _kind_of(table: Tensor, grid: tuple[int, int, int], source: str) -> str:
    """The kind of our tables that equals the published one. Raises UserError if none does."""
    for kind in ("sincos_uniform", "sincos"):
        ours = TABLES[kind](grid, table.shape[-1]).flatten(0, 2)
        if ours.shape == table.shape and torch.allclose(ours, table.float(), atol=1e-2):
            return kind
    raise UserError(
        f"{source}: its pos_embed {list(table.shape)} is not the sin-cos table of V-JEPA 1 for {TABLE_FRAMES} frames "
        "in tubelets of 2, so its positions are unknown"
    )


def _convert_2(weights: Weights, model: EncoderWithHead) -> Converted:
    converted, _ = _convert(weights, model, HEADS_2)
    converted.requires |= {
        "encoder.positions": "rope",
        "encoder.rope_base_grid": None,
        "encoder.norm_per_layer": False,
    }
    vit3d.leave_out(converted, NO_TABLE)
    return converted


def _convert_2_1(weights: Weights, model: EncoderWithHead) -> Converted:
    converted, own = _convert(weights, model, HEADS_2)
    marked = "video_mod_embed" in own
    converted.requires |= {
        "encoder.positions": "rope_interleaved",
        "encoder.rope_base_grid": 256 // own["patch_embed.proj.weight"].shape[-1],
        "encoder.norm_per_layer": True,
        "encoder.modality_embed": marked,
    }
    if marked:
        converted.unexpected.remove("video_mod_embed")
        converted.tensors[MARK] = own["video_mod_embed"].flatten()
        converted.changed[MARK] = "without its dimensions of size 1"
    normed = _normed_blocks(converted.tensors, weights.source)
    blocks = vit3d.vit_of(model).out_layers
    setting = f"model.encoder.out_layers={list(blocks)}"
    if isinstance(model, DenseJointEmbedding):
        blocks, setting = model.blocks, f"objective.levels={len(model.blocks)}"
    if len(vit3d.vit_of(model).blocks) == normed[-1] + 1 and not set(blocks) <= set(normed):
        raise UserError(
            f"{weights.source} has norms only for blocks {', '.join(map(str, normed))}, but {setting} needs "
            f"those of {', '.join(map(str, blocks))}: choose among the former"
        )
    for index, block in enumerate(normed):
        for kind in ("weight", "bias"):
            theirs = f"norms_block.{index}.{kind}"
            if theirs not in own:
                continue
            converted.unexpected.remove(theirs)
            if block in blocks:
                converted.tensors[f"encoder.norm.{block}.{kind}"] = own[theirs]
            else:
                converted.left_out[theirs] = f"the norm of block {block}, which {setting} does not use"
    vit3d.leave_out(converted, NO_TABLE | IMAGES)
    return converted


def _normed_blocks(tensors: Mapping[str, Tensor], source: str) -> tuple[int, ...]:
    """The blocks that have norms, for the depth of the encoder. Raises UserError if V-JEPA 2.1 has no such depth."""
    depth = len({name.split(".")[2] for name in tensors if name.startswith("encoder.blocks.")})
    if depth not in NORMED_BLOCKS:
        raise UserError(f"{source} has {depth} blocks; V-JEPA 2.1 has {', '.join(map(str, NORMED_BLOCKS))}")
    return NORMED_BLOCKS[depth]


def _revert(tensors: Mapping[str, Tensor], part: str = "encoder.") -> dict[str, Tensor]:
    """The published tensors of one part, as encoder and head are published in separate files."""
    return NAMES.revert({name: tensor for name, tensor in tensors.items() if name.startswith(part)})


def _revert_2_1(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = {name: tensor for name, tensor in tensors.items() if not name.startswith("encoder.norm.")}
    converted = _revert({name: tensor for name, tensor in plain.items() if name != MARK})
    if MARK in plain:
        converted["video_mod_embed"] = plain[MARK].reshape(1, 1, -1)
    normed = _normed_blocks(tensors, "the model")
    for name in tensors.keys() - plain.keys():
        *_, block, kind = name.split(".")
        if block == "norm" or int(block) not in normed:
            raise UserError(
                f"V-JEPA 2.1 has a norm for each of the blocks {', '.join(map(str, normed))}, and not {name}; it needs "
                "model.encoder.norm_per_layer=true"
            )
        converted[f"norms_block.{normed.index(int(block))}.{kind}"] = tensors[name]
    return converted


# --- probes ---


def _probe_prefix(tensors: Mapping[str, Tensor], number: int = 0) -> str | None:
    prefixes = [prefix.format(number) for prefix in PROBE_PREFIXES]
    return vit3d.first_prefix(tensors, prefixes, "pooler.cross_attention_block.xattn.kv.weight")


def _convert_probe(weights: Weights, model: EncoderWithHead) -> Converted:
    if not isinstance(model.head, AttentiveClassifier):
        raise UserError(
            f"{weights.source} is an attentive probe, but the model's head is {type(model.head).__name__}; "
            "choose model=vjepa2_vitl, or another with an attentive probe"
        )
    file, number = split_number(weights.source)
    numbers = {name.split(".")[1] for name in weights.tensors if name.startswith("classifiers.")}
    if number is not None and str(number) not in numbers:
        available = f"probes 0 to {len(numbers) - 1}" if numbers else "one probe"
        raise UserError(f"{weights.source}: {file} holds {available}")
    prefix = known(_probe_prefix(weights.tensors, number or 0))
    own = vit3d.under(weights.tensors, prefix)
    converted = NAMES.convert(own)
    other = f"another probe; number {number or 0} is used, and {file}:1 would be the second"
    vit3d.explain_rest(converted, weights.tensors, prefix, {"classifiers.": other})
    unused = {name for name in converted.tensors if name.startswith(UNUSED)}
    if unused and any(name.startswith("head.pooler.blocks.") for name in converted.tensors):
        raise UserError(
            f"{weights.source} is a V-JEPA 1 probe of several layers, whose blocks follow the cross-attention; only "
            "those of one layer fit"
        )
    for name in unused:
        del converted.tensors[name]
        converted.left_out[f"{prefix}{NAMES.to_theirs(name)}"] = "a projection that V-JEPA 1 does not use"
    width = len(converted.tensors["head.pooler.cross_attention_block.xattn.q.weight"])
    converted.requires = {"head.pooler.norm_eps": 1e-5}
    if width in PROBE_HEADS:
        converted.requires["head.pooler.num_heads"] = PROBE_HEADS[width]
    return converted


VJEPA_1 = Format(
    name="V-JEPA 1, original",
    encoder=ViT3D,
    models="model=vjepa1_vitl or vjepa1_vith",
    recognizes=lambda weights: _generation(weights) == "1",
    convert=_convert_1,
    revert=_revert,
)
VJEPA_2 = Format(
    name="V-JEPA 2, original",
    encoder=ViT3D,
    models="model=vjepa2_vitl, vjepa2_vith or vjepa2_vitg",
    recognizes=lambda weights: _generation(weights) == "2",
    convert=_convert_2,
    revert=_revert,
)
VJEPA_2_1 = Format(
    name="V-JEPA 2.1, original",
    encoder=ViT3D,
    models="model=vjepa2_1_vitb, vjepa2_1_vitl, vjepa2_1_vitg or vjepa2_1_vitgigantic",
    recognizes=lambda weights: _generation(weights) == "2.1",
    convert=_convert_2_1,
    revert=_revert_2_1,
)
VJEPA_PROBE = Format(
    name="V-JEPA attentive probe, original",
    encoder=ViT3D,
    models="model=vjepa2_vitl, or another vjepa*",
    recognizes=lambda weights: _probe_prefix(weights.tensors) is not None,
    convert=_convert_probe,
    revert=lambda tensors: _revert(tensors, "head."),
)


# --- V-JEPA 2 from transformers: encoders, with or without the attentive probe ---

BASE_PREFIX = "vjepa2."  # prefix of the base model in a classification model
# Linear layers of ours that transformers splits into several
JOINED = (
    ("attention.qkv", ("attention.query", "attention.key", "attention.value")),
    ("self_attn.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("cross_attn.kv", ("cross_attn.k_proj", "cross_attn.v_proj")),
)
THEIR_POOLER, THEIR_CROSS = "pooler.self_attention_layers.{n}", "pooler.cross_attention_layer"
OUR_BLOCK, OUR_CROSS = "head.pooler.blocks.{n}", "head.pooler.cross_attention_block"
TRANSFORMERS_NAMES = Renaming(
    [
        ("encoder.embeddings.patch_embeddings.proj", "encoder.patch_embed.proj"),
        ("encoder.layer.{n}.attention", "encoder.blocks.{n}.attn"),
        ("encoder.layer.{n}", "encoder.blocks.{n}"),
        ("encoder.layernorm", "encoder.norm"),
        ("pooler.query_tokens", "head.pooler.query_tokens"),
        (f"{THEIR_POOLER}.layer_norm1", f"{OUR_BLOCK}.norm1"),
        (f"{THEIR_POOLER}.layer_norm2", f"{OUR_BLOCK}.norm2"),
        (f"{THEIR_POOLER}.self_attn.qkv", f"{OUR_BLOCK}.attn.qkv"),
        (f"{THEIR_POOLER}.self_attn.out_proj", f"{OUR_BLOCK}.attn.proj"),
        (f"{THEIR_POOLER}.mlp", f"{OUR_BLOCK}.mlp"),
        (f"{THEIR_CROSS}.layer_norm1", f"{OUR_CROSS}.norm1"),
        (f"{THEIR_CROSS}.layer_norm2", f"{OUR_CROSS}.norm2"),
        (f"{THEIR_CROSS}.cross_attn.q_proj", f"{OUR_CROSS}.xattn.q"),
        (f"{THEIR_CROSS}.cross_attn.kv", f"{OUR_CROSS}.xattn.kv"),
        (f"{THEIR_CROSS}.mlp", f"{OUR_CROSS}.mlp"),
        ("classifier", "head.linear"),
    ]
)


def _is_transformers(weights: Weights) -> bool:
    base = {name.removeprefix(BASE_PREFIX) for name in weights.tensors}
    anchors = ("encoder.embeddings.patch_embeddings.proj.weight", "encoder.layer.0.attention.query.weight")
    return base.issuperset(anchors)


def _convert_transformers(weights: Weights, model: EncoderWithHead) -> Converted:
    of_predictor = (f"{BASE_PREFIX}predictor.", "predictor.")
    kept, left_out = vit3d.set_aside(weights.tensors, dict.fromkeys(of_predictor, PREDICTOR))
    tensors = {name.removeprefix(BASE_PREFIX): tensor for name, tensor in kept.items()}
    for whole, parts in JOINED:
        tensors = vit3d.join(tensors, whole, parts)
    converted = TRANSFORMERS_NAMES.convert(tensors)
    converted.left_out |= left_out
    vit3d.fit_patches(converted, vit3d.vit_of(model))
    converted.requires = vit3d.heads_of(converted, HEADS_2) | {
        "encoder.positions": "rope",
        "encoder.rope_base_grid": None,
        "encoder.norm_eps": 1e-6,
        "encoder.final_norm": True,
        "encoder.norm_per_layer": False,
    }
    if weights.config is not None:
        converted.requires |= {
            "encoder.num_heads": weights.config["num_attention_heads"],
            "encoder.norm_eps": weights.config["layer_norm_eps"],
            "encoder.activation": weights.config["hidden_act"],
        }
    if not isinstance(model.head, AttentiveClassifier):
        reason = f"an attentive probe, but the model's head is {type(model.head).__name__}"
        vit3d.leave_out_head(converted, TRANSFORMERS_NAMES, reason)
    elif "head.pooler.query_tokens" in converted.tensors:
        converted.requires |= _transformers_probe_settings(converted, model.head)
    for name in converted.tensors:
        if ".qkv." in name or ".kv." in name:
            converted.changed[name] = ("queries, " if ".qkv." in name else "") + "keys and values joined"
    return converted


def _transformers_probe_settings(converted: Converted, head: AttentiveClassifier) -> dict[str, float]:
    """The settings with which the probe was trained, or those that transformers uses."""
    width = converted.tensors["head.pooler.query_tokens"].shape[-1]
    epsilons = (1e-5, converted.requires["encoder.norm_eps"])
    settings = {"head.pooler.norm_eps": vit3d.one_of(head.pooler.norm_eps, epsilons)}
    heads = [PROBE_HEADS[width]] if width in PROBE_HEADS else []
    if "encoder.num_heads" in converted.requires:
        heads.append(converted.requires["encoder.num_heads"])
    return settings | ({"head.pooler.num_heads": vit3d.one_of(head.pooler.num_heads, heads)} if heads else {})


def _revert_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the names of a base model for an encoder alone, or of a classification model with a head."""
    converted = TRANSFORMERS_NAMES.revert(tensors)
    for whole, parts in JOINED:
        converted = vit3d.split(converted, whole, parts)
    if not vit3d.under(tensors, "head."):
        return converted
    return {BASE_PREFIX + name if name.startswith("encoder.") else name: tensor for name, tensor in converted.items()}


VJEPA_2_TRANSFORMERS = Format(
    name="V-JEPA 2, transformers",
    encoder=ViT3D,
    models="model=vjepa2_vitl, vjepa2_vith or vjepa2_vitg",
    recognizes=_is_transformers,
    convert=_convert_transformers,
    revert=_revert_transformers,
)
