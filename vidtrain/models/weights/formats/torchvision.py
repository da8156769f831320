"""torchvision's video weights: by the names of its enums, and as state dicts in files."""

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
    TorchvisionMViT,
    TorchvisionResNet,
    TorchvisionS3D,
    TorchvisionSwin,
)
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights, known
from vidtrain.models.weights.formats.vit3d import fit_separate_positions

MODELS = (
    "r3d_18",
    "r2plus1d_18",
    "mc3_18",
    "s3d",
    "mvit_v1_b",
    "mvit_v2_s",
    "swin3d_t",
    "swin3d_s",
    "swin3d_b",
)
ENUM_NAME = re.compile(r"[a-z]\w*_weights?\.(?!(pt|pth|pyth|bin|safetensors)$)\w+", re.IGNORECASE)
PREFIXES = (
    "",
    "model.",
    "module.",
)  # a state dict, one in a checkpoint of torchvision's training script, of DDP
BIAS_TABLE = "features.0.0.attn.relative_position_bias_table"
RELATIVE = re.compile(r"encoder\.blocks\.\d+\.attn\.rel_pos_[thw]")
SPATIAL, TEMPORAL = "encoder.stem.pos_encoding.spatial_pos", "encoder.stem.pos_encoding.temporal_pos"


def is_enum_name(text: str) -> bool:
    """Whether `text` is written like R3D_18_Weights.KINETICS400_V1; a misspelt one is too, a file's name is not."""
    return ENUM_NAME.fullmatch(text) is not None


def enum_weights(name: str) -> WeightsEnum:
    """The member of torchvision's enums with that name, such as R3D_18_Weights.DEFAULT; nothing is downloaded.

    Raises UserError for a name that is not among those of the models here.
    """
    enums = [get_model_weights(model) for model in MODELS]
    known = {f"{enum.__name__}.{key}": member for enum in enums for key, member in enum.__members__.items()}
    if name not in known:
        spelt = {each.lower(): each for each in known}
        near = [spelt[each] for each in difflib.get_close_matches(name.lower(), spelt, n=3, cutoff=0.7)]
        raise UserError(
            f"pretrained={name} is not among torchvision's weights for the models here; "
            + (f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(known)}.")
        )
    return known[name]


@dataclass(frozen=True)
class Family:
    """What the four families of models differ in."""

    anchors: tuple[str, ...]  # tensors that no other format has: any of them tells it
    renaming: Renaming
    model_name: Callable[
        [Mapping[str, Tensor]], str | None
    ]  # which model of the family; None: it has but one

    def prefix(self, weights: Weights) -> str | None:
        """What stands before every name, or None where these are not weights of the family."""
        found = (
            prefix for prefix in PREFIXES for anchor in self.anchors if prefix + anchor in weights.tensors
        )
        return next(found, None)

    def recognizes(self, weights: Weights) -> bool:
        return self.prefix(weights) is not None

    def convert(self, weights: Weights, model: EncoderWithHead) -> Converted:
        prefix = known(self.prefix(weights))
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in weights.tensors.items()
            if name.startswith(prefix)
        }
        found = self.renaming.convert(tensors)
        found.left_out = {name: "not of the model" for name in weights.tensors if not name.startswith(prefix)}
        for name in [name for name in found.tensors if name.startswith("head.")]:
            if not _takes_head(model):
                found.left_out[f"{prefix}{self.renaming.to_theirs(name)}"] = (
                    "the model's head pools in another way"
                )
                del found.tensors[name]
            elif found.tensors[name].ndim == 5:
                found.tensors[name] = rearrange(found.tensors[name], "k d 1 1 1 -> k d")
                found.changed[name] = "a convolution of one place, as a linear layer"
        tables = model.state_dict()
        for name in [name for name in found.tensors if RELATIVE.fullmatch(name) and name in tables]:
            old, length = found.tensors[name], len(tables[name])
            if len(old) != length:
                found.tensors[name] = fit_relative(old, length)
                found.resized[name] = f"{len(old)} relative positions interpolated to {length}"
        if isinstance(model.encoder, TorchvisionMViT) and {SPATIAL, TEMPORAL} <= found.tensors.keys():
            tables = model.encoder.stem.pos_encoding
            if tables.temporal_pos is not None:  # else another model, which is named elsewhere
                fit_separate_positions(
                    found, SPATIAL, TEMPORAL, (len(tables.temporal_pos), *tables.spatial_size)
                )
        variant = self.model_name(tensors)
        found.requires = {} if variant is None else {"encoder.name": variant}
        return found

    def revert(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = self.renaming.revert(tensors)
        if "classifier.1.weight" in found:
            found["classifier.1.weight"] = rearrange(found["classifier.1.weight"], "k d -> k d 1 1 1")
        return found

    def format(self, name: str, encoder: type[nn.Module], models: str) -> Format:
        return Format(name, encoder, models, self.recognizes, self.convert, self.revert)


def fit_relative(table: Tensor, length: int) -> Tensor:
    """Relative positions [n d] -> [length d], linearly, as MViT itself does for a clip of another size."""
    columns = rearrange(table.float(), "n d -> 1 d n")
    return rearrange(F.interpolate(columns, size=length, mode="linear"), "1 d n -> n d").to(table.dtype)


def _takes_head(model: EncoderWithHead) -> bool:
    """Whether the model's head computes what torchvision's does: mean, dropout and a linear layer, of its tokens."""
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


def _mvit_name(tensors: Mapping[str, Tensor]) -> str:
    return "mvit_v1_b" if "pos_encoding.spatial_pos" in tensors else "mvit_v2_s"


def _only_one(tensors: Mapping[str, Tensor]) -> None:
    return None


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
    model_name=_only_one,
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
    model_name=_mvit_name,
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
TORCHVISION_SWIN = SWIN.format(
    "torchvision, Video Swin", TorchvisionSwin, "model=swin3d_t, swin3d_s or swin3d_b"
)
