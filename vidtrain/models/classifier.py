"""The classifier that maps the clips of a video to logits, in training and in evaluation."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol, Self

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from vidtrain.errors import UserError, check_choice
from vidtrain.models.positions import Grid

FUSIONS = ("mean_logits", "mean_probs", "joint")
PUBLISHED = ("frames", "frame_step", "fps", "size", "short_side", "interpolation", "mean", "std", "fusion")
ENCODER_MEMBERS = {
    "embed_dim": "the head, for the width of its input",
    "grid": "the head, heat maps and cached features, for the place of each token",
    "layers": "training, for its learning rates and frozen parts",
    "blocks": "encoder_blocks and layer_decay, as in stage=progressive",
}


class Encoder(Protocol):
    """The interface of an encoder: an `nn.Module` that maps clips [B c t h w] to tokens [B N d], with four members."""

    @property
    def embed_dim(self) -> int:
        """The width d of a token."""

    @property
    def layers(self) -> Iterable[nn.Module]:
        """Its modules in order of depth, which together hold every parameter."""

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The layers that unfreezing and layer decay count."""

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Tokens along t, h and w of a clip. Raises UserError for a clip that does not fit."""

    # members of nn.Module that our code uses
    def __call__(self, clips: Tensor, /) -> Tensor: ...
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...
    def eval(self) -> Self: ...


class HeadFactory(Protocol):
    """Builds a head: an `nn.Module` that maps tokens [B N d] and their grid to logits [B k]."""

    def __call__(self, *, embed_dim: int, num_classes: int) -> nn.Module: ...


class EncoderWithHead(nn.Module):
    """A network of an encoder and a head on its tokens. Subclasses define their inputs and outputs."""

    encoder: Encoder
    head: nn.Module


class VideoClassifier(EncoderWithHead):
    """Clips [b n c t h w] of normalized floats -> clip logits [b n k] (not probabilities).

    `fusion` names how the n clips of a video are combined. With mean_logits and mean_probs each clip has its own
    logits, and the evaluation averages them. With joint the head attends to the tokens of all clips together, so there
    is one row of logits: [b 1 k].

    `published` holds the clip settings of the model's published weights, by keys of `PUBLISHED`. This class does not
    use them: they are the defaults of `clip` in the configuration. Raises UserError for an unknown fusion or key, and
    for an encoder that lacks one of the four members.
    """

    fusion: str
    num_classes: int

    def __init__(
        self,
        encoder: Encoder,
        head: HeadFactory,
        num_classes: int,
        fusion: str = "mean_logits",
        published: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        check_choice("model.fusion", fusion, FUSIONS)
        for key in published or ():
            check_choice("model.published", key, PUBLISHED)
        check_encoder(encoder)
        self.encoder = encoder
        self.head = head(embed_dim=encoder.embed_dim, num_classes=num_classes)
        self.fusion = fusion
        self.num_classes = num_classes

    def forward(self, clips: Tensor) -> Tensor:
        return classify(self.head, encode(self.encoder, clips), self.encoder.grid(*clips.shape[3:]), self.fusion)


def check_encoder(encoder: object) -> None:
    """Raises UserError if the encoder lacks a member of `Encoder`, naming where it is needed."""
    missing = [f"{name} (needed by {reader})" for name, reader in ENCODER_MEMBERS.items() if not hasattr(encoder, name)]
    if missing:
        raise UserError(f"model.encoder: {type(encoder).__name__} has no {'; no '.join(missing)}")


def encode(encoder: Encoder, clips: Tensor) -> Tensor:
    """Clips [b n c t h w] -> tokens [b n m d], each clip by itself."""
    tokens = encoder(rearrange(clips, "b n c t h w -> (b n) c t h w"))
    return rearrange(tokens, "(b n) m d -> b n m d", n=clips.shape[1])


def classify(head: nn.Module, tokens: Tensor, grid: Grid, fusion: str) -> Tensor:
    """Tokens [b n m d] of clips, which lie on `grid`, -> clip logits [b n k]; [b 1 k] if fusion is joint."""
    n, (t, h, w) = tokens.shape[1], grid
    if fusion == "joint":  # clips follow each other in time
        tokens = rearrange(tokens, "b n m d -> b (n m) d")
        return rearrange(head(tokens, (n * t, h, w)), "b k -> b 1 k")
    return rearrange(head(rearrange(tokens, "b n m d -> (b n) m d"), grid), "(b n) k -> b n k", n=n)


class ManyHeads(EncoderWithHead):
    """Clips [b n c t h w] -> the concatenated clip logits [b n (h k)] of h heads.

    The encoder of `model` must be frozen: it runs once for each clip, without gradients. With a `grid` it does not run:
    the input then is tokens [b n m d], which lie on that grid. Each head gets the same input as the head of `model`
    would, and the same fusion.
    """

    head: nn.ModuleList

    def __init__(self, model: VideoClassifier, heads: Sequence[nn.Module], grid: Grid | None = None):
        super().__init__()
        self.encoder = model.encoder
        self.head = nn.ModuleList(heads)
        self.fusion = model.fusion
        self.num_classes = model.num_classes
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        tokens, grid = x, self.grid
        if grid is None:
            grid = self.encoder.grid(*x.shape[3:])
            with torch.no_grad():
                tokens = encode(self.encoder, x)
        return torch.cat([classify(head, tokens, grid, self.fusion) for head in self.head], dim=-1)


def recompute_activations(blocks: Iterable[nn.Module]) -> None:
    """Enables activation checkpointing: only the inputs of each block are kept, and its forward pass runs again in the
    backward pass. Names of parameters and results stay the same; batch norms update statistics in the first pass
    only."""
    for block in blocks:
        # a partial can be copied and pickled with the block; a closure cannot
        block.forward = partial(_recomputed, block)


def _recomputed(block: nn.Module, *inputs, **named):
    forward = type(block).forward
    if not torch.is_grad_enabled():
        return forward(block, *inputs, **named)
    if torch.compiler.is_compiling():  # accepts no contexts, and updates statistics only once anyway
        return checkpoint(forward, block, *inputs, use_reentrant=False, **named)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        """The contexts of the first and the second forward pass."""
        return nullcontext(), _statistics_held(block)

    return checkpoint(forward, block, *inputs, use_reentrant=False, context_fn=contexts, **named)


@contextmanager
def _statistics_held(block: nn.Module) -> Iterator[None]:
    """A context in which batch norms update copies of their statistics, which are then dropped. If they had no
    statistics at all, they would save fewer tensors than in the first pass, which checkpointing does not allow."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    buffers = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in buffers:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in buffers:
            setattr(norm, name, buffer)


# --- an adapter for any network ---
#
# Any module that maps clips to logits can be trained, resumed, evaluated and exported like other models: the encoder
# returns the pixels, and the module is the head. It has no blocks, so it trains as a whole, at the head's learning
# rate. Its features cannot be cached, as they would be the pixels.


class Pixels(nn.Module):
    """An encoder without parameters: each pixel of a clip [b c t h w] is a token, [b (t h w) c]."""

    def __init__(self, in_channels: int = 3):
        super().__init__()
        self.embed_dim = in_channels
        self.blocks: list[nn.Module] = []
        self.layers: list[nn.Module] = []

    def grid(self, frames: int, height: int, width: int) -> Grid:
        return frames, height, width

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(x, "b c t h w -> b (t h w) c")


class WholeModule(nn.Module):
    """The head for `Pixels`: reassembles clips [b c t h w], which `net(num_classes=...)` maps to logits."""

    def __init__(self, embed_dim: int, num_classes: int, net: Callable[..., nn.Module]):
        super().__init__()
        self.net = net(num_classes=num_classes)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        t, h, w = grid
        return self.net(rearrange(tokens, "b (t h w) c -> b c t h w", t=t, h=h, w=w).contiguous())
