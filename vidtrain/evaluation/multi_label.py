"""Metrics of videos that may have several labels, by torchmetrics, from logits judged by a sigmoid.

torchmetrics is imported where it is used: it takes seconds, and a mistake in the configuration is told before.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def from_label_logits(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss and mean average precision of `logits` [v k] and `labels` [v k] of 0 and 1.

    The loss is the mean binary cross-entropy over videos and classes (natural logarithm, no weights, no smoothing).
    `map` is the mean over classes that some video has of the area under its precision-recall curve; `map_micro` takes
    all pairs of video and class as one ranking, and is nan where no video has a label.
    """
    from torchmetrics.functional.classification import binary_average_precision

    truth = labels.long()
    by_class = average_precision(logits, labels)
    found = by_class[~by_class.isnan()]
    micro = binary_average_precision(logits.double().sigmoid().flatten(), truth.flatten())
    return {
        "loss": F.binary_cross_entropy_with_logits(logits.double(), truth.double()).item(),
        "map": found.mean().item(),
        "map_micro": micro.item() if truth.any() else float("nan"),
    }


def average_precision(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each class, float64 [k]; nan for one that no video has. Equal logits are one point of the curve."""
    from torchmetrics.functional.classification import binary_average_precision

    # in double precision a sigmoid keeps the order of logits up to 36
    chances, truth = logits.double().sigmoid(), labels.long()
    found = torch.full((logits.shape[1],), float("nan"), dtype=torch.float64)
    for k in truth.any(dim=0).nonzero().flatten().tolist():
        found[k] = binary_average_precision(chances[:, k], truth[:, k])
    return found


def count_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts int64 [k 2 2] of `logits` and `labels` [v k]: for each class by (has it, is predicted to).

    A label is predicted where its logit is above 0: a probability above 0.5.
    """
    has, predicted = labels.bool(), logits > 0
    cells = ((~has & ~predicted), (~has & predicted), (has & ~predicted), (has & predicted))
    return torch.stack([cell.sum(dim=0) for cell in cells], dim=-1).unflatten(-1, (2, 2))


def from_label_counts(counts: Tensor) -> dict[str, float]:
    """Precision, recall and F1 at a probability of 0.5, of counts [k 2 2] as `count_labels` gives them.

    Micro counts all labels together. Macro is the mean over classes, and leaves out those that are neither present nor
    predicted. A ratio of nothing to nothing is 0.
    """
    counts = counts.double().cpu()
    kept = counts[counts[:, 1, 1] + counts[:, 0, 1] + counts[:, 1, 0] > 0]
    metrics = {}
    for average, each in (("micro", counts.sum(dim=0, keepdim=True)), ("macro", kept)):
        for name, value in zip(("precision", "recall", "f1"), _scores(each), strict=True):
            metrics[f"{name}_{average}"] = value.nan_to_num().mean().item() if len(each) else 0.0
    return metrics


def exact_match(logits: Tensor, labels: Tensor) -> float:
    """The share of videos whose predicted labels are all theirs and no others."""
    return ((logits > 0) == labels.bool()).all(dim=1).double().mean().item()


def per_label(logits: Tensor, labels: Tensor) -> list[dict[str, float | None]]:
    """For each class its support, average precision, precision, recall and F1; null where nothing was to measure."""
    counts = count_labels(logits, labels)
    columns = (average_precision(logits, labels), *_scores(counts.double()))
    return [
        {"support": int(n)}
        | {
            name: None if value.isnan() else value.item()
            for name, value in zip(("ap", "precision", "recall", "f1"), values, strict=True)
        }
        for n, *values in zip(counts[:, 1].sum(dim=-1), *columns, strict=True)
    ]


def _scores(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Precision, recall and F1 [k] of counts [k 2 2]; nan where nothing was there to measure."""
    hits, present, predicted = counts[:, 1, 1], counts[:, 1].sum(-1), counts[:, :, 1].sum(-1)
    return hits / predicted, hits / present, 2 * hits / (present + predicted)
