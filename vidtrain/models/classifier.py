"""From the clips of a video to logits; the same in training and in evaluation."""

from collections.abc import Callable

from einops import rearrange
from torch import Tensor, nn

from vidtrain.errors import UserError
from vidtrain.models.checks import check_choice
from vidtrain.models.positions import Grid

FUSIONS = ("mean_logits", "mean_probs", "joint")
ENCODER_MEMBERS = {
    "embed_dim": "the head, for the width of its input",
    "grid": "the head, heat maps and cached features, for the place of each token",
    "layers": "training, for its learning rates and frozen parts",
    "blocks": "encoder_blocks and layer_decay, as in stage=progressive",
}


class VideoClassifier(nn.Module):
    """Clips [b n c t h w] of normalized floats -> clip logits [b n k], never probabilities.

    `encoder` maps [B c t h w] to tokens [B N d]. It has `embed_dim`; `grid(frames, height, width)`, how many of
    its tokens lie along t, h and w; `layers`, its modules in order of depth, which together hold every
    parameter; and `blocks`, those of them that unfreezing counts. `head(embed_dim=..., num_classes=...)` builds
    the module that maps tokens [B N d] and their grid to logits [B k].

    `fusion` names how one answer for the video comes of its n clips. For mean_logits and mean_probs each
    clip is judged alone, and whoever evaluates takes the mean. For joint the head attends to the tokens of
    all clips together, so there is one row of logits: [b 1 k].

    Raises UserError for an unknown fusion, and for an encoder that lacks one of those four members.
    """

    fusion: str
    num_classes: int
    encoder: nn.Module
    head: nn.Module

    def __init__(
        self,
        encoder: nn.Module,
        head: Callable[..., nn.Module],
        num_classes: int,
        fusion: str = "mean_logits",
    ):
        super().__init__()
        check_choice("model.fusion", fusion, FUSIONS)
        check_encoder(encoder)
        self.encoder = encoder
        self.head = head(embed_dim=encoder.embed_dim, num_classes=num_classes)
        self.fusion = fusion
        self.num_classes = num_classes

    def forward(self, clips: Tensor) -> Tensor:
        return classify(
            self.head, encode(self.encoder, clips), self.encoder.grid(*clips.shape[3:]), self.fusion
        )


def check_encoder(encoder: nn.Module) -> None:
    """Raises UserError where the encoder lacks what the head or the training reads, naming who needs it."""
    missing = [
        f"{name} (needed by {reader})"
        for name, reader in ENCODER_MEMBERS.items()
        if not hasattr(encoder, name)
    ]
    if missing:
        raise UserError(f"model.encoder: {type(encoder).__name__} has no {'; no '.join(missing)}")


def encode(encoder: nn.Module, clips: Tensor) -> Tensor:
    """Clips [b n c t h w] -> tokens [b n m d], each clip by itself."""
    tokens = encoder(rearrange(clips, "b n c t h w -> (b n) c t h w"))
    return rearrange(tokens, "(b n) m d -> b n m d", n=clips.shape[1])


def classify(head: nn.Module, tokens: Tensor, grid: Grid, fusion: str) -> Tensor:
    """Tokens [b n m d] of clips whose tokens lie on `grid` -> clip logits [b n k]; [b 1 k] where fusion is joint."""
    n, (t, h, w) = tokens.shape[1], grid
    if fusion == "joint":  # clips follow each other in time
        tokens = rearrange(tokens, "b n m d -> b (n m) d")
        return rearrange(head(tokens, (n * t, h, w)), "b k -> b 1 k")
    return rearrange(head(rearrange(tokens, "b n m d -> (b n) m d"), grid), "(b n) k -> b n k", n=n)
