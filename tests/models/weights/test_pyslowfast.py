"""PySlowFast's own files: the same networks as PyTorchVideo's, by the names of slowfast/models."""

import pytest
import torch

from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import FullyConvolutionalClassifier
from vidtrain.models.slowfast import SlowFast, SlowOnly
from vidtrain.models.weights.format import Weights
from vidtrain.models.weights.residual_networks import PYSLOWFAST, PYSLOWFAST_SLOW

# Its names and ours; and how many tensors its models of configs/Kinetics have, counted in their state dicts
NAMES = {
    PYSLOWFAST: {
        "s1.pathway1_stem.conv.weight": "encoder.stem.fast.conv.weight",
        "s1.pathway0_stem.bn.running_mean": "encoder.stem.slow.norm.running_mean",
        "s1_fuse.conv_f2s.weight": "encoder.stages.0.0.fusion.conv.weight",
        "s4_fuse.bn.bias": "encoder.stages.3.0.fusion.norm.bias",
        "s3.pathway1_res0.branch1.weight": "encoder.stages.1.0.fast.shortcut.conv.weight",
        "s3.pathway0_res0.branch1_bn.weight": "encoder.stages.1.0.slow.shortcut.norm.weight",
        "s4.pathway1_res5.branch2.a.weight": "encoder.stages.2.5.fast.branch.conv_a.weight",
        "s5.pathway0_res2.branch2.b_bn.running_var": "encoder.stages.3.2.slow.branch.norm_b.running_var",
        "s2.pathway0_res1.branch2.c_bn.weight": "encoder.stages.0.1.slow.branch.norm_c.weight",
        "head.projection.bias": "head.linear.bias",
    },
    PYSLOWFAST_SLOW: {
        "s1.pathway0_stem.conv.weight": "encoder.stem.conv.weight",
        "s2.pathway0_res0.branch1_bn.bias": "encoder.stages.0.0.shortcut.norm.bias",
        "s5.pathway0_res2.branch2.c.weight": "encoder.stages.3.2.branch.conv_c.weight",
        "head.projection.weight": "head.linear.weight",
    },
}
COUNTS = {PYSLOWFAST: 662, PYSLOWFAST_SLOW: 320}


def model(format) -> VideoClassifier:
    with torch.device("meta"):
        encoder = SlowFast() if format is PYSLOWFAST else SlowOnly()
        return VideoClassifier(encoder, FullyConvolutionalClassifier, 400)


@pytest.mark.parametrize("format", NAMES, ids=lambda each: each.name)
@pytest.mark.parametrize("prefix", ["model_state.", ""])
def test_every_tensor_has_its_name_and_place(format, prefix):
    ours = model(format)
    own = ours.state_dict()
    published = format.revert(own)
    assert len(published) == COUNTS[format]
    assert all(published[theirs] is own[name] for theirs, name in NAMES[format].items())
    weights = Weights("f.pyth", {prefix + name: each for name, each in published.items()})
    assert [each for each in NAMES if each.recognizes(weights)] == [format]
    converted = format.convert(weights, ours)
    assert converted.unexpected == [] and converted.left_out == {}
    assert converted.tensors.keys() == own.keys()
    assert all(converted.tensors[name] is own[name] for name in own)


def test_what_a_file_asks_for_and_what_has_no_place():
    ours = model(PYSLOWFAST)
    published = PYSLOWFAST.revert(ours.state_dict())
    nonlocal_block = {"s3.pathway0_nonlocal1.conv_out.weight": torch.zeros(1)}
    converted = PYSLOWFAST.convert(Weights("f.pyth", published | nonlocal_block), ours)
    assert converted.unexpected == list(nonlocal_block)
    assert converted.requires == {  # configs/Kinetics/SLOWFAST_8x8_R50.yaml
        "encoder.width": 64,
        "encoder.beta_inv": 8,
        "encoder.fusion_ratio": 2,
        "encoder.fusion_kernel": 7,
        "encoder.depth": 50,
        "encoder.alpha": 4,
    }
