"""Weights of torchvision's video networks, by the names of its enums or as state dicts in files; MViT of PySlowFast and
PyTorchVideo, which is torchvision's under other names; and Hiera."""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from vidtrain.errors import UserError
from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.heads import FullyConvolutionalClassifier, MeanPoolClassifier
from vidtrain.models.hiera import Hiera
from vidtrain.models.torchvision_video import (
    MVITS,
    RESNETS,
    SWINS,
    TorchvisionMViT,
    TorchvisionResNet,
    TorchvisionS3D,
    TorchvisionSwin,
)
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights, known
from vidtrain.models.weights.vit3d import (
    first_prefix,
    fit_separate_positions,
    join,
    leave_out_head,
    set_aside,
    split,
    under,
)

MODELS = (*RESNETS, "s3d", *MVITS, *SWINS)
ENUM_NAME = re.compile(r"[a-z]\w*_weights?\.(?!(pt|pth|pyth|bin|safetensors)$)\w+", re.IGNORECASE)
# For a state dict, a checkpoint of torchvision's training script, and DDP
PREFIXES = ("", "model.", "module.")
BIAS_TABLE = "features.0.0.attn.relative_position_bias_table"
RELATIVE = re.compile(r"encoder\.blocks\.\d+\.attn\.rel_pos_[thw]")
SPATIAL, TEMPORAL = "encoder.stem.pos_encoding.spatial_pos", "encoder.stem.pos_encoding.temporal_pos"


def is_enum_name(text: str) -> bool:
    """Whether `text` looks like R3D_18_Weights.KINETICS400_V1, also if it is misspelled, and not like a file name."""
    return ENUM_NAME.fullmatch(text) is not None


def enum_weights(name: str) -> WeightsEnum:
    """The member of torchvision's enums with a name such as R3D_18_Weights.DEFAULT; nothing is downloaded. Raises
    UserError for unknown names, and for weights of models that vidtrain does not have."""
    enums = [get_model_weights(model) for model in MODELS]
    known = {f"{enum.__name__}.{key}": member for enum in enums for key, member in enum.__members__.items()}
    if name not in known:
        spelling = {key.lower(): key for key in known}
        near = [spelling[key] for key in difflib.get_close_matches(name.lower(), spelling, n=3, cutoff=0.7)]
        raise UserError(
            f"pretrained={name} is not among torchvision's weights for the models here; "
            + (f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(known)}.")
        )
    return known[name]


