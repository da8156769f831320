"""EfficientNet-Lite's ImageNet weights: the logits of the network that they were published for, and clear refusals."""

from functools import partial
from pathlib import Path

import pytest
import timm
import torch

from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import MeanPoolClassifier
from vidtrain.models.timm_frames import TimmFrames
from vidtrain.models.weights.files import locate, read
from vidtrain.models.weights.format import Weights
from vidtrain.models.weights.image_models import EFFICIENTNET_LITE, VARIANTS
from vidtrain.models.weights.loading import load_pretrained, recognize


def located(name: str) -> Path:
    try:
        return locate(f"package:{name}")
    except UserError as error:
        pytest.skip(str(error))


def video_model(backbone: str, size: int = 32) -> VideoClassifier:
    return VideoClassifier(TimmFrames(backbone, size), partial(MeanPoolClassifier, norm=False), 3).eval()


@pytest.fixture(scope="module")
def small() -> tuple[VideoClassifier, dict[str, torch.Tensor]]:
    """Random weights of timm's smallest variant, by the published names."""
    torch.manual_seed(0)
    ours = video_model("tf_efficientnet_lite0")
    return ours, EFFICIENTNET_LITE.revert(ours.state_dict()) | {"_fc.weight": torch.zeros(1000, 1280)}


@pytest.mark.parametrize(("number", "size"), [(0, 224), (1, 240), (2, 260)])
@torch.no_grad()
def test_logits_equal_those_of_the_published_network(number, size):
    published = pytest.importorskip(
        "efficientnet_lite_pytorch",
        reason="efficientnet-lite-pytorch, the original network, is not installed",
    )
    path = located(f"efficientnet_lite{number}")
    ours = video_model(f"tf_efficientnet_lite{number}", size)
    report = load_pretrained(ours, "raw.pth", path, 1.0)
    theirs = published.EfficientNet.from_name(f"efficientnet-lite{number}").eval()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    expected = theirs(image)
    logits = torch.nn.functional.linear(ours.encoder(image[:, :, None])[:, 0], theirs._fc.weight, theirs._fc.bias)
    assert expected.std() > 1
    assert float((logits - expected).abs().max() / expected.abs().max()) <= 1e-6  # measured: 0 for all three
    assert report.seen == {"mean": [127 / 255] * 3, "std": [128 / 255] * 3, "size": size}
    assert set(report.left_out) == {"_fc.weight", "_fc.bias"} and report.unexpected == report.missing == []


def test_round_trip_with_the_real_weights():
    path = located("efficientnet_lite0")
    weights, ours = read(path, "lite0.pth"), video_model("tf_efficientnet_lite0")
    assert recognize(weights, ours) is EFFICIENTNET_LITE
    reverted = EFFICIENTNET_LITE.revert(EFFICIENTNET_LITE.convert(weights, ours).tensors)
    assert len(reverted) == 294
    assert set(weights.tensors) - set(reverted) == {"_fc.weight", "_fc.bias"}
    assert all(torch.equal(tensor, weights.tensors[name]) for name, tensor in reverted.items())


def test_names_of_the_first_stage_and_of_the_others(small):
    ours, tensors = small
    own = ours.encoder.network.state_dict()
    for theirs, name in {
        "_bn0.weight": "bn1.weight",
        "_blocks.0._bn1.running_mean": "blocks.0.0.bn1.running_mean",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.1._expand_conv.weight": "blocks.1.0.conv_pw.weight",
        "_blocks.2._bn0.bias": "blocks.1.1.bn1.bias",
        "_blocks.15._project_conv.weight": "blocks.6.0.conv_pwl.weight",
        "_conv_head.weight": "conv_head.weight",
    }.items():
        assert tensors[theirs].data_ptr() == own[name].data_ptr(), theirs


@pytest.mark.parametrize(("size", "variant"), VARIANTS.items())
def test_variants_are_those_of_timm(size, variant):
    with torch.device("meta"):
        network = timm.create_model(variant[0], pretrained=False)
    assert size == (sum(map(len, network.blocks)), network.conv_head.in_channels)


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite1", "efficientnet_lite0", "test_resnet"])
def test_another_backbone_is_refused_with_the_one_to_write(small, backbone, tmp_path):
    """timm's efficientnet_lite0 has these very tensors, and pads its convolutions otherwise."""
    torch.save(small[1], tmp_path / "lite0.pth")
    with torch.device("meta"):
        other = video_model(backbone)
    with pytest.raises(UserError, match=rf"model\.encoder\.backbone=tf_efficientnet_lite0 \(it is {backbone}\)"):
        load_pretrained(other, "lite0.pth", tmp_path / "lite0.pth", 1.0)


def test_an_efficientnet_with_squeeze_and_excitation_is_not_recognized(small):
    other = small[1] | {"_blocks.0._se_reduce.weight": torch.zeros(8, 32, 1, 1)}
    assert EFFICIENTNET_LITE.recognizes(Weights("lite0.pth", small[1]))
    assert not EFFICIENTNET_LITE.recognizes(Weights("b0.pth", other))
