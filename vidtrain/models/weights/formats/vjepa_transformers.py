"""V-JEPA 2 as transformers saves it: encoders, and with the attentive probe."""

from collections.abc import Mapping

from torch import Tensor

from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.heads import AttentiveClassifier
from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights
from vidtrain.models.weights.formats.vit3d import (
    fit_patches,
    heads_of,
    join,
    leave_out_head,
    one_of,
    set_aside,
    split,
    under,
    vit_of,
)
from vidtrain.models.weights.formats.vjepa import HEADS_2, PREDICTOR, PROBE_HEADS

BASE_PREFIX = "vjepa2."  # of the base model's names inside of a classification model
# Linear layers of ours that transformers keeps in parts
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
    return {
        "encoder.embeddings.patch_embeddings.proj.weight",
        "encoder.layer.0.attention.query.weight",
    } <= base


def _convert_transformers(weights: Weights, model: EncoderWithHead) -> Converted:
    kept, left_out = set_aside(
        weights.tensors, dict.fromkeys((f"{BASE_PREFIX}predictor.", "predictor."), PREDICTOR)
    )
    tensors = {name.removeprefix(BASE_PREFIX): each for name, each in kept.items()}
    for whole, parts in JOINED:
        tensors = join(tensors, whole, parts)
    found = TRANSFORMERS_NAMES.convert(tensors)
    found.left_out |= left_out
    fit_patches(found, vit_of(model))
    found.requires = heads_of(found, HEADS_2) | {
        "encoder.positions": "rope",
        "encoder.rope_base_grid": None,
        "encoder.norm_eps": 1e-6,
        "encoder.final_norm": True,
        "encoder.norm_per_layer": False,
    }
    if weights.config is not None:
        found.requires |= {
            "encoder.num_heads": weights.config["num_attention_heads"],
            "encoder.norm_eps": weights.config["layer_norm_eps"],
            "encoder.activation": weights.config["hidden_act"],
        }
    if not isinstance(model.head, AttentiveClassifier):
        leave_out_head(
            found,
            TRANSFORMERS_NAMES,
            f"an attentive probe, and the model's head is {type(model.head).__name__}",
        )
    elif "head.pooler.query_tokens" in found.tensors:
        found.requires |= _transformers_probe_settings(found, model.head)
    for name in found.tensors:
        if ".qkv." in name or ".kv." in name:
            found.changed[name] = (
                "queries, keys and values joined" if ".qkv." in name else "keys and values joined"
            )
    return found


def _transformers_probe_settings(found: Converted, head: AttentiveClassifier) -> dict[str, float]:
    """As it was trained, or as transformers runs it."""
    width = found.tensors["head.pooler.query_tokens"].shape[-1]
    heads = [PROBE_HEADS[width]] if width in PROBE_HEADS else []
    if "encoder.num_heads" in found.requires:
        heads.append(found.requires["encoder.num_heads"])
    settings = {
        "head.pooler.norm_eps": one_of(head.pooler.norm_eps, (1e-5, found.requires["encoder.norm_eps"]))
    }
    return settings | ({"head.pooler.num_heads": one_of(head.pooler.num_heads, heads)} if heads else {})


def _revert_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A base model's names for an encoder alone, a classification model's for an encoder with its head."""
    found = TRANSFORMERS_NAMES.revert(tensors)
    for whole, parts in JOINED:
        found = split(found, whole, parts)
    if not under(tensors, "head."):
        return found
    return {BASE_PREFIX + name if name.startswith("encoder.") else name: each for name, each in found.items()}


VJEPA_2_TRANSFORMERS = Format(
    name="V-JEPA 2, transformers",
    encoder=ViT3D,
    models="model=vjepa2_vitl, vjepa2_vith or vjepa2_vitg",
    recognizes=_is_transformers,
    convert=_convert_transformers,
    revert=_revert_transformers,
)
