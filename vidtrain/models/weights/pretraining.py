"""The tensors that only pretraining uses: VideoMAE's decoder, V-JEPA's predictor, and an encoder beside its moving
average. A classifier leaves them out; a masked model loads them, and exports them again.

V-JEPA 2 has ten mask tokens, but trains only the first, for all kinds of masks (its src/utils/wrappers.py counts
lengths of clips, not masks): this one is used for each kind of ours.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vidtrain.errors import UserError
from vidtrain.models.dense_joint_embedding import LEVEL_NORMS, DenseJointEmbedding
from vidtrain.models.masked_models import JointEmbedding, MaskedAutoencoder, MaskedModel, Predictor
from vidtrain.models.vit3d import Block, SelfAttention
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights
from vidtrain.models.weights.videomae import (
    DECODER,
    KEYS,
    PARTS,
    VIDEOMAE_PRETRAINED,
    VIDEOMAE_TRANSFORMERS,
    current,
    join_biases,
    layer_names,
    saved,
    split_biases,
)
from vidtrain.models.weights.vit3d import join, split, under
from vidtrain.models.weights.vjepa import (
    IMAGES,
    JOINED,
    PREDICTOR,
    TRAINED,
    VJEPA_1,
    VJEPA_2,
    VJEPA_2_1,
    VJEPA_2_TRANSFORMERS,
)

AVERAGES = ("target_encoder.", "ema_encoder.")
UNUSED = {  # by the ends of names of a predictor
    "predictor_pos_embed": "the position table follows from the configuration",
    "img_mod_embed": IMAGES["img_mod_embed"],
}
# V-JEPA 1: our buffers -> the part of the file, and the name in it
TABLES_OF_1 = {
    "encoder.pos_embed": ("encoder", "pos_embed"),
    "teacher.pos_embed": ("target_encoder", "pos_embed"),
    "head.table": ("predictor", "predictor_pos_embed"),
}
NORM = "head.norm.weight"
OUTPUTS = ("head.linear.bias", "head.proj.bias")
OF_2_1 = "a predictor of objective=vjepa2_1, from and of the features of several blocks: another kind of head"
NORM_OF_LEVEL = re.compile(r"(encoder|teacher)\.norm\.(\d+)\.(weight|bias)")
FIRST_TOKEN = "the first published mask token, used for all kinds of masks"
HEADS = {192: 3, 384: 6, 512: 8, 640: 8}  # attention heads of VideoMAE's decoders, by width
PREDICTOR_HEADS = {384: 12}
DECODER_NAMES = [
    ("encoder_to_decoder", "head.encoder_to_decoder"),
    ("mask_token", "head.mask_token"),
    ("decoder.norm", "head.norm"),
    ("decoder.head", "head.linear"),
]
ORIGINAL_DECODER = Renaming([*DECODER_NAMES, ("decoder.blocks.{n}", "head.blocks.{n}")])
TRANSFORMERS_DECODER = Renaming([*DECODER_NAMES, *layer_names("decoder.decoder_layers.{n}", "head.blocks.{n}")])
ORIGINAL_PREDICTOR = Renaming(
    [
        ("predictor_embed", "head.embed"),
        ("mask_tokens.{n}", "head.mask_tokens.{n}"),
        ("predictor_blocks.{n}", "head.blocks.{n}"),
        ("predictor_norm", "head.norm"),
        ("predictor_proj", "head.proj"),
        ("predictor_proj_context", "head.proj_context"),  # of V-JEPA 2.1, as the next one
        ("video_mod_embed", "head.video_mod_embed"),
    ]
)
TRANSFORMERS_PREDICTOR = Renaming(
    [
        ("embeddings.predictor_embeddings", "head.embed"),
        ("embeddings.mask_tokens.{n}", "head.mask_tokens.{n}"),
        ("layer.{n}.attention", "head.blocks.{n}.attn"),
        ("layer.{n}", "head.blocks.{n}"),
        ("layernorm", "head.norm"),
        ("proj", "head.proj"),
    ]
)
TOKENS = "embeddings.mask_tokens"
VECTORS = re.compile(r"\.(mask_token|video_mod_embed)")
PREDICTOR_PREFIX = re.compile(r".*?predictor\.(module\.)?(backbone\.)?")


def take_pretraining(weights: Weights, model: Any, format: Format, converted: Converted) -> None:
    """Adds the tensors that only a masked model needs to those that a format has converted: a head with the model's
    sizes, and the encoder beside its average. `converted.left_out` gives reasons for those that do not fit."""
    if not isinstance(model, MaskedModel):
        return
    if isinstance(model, JointEmbedding) and model.momentum < 1 and TRAINED in converted.left_out.values():
        _take_both_encoders(weights, model, format, converted)
    if isinstance(model, DenseJointEmbedding):
        _take_level_norms(converted, model)
    names = [name for name, reason in converted.left_out.items() if reason in (DECODER, PREDICTOR)]
    layout = LAYOUTS.get(format.name)
    if layout is None or type(model) is not layout.network:
        kind = OF_2_1 if format is VJEPA_2_1 else "another kind of head"
        converted.left_out |= dict.fromkeys(names, f"{kind} than {type(model).__name__} has")
        return
    unused = {name: reason for name in names for end, reason in UNUSED.items() if name.endswith(end)}
    converted.left_out |= unused
    names = [name for name in names if name not in unused]
    head = layout.convert({name: weights.tensors[name] for name in names})
    if NORM in head.tensors:
        width = len(head.tensors[NORM])
        heads = weights.config[layout.heads_key] if weights.config is not None else layout.heads.get(width)
        if format is VJEPA_1:  # its predictor has as many heads as the encoder
            heads = model.encoder.num_heads
        take_head(converted, model, head, heads, names)


def take_head(converted: Converted, model: MaskedModel, head: Converted, heads: int | None, names: list[str]) -> None:
    """Adds the tensors of `head`, published as `names`, or a reason in `converted.left_out` if they do not fit."""
    if isinstance(model.head, Predictor):
        _fit_mask_tokens(head, len(model.head.mask_tokens))
    own = {name: tensor.shape for name, tensor in model.state_dict().items() if is_of_head(name)}
    attention = model.head.get_submodule("blocks.0.attn")
    assert isinstance(attention, SelfAttention)
    own_heads = attention.num_heads
    theirs = {name: tensor.shape for name, tensor in head.tensors.items()}
    if head.unexpected or own != theirs or heads not in (None, own_heads):
        kind = type(model.head).__name__.lower()
        sizes = f"a {kind} {_sizes(theirs, heads)}, but the model's is {_sizes(own, own_heads)}"
        reason = f"{sizes}: see objective.{kind}_*"
        converted.left_out |= dict.fromkeys(names, reason)
        return
    for name in names:
        converted.left_out.pop(name, None)
    converted.tensors |= head.tensors
    converted.changed |= head.changed
    if isinstance(model, MaskedAutoencoder):
        converted.requires["encoder.final_norm"] = True


def is_of_head(name: str) -> bool:
    """Whether a tensor is of the published head: norms of the encoder's levels are published with the encoder."""
    return name.startswith("head.") and not name.startswith(LEVEL_NORMS["encoder"])


