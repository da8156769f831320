"""The same transformer from this project and from transformers, on the same weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEModel, VJEPA2Config, VJEPA2Model

from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import MeanPoolClassifier
from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights.format import Weights
from vidtrain.models.weights.loading import check_settings, place, recognize

WIDTHS = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


@dataclass(frozen=True)
class Contender:
    """An encoder and how a clip [b c t h w] becomes its tokens [b n d]."""

    name: str
    family: str
    module: nn.Module
    tokens: Callable[[nn.Module, Tensor], Tensor]


def ours(family: str, size: str, frames: int, image: int, checkpointing: bool = False) -> nn.Module:
    """ViT-3D set up as the family's published models are; for VideoMAE without a last norm, as transformers' is."""
    dim, depth, heads = WIDTHS[size]
    videomae = family == "VideoMAE"
    return ViT3D(
        image_size=image,
        num_frames=frames,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        positions="sincos_1d" if videomae else "rope",
        norm_eps=1e-12 if videomae else 1e-6,
        final_norm=not videomae,
        activation_checkpointing=checkpointing,
    )


def theirs(family: str, size: str, frames: int, image: int) -> nn.Module:
    dim, depth, heads = WIDTHS[size]
    shared = {
        "hidden_size": dim,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "attn_implementation": "sdpa",
    }
    if family == "VideoMAE":
        config = VideoMAEConfig(
            image_size=image, num_frames=frames, intermediate_size=4 * dim, use_mean_pooling=True, **shared
        )
        return VideoMAEModel(config)
    config = VJEPA2Config(crop_size=image, frames_per_clip=frames, mlp_ratio=4, **shared)
    return VJEPA2Model(config)


def contenders(family: str, size: str, frames: int, image: int) -> list[Contender]:
    """Ours and theirs with equal weights, which the difference of their tokens shows."""
    torch.manual_seed(0)
    peer, mine = theirs(family, size, frames, image), ours(family, size, frames, image)
    model = VideoClassifier(mine, MeanPoolClassifier, num_classes=2)
    weights = Weights(f"transformers' {family}", peer.state_dict(), peer.config.to_dict())
    format = recognize(weights, model)
    converted = format.convert(weights, model)
    check_settings(model, {k: v for k, v in converted.requires.items() if k.startswith("encoder.")}, family)
    place(model, converted, weights.source, format, 0.99)
    return [
        Contender("vidtrain", family, mine, lambda module, clip: module(clip)),
        Contender("transformers", family, peer, _peer_tokens(family)),
    ]


def _peer_tokens(family: str) -> Callable[[nn.Module, Tensor], Tensor]:
    if family == "VideoMAE":
        return lambda module, clip: module(clip.transpose(1, 2)).last_hidden_state
    # its predictor is a part of pretraining and takes no part here
    return lambda module, clip: module(clip.transpose(1, 2), skip_predictor=True).last_hidden_state
