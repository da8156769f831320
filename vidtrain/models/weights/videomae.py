"""Weights of VideoMAE and VideoMAE V2: fine-tuned models, and pretraining files with their decoder.

See modeling_finetune.py, modeling_pretrain.py and run_class_finetuning.py in MCG-NJU/VideoMAE and OpenGVLab/VideoMAEv2.
Their attention has biases only for queries and values. A bias of the keys would add the same number to all scores of a
query, which softmax ignores, so ours is set to zero, and is dropped in `revert`.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vidtrain.errors import UserError
from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.heads import MeanPoolClassifier
from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights import vit3d
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights, known

HEADS = {1408: 16}  # V2's ViT-g
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
TABLE, POSITIONS = "pos_embed", "encoder.patch_embed.pos_embed"
COSINE = ".attn.scale"
PRETRAINED = "encoder."  # prefix of the encoder in a pretraining file
DECODER = "the decoder, which only pretraining needs"
REST = dict.fromkeys(("decoder.", "encoder_to_decoder.", "mask_token"), DECODER)
FRESH_NORM = "pretraining's last norm; fine-tuning starts with a fresh one after the mean, as in the original"
JOINED_BIAS = "biases of queries and values joined, with zeros for keys"


def _prefix(tensors: Mapping[str, Tensor], inner: str) -> str | None:
    """The prefix of the model's tensors: that of a wrapper, then `inner`; None if there is no VideoMAE model."""
    prefix = vit3d.first_prefix(tensors, [wrapper + inner for wrapper in WRAPPERS], "blocks.0.attn.q_bias")
    has_patches = prefix is not None and f"{prefix}patch_embed.proj.weight" in tensors
    return prefix if has_patches and f"{prefix}cls_token" not in tensors else None


def _convert(weights: Weights, model: EncoderWithHead, inner: str) -> Converted:
    prefix = known(_prefix(weights.tensors, inner))
    converted = NAMES.convert(join_biases(vit3d.under(weights.tensors, prefix)))
    reasons = {prefix.removesuffix(inner) + name: why for name, why in REST.items()}
    vit3d.explain_rest(converted, weights.tensors, prefix, reasons)
    vit3d.fit_patches(converted, vit3d.vit_of(model))
    converted.changed = {name: JOINED_BIAS for name in converted.tensors if name.endswith(BIAS)}
    converted.requires = vit3d.heads_of(converted, HEADS) | {
        "encoder.positions": "sincos_1d",
        "encoder.norm_eps": 1e-6,
        "encoder.activation": "gelu",
    }
    if any(name.endswith(COSINE) for name in converted.tensors):
        raise UserError(
            f"{weights.source} has the cosine attention of VideoMAE V2 (--cos_attn), which ViT3D does not support; no "
            "published file has it"
        )
    if TABLE in converted.unexpected:
        _fit_table(converted, vit3d.under(weights.tensors, prefix)[TABLE], model, weights.source)
    if not isinstance(model.head, MeanPoolClassifier):
        reason = f"a layer over the mean of the tokens, but the model's head is {type(model.head).__name__}"
        vit3d.leave_out_head(converted, NAMES, reason)
    return converted


