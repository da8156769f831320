"""From a VideoClassifier to a graph that other programs run, compared with PyTorch before anyone relies on it.

The files that it is written into: vidtrain.models.export_formats.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vidtrain.errors import UserError, check_choice

INPUTS = ("uint8", "float32")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The largest difference to PyTorch in float32, relative to the largest logit, that rounding in a precision explains
MAX_DIFFERENCE = {"fp32": 1e-3, "bf16": 1e-1, "fp16": 2e-2}
SAMPLES = (
    (1, 1),
    (3, 1),
    (2, 2),
)  # videos and views of the batches that a graph is compared with PyTorch with


class ClipGraph(nn.Module):
    """What is exported: clips [videos views 3 t h w] -> clip logits [videos views k] and probabilities [videos k].

    With `input="uint8"` the graph divides by 255 and normalizes by `mean` and `std` (a number a channel) itself; with
    float32 it takes clips that are normalized already. `predict` gives the probabilities of clip logits. Outputs are
    float32 in every `precision`; a model that sees all views jointly gives one row of clip logits.

    Raises UserError for an unknown input or precision.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        predict: Callable[[Tensor], Tensor],
        mean: Sequence[float],
        std: Sequence[float],
        input: str = "uint8",
        precision: str = "fp32",
    ):
        super().__init__()
        check_choice("input", input, INPUTS)
        check_choice("precision", precision, PRECISIONS)
        self.input = input
        self.dtype = PRECISIONS[precision]
        self.model = model.eval().to(self.dtype)
        self.predict = predict
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1, 1))

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        if self.input == "uint8":
            clips = (clips.float() / 255 - self.mean) / self.std
        logits = self.model(clips.to(self.dtype)).float()
        return logits, self.predict(logits)


@dataclass(frozen=True)
class Difference:
    """How far an exported graph is from PyTorch in float32 on random clips, over all of `SAMPLES`.

    `relative` is the largest difference of a clip logit divided by the largest logit, `absolute` the same undivided,
    `probability` the largest difference of a probability; `equal_top1` is the share of videos with equal answers.
    """

    relative: float
    absolute: float
    probability: float
    equal_top1: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"differs from PyTorch by {self.relative:.1e} of the largest logit at most ({self.absolute:.1e}; "
            f"probabilities by {self.probability:.1e}), {self.equal_top1:.0%} of answers equal"
        )


def random_clips(graph: ClipGraph, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Clips of the given shape as `graph` takes them: every value equally likely, the same for a seed."""
    pixels = torch.randint(0, 256, tuple(shape), generator=torch.Generator().manual_seed(seed)).byte()
    return pixels if graph.input == "uint8" else (pixels.float() / 255 - graph.mean) / graph.std


@torch.no_grad()
def reference_outputs(graph: ClipGraph, clip_shape: Sequence[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(clips, clip logits, probabilities) of PyTorch for each of `SAMPLES`; `clip_shape` is (t, h, w).

    Take them of the graph in fp32, so that what another precision costs shows in the difference.
    """
    batches = [random_clips(graph, (*sample, 3, *clip_shape)) for sample in SAMPLES]
    return [(clips, *graph(clips)) for clips in batches]


def difference(
    run: Callable[[Tensor], tuple[Tensor, Tensor]], expected: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> Difference:
    """Holds what `run` gives for the clips of `reference_outputs` against what PyTorch gave."""
    logits, chances, largest, equal, videos = 0.0, 0.0, 0.0, 0, 0
    for clips, own_logits, own_chances in expected:
        found_logits, found_chances = run(clips)
        if found_logits.shape != own_logits.shape or not bool(found_logits.isfinite().all()):
            raise UserError(
                f"for clips {list(clips.shape)} the exported graph gives {list(found_logits.shape)}, where PyTorch "
                f"gives {list(own_logits.shape)}, or values that are not finite"
            )
        logits = max(logits, float((found_logits - own_logits).abs().max()))
        chances = max(chances, float((found_chances - own_chances).abs().max()))
        largest = max(largest, float(own_logits.abs().max()))
        equal += int((found_chances.argmax(dim=-1) == own_chances.argmax(dim=-1)).sum())
        videos += len(own_chances)
    return Difference(logits / max(largest, 1e-12), logits, chances, equal / videos)


def check_difference(found: Difference, what: str, limit: float) -> None:
    """Raises UserError for a graph that does not compute what the model does."""
    if not found.relative <= limit:
        raise UserError(
            f"{what} {found}, more than max_difference={limit:g} allows; nothing should rely on it. Export in a higher "
            "precision, or say max_difference= if that is good enough"
        )


@torch.no_grad()
def trace(graph: ClipGraph, clip_shape: Sequence[int]) -> ExportedProgram:
    """The program of a graph for any number of videos and views of clips (t, h, w); without gradients, so activations
    are never recomputed.

    Raises UserError where the model's code cannot be turned into a graph.
    """
    # sizes that no dimension of a model shares by chance
    example = random_clips(graph, (2, 3, 3, *clip_shape))
    shapes = {"clips": {0: Dim("videos"), 1: Dim("views")}}
    try:
        return torch.export.export(graph, (example,), dynamic_shapes=shapes, strict=False)
    except UserError:
        raise
    except Exception as error:  # the tracer runs the model's code, which may raise anything
        raise UserError(
            f"{type(graph.model.encoder).__name__} cannot be turned into a graph: {first_line(error)}; "
            "formats=[safetensors] needs none"
        ) from error


def first_line(error: BaseException) -> str:
    """What an error of a library says, without what follows."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