def _take_level_norms(converted: Converted, model: DenseJointEmbedding) -> None:
    """Renames the norms of levels but the last, which `DenseJointEmbedding` keeps beside its encoders."""
    for name in list(converted.tensors):
        match = NORM_OF_LEVEL.fullmatch(name)
        if match and int(match[2]) in model.blocks[:-1]:
            converted.tensors[f"{LEVEL_NORMS[match[1]]}{match[2]}.{match[3]}"] = converted.tensors.pop(name)


def _take_both_encoders(weights: Weights, model: Any, format: Format, converted: Converted) -> None:
    """Loads the average into the teacher, and the trained encoder into the encoder."""
    kept = {name: tensor for name, tensor in weights.tensors.items() if not name.startswith(AVERAGES)}
    trained = format.convert(replace(weights, tensors=kept), model)
    for name in [name for name, reason in converted.left_out.items() if reason == TRAINED]:
        del converted.left_out[name]
    average = under(converted.tensors, "encoder.")
    converted.tensors |= {f"teacher.{name}": tensor for name, tensor in average.items()}
    converted.tensors |= {f"encoder.{name}": tensor for name, tensor in under(trained.tensors, "encoder.").items()}


def _fit_mask_tokens(head: Converted, kinds: int) -> None:
    """Gives the head one mask token for each kind of masks."""
    published = [name for name in head.tensors if name.startswith("head.mask_tokens.")]
    first = "head.mask_tokens.0"
    if first in published and len(published) != kinds:
        token = head.tensors[first]
        for name in published:
            del head.tensors[name]
        tokens = {f"head.mask_tokens.{kind}": token for kind in range(kinds)}
        head.tensors |= tokens
        head.changed |= dict.fromkeys(tokens, FIRST_TOKEN)


def _sizes(shapes: Mapping[str, tuple[int, ...]], heads: int | None) -> str:
    """The sizes of a head as text, from the shapes of its tensors."""
    depth = sum(name.endswith(".norm1.weight") for name in shapes)
    outputs = next((shapes[name][0] for name in OUTPUTS if name in shapes), 0)
    return f"of width {shapes[NORM][0]}, {depth} blocks, {heads or '?'} heads and {outputs} outputs"


# --- conversion of the layouts, in both directions ---


