"""MViT as PySlowFast and PyTorchVideo save it, such as MVIT_B_16x4.pyth: torchvision's modules by other names.

Read from slowfast/models/video_model_builder.py and attention.py, and from PyTorchVideo's vision_transformers.py.
PySlowFast has queries, keys and values in one layer, PyTorchVideo in three; either is read in both.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.torchvision_video import TorchvisionMViT
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights
from vidtrain.models.weights.formats.torchvision import TORCHVISION_MVIT
from vidtrain.models.weights.formats.vit3d import join, split

WRAPPER = re.compile(r"^(?:model_state\.|state_dict\.|model\.|module\.)+")
PARTS = ("q", "k", "v")
TOKENS = ("class_token", "class_pos")  # [d], and there [1 1 d]; other positions are [n d], and there [1 n d]
BLOCK = [
    *((f"attn.pool_{part}", f"attn.pool_{part}.pool") for part in PARTS),
    *((f"attn.norm_{part}", f"attn.pool_{part}.norm_act.0") for part in PARTS),
    ("attn.proj", "attn.project.0"),
    ("mlp.fc1", "mlp.0"),
    ("mlp.fc2", "mlp.3"),
    ("proj", "project"),
    *((name, name) for name in ("norm1", "norm2", "attn")),
]


def _names(stem: str, token: str, norm: str, head: str) -> Renaming:
    """To torchvision's names; `token` stands before the class token and positions."""
    pairs = [(f"blocks.{{n}}.{theirs}", f"blocks.{{n}}.{ours}") for theirs, ours in BLOCK]
    pairs += [(stem, "conv_proj"), (norm, "norm"), (head, "head.1")]
    pairs.append((f"{token}cls_token", "pos_encoding.class_token"))
    tables = {"spatial": "spatial_pos", "temporal": "temporal_pos", "class": "class_pos"}
    pairs += [(f"{token}pos_embed_{theirs}", f"pos_encoding.{torchs}") for theirs, torchs in tables.items()]
    return Renaming(pairs)


@dataclass(frozen=True)
class Publisher:
    """How one of the two writes MViT."""

    names: Renaming
    anchor: str  # a tensor that the other does not have
    apart: bool  # queries, keys and values in a layer each

    def recognizes(self, weights: Weights) -> bool:
        there = {WRAPPER.sub("", name) for name in weights.tensors}
        return {self.anchor, "blocks.1.attn.pool_q.weight", "blocks.1.attn.norm_q.weight"} <= there

    def convert(self, weights: Weights, model: EncoderWithHead) -> Converted:
        bare = {WRAPPER.sub("", name): each for name, each in weights.tensors.items()}
        tensors = join(bare, "qkv", PARTS)
        renamed, unexpected = {}, []
        for name, tensor in tensors.items():
            torchs = self.names.to_ours(name)
            if torchs is None:
                unexpected.append(name)
            elif torchs.startswith("pos_encoding."):
                renamed[torchs] = tensor.flatten() if torchs.endswith(TOKENS) else tensor.flatten(0, -2)
            else:
                renamed[torchs] = tensor
        found = TORCHVISION_MVIT.convert(replace(weights, tensors=renamed), model)
        found.unexpected += unexpected
        if tensors.keys() != bare.keys():
            joined = (name for name in found.tensors if ".attn.qkv." in name)
            found.changed |= dict.fromkeys(joined, "queries, keys and values joined")
        return found

    def revert(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = TORCHVISION_MVIT.revert(tensors)
        for name in [name for name in found if name.startswith("pos_encoding.")]:
            tensor = found[name]
            found[name] = tensor[None, None] if name.endswith(TOKENS) else tensor[None]
        found = self.names.revert(found)
        return split(found, "qkv", PARTS) if self.apart else found

    def format(self, name: str) -> Format:
        return Format(
            name,
            TorchvisionMViT,
            "model=mvit_v1_b, or mvit_v2_s for the second version",
            self.recognizes,
            self.convert,
            self.revert,
        )


PYSLOWFAST_MVIT = Publisher(
    _names("patch_embed.proj", "", "norm", "head.projection"), "patch_embed.proj.weight", False
).format("PySlowFast, MViT")
PYTORCHVIDEO_MVIT = Publisher(
    _names("patch_embed.patch_model", "cls_positional_encoding.", "norm_embed", "head.proj"),
    "patch_embed.patch_model.weight",
    True,
).format("PyTorchVideo, MViT")
