"""Recomputing in the backward pass: the same gradients, statistics and randomness, in less memory."""

import copy
import io

import pytest
import torch
from torch import nn

from vidtrain.models.classifier import recompute_activations


class Block(nn.Module):
    """A residual block with everything that a second pass could disturb."""

    def __init__(self, momentum: float | None = 0.1):
        super().__init__()
        self.conv = nn.Conv3d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm3d(4, momentum=momentum)
        self.dropout = nn.Dropout(0.3)
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return x + self.dropout(self.norm(self.conv(x)).relu())


def network(recompute: bool, momentum: float | None = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(momentum) for _ in range(3)))
    if recompute:
        recompute_activations(model)
    return model


def clips() -> torch.Tensor:
    return torch.randn(2, 4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def train(model: nn.Module, steps: int = 3) -> dict[str, torch.Tensor]:
    """Weights, statistics and the last gradients after some steps."""
    torch.manual_seed(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(clips()).square().mean().backward()
        optimizer.step()
    gradients = {f"grad {name}": each.grad for name, each in model.named_parameters() if each.requires_grad}
    return {name: tensor.clone() for name, tensor in model.state_dict().items()} | gradients


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("momentum", [0.1, None])  # None: the mean over all batches so far
def test_training_comes_out_the_same_bit_for_bit(momentum):
    found = train(network(recompute=True, momentum=momentum))
    assert equal(found, train(network(recompute=False, momentum=momentum)))
    assert found["1.norm.num_batches_tracked"] == 3
    assert found["1.norm.running_mean"].abs().sum() > 0


def test_each_block_runs_twice_where_there_is_a_gradient_and_once_where_there_is_none():
    model = network(recompute=True)
    model(clips()).sum().backward()
    assert [block.passes for block in model] == [2, 2, 2]
    with torch.no_grad():
        model(clips())
    assert [block.passes for block in model] == [3, 3, 3]


def test_only_the_inputs_of_blocks_are_kept():
    def saved(model: nn.Module) -> int:
        """Numbers kept for the backward pass."""
        sizes = []
        keep = torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x)
        with keep:
            output = model(clips())
        del output
        return sum(sizes)

    assert saved(network(recompute=True)) == 3 * clips().numel()
    assert saved(network(recompute=False)) > 9 * clips().numel()


def test_frozen_batch_norms_keep_to_their_statistics():
    models = [network(recompute=True), network(recompute=False)]
    for model in models:
        model[0].norm.running_mean.fill_(0.5)
        model[0].eval().requires_grad_(False)
    found, expected = map(train, models)
    assert equal(found, expected)
    assert found["0.norm.num_batches_tracked"] == 0
    assert found["0.norm.running_mean"].tolist() == [0.5] * 4


def test_batch_norms_without_statistics_pass():
    models = [network(recompute=True), network(recompute=False)]
    for model in models:
        model[1].norm = nn.BatchNorm3d(4, track_running_stats=False)
    assert equal(*map(train, models))


def test_evaluation_is_the_same():
    assert torch.equal(network(recompute=True).eval()(clips()), network(recompute=False).eval()(clips()))


def test_names_stay():
    assert network(recompute=True).state_dict().keys() == network(recompute=False).state_dict().keys()


def test_a_copy_uses_its_own_weights():
    model = network(recompute=True)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(other.eval()(clips()), clips())
    assert not torch.equal(model.eval()(clips()), clips())
    assert model[0].passes == other[0].passes == 1
    trained = copy.deepcopy(network(recompute=True))
    assert equal(train(trained), train(network(recompute=False)))


def test_a_pickled_model_comes_back():
    file = io.BytesIO()
    torch.save(network(recompute=True), file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert equal(train(again), train(network(recompute=False)))
    assert [block.passes for block in again] == [6, 6, 6]


class Pooled(nn.Module):
    """Like MViT's blocks: takes and returns a grid beside the tokens."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, tuple[int, int]]:
        return self.linear(x[:, ::2]), (grid[0], grid[1] // 2)


def test_blocks_may_take_and_return_more_than_a_tensor():
    torch.manual_seed(0)
    block = Pooled()
    x = torch.randn(2, 4, 8)
    expected = torch.autograd.grad(block(x, (2, 2))[0].sum(), block.linear.weight)
    recompute_activations([block])
    tokens, grid = block(x, (2, 2))
    assert grid == (2, 1)
    assert torch.equal(torch.autograd.grad(tokens.sum(), block.linear.weight)[0], expected[0])


def test_bfloat16_autocast_is_recomputed_as_it_was():
    models = [network(recompute=True), network(recompute=False)]
    gradients = []
    for model in models:
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(clips()).square().mean()
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(map(torch.equal, *gradients))


def test_a_failing_backward_pass_leaves_the_statistics_in_place():
    model = network(recompute=True)
    output = model(clips())
    statistics = model[0].norm.running_mean
    model[0].conv.weight.data = torch.zeros(1)  # what the second pass cannot use
    with pytest.raises(RuntimeError):
        output.sum().backward()
    assert model[0].norm.running_mean is statistics