def _decoder(tensors: Mapping[str, Tensor]) -> Converted:
    plain = {re.sub(r"^(module|model)\.", "", name): tensor for name, tensor in tensors.items()}
    return _as_vectors(ORIGINAL_DECODER.convert(join_biases(plain)))


def _decoder_transformers(tensors: Mapping[str, Tensor]) -> Converted:
    plain = {current(name): tensor for name, tensor in tensors.items()}
    return _as_vectors(TRANSFORMERS_DECODER.convert(join(plain, "attention.qkv", PARTS, no_bias=(KEYS,))))


def _predictor(tensors: Mapping[str, Tensor]) -> Converted:
    plain = {PREDICTOR_PREFIX.sub("", name, count=1): each for name, each in tensors.items()}
    return _as_vectors(ORIGINAL_PREDICTOR.convert(plain))


def _predictor_transformers(tensors: Mapping[str, Tensor]) -> Converted:
    plain = {PREDICTOR_PREFIX.sub("", name, count=1): each for name, each in tensors.items()}
    plain |= {f"{TOKENS}.{kind}": token for kind, token in enumerate(plain.pop(TOKENS, ()))}
    for whole, parts in JOINED:
        plain = join(plain, whole, parts)
    return _as_vectors(TRANSFORMERS_PREDICTOR.convert(plain))


def _as_vectors(head: Converted) -> Converted:
    """Removes the dimensions of size 1 from mask tokens and the vector of the modality."""
    for name, tensor in head.tensors.items():
        if VECTORS.search(name):
            head.tensors[name] = tensor.flatten()
    return head


