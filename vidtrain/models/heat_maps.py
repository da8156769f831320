"""Where in a clip a model's answer comes from: attention of the pooler, and Grad-CAM of what went into the head."""

import math

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from vidtrain.models.attentive import AttentiveClassifier, AttentivePooler, CrossAttentionBlock
from vidtrain.models.classifier import VideoClassifier, classify, encode
from vidtrain.models.positions import Grid
from vidtrain.models.vit3d import ViT3D

KINDS = ("attention", "grad_cam")


def kinds_of(model: nn.Module, frames: int, height: int, width: int) -> tuple[str, ...]:
    """Which of `KINDS` can be drawn of a model on clips of this size, the first to be preferred.

    Attention needs an attentive pooler, Grad-CAM tokens that have a place: a model that gives its head one token, such
    as a class token, has nothing to show. An exported graph gives logits alone.
    """
    if not isinstance(model, VideoClassifier) or math.prod(model.encoder.grid(frames, height, width)) == 1:
        return ()
    return KINDS if isinstance(model.head, AttentiveClassifier) else KINDS[1:]


def tokens_and_logits(model: VideoClassifier, clips: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens [b n m d] of clips [b n c t h w], and the clip logits that `model` gives for them, to the bit."""
    tokens = encode(model.encoder, clips)
    return tokens, classify(model.head, tokens, model.encoder.grid(*clips.shape[3:]), model.fusion)


@torch.no_grad()
def pooler_attention(pooler: AttentivePooler, tokens: Tensor) -> Tensor:
    """How much of its attention the pooler's query gives to each token: [b n d] -> [b n], each row of sum 1.

    softmax(q k^T / sqrt(d)) of the cross-attention, the mean over heads. With `depth` above 1 blocks of self-attention
    come before it, so a weight is then of what a token has gathered from everywhere, at its place.
    """
    for block in pooler.blocks:
        tokens = block(tokens, None)
    last = pooler.cross_attention_block
    if isinstance(last, CrossAttentionBlock):
        tokens, last = last.norm1(tokens), last.xattn
    q = rearrange(last.q(pooler.query_tokens), "1 m (h d) -> h m d", h=last.num_heads)
    k, _ = rearrange(last.kv(tokens), "b n (two h d) -> two b h n d", two=2, h=last.num_heads)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
    return reduce(weights, "b h m n -> b n", "mean")


def attention_map(model: VideoClassifier, tokens: Tensor, grid: Grid) -> Tensor:
    """The pooler's attention over the clips' tokens [b n m d], at their places: float32 [b n t h w].

    Where clips are judged jointly the weights of a video sum to 1 over all of them, else those of each clip.
    """
    assert isinstance(model.head, AttentiveClassifier)
    n, tokens = tokens.shape[1], tokens.float()
    together = "b n m d -> b (n m) d" if model.fusion == "joint" else "b n m d -> (b n) m d"
    weights = pooler_attention(model.head.pooler, rearrange(tokens, together))
    return _at_places(model, weights.reshape(-1, n, tokens.shape[2]), grid)


def grad_cam(model: VideoClassifier, tokens: Tensor, grid: Grid, classes: Tensor) -> Tensor:
    """What speaks for the `classes` [b] in the clips' tokens [b n m d], at their places: float32 [b n t h w], >= 0.

    At each place the gradient of the class's logit times the activation, summed over channels, without what is
    negative. Where the head treats all places alike (mean pooling) that is Grad-CAM (Selvaraju et al. 2017,
    arXiv:1610.02391) on the encoder's last features; elsewhere it is HiResCAM (Draelos and Carin 2020,
    arXiv:2011.08891), which keeps each place's own gradient instead of their mean.
    """
    with torch.enable_grad():
        tokens = tokens.detach().float().requires_grad_()
        logits = classify(model.head, tokens, grid, model.fusion)
        chosen = logits.gather(2, classes[:, None, None].expand(-1, logits.shape[1], 1))
        (gradient,) = torch.autograd.grad(chosen.sum(), tokens)
    return _at_places(model, (gradient * tokens.detach()).sum(dim=-1).relu(), grid)


def _at_places(model: VideoClassifier, values: Tensor, grid: Grid) -> Tensor:
    t, h, w = grid
    # a ViT-3D may give the tokens of several layers, one layer's after another's: each place has one of every layer
    layers = len(model.encoder.out_layers) if isinstance(model.encoder, ViT3D) else 1
    return reduce(values, "b n (l t h w) -> b n t h w", "sum", l=layers, t=t // layers, h=h, w=w).float()
