"""Heads of one linear layer: what they average, what they refuse."""

from functools import partial

import pytest
import torch
from torch import nn

from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import FullyConvolutionalClassifier, MeanPoolClassifier


def tokens(grid=(2, 3, 4), dim=6) -> torch.Tensor:
    t, h, w = grid
    return torch.randn(2, t * h * w, dim, generator=torch.Generator().manual_seed(0))


def test_the_mean_of_the_tokens_through_one_layer():
    head = MeanPoolClassifier(2, 2, norm=False)
    head.linear.weight.data = torch.tensor([[1.0, 0.0], [1.0, -1.0]])
    head.linear.bias.data = torch.tensor([0.5, 0.0])
    found = head(torch.tensor([[[1.0, 2.0], [3.0, 6.0]]]))
    assert found.tolist() == [[2.5, -2.0]]  # the mean is [2, 4]


def test_the_first_token_alone():
    head = MeanPoolClassifier(6, 3, pool="first", norm=False)
    x = tokens()
    changed = torch.cat([x[:, :1], torch.randn_like(x[:, 1:])], dim=1)
    assert torch.equal(head(x), head(changed))
    assert torch.equal(head(x), head.linear(x[:, 0]))
    assert not torch.equal(head(x), MeanPoolClassifier(6, 3, norm=False)(x))


def test_the_norm_lies_between_mean_and_layer():
    head = MeanPoolClassifier(6, 3, norm_eps=1e-3)
    x = tokens()
    expected = nn.functional.linear(
        nn.functional.layer_norm(x.mean(1), (6,), eps=1e-3), head.linear.weight, head.linear.bias
    )
    torch.testing.assert_close(head(x), expected, atol=1e-6, rtol=0)
    assert [name for name, _ in MeanPoolClassifier(6, 3, norm=False).named_parameters()] == [
        "linear.weight",
        "linear.bias",
    ]


@pytest.mark.parametrize("head", [MeanPoolClassifier, FullyConvolutionalClassifier])
def test_dropout_is_of_training_alone(head):
    head = head(6, 3, dropout=0.5)
    head.linear.weight.data.normal_()
    x, grid = tokens(), (2, 3, 4)
    assert not torch.equal(head(x, grid), head(x, grid))
    head.eval()
    assert torch.equal(head(x, grid), head(x, grid))
    assert head.dropout.p == 0.5


@pytest.mark.parametrize("head", [MeanPoolClassifier, FullyConvolutionalClassifier])
def test_the_last_layer_starts_small_and_without_bias(head):
    torch.manual_seed(0)
    layer = head(512, 400).linear
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not layer.bias.any()


def test_windows_are_averaged_before_the_layer_and_logits_after():
    """Four places in a row and windows of two: the inner places lie in two windows, the outer in one."""
    head = FullyConvolutionalClassifier(1, 1, pool_size=(1, 1, 2))
    head.linear.weight.data.fill_(1.0)
    x = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(1, 4, 1)
    assert head(x, (1, 1, 4)).item() == pytest.approx((1.5 + 3 + 6) / 3)
    whole = FullyConvolutionalClassifier(1, 1)
    whole.linear.weight.data.fill_(1.0)
    assert whole(x, (1, 1, 4)).item() == pytest.approx(3.75)


def test_windows_follow_the_order_of_tokens():
    """Against a pooling and a convolution of one place, as torchvision's S3D writes it."""
    torch.manual_seed(0)
    grid = (3, 4, 5)
    head = FullyConvolutionalClassifier(6, 7, pool_size=[2, 3, 2])
    conv = nn.Conv3d(6, 7, 1)
    conv.weight.data = head.linear.weight.data[:, :, None, None, None]
    conv.bias.data = head.linear.bias.data.normal_()
    x = tokens(grid)
    features = x.transpose(1, 2).unflatten(2, grid)
    expected = conv(nn.AvgPool3d((2, 3, 2), stride=1)(features)).mean(dim=(2, 3, 4))
    torch.testing.assert_close(head(x, grid), expected, atol=1e-6, rtol=0)


def test_a_window_of_the_whole_grid_is_the_mean():
    head = FullyConvolutionalClassifier(6, 3, pool_size=(2, 3, 4))
    mean = MeanPoolClassifier(6, 3, norm=False)
    mean.load_state_dict(head.state_dict())
    torch.testing.assert_close(head(tokens(), (2, 3, 4)), mean(tokens()), atol=1e-7, rtol=0)


@pytest.mark.parametrize("pool_size", [(3, 3, 4), (2, 4, 4), (2, 3, 5)])
def test_a_grid_smaller_than_the_window(pool_size):
    head = FullyConvolutionalClassifier(6, 3, pool_size=pool_size)
    said = rf"model\.head\.pool_size=\[{', '.join(map(str, pool_size))}\] is larger than .*\[2, 3, 4\] \(t, h, w\)"
    with pytest.raises(UserError, match=said):
        head(tokens(), (2, 3, 4))


@pytest.mark.parametrize("pool_size", [(2, 7), (2, 0, 7), (1, 2, 3, 4)])
def test_windows_that_are_none(pool_size):
    with pytest.raises(UserError, match=r"model\.head\.pool_size=.* must be three numbers above 0: t, h, w"):
        FullyConvolutionalClassifier(6, 3, pool_size=pool_size)


def test_an_unknown_pool():
    with pytest.raises(UserError, match=r"model\.head\.pool='max' is not known; choose one of mean, first\."):
        MeanPoolClassifier(6, 3, pool="max")


class Places(nn.Module):
    """Every pixel is a token."""

    embed_dim, layers, blocks = 3, (), ()

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        return frames, height, width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(("fusion", "rows"), [("mean_logits", 2), ("mean_probs", 2), ("joint", 1)])
def test_in_a_classifier(fusion, rows):
    head = partial(FullyConvolutionalClassifier, pool_size=(2, 2, 2))
    model = VideoClassifier(Places(), head, num_classes=4, fusion=fusion)
    clips = torch.randn(3, 2, 3, 2, 4, 5)
    assert model(clips).shape == (3, rows, 4)
    if fusion == "joint":  # the clips in a row, so a window may reach from one into the next
        assert torch.equal(model(clips)[:, 0], model.head(model.encoder(torch.cat([*clips.unbind(1)], 2)), (4, 4, 5)))