def _parts(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the encoder, the head (with its vectors [1 1 d]), and the teacher (with the names of an
    encoder). Norms of levels are those of their encoders."""
    encoder = {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.")}
    encoder |= {f"encoder.norm.{name}": tensor for name, tensor in under(tensors, LEVEL_NORMS["encoder"]).items()}
    head = {
        name: tensor[None, None] if VECTORS.search(name) else tensor
        for name, tensor in tensors.items()
        if is_of_head(name)
    }
    teacher = {f"encoder.{name}": tensor for name, tensor in under(tensors, "teacher.").items()}
    teacher |= {f"encoder.norm.{name}": tensor for name, tensor in under(tensors, LEVEL_NORMS["teacher"]).items()}
    return encoder, head, teacher


def _revert_videomae(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    encoder, head, _ = _parts(tensors)
    return VIDEOMAE_PRETRAINED.revert(encoder) | split_biases(ORIGINAL_DECODER.revert(head))


def _revert_videomae_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    encoder, head, _ = _parts(tensors)
    decoder = split(TRANSFORMERS_DECODER.revert(head), "attention.qkv", PARTS, no_bias=(KEYS,))
    return VIDEOMAE_TRANSFORMERS.revert(encoder) | {saved(name): tensor for name, tensor in decoder.items()}


def _revert_vjepa(tensors: Mapping[str, Tensor], encoders: Format = VJEPA_2) -> dict[str, Tensor]:
    """`encoder`, `predictor` and `target_encoder` of the original checkpoint, with dotted names; `encoders` is the
    format of the first and the last. If the position tables are among the tensors, they are included, as in V-JEPA 1.
    What V-JEPA 2.1 has for images is absent."""
    tables = {ours: tensors[ours].flatten(0, 2)[None] for ours in TABLES_OF_1 if ours in tensors}
    encoder, head, teacher = _parts({name: tensor for name, tensor in tensors.items() if name not in tables})
    parts = {
        "encoder": encoders.revert(encoder),
        "predictor": ORIGINAL_PREDICTOR.revert(head),
        "target_encoder": encoders.revert(teacher),
    }
    for ours, table in tables.items():
        part, name = TABLES_OF_1[ours]
        parts[part][name] = table
    return {f"{part}.module.backbone.{name}": tensor for part, names in parts.items() for name, tensor in names.items()}


def _revert_vjepa_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The predictor, and the teacher as the encoder: transformers has only one."""
    _, head, teacher = _parts(tensors)
    predictor = TRANSFORMERS_PREDICTOR.revert(head)
    tokens = [predictor.pop(f"{TOKENS}.{kind}") for kind in range(sum(name.startswith(TOKENS) for name in predictor))]
    for whole, parts in JOINED:
        predictor = split(predictor, whole, parts)
    predictor[TOKENS] = torch.stack(tokens)
    return VJEPA_2_TRANSFORMERS.revert(teacher) | {f"predictor.{name}": tensor for name, tensor in predictor.items()}


def _videomae_config(model: MaskedAutoencoder) -> dict[str, Any]:
    encoder, head = _sizes_of(model.encoder.blocks), _sizes_of(model.head.blocks)
    return {
        "model_type": "videomae",
        "image_size": model.encoder.image_size,
        "num_frames": model.encoder.num_frames,
        "patch_size": model.encoder.patch_size,
        "tubelet_size": model.encoder.tubelet_size,
        **encoder,
        "hidden_act": "gelu",
        "layer_norm_eps": model.encoder.norm_eps,
        "use_mean_pooling": False,
        "norm_pix_loss": model.norm_pix_loss,
        **{f"decoder_{name}": size for name, size in head.items()},
    }


def _vjepa_config(model: JointEmbedding) -> dict[str, Any]:
    """The content of config.json. Raises `UserError` if frames are not square."""
    side = model.encoder.image_size
    if not isinstance(side, int):
        raise UserError(f"formats: {VJEPA_2_TRANSFORMERS.name} needs square frames, but clip.size is {list(side)}")
    encoder, head = _sizes_of(model.encoder.blocks), _sizes_of(model.head.blocks)
    return {
        "model_type": "vjepa2",
        "crop_size": side,
        "frames_per_clip": model.encoder.num_frames,
        "patch_size": model.encoder.patch_size,
        "tubelet_size": model.encoder.tubelet_size,
        "hidden_act": "gelu",
        "mlp_ratio": encoder.pop("intermediate_size") / encoder["hidden_size"],
        **encoder,
        "layer_norm_eps": model.encoder.norm_eps,
        "pred_mlp_ratio": head.pop("intermediate_size") / head["hidden_size"],
        **{f"pred_{name}": size for name, size in head.items()},
        "pred_num_mask_tokens": len(model.head.mask_tokens),
    }


def _sizes_of(blocks: nn.ModuleList) -> dict[str, int]:
    first = blocks[0]
    assert isinstance(first, Block)
    return {
        "hidden_size": first.attn.proj.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": first.attn.num_heads,
        "intermediate_size": first.mlp.fc1.out_features,
    }


@dataclass(frozen=True)
class Layout:
    """How a published format stores the tensors of pretraining. `convert` converts a published head's tensors to ours,
    and `revert` the state dict of a masked model to all tensors of the original.

    `encoder` is the prefix of the tensors for a file of the encoder alone; for V-JEPA it is the average's. `config`
    returns transformers' config.json without the name of the class. `tables` names buffers that `revert` needs too."""

    network: type[MaskedModel]
    convert: Callable[[Mapping[str, Tensor]], Converted]
    revert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    heads: Mapping[int, int]  # number of attention heads by width, for files without config.json
    heads_key: str = ""  # its key in config.json
    encoder: str | None = None
    config: Callable[[Any], dict[str, Any]] | None = None
    classes: Sequence[str] = ()  # transformers' classes for the whole network and for the encoder alone
    tables: Collection[str] = ()


# by the name of the format
LAYOUTS = {
    VIDEOMAE_PRETRAINED.name: Layout(MaskedAutoencoder, _decoder, _revert_videomae, HEADS, encoder="encoder."),
    VIDEOMAE_TRANSFORMERS.name: Layout(
        MaskedAutoencoder,
        _decoder_transformers,
        _revert_videomae_transformers,
        HEADS,
        "decoder_num_attention_heads",
        "videomae.",
        _videomae_config,
        ("VideoMAEForPreTraining", "VideoMAEModel"),
    ),
    VJEPA_1.name: Layout(JointEmbedding, _predictor, _revert_vjepa, {}, encoder=AVERAGES[0], tables=TABLES_OF_1),
    VJEPA_2.name: Layout(JointEmbedding, _predictor, _revert_vjepa, PREDICTOR_HEADS, encoder=AVERAGES[0]),
    VJEPA_2_1.name: Layout(
        DenseJointEmbedding,
        _predictor,
        partial(_revert_vjepa, encoders=VJEPA_2_1),
        PREDICTOR_HEADS,
        encoder=AVERAGES[0],
    ),
    VJEPA_2_TRANSFORMERS.name: Layout(
        JointEmbedding,
        _predictor_transformers,
        _revert_vjepa_transformers,
        PREDICTOR_HEADS,
        "pred_num_attention_heads",
        config=_vjepa_config,
        classes=("VJEPA2Model",),
    ),
}


def layout_of(model: MaskedModel, transformers: bool) -> str:
    """The name of the format for this kind of network; it may still not support the network's settings. Raises
    UserError if transformers has none."""
    if isinstance(model, MaskedAutoencoder):
        return (VIDEOMAE_TRANSFORMERS if transformers else VIDEOMAE_PRETRAINED).name
    if transformers and isinstance(model, DenseJointEmbedding):
        raise UserError("formats: transformers has no layout for V-JEPA 2.1: set formats=[original]")
    if transformers:
        return VJEPA_2_TRANSFORMERS.name
    if isinstance(model, DenseJointEmbedding):
        return VJEPA_2_1.name
    return (VJEPA_1 if model.encoder.positions.startswith("sincos") else VJEPA_2).name
