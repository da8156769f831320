"""All formats together: each file is taken for what it is, and by one format alone."""

import hydra
import pytest
import torch
from composing import config_of
from omegaconf import OmegaConf

from vidtrain.models.weights import (
    image_models,
    residual_networks,
    torchvision,
    videomae,
    vjepa,
)
from vidtrain.models.weights.format import Weights
from vidtrain.models.weights.loading import FORMATS, recognize

VIT = {"embed_dim": 48, "depth": 2, "num_heads": 2}
MODELS = {
    vjepa.VJEPA_1: ("vjepa1_vitl", VIT, {"num_heads": 2}),
    vjepa.VJEPA_2: ("vjepa2_vitl", VIT, {"num_heads": 2}),
    vjepa.VJEPA_2_1: ("vjepa2_1_vitb", {"embed_dim": 48, "num_heads": 2}, {"num_heads": 2}),
    vjepa.VJEPA_2_TRANSFORMERS: ("vjepa2_vitl", VIT, {"num_heads": 2}),
    videomae.VIDEOMAE: ("videomae_base", VIT, {}),
    videomae.VIDEOMAE_PRETRAINED: ("videomae_base", VIT | {"final_norm": True}, {"norm": False}),
    videomae.VIDEOMAE_TRANSFORMERS: ("videomae_base", VIT, {}),
    torchvision.TORCHVISION_RESNET: ("r3d_18", {}, {}),
    torchvision.TORCHVISION_S3D: ("s3d", {}, {}),
    torchvision.TORCHVISION_MVIT: ("mvit_v2_s", {}, {}),
    torchvision.TORCHVISION_SWIN: ("swin3d_t", {}, {}),
    residual_networks.PYTORCHVIDEO_SLOWFAST: ("slowfast_r50", {"width": 16}, {}),
    residual_networks.PYTORCHVIDEO_SLOW: ("slow_r50", {"width": 16}, {}),
    residual_networks.PYTORCHVIDEO_X3D: ("x3d_s", {"width": 8}, {}),
    residual_networks.PYSLOWFAST_X3D: ("x3d_s", {"width": 8, "norm_first_shortcut": True}, {}),
    residual_networks.PYSLOWFAST: ("slowfast_r50", {"width": 16}, {}),
    residual_networks.PYSLOWFAST_SLOW: ("slow_r50", {"width": 16}, {}),
    torchvision.PYSLOWFAST_MVIT: ("mvit_v1_b", {}, {}),
    torchvision.PYTORCHVIDEO_MVIT: ("mvit_v1_b", {}, {}),
    torchvision.HIERA: ("hiera_b_video", {"embed_dim": 16, "depths": [1, 2, 2, 1]}, {}),
    residual_networks.CLASSY_VISION_RESNEXT3D: ("resnext3d_18", {"stage_planes": 8, "stem_planes": 8}, {}),
    image_models.EFFICIENTNET_LITE: ("efficientnet_lite0", {}, {}),
    image_models.TIMM_VIT: ("vit3d_base_timm", VIT, {}),
    image_models.TIMM_FRAMES: ("timm_frames", {"backbone": "resnet18"}, {}),
}

# What published files hold besides, and are known by
BESIDES = {
    vjepa.VJEPA_1: {"pos_embed": torch.zeros(1, 1568, 48)},
    vjepa.VJEPA_2_1: {"norms_block.0.weight": torch.ones(48)},
}


def build(name: str, encoder: dict, head: dict) -> torch.nn.Module:
    node = config_of("train", f"model={name}", "clip.size=64", "clip.frames=16")
    OmegaConf.set_struct(node, False)
    node.model.encoder.update(encoder)
    node.model.head.update(head)
    return hydra.utils.instantiate(node.model, _convert_="all")(num_classes=3)


@pytest.mark.parametrize("format", MODELS, ids=lambda each: each.name)
def test_what_a_format_writes_is_taken_for_that_format(format):
    model = build(*MODELS[format])
    published = format.revert(model.state_dict()) | (BESIDES[format] if format in BESIDES else {})
    weights = Weights("some file", published)
    assert recognize(weights, model) is format
    kinds = {each.encoder for each in FORMATS if each.recognizes(weights)}
    # an image model may be meant frame by frame or inflated; everything else is of one kind
    assert kinds == {format.encoder} or format in (image_models.TIMM_VIT, image_models.TIMM_FRAMES)


def test_every_format_is_tried_here():
    assert {each.name for each in FORMATS} - {each.name for each in MODELS} == {
        "vidtrain checkpoint",
        vjepa.VJEPA_PROBE.name,
    }
    assert len({each.name for each in FORMATS}) == len(FORMATS)
