"""Heads: formulas, names, initialization, bad input. Parity with transformers is in test_parity.py."""

import math

import pytest
import torch

from vidtrain.errors import UserError
from vidtrain.models.heads import AttentiveClassifier, AttentivePooler, MeanPoolClassifier


def tokens(batch=2, count=10, dim=48) -> torch.Tensor:
    return torch.randn(batch, count, dim, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_cross_attention_formula():
    """The bare cross-attention, one head at a time: softmax(q k / sqrt(d)) v, with no output projection."""
    torch.manual_seed(0)
    pooler, x = AttentivePooler(48, num_heads=4, complete_block=False), tokens()
    attention = pooler.cross_attention_block
    torch.nn.init.normal_(attention.q.weight, std=0.3)
    torch.nn.init.normal_(attention.kv.weight, std=0.3)
    torch.nn.init.normal_(pooler.query_tokens)

    query = attention.q(pooler.query_tokens[0, 0])
    keys, values = attention.kv(x).split(48, dim=-1)
    heads = []
    for head in (slice(0, 12), slice(12, 24), slice(24, 36), slice(36, 48)):
        scores = keys[..., head] @ query[head] / math.sqrt(12)
        heads.append((scores.softmax(dim=1)[..., None] * values[..., head]).sum(dim=1))
    torch.testing.assert_close(pooler(x), torch.cat(heads, dim=-1), atol=1e-5, rtol=0)


def test_names_are_the_original_ones():
    modules = ["norm1", "xattn.q", "xattn.kv", "norm2", "mlp.fc1", "mlp.fc2"]
    modules = [f"pooler.cross_attention_block.{name}" for name in modules]
    modules += [f"pooler.blocks.0.{n}" for n in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")]
    expected = {f"{name}.{kind}" for name in [*modules, "linear"] for kind in ("weight", "bias")}
    state = AttentiveClassifier(48, 7, num_heads=4, depth=2).state_dict()
    assert set(state) == expected | {"pooler.query_tokens"}
    assert state["pooler.query_tokens"].shape == (1, 1, 48)


@pytest.mark.parametrize(("dim", "millions"), [(1024, 49.5), (1408, 93.5)])
def test_size_of_the_released_probes(dim, millions):
    with torch.device("meta"):
        probe = AttentiveClassifier(dim, 174, num_heads=16, depth=4)
    assert round(sum(p.numel() for p in probe.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize(("depth", "divisor"), [(1, math.sqrt(2)), (2, math.sqrt(2)), (4, math.sqrt(6))])
@torch.no_grad()
def test_initialization(depth, divisor):
    torch.manual_seed(0)
    head = AttentiveClassifier(192, 100, num_heads=4, depth=depth)
    cross = head.pooler.cross_attention_block
    assert float(head.pooler.query_tokens.std()) == pytest.approx(0.02, rel=0.2)
    assert float(cross.xattn.kv.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(cross.mlp.fc1.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(cross.mlp.fc2.weight.std()) == pytest.approx(0.02 / divisor, rel=0.05)
    for level, block in enumerate(head.pooler.blocks, start=1):
        assert float(block.attn.proj.weight.std()) == pytest.approx(0.02 / math.sqrt(2 * level), rel=0.05)
    # PyTorch's default for the last layer: uniform within 1 / sqrt(dim)
    assert float(head.linear.weight.std()) == pytest.approx(1 / math.sqrt(3 * 192), rel=0.05)
    assert cross.norm1.eps == 1e-5


@torch.no_grad()
def test_pooling_ignores_the_order_of_tokens():
    head = AttentiveClassifier(48, 7, num_heads=4, depth=3).eval()
    torch.testing.assert_close(head(tokens()), head(tokens().flip(1)), atol=1e-5, rtol=0)


@torch.no_grad()
def test_dropout_lies_between_pooler_and_layer():
    """Half of the pooled channels are left out and the rest doubled, in training alone; no parameter is named anew."""
    torch.manual_seed(0)
    head = AttentiveClassifier(48, 48, num_heads=4, dropout=0.5)
    assert head.state_dict().keys() == AttentiveClassifier(48, 48, num_heads=4).state_dict().keys()
    head.linear.weight.data = torch.eye(48)
    head.linear.bias.data.zero_()
    pooled = head.pooler(tokens())
    kept = head(tokens()) != 0
    assert 30 < kept.sum() < 66  # of 96
    assert not torch.equal(head(tokens()) != 0, kept)  # drawn anew
    torch.manual_seed(1)
    found = head(tokens())
    torch.testing.assert_close(found, torch.where(found != 0, 2 * pooled, 0.0))
    torch.testing.assert_close(head.eval()(tokens()), pooled)


@torch.no_grad()
def test_no_dropout_unless_asked():
    head = AttentiveClassifier(48, 7, num_heads=4)
    assert torch.equal(head(tokens()), head(tokens()))  # in training, too


@torch.no_grad()
def test_mean_pool_formula():
    head = MeanPoolClassifier(48, 7, norm_eps=1e-6, dropout=0.5).eval()
    mean = tokens().mean(dim=1)
    normed = (mean - mean.mean(-1, keepdim=True)) / (mean.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(head(tokens()), normed @ head.linear.weight.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "head",
    [
        AttentiveClassifier(48, 7, num_heads=4, depth=3),
        AttentiveClassifier(48, 7, num_heads=4, complete_block=False),
        MeanPoolClassifier(48, 7),
    ],
    ids=["attentive", "bare", "mean"],
)
def test_gradient_reaches_every_parameter(head):
    head(tokens())[:, :3].sum().backward()
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_activation_checkpointing_gives_equal_gradients():
    plain = AttentiveClassifier(48, 7, num_heads=4, depth=3)
    saving = AttentiveClassifier(48, 7, num_heads=4, depth=3, activation_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    for head in (plain, saving):
        head(tokens()).square().sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_bad_sizes():
    with pytest.raises(UserError, match=r"model\.head\.num_heads=5 .*embed_dim=48; nearest that fit: 4, 6\."):
        AttentivePooler(48, num_heads=5)
    with pytest.raises(UserError, match=r"model\.head\.depth=0 .*the smallest that fits is 1\."):
        AttentivePooler(48, num_heads=4, depth=0)