@dataclass(frozen=True)
class Family:
    """The differences between the four families of models. A tensor in `anchors` identifies the family, as no other
    format has it. `model_name` returns the model of the family to which tensors belong; None if it has only one."""

    anchors: tuple[str, ...]
    renaming: Renaming
    model_name: Callable[[Mapping[str, Tensor]], str | None]

    def prefix(self, weights: Weights) -> str | None:
        """The prefix of all names; None if the weights do not belong to the family."""
        prefixes = (first_prefix(weights.tensors, PREFIXES, anchor) for anchor in self.anchors)
        return next((prefix for prefix in prefixes if prefix is not None), None)

    def convert(self, weights: Weights, model: EncoderWithHead) -> Converted:
        prefix = known(self.prefix(weights))
        tensors = under(weights.tensors, prefix)
        converted = self.renaming.convert(tensors)
        outside = [name for name in weights.tensors if not name.startswith(prefix)]
        converted.left_out = dict.fromkeys(outside, "not of the model")
        if not _takes_head(model):
            leave_out_head(converted, self.renaming, "the model's head pools in another way", prefix)
        for name, tensor in converted.tensors.items():
            if name.startswith("head.") and tensor.ndim == 5:
                converted.tensors[name] = rearrange(tensor, "k d 1 1 1 -> k d")
                converted.changed[name] = "a 1x1x1 convolution, as a linear layer"
        _fit_positions(converted, model)
        variant = self.model_name(tensors)
        converted.requires = {} if variant is None else {"encoder.name": variant}
        return converted

    def revert(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        reverted = self.renaming.revert(tensors)
        if "classifier.1.weight" in reverted:
            reverted["classifier.1.weight"] = rearrange(reverted["classifier.1.weight"], "k d -> k d 1 1 1")
        return reverted

    def format(self, name: str, encoder: type[nn.Module], models: str) -> Format:
        def recognizes(weights: Weights) -> bool:
            return self.prefix(weights) is not None

        return Format(name, encoder, models, recognizes, self.convert, self.revert)


def _fit_positions(converted: Converted, model: EncoderWithHead) -> None:
    """Fits MViT's positions to the size of the model's clips."""
    own, encoder = model.state_dict(), model.encoder
    for name, table in converted.tensors.items():
        if RELATIVE.fullmatch(name) and name in own and len(table) != len(own[name]):
            converted.tensors[name] = fit_relative(table, len(own[name]))
            how = f"{len(table)} relative positions interpolated to {len(own[name])}"
            converted.resized[name] = how
    if isinstance(encoder, TorchvisionMViT) and {SPATIAL, TEMPORAL} <= converted.tensors.keys():
        tables = encoder.stem.pos_encoding
        if tables.temporal_pos is not None:  # otherwise the model is another one, which is reported elsewhere
            grid = (len(tables.temporal_pos), *tables.spatial_size)
            fit_separate_positions(converted, SPATIAL, TEMPORAL, grid)


def fit_relative(table: Tensor, length: int) -> Tensor:
    """Interpolates relative positions [n d] -> [length d] linearly, as MViT does for clips of another size."""
    columns = rearrange(table.float(), "n d -> 1 d n")
    return rearrange(F.interpolate(columns, size=length, mode="linear"), "1 d n -> n d").to(table.dtype)


def _takes_head(model: EncoderWithHead) -> bool:
    """Whether the model's head computes the same as torchvision's: the mean of the tokens, dropout and a linear
    layer."""
    if isinstance(model.encoder, TorchvisionMViT) and model.encoder.tokens != "class":
        return False
    if isinstance(model.head, MeanPoolClassifier):
        return model.head.pool == "mean" and isinstance(model.head.fc_norm, nn.Identity)
    return isinstance(model.head, FullyConvolutionalClassifier) and isinstance(model.head.hidden, nn.Identity)


def _resnet_name(tensors: Mapping[str, Tensor]) -> str:
    if "layer1.0.conv1.0.0.weight" in tensors:
        return "r2plus1d_18"
    return "r3d_18" if tensors["layer4.1.conv2.0.weight"].shape[2] == 3 else "mc3_18"


def _swin_name(tensors: Mapping[str, Tensor]) -> str:
    if tensors[BIAS_TABLE].shape[1] == 4:  # heads
        return "swin3d_b"
    return "swin3d_s" if "features.4.6.norm1.weight" in tensors else "swin3d_t"


def _same(*modules: str) -> list[tuple[str, str]]:
    return [(module, f"encoder.{module}") for module in modules]


RESNET = Family(
    anchors=("layer4.1.conv2.0.weight", "layer4.1.conv2.0.0.weight"),
    renaming=Renaming([*_same("stem", "layer{n}"), ("fc", "head.linear")]),
    model_name=_resnet_name,
)
S3D = Family(
    anchors=("features.15.branch3.1.0.weight",),
    renaming=Renaming([*_same("features"), ("classifier.1", "head.linear")]),
    model_name=lambda tensors: None,
)
MVIT = Family(
    anchors=("blocks.1.attn.pool_q.pool.weight",),
    renaming=Renaming(
        [
            ("conv_proj", "encoder.stem.conv_proj"),
            ("pos_encoding", "encoder.stem.pos_encoding"),
            *_same("blocks", "norm"),
            ("head.1", "head.linear"),
        ]
    ),
    model_name=lambda tensors: "mvit_v1_b" if "pos_encoding.spatial_pos" in tensors else "mvit_v2_s",
)
SWIN = Family(
    anchors=(BIAS_TABLE,),
    renaming=Renaming([*_same("patch_embed", "features", "norm"), ("head", "head.linear")]),
    model_name=_swin_name,
)

TORCHVISION_RESNET = RESNET.format(
    "torchvision, video ResNet", TorchvisionResNet, "model=r3d_18, r2plus1d_18 or mc3_18"
)
TORCHVISION_S3D = S3D.format("torchvision, S3D", TorchvisionS3D, "model=s3d")
TORCHVISION_MVIT = MVIT.format("torchvision, MViT", TorchvisionMViT, "model=mvit_v1_b or mvit_v2_s")
TORCHVISION_SWIN = SWIN.format("torchvision, Video Swin", TorchvisionSwin, "model=swin3d_t, swin3d_s or swin3d_b")


# --- MViT, from PySlowFast, such as MVIT_B_16x4.pyth, and from PyTorchVideo -----------------------------------
#
# Files are {"model_state": ...}. For names see slowfast/models/video_model_builder.py and attention.py, and
# PyTorchVideo's vision_transformers.py. PySlowFast has queries, keys and values in one layer, PyTorchVideo in three.

WRAPPERS = re.compile(r"^(?:model_state\.|state_dict\.|model\.|module\.)+")


def _unwrapped(weights: Weights) -> dict[str, Tensor]:
    return {WRAPPERS.sub("", name): tensor for name, tensor in weights.tensors.items()}


QKV = ("q", "k", "v")
# shape [d], published as [1 1 d]; other positions are [n d], published as [1 n d]
MVIT_TOKENS = ("class_token", "class_pos")
MVIT_BLOCK = [
    *((f"attn.pool_{part}", f"attn.pool_{part}.pool") for part in QKV),
    *((f"attn.norm_{part}", f"attn.pool_{part}.norm_act.0") for part in QKV),
    ("attn.proj", "attn.project.0"),
    ("mlp.fc1", "mlp.0"),
    ("mlp.fc2", "mlp.3"),
    ("proj", "project"),
    *((name, name) for name in ("norm1", "norm2", "attn")),
]


def _mvit(name: str, stem: str, token: str, norm: str, head: str, apart: bool) -> Format:
    """A format of MViT. `token` is the prefix of the class token and positions; `apart` says whether queries, keys and
    values have separate layers."""
    pairs = [(f"blocks.{{n}}.{theirs}", f"blocks.{{n}}.{ours}") for theirs, ours in MVIT_BLOCK]
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
        tensors = join(bare, "qkv", QKV)
        renamed, unexpected = {}, []
        for own, tensor in tensors.items():
            torchs = names.to_ours(own)
            if torchs is None:
                unexpected.append(own)
            elif torchs.startswith("pos_encoding."):
                renamed[torchs] = tensor.flatten() if torchs.endswith(MVIT_TOKENS) else tensor.flatten(0, -2)
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
            else tensor[None, None] if own.endswith(MVIT_TOKENS) else tensor[None]
            for own, tensor in TORCHVISION_MVIT.revert(tensors).items()
        }  # fmt: skip
        reverted = names.revert(torchs)
        return split(reverted, "qkv", QKV) if apart else reverted

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

# --- Hiera, from facebookresearch/hiera, such as hiera_base_16x224.pth, or model.safetensors from the hub -----
#
# Its weights have another license than its code, CC-BY-NC.

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
HIERA_PRETRAINING = dict.fromkeys(
    ("decoder_", "mask_token", "encoder_norm.", "multi_scale_fusion_heads."), "only used in pretraining"
)
HIERA_HEADS = {96: 1, 112: 2, 144: 2, 256: 4}  # of the first stage, by its width: no tensor shows them
HIERA_ANCHORS = {"patch_embed.proj.weight", "pos_embed_spatial", "pos_embed_temporal", "blocks.0.attn.qkv.weight"}


def _is_hiera(weights: Weights) -> bool:
    names = _unwrapped(weights).keys()
    return names >= HIERA_ANCHORS and "cls_token" not in names


def _convert_hiera(weights: Weights, model: EncoderWithHead) -> Converted:
    tensors, left_out = set_aside(_unwrapped(weights), HIERA_PRETRAINING)
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
    if width in HIERA_HEADS:
        converted.requires["encoder.num_heads"] = HIERA_HEADS[width]
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
