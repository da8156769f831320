"""torchvision's video weights, by the names of its enums or as state dicts in files."""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from vidtrain.errors import UserError
from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.heads import FullyConvolutionalClassifier, MeanPoolClassifier
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
from vidtrain.models.weights.vit3d import first_prefix, fit_separate_positions, leave_out_head, under

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