def _fit_table(converted: Converted, table: Tensor, model: EncoderWithHead, source: str) -> None:
    """Converts learned positions (--use_learnable_pos_emb), [1 t*h*w d] for a clip of square frames. The original code
    does not train them: modeling_pretrain.py and modeling_finetune.py add them detached."""
    encoder = vit3d.vit_of(model)
    steps = encoder.num_frames // encoder.tubelet_size
    side = math.isqrt(table.shape[1] // steps)
    if steps * side**2 != table.shape[1]:
        raise UserError(
            f"{source}: its {table.shape[1]} learned positions do not fit {encoder.num_frames} square frames; set "
            "model.encoder.num_frames to the frames that it was trained with"
        )
    converted.unexpected.remove(TABLE)
    converted.tensors[POSITIONS] = table.unflatten(1, (steps, side, side)).squeeze(0)
    converted.changed[POSITIONS] = (
        "laid out in time, height and width; they train here, and in the original they do not"
    )
    converted.requires |= {"encoder.positions": "learned", "encoder.image_size": side * encoder.patch_size}


def _convert_finetuned(weights: Weights, model: EncoderWithHead) -> Converted:
    converted = _convert(weights, model, "")
    # with --use_cls all tokens are normed, the head uses the first token, and there is no norm after it
    first = "encoder.norm.weight" in converted.tensors
    converted.requires["encoder.final_norm"] = first
    if isinstance(model.head, MeanPoolClassifier):
        converted.requires |= {"head.pool": "first" if first else "mean", "head.norm": not first}
        converted.requires |= {} if first else {"head.norm_eps": 1e-6}
    return converted


def _convert_pretrained(weights: Weights, model: EncoderWithHead) -> Converted:
    converted = _convert(weights, model, PRETRAINED)
    leave_out_norm(converted, model, f"{PRETRAINED}norm")
    return converted


def leave_out_norm(converted: Converted, model: EncoderWithHead, theirs: str) -> None:
    """Leaves out pretraining's last norm, unless the model has a final norm."""
    for kind in ("weight", "bias"):
        if f"encoder.norm.{kind}" in converted.tensors and not vit3d.vit_of(model).final_norm:
            del converted.tensors[f"encoder.norm.{kind}"]
            converted.left_out[f"{theirs}.{kind}"] = FRESH_NORM


def join_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    joined = dict(tensors)
    for name in tensors:
        if name.endswith(QUERIES):
            block = name.removesuffix(QUERIES)
            queries, values = joined.pop(name), joined.pop(block + VALUES)
            joined[block + BIAS] = torch.cat((queries, torch.zeros_like(queries), values))
    return joined


def _revert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    converted = NAMES.revert({name: tensor for name, tensor in tensors.items() if name != POSITIONS})
    if POSITIONS in tensors:
        converted[TABLE] = tensors[POSITIONS].flatten(0, 2)[None]
    return split_biases(converted)


def split_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `join_biases`; biases of keys are dropped."""
    converted = dict(tensors)
    for name in tensors:
        if name.endswith(BIAS):
            block = name.removesuffix(BIAS)
            converted[block + QUERIES], _, converted[block + VALUES] = converted.pop(name).chunk(3)
    return converted


def _revert_pretrained(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the encoder; pretraining files have no classifier."""
    encoder = {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.")}
    return {PRETRAINED + name: tensor for name, tensor in _revert(encoder).items()}


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

# --- transformers ---

BASE_PREFIX = "videomae."
PARTS = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
KEYS = PARTS[1]  # they have no bias
# Names of the biases in transformers' files -> in its models
BIASES = {
    "attention.attention.q_bias": "attention.attention.query.bias",
    "attention.attention.v_bias": "attention.attention.value.bias",
}


def layer_names(layer: str, block: str) -> list[tuple[str, str]]:
    """Pairs of names for a layer of transformers (with q, k and v joined) and a block of ours."""
    return [
        (f"{layer}.attention.qkv", f"{block}.attn.qkv"),
        (f"{layer}.attention.output.dense", f"{block}.attn.proj"),
        (f"{layer}.intermediate.dense", f"{block}.mlp.fc1"),
        (f"{layer}.output.dense", f"{block}.mlp.fc2"),
        (f"{layer}.layernorm_before", f"{block}.norm1"),
        (f"{layer}.layernorm_after", f"{block}.norm2"),
    ]


TRANSFORMERS_NAMES = Renaming(
    [
        ("embeddings.patch_embeddings.projection", "encoder.patch_embed.proj"),
        *layer_names("encoder.layer.{n}", "encoder.blocks.{n}"),
        ("layernorm", "encoder.norm"),
        ("fc_norm", "head.fc_norm"),
        ("classifier", "head.linear"),
    ]
)


def _is_transformers(weights: Weights) -> bool:
    base = {name.removeprefix(BASE_PREFIX) for name in weights.tensors}
    wanted = {"embeddings.patch_embeddings.projection.weight", "encoder.layer.0.layernorm_before.weight"}
    patches = [weights.tensors[name] for name in weights.tensors if name.endswith(".projection.weight")]
    return wanted <= base and patches[0].ndim == 5


def _convert_transformers(weights: Weights, model: EncoderWithHead) -> Converted:
    kept, left_out = vit3d.set_aside(weights.tensors, REST)
    tensors = {current(name.removeprefix(BASE_PREFIX)): tensor for name, tensor in kept.items()}
    converted = TRANSFORMERS_NAMES.convert(vit3d.join(tensors, "attention.qkv", PARTS, no_bias=(KEYS,)))
    converted.left_out |= left_out
    vit3d.fit_patches(converted, vit3d.vit_of(model))
    for name in converted.tensors:
        if ".qkv." in name:
            converted.changed[name] = JOINED_BIAS if name.endswith("bias") else "queries, keys and values joined"

    # 1e-6 is the original's, with which the weights were trained
    epsilons = [1e-6]
    converted.requires = vit3d.heads_of(converted, HEADS) | {
        "encoder.positions": "sincos_1d",
        "encoder.activation": "gelu",
    }
    if weights.config is not None:
        epsilons.append(weights.config["layer_norm_eps"])  # transformers' value; 1e-12 on the hub
        converted.requires |= {
            "encoder.num_heads": weights.config["num_attention_heads"],
            "encoder.activation": weights.config["hidden_act"],
            "encoder.image_size": weights.config["image_size"],
        }
    converted.requires["encoder.norm_eps"] = vit3d.one_of(vit3d.vit_of(model).norm_eps, epsilons)
    _settle_head(converted, model)
    return converted


def _settle_head(converted: Converted, model: EncoderWithHead) -> None:
    if not isinstance(model.head, MeanPoolClassifier):
        reason = f"a linear classifier, but the model's head is {type(model.head).__name__}"
        vit3d.leave_out_head(converted, TRANSFORMERS_NAMES, reason)
    elif "head.fc_norm.weight" in converted.tensors:
        # transformers uses the default 1e-5 here, the original 1e-6
        converted.requires |= {"encoder.final_norm": False, "head.pool": "mean", "head.norm": True}
        converted.requires["head.norm_eps"] = vit3d.one_of(model.head.norm_eps, (1e-6, 1e-5))
    elif "head.linear.weight" in converted.tensors and "encoder.norm.weight" in converted.tensors:
        converted.requires |= {"encoder.final_norm": True, "head.pool": "first", "head.norm": False}
    leave_out_norm(converted, model, f"{BASE_PREFIX}layernorm")


def current(name: str) -> str:
    """Converts the name of a bias in transformers' files to that in its models; other names stay."""
    for old, new in BIASES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _revert_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the names in files of the hub and of `save_pretrained`."""
    converted = vit3d.split(TRANSFORMERS_NAMES.revert(tensors), "attention.qkv", PARTS, no_bias=(KEYS,))
    of_head = ("fc_norm.", "classifier.")
    return {
        name if name.startswith(of_head) else BASE_PREFIX + name: tensor
        for name, tensor in zip(map(saved, converted), converted.values(), strict=True)
    }


def saved(name: str) -> str:
    """The reverse of `current`."""
    for old, new in BIASES.items():
        if name.endswith(new):
            return name.removesuffix(new) + old
    return name


VIDEOMAE_TRANSFORMERS = Format(
    name="VideoMAE, transformers",
    encoder=ViT3D,
    models="model=videomae_base, or another videomae_*",
    recognizes=_is_transformers,
    convert=_convert_transformers,
    revert=_revert_transformers,
)
